"""A second reading: variants of the text, read by the network within a step of `Reveal`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.reader.rows import put_window
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.types import Query, State

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import View


def read_variants(
  view: View,
  texts: State,
  waiting: Bool[Array, "K B u"],
  level: Float[Array, "K B u"],
) -> tuple[View, Float[Array, "K*B u"]]:
  """(the view of the K variants as K · B rows, variant by variant, with the network's prediction;
  the times that the network read, [K · B, u]).

  The network reads whole rows, without the cache, the guidance and the self-conditioning of the
  loop's reader: K network calls. The memory of the view stays that of the first reading.

  Args:
    view: of the step.
    texts: the windows, [K, B, u, …].
    waiting: the tokens that wait in each variant.
    level: the time at which each token stands in each variant.
  """
  count, query = waiting.shape[0], view.query

  def repeated(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * count), tree)

  def flat(leaf):
    return leaf.reshape(-1, *leaf.shape[2:])

  text = jax.tree.map(flat, texts)
  canvas = repeated(view.canvas)._replace(state=text)
  rows = view._replace(
    canvas=canvas,
    keys=repeated(view.keys),
    waiting=flat(waiting),
    answered=canvas.active,
    level=flat(level),
    total=repeated(view.total),
    step=repeated(view.step),
    recorded=repeated(view.recorded),
  )
  t = view.sampler.times_of(rows)
  t = jnp.where(canvas.active, t, 0.0)
  told = query.told if query.told is None else put_window(repeated(query.told), t, query.start)
  asked = Query(
    state=put_window(repeated(query.state), text, query.start),
    t=put_window(repeated(query.t), t, query.start),
    start=query.start,
    needs=canvas.active,
    batch=repeated(query.batch),
    noise=repeated(query.noise),
    hidden=repeated(query.hidden),
    told=told,
  )
  prediction, _ = WholeRow().read(view.model, view.params, (), asked)
  return rows._replace(query=asked, prediction=prediction), t

"""Pairs of neighbours that are not written: a text that says the same in other words than its
source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, streams
from diffusion_text.sampler.parts import Part
from diffusion_text.types import Model

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import View

NOBODY = -1  # the id of a neighbour that waits or is none


class Neighbours(NamedTuple):
  """Pairs that must not stand one after the other: ids int32 [B, K], -1 where there is none."""

  first: Int[Array, "B K"]
  second: Int[Array, "B K"]


@member
class SourcePairs(Part):
  """Dynamic blocking (arXiv 2010.12885) in any order: where the token s_i of the source is written,
  s_{i+1} is not drawn to the right of it, nor s_{i-1} to the left of it.

  The source is what a row is given: the observed tokens of its window. Of its pairs a share is
  blocked, drawn once for each row. Of two tokens that are committed at one call and are such a
  pair, the less likely one waits on: the likeliest of all is always kept, so that every call ends
  with a token more. The published rule is for writing from left to right, where a call commits one
  token and its right neighbour is not known.

  A token is told the ids that it must not be, two for each position of the window: memory grows
  with the square of the window. Where that is all ids, all are equally likely.
  """

  share: float = option(0.5, "of the source's pairs that are blocked; 1: all", ge=0, le=1)
  free: tuple[int, ...] = option((), "ids of which no pair is blocked: the end of text, marks")

  def check(self, model: Model) -> None:
    """Raises ValueError for a model whose windows do not hold the source."""
    if model.context.unit is not None:
      raise ValueError(
        f"sampler.avoid finds its source within a window, and {type(model.context).__name__} is"
        f" sampled in windows of {model.context.unit}; use a context of whole rows"
      )

  def pairs(self, view: View) -> Neighbours:
    """The pairs that are blocked in each row."""
    canvas = view.canvas
    ids = view.model.process.decode(view.params["process"], canvas.state)
    given = ~canvas.active & (jnp.arange(ids.shape[1]) < canvas.lengths[:, None])
    given &= ~jnp.isin(ids, np.array(self.free, np.int32))
    both = given & _next(given, False) & _same_document(canvas.segment, ids)
    both &= draw_uniform(streams(canvas.keys, "avoided")) < self.share
    return Neighbours(jnp.where(both, ids, NOBODY), jnp.where(both, _next(ids, 0), NOBODY))

  def ids(self, view: View) -> Int[Array, "B u M"]:
    """What each token must not be, beside what is known of its neighbours; -1: nothing."""
    pairs, canvas = self.pairs(view), view.canvas
    known = view.model.process.decode(view.params["process"], canvas.state)
    known = jnp.where(view.waiting, NOBODY - 1, known)
    with_next = _same_document(canvas.segment, known)
    right = jnp.where(with_next, _next(known, NOBODY - 1), NOBODY - 1)
    left = jnp.where(with_next, known, NOBODY - 1)[:, :-1]
    left = jnp.pad(left, ((0, 0), (1, 0)), constant_values=NOBODY - 1)
    after = _where_equal(left, pairs.first, pairs.second)
    before = _where_equal(right, pairs.second, pairs.first)
    return jnp.concatenate([after, before], axis=-1)

  def taken_back(
    self,
    view: View,
    ids: Int[Array, "B u"],
    log_prob: Float[Array, "B u"],
    committed: Bool[Array, "B u"],
  ) -> Bool[Array, "B u"]:
    """True at the less likely of two neighbours that are committed together and are blocked."""
    pairs = self.pairs(view)
    same = (ids[..., None] == pairs.first[:, None]) & (
      _next(ids, NOBODY)[..., None] == pairs.second[:, None]
    )
    both = committed & _next(committed, False) & _same_document(view.canvas.segment, ids)
    wrong = both & jnp.any(same & (pairs.first >= 0)[:, None], axis=-1)
    first_stays = log_prob >= _next(log_prob, 0.0)
    of_first = wrong & ~first_stays
    of_second = jnp.pad((wrong & first_stays)[:, :-1], ((0, 0), (1, 0)))
    return of_first | of_second


def _next(values: Array, last) -> Array:
  """[B, u]: the value of the right neighbour; `last` at the end."""
  return jnp.pad(values[:, 1:], ((0, 0), (0, 1)), constant_values=last)


def _same_document(segment: Int[Array, "B u"] | None, like: Array) -> Bool[Array, "B u"]:
  """True at tokens whose right neighbour is one of the same document."""
  inside = jnp.broadcast_to(jnp.arange(like.shape[1]) < like.shape[1] - 1, like.shape)
  return inside if segment is None else inside & (segment == _next(segment, NOBODY))


def _where_equal(
  neighbour: Int[Array, "B u"], key: Int[Array, "B K"], value: Int[Array, "B K"]
) -> Int[Array, "B u K"]:
  """The values of the pairs whose key is the neighbour's id; -1 elsewhere."""
  return jnp.where(neighbour[..., None] == key[:, None], value[:, None], NOBODY)


AVOIDED = {"source_pairs": SourcePairs}

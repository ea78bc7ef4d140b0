"""A cache that reads the masks whose answers are surest, near known tokens first, and the known
tokens that are attended to most: d2Cache (arXiv 2509.23094, recalled through notes on its code).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import offers
from diffusion_text.core.chunked import map_rows
from diffusion_text.core.numerics import LEAST, differs, flatten_tokens, select, unflatten_tokens
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import During, Reading, refreshed_cost
from diffusion_text.reader.rows import put_window, rows_of, visible_state, whole_memory
from diffusion_text.reader.slots import all_tokens, answered_in_place, is_text, spread_to_window
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query, Rows, State


@runtime_checkable
class RollsOut(Protocol):
  """A network that reads some tokens and says how much each token of the row is attended to."""

  def check_by_layer(self) -> None:
    """Raises ValueError where its options do not allow it."""

  def read_rolled_out(
    self,
    params: Params,
    rows: Rows,
    kept: Any,
    index: Int[Array, "B Q"],
    *,
    memory: Float[Array, "B N D"] | None = None,
  ) -> tuple[Prediction, Any, Float[Array, "B N"]]:
    """(the answers of the tokens at `index`, what is kept, what each token is worth); kept None:
    all tokens are read.
    """


class RolledOut(NamedTuple):
  """The memory of `RollOutCache`.

  Attributes:
    kept: the slots of every layer.
    seen: the state [B, N, …] that each slot is of.
    log_prob: float32 [B, N], of the best token of each mask when it was read last.
    worth: float32 [B, N], the roll-out of the last call.
  """

  kept: Any
  seen: State
  log_prob: Array
  worth: Array


@member
class RollOutCache(Reading):
  """A cache whose calls read `queries` tokens: those that have changed; of the needed masks the
  `masked` ones with the highest probability of the best token at their last read times the density
  of known tokens around; and the fewest known tokens that hold `share` of all attention roll-out.
  What is left of `queries` goes to the next best masks, and then to the next best known tokens.

  Only tokens that were read can be committed. Unlike the published code, rows keep to one number of
  tokens from call to call, are read as a whole every `every` calls, and masks outside of the window
  are read last. The attention of the tokens that are read is computed
  as a matrix, and the roll-out costs queries · N² per layer; neither is counted.
  """

  queries: int = option(..., "tokens that a call reads; 64 for a row of 256 is usual", ge=1)
  masked: int = option(32, "masks that are read before known tokens are", ge=1)
  share: float = option(0.1, "of the roll-out, for the known tokens that are read", ge=0, le=1)
  width: float = option(10.0, "standard deviation of the density, tokens", gt=0)
  every: int = option(
    32, "calls from one read of the whole row to the next; 1 reads whole rows always", ge=1
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for a network that tells no attention."""
    if not offers(model.network, RollsOut):
      raise ValueError(
        "reader.name='roll_out_cache' reads what is attended to, which"
        f" {type(model.network).__name__} does not tell (`read_rolled_out`); use"
        " reader.name='delayed_cache'"
      )
    model.network.check_by_layer()

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """Zeros in the place of what is kept."""

    def asked(params):
      return self._read(model, params, None, query, all_tokens(query))[1]

    kept = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(asked, params)
    )
    nothing = jnp.zeros(query.t.shape)
    return RolledOut(kept, visible_state(query)[0], nothing, nothing)

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, fresh where a token was read; the memory)."""
    state, t = visible_state(query)
    unknown = model.process.has_loss(params["process"], state, t)
    index, kept = all_tokens(query), None
    if not refresh:
      index, kept = self._chosen(unknown, differs(state, memory.seen), memory, query), memory.kept
    answer, kept, worth = self._read(model, params, kept, query, index)
    said = self._best(model, params, answer, unknown, state, t, index)
    prediction, read = spread_to_window(answer, query, index)
    row = jnp.arange(index.shape[0])[:, None]
    log_prob = memory.log_prob.at[row, index].set(said)
    return prediction, RolledOut(kept, select(read, state, memory.seen), log_prob, worth)

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the whole row at a refresh, else of `queries` tokens over the whole row."""
    return refreshed_cost(model, query, during, self.queries)

  def _read(self, model, params, kept, query: Query, index) -> tuple[Prediction, Any, Array]:
    rows = answered_in_place(rows_of(model, params, query), query)
    told = whole_memory(model, params, query)
    return model.network.read_rolled_out(params["network"], rows, kept, index, memory=told)

  def _best(self, model, params, answer, unknown, state, t, index) -> Float[Array, "B Q"]:
    """log p of the best token of the masks that were read; 0 of others."""

    def one(consts, rows):
      head, of_process = consts
      features, state, t = rows
      return jnp.max(model.process.posterior(of_process, state, t, head(features)), axis=-1)

    def at(leaf):
      wide = index.reshape(*index.shape, *(1,) * (leaf.ndim - 2))
      return jnp.take_along_axis(leaf, wide, axis=1)

    rows = flatten_tokens((answer.features, jax.tree.map(at, state), at(t)))
    where = at(unknown)
    consts = (answer.head, params["process"])
    flat = map_rows(one, consts, where.reshape(-1), rows, chunk=model.chunk)
    return unflatten_tokens(flat, where.shape)

  def _chosen(
    self,
    unknown: Bool[Array, "B N"],
    changed: Bool[Array, "B N"],
    memory: RolledOut,
    query: Query,
  ) -> Int[Array, "B Q"]:
    """The places that a call reads, as the class describes them."""
    text = is_text(query)
    changed, known = changed & text, ~unknown & text
    needed = put_window(jnp.zeros(text.shape, bool), query.needs, query.start)
    sure = memory.log_prob + jnp.log(jnp.maximum(self.density(known, text), LEAST))
    masks = needed & unknown & ~changed
    place = jnp.where(masks, _rank(sure, masks), self.masked)
    worth = jnp.where(known & ~changed, memory.worth, 0.0)
    nucleus = _nucleus(worth, self.share) & known & ~changed
    urgency = jnp.where(text, 0, -1) + jnp.where(masks, 1, 0)
    urgency = jnp.where(nucleus, 2, urgency)
    urgency = jnp.where(masks & (place < self.masked), 3, urgency)
    urgency = jnp.where(changed, 4, urgency)
    order = jnp.where(unknown, sure, jnp.log(jnp.maximum(worth, LEAST)))
    most = min(self.queries, text.shape[1])
    return jnp.lexsort((all_tokens(query), -order, -urgency), axis=1)[:, :most]

  def density(self, known: Bool[Array, "B N"], text: Bool[Array, "B N"]) -> Float[Array, "B N"]:
    """The share of known tokens among the text around each place, weighted by a Gaussian of the
    distance."""
    reach = math.ceil(8 * self.width)
    place = np.arange(known.shape[1])
    apart = np.abs(place[:, None] - place)
    near = np.where(apart <= reach, np.exp(-(apart**2) / (2 * self.width**2)), 0.0)
    near = near.astype(np.float32)
    exact = jax.lax.Precision.HIGHEST
    found = jnp.matmul(known.astype(jnp.float32), near, precision=exact)
    return found / jnp.maximum(jnp.matmul(text.astype(jnp.float32), near, precision=exact), LEAST)


def _rank(score: Float[Array, "B N"], among: Bool[Array, "B N"]) -> Int[Array, "B N"]:
  """0, 1, … from the highest score on, among those tokens; the others behind them."""
  order = jnp.argsort(jnp.where(among, -score, jnp.inf), axis=1, stable=True)
  return jnp.argsort(order, axis=1)


def _nucleus(worth: Float[Array, "B N"], share: float) -> Bool[Array, "B N"]:
  """The fewest tokens of each row whose worth adds up to `share` of all."""
  order = jnp.argsort(-worth, axis=1, stable=True)
  falling = jnp.take_along_axis(worth, order, axis=1)
  before = jnp.cumsum(falling, axis=1) - falling
  kept = before < share * jnp.sum(worth, axis=1, keepdims=True)
  return jnp.take_along_axis(kept, jnp.argsort(order, axis=1), axis=1)

"""A cache into which a token goes some calls after it was committed: dKV-Cache (arXiv 2505.15781,
recalled).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from diffusion_text.core.numerics import differs
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import During, Reading, refreshed_cost
from diffusion_text.reader.rows import put_window, visible_state
from diffusion_text.reader.slots import (
  all_tokens,
  empty_cache,
  extended,
  is_text,
  spread_to_window,
)
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query

_LONG = 2**20  # calls between two refreshes, at most, by which the age of a slot counts


class Delayed(NamedTuple):
  """The memory of `DelayedCache`.

  Attributes:
    cache: the slots.
    seen: [B, N, …], the state at the last call, whichever tokens it read.
    times: float32 [B, N], the times at the last call.
    due: int32 [B, N], calls that still are to read the token as it is now.
    written: int32 [B, N], the call that wrote the token's slot, counted from the last refresh.
    call: int32 scalar, calls since the last refresh.
  """

  cache: Any
  seen: Any
  times: Array
  due: Array
  written: Array
  call: Array


@member
class DelayedCache(Reading):
  """A cache in which the keys and values of a token are final `delay` calls after the token was
  committed, until the whole row is read again.

  A call reads `queries` tokens of the row, by urgency: tokens committed at the last `delay` calls,
  needed tokens, neighbours of both (`near`), other unknown tokens, and then the oldest slots. The
  number is fixed, so that one program serves all calls and rows may commit different numbers of
  tokens.

  With `queries` for all tokens that are not final this is dKV-Cache-Decode. With fewer queries some
  unknown tokens keep older keys and values.

  With few queries and `near` it is dKV-Cache-Greedy: the tokens committed last, the next ones, and
  their neighbours. The order must be known before the network is asked: a score that reads no
  logits, such as "random".

  `delay=0` is the ablation in which a token keeps the keys and values that it had as a mask.

  With `moving` it is the cached decoding of hyperschedules (arXiv 2504.06416): along a wave of
  width w that moves by m places per call, `queries` = w + m read the wave and the tokens that it
  has just left. In causal rows (context.name='causal') this is exact without a refresh, as nothing
  changes in front of a settled token.
  """

  queries: int = option(..., "tokens that a call reads, such as half of the row", ge=1)
  every: int = option(
    8, "calls from one read of the whole row to the next; 1 reads whole rows always", ge=1
  )
  delay: int = option(
    1, "calls that still read a token after the call that committed it; then it is cached", ge=0
  )
  moving: bool = option(
    False,
    "whether a token whose time has changed is read like one that was just committed: for the wave"
    " of a hyperschedule, where settled tokens are cached and distant ones are not read",
  )
  near: int = option(
    0,
    "positions on each side of a due or needed token that are read before other unknown tokens; 4"
    " with few queries",
    ge=0,
  )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """An empty cache."""
    nothing = jnp.zeros(query.t.shape, jnp.int32)
    cache, (seen, t) = empty_cache(model, params, query), visible_state(query)
    return Delayed(cache, seen, t, nothing, nothing, jnp.int32(0))

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, fresh where a token was read; the memory)."""
    state, t = visible_state(query)
    changed = differs(state, memory.seen)
    if self.moving:
      changed = changed | (t != memory.times)
    due = jnp.where(changed, self.delay, memory.due)
    index = all_tokens(query)
    if not refresh:
      index = self._chosen(model, params, memory._replace(due=due), query)
    prediction, cache = extended(model, params, memory.cache, query, index)
    prediction, read = spread_to_window(prediction, query, index)
    call = jnp.zeros_like(memory.call) if refresh else memory.call + 1
    due = jnp.zeros_like(due) if refresh else jnp.maximum(due - read, 0)
    written = jnp.where(read, call, memory.written)
    return prediction, Delayed(cache, state, t, due, written, call)

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the whole row at a refresh, else of `queries` tokens over the whole row."""
    return refreshed_cost(model, query, during, self.queries)

  def _chosen(self, model, params, memory: Delayed, query: Query) -> Int[Array, "B Q"]:
    """The positions that a call reads: the most urgent, and of equals those of the oldest slots."""
    positions = query.t.shape[1]
    state, t = visible_state(query)
    unknown = model.process.has_loss(params["process"], state, t)
    due = memory.due > 0
    needed = put_window(jnp.zeros_like(due), query.needs, query.start)
    near = _around(due | needed, self.near)
    urgency = jnp.where(unknown, 1, 0)
    urgency = jnp.where(near, 2, urgency)
    urgency = jnp.where(needed, 3, urgency)
    urgency = jnp.where(due, 4, urgency)
    urgency = jnp.where(is_text(query), urgency, -1)
    age = jnp.minimum(memory.call + 1 - memory.written, _LONG - 1)
    return jax.lax.top_k(urgency * _LONG + age, min(self.queries, positions))[1]


def _around(tokens: Bool[Array, "B N"], places: int) -> Bool[Array, "B N"]:
  """True at the tokens, and up to `places` positions on each side of one."""
  size = 2 * places + 1
  return jax.lax.reduce_window(
    tokens, False, jax.lax.bitwise_or, (1, size), (1, 1), ((0, 0), (places, places))
  )

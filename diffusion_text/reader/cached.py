"""Reading a few tokens at a time: what the network has computed of the others is kept in slots, one
per position.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_text.core.numerics import differs, select
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import NOTHING, During, Reading, read_cost
from diffusion_text.reader.rows import put_window, visible_state
from diffusion_text.reader.slots import (
  all_tokens,
  empty_cache,
  extended,
  spread_to_window,
  window_tokens,
)
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query


@member
class Cached(Reading):
  """The network extends its cache by the tokens that are asked about.

  policy "exact": the window is read at each call, over the windows before it, whose slots are
  final. The tokens are those of `whole_row`, for contexts that finish the text unit by unit.

  policy "some": each call reads `queries` tokens of the row: first those that have changed since
  their slot was written, then those that are needed; what others see of the rest is as old as its
  slot. Every `every` calls the whole row is read. An approximation for bidirectional contexts
  (dKV-Cache, arXiv 2505.15781; Fast-dLLM, arXiv 2505.22618), whose number of queries is fixed so
  that one program serves all calls.
  """

  policy: Literal["exact", "some"] = option("exact", "which tokens are read at a call")
  queries: int = option(0, "tokens that a call reads, with policy 'some'", ge=0)
  every: int = option(
    1, "calls from one read of the whole row to the next, with policy 'some'", ge=1
  )

  def __post_init__(self):
    if self.policy == "exact" and (self.queries or self.every != 1):
      raise ValueError(
        f"policy='exact' reads the window at each call: leave queries={self.queries} and"
        f" every={self.every} at 0 and 1, or use policy='some'"
      )
    if self.policy == "some" and (self.queries < 1 or self.every < 2):
      raise ValueError(
        f"policy='some' needs queries={self.queries} of at least 1 and every={self.every} of at"
        " least 2; 32 and 8 are usual"
      )

  def check(self, model: Model) -> None:
    """Refuses policy 'exact' where nothing is finished before the whole row is."""
    if self.policy == "exact" and model.context.unit is None:
      raise ValueError(
        f"reader.policy='exact' keeps what is finished, and {model.context} finishes the row as a"
        " whole; use reader.name='whole_row', reader.policy='some', or context.name='blocks'"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """(an empty cache, the state that its slots were written for)."""
    cache = empty_cache(model, params, query)
    return cache, (visible_state(query)[0] if self.policy == "some" else ())

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The prediction of the window; with policy 'some', of those of its tokens that were read."""
    if self.policy == "exact":
      prediction, cache = extended(model, params, memory[0], query, window_tokens(query))
      return prediction, (cache, ())
    index = all_tokens(query) if refresh else self._chosen(memory[1], query)
    prediction, cache = extended(model, params, memory[0], query, index)
    prediction, read = spread_to_window(prediction, query, index)
    return prediction, (cache, select(read, visible_state(query)[0], memory[1]))

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The slots of the window, written once more: now the window is clean. A policy that reads the
    whole row again needs none of this.
    """
    if self.policy == "some":
      return memory
    _, cache = extended(model, params, memory[0], query, window_tokens(query))
    return cache, ()

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """Of the window over what stands before it, also once it is finished; or of `queries` tokens
    and of whole rows, over the whole row.
    """
    positions, window_size = query.t.shape[1], query.needs.shape[1]
    if during == "init":
      return NOTHING
    if self.policy == "exact":
      return read_cost(model, window_size, query.start + window_size)
    if during == "finish":
      return NOTHING
    read = positions if during == "refresh" else min(self.queries, positions)
    return read_cost(model, read, positions)

  def _chosen(self, written, query: Query) -> Int[Array, "B Q"]:
    """The tokens that a call reads: those whose slot is stale, then those that are needed, then
    from the left.
    """
    rows, positions = query.t.shape
    state, _ = visible_state(query)
    stale = differs(state, written)
    needed = put_window(jnp.zeros((rows, positions), bool), query.needs, query.start)
    urgency = 2 * stale.astype(jnp.int32) + needed
    _, index = jax.lax.top_k(urgency, min(self.queries, positions))
    return index

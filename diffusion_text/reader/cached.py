"""A cache of keys and values, one slot per position: a call reads a few tokens, which attend to the
slots of all others.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_text.core.numerics import differs, select
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import NOTHING, During, Reading, read_cost, refreshed_cost
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
  """A key-value cache that is exact in blocks, or approximate in bidirectional rows.

  policy "exact": each call reads the window, over the slots of all windows before it, which are
  final. For contexts that finish the text unit by unit; the tokens are those of `whole_row`.

  policy "some": each call reads `queries` tokens of the row: first those that have changed since
  their slot was written, then those that are needed. The slots of all other tokens stay as they
  are. Every `every` calls the whole row is read. An approximation for bidirectional contexts, after
  dKV-Cache (arXiv 2505.15781) and Fast-dLLM (arXiv 2505.22618). The number of queries is fixed, so
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
    """Raises ValueError for policy 'exact' in a context that finishes the row as a whole."""
    if self.policy == "exact" and model.context.unit is None:
      raise ValueError(
        f"reader.policy='exact' keeps what is finished, and {model.context} finishes the row as a"
        " whole; use reader.name='whole_row', reader.policy='some', or context.name='blocks'"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """(an empty cache; with policy 'some' the state [B, N] that its slots are of, else ())."""
    cache = empty_cache(model, params, query)
    return cache, (visible_state(query)[0] if self.policy == "some" else ())

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, fresh where a token was read; the memory)."""
    if self.policy == "exact":
      prediction, cache = extended(model, params, memory[0], query, window_tokens(query))
      return prediction, (cache, ())
    index = all_tokens(query) if refresh else self._chosen(memory[1], query)
    prediction, cache = extended(model, params, memory[0], query, index)
    prediction, read = spread_to_window(prediction, query, index)
    return prediction, (cache, select(read, visible_state(query)[0], memory[1]))

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memory with the slots of the finished window, written from its clean tokens; unchanged
    with policy 'some', whose next refresh writes them.
    """
    if self.policy == "some":
      return memory
    _, cache = extended(model, params, memory[0], query, window_tokens(query))
    return cache, ()

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the whole row or of `queries` tokens, with policy 'some'; with 'exact' of the
    window over all positions up to its end, at each call and once more at "finish".
    """
    if self.policy == "some":
      return refreshed_cost(model, query, during, self.queries)
    window_size = query.needs.shape[1]
    return NOTHING if during == "init" else read_cost(model, window_size, query.start + window_size)

  def _chosen(self, written, query: Query) -> Int[Array, "B Q"]:
    """The positions that a call reads: tokens whose slot is stale, then needed ones, then others,
    each from the left.
    """
    rows, positions = query.t.shape
    state, _ = visible_state(query)
    stale = differs(state, written)
    needed = put_window(jnp.zeros((rows, positions), bool), query.needs, query.start)
    urgency = 2 * stale.astype(jnp.int32) + needed
    _, index = jax.lax.top_k(urgency, min(self.queries, positions))
    return index

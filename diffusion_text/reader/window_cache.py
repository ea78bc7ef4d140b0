"""Caches that are filled by a read of the whole row: later calls read the window alone, or the
window and everything behind it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax.numpy as jnp

from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import NOTHING, During, Reading, read_cost, refreshed_cost
from diffusion_text.reader.slots import (
  ONCE,
  all_tokens,
  cut_to_window,
  empty_cache,
  extended,
  window_tokens,
)
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query


@member
class WindowCache(Reading):
  """Fast-dLLM's dual cache (arXiv 2505.22618): the first call of a window reads the whole row, and
  the others read the window alone, over the keys and values of both sides from that first call.

  A call writes the slots of its tokens before it attends to them. So each call sees what the last
  one has committed, and the first call of the next window sees all of this one. An approximation
  for bidirectional contexts; `block` makes the windows.
  """

  every: int = option(
    ONCE,
    "calls from one read of the whole row to the next within a window, which begins with one; 1"
    " reads whole rows always, the default never again",
    ge=1,
  )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """An empty cache."""
    return empty_cache(model, params, query)

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, the cache)."""
    if refresh:
      prediction, cache = extended(model, params, memory, query, all_tokens(query))
      return cut_to_window(prediction, query), cache
    return extended(model, params, memory, query, window_tokens(query))

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the whole row at a refresh, else of the window over the whole row."""
    return refreshed_cost(model, query, during, query.needs.shape[1])


@member
class SuffixCache(Reading):
  """A cache of the prefix: each call reads the window and everything behind it, over the keys and
  values of the positions before the window.

  prefix "refreshed" is Fast-dLLM's prefix cache (arXiv 2505.22618): the first call of each window
  reads the whole row, and so writes the prefix anew.

  prefix "kept" is FreeCache (arXiv 2505.21467): the whole row is read once, before the first call.
  Prompts are never read again, and a finished window once, to write the tokens of its last call.

  An approximation for bidirectional contexts; `block` makes the windows. Each window is a program
  of its own, as fewer tokens are read from window to window: many short windows take long to
  compile.
  """

  prefix: Literal["refreshed", "kept"] = option(
    "refreshed", "whether the positions before a window are read again when the window begins"
  )
  every: int = option(
    ONCE,
    "calls from one read of the whole row to the next within a window, with prefix 'refreshed'; 1"
    " reads whole rows always, the default never again",
    ge=1,
  )

  unrolls: ClassVar[bool] = True

  def __post_init__(self):
    if self.prefix == "kept" and self.every != ONCE:
      raise ValueError(
        f"prefix='kept' never reads the whole row again: leave every={self.every} unset, or use"
        " prefix='refreshed'"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """A cache: with prefix 'kept' that of the whole row before the first call, else empty."""
    cache = empty_cache(model, params, query)
    if self.prefix == "kept":
      _, cache = extended(model, params, cache, query, all_tokens(query))
    return cache

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, the cache). With prefix 'kept' a row that needs nothing writes
    nothing, so that its slots do not depend on the calls that other rows need.
    """
    first = self._first(query, refresh)
    index = all_tokens(query)[:, first:]
    live = jnp.any(query.needs, axis=1, keepdims=True) if self.prefix == "kept" else None
    prediction, cache = extended(model, params, memory, query, index, live)
    return cut_to_window(prediction, query._replace(start=query.start - first)), cache

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The cache; with prefix 'kept' the slots of the window are written from its final tokens."""
    if self.prefix == "refreshed":
      return memory
    return extended(model, params, memory, query, window_tokens(query))[1]

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the window and everything behind it, over the whole row. With prefix 'kept' also
    of the whole row at "init" and of the window at "finish".
    """
    positions = query.t.shape[1]
    if during in ("refresh", "read"):
      return read_cost(model, positions - self._first(query, during == "refresh"), positions)
    if self.prefix == "refreshed":
      return NOTHING
    return read_cost(model, positions if during == "init" else query.needs.shape[1], positions)

  def _first(self, query: Query, refresh: bool) -> int:
    """The first position that a call reads."""
    return 0 if refresh and self.prefix == "refreshed" else query.start

"""Caches that a window begins by filling: then it is read alone, or with everything behind it."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax.numpy as jnp

from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import NOTHING, During, Reading, read_cost
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
  """Fast-dLLM's dual cache (arXiv 2505.22618): the whole row is read at the start of each window;
  then the window alone, over the slots of all others, on both sides, as they were at that time.

  A token's slot is written by each call that reads it, before it is looked at. So what a call has
  committed is seen by the next, and the last tokens of a window by the read of the whole row that
  begins the next window. An approximation for bidirectional contexts; `block` makes the windows.
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
    """The prediction of the window."""
    if refresh:
      prediction, cache = extended(model, params, memory, query, all_tokens(query))
      return cut_to_window(prediction, query), cache
    return extended(model, params, memory, query, window_tokens(query))

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """Of the whole row, or of the window over the whole row."""
    if during in ("init", "finish"):
      return NOTHING
    positions = query.t.shape[1]
    read = positions if during == "refresh" else query.needs.shape[1]
    return read_cost(model, read, positions)


@member
class SuffixCache(Reading):
  """The window and everything behind it are read at each call, over the slots of what stands
  before.

  prefix "refreshed" is Fast-dLLM's prefix cache (arXiv 2505.22618): each window begins with a read
  of the whole row, which writes what stands before it anew.

  prefix "kept" is FreeCache (arXiv 2505.21467): the whole row is read once, before the first call;
  prompts and finished windows are never read again, but for the one call that writes a window
  when it is finished, as its last tokens have not been read yet.

  An approximation for bidirectional contexts; `block` makes the windows. The number of tokens that
  are read shrinks from window to window, so that each window is a program of its own: many short
  windows take long to compile.
  """

  prefix: Literal["refreshed", "kept"] = option(
    "refreshed", "whether what stands before a window is read again when the window begins"
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
    """A cache: empty, or with the whole row as it is before the first call."""
    cache = empty_cache(model, params, query)
    if self.prefix == "kept":
      _, cache = extended(model, params, cache, query, all_tokens(query))
    return cache

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The prediction of the window. A row that needs nothing writes nothing: what is kept does not
    depend on the calls that others need.
    """
    first = self._first(query, refresh)
    index = all_tokens(query)[:, first:]
    live = jnp.any(query.needs, axis=1, keepdims=True) if self.prefix == "kept" else None
    prediction, cache = extended(model, params, memory, query, index, live)
    return cut_to_window(prediction, query._replace(start=query.start - first)), cache

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The slots of the window, written once more if nothing else will write them."""
    if self.prefix == "refreshed":
      return memory
    return extended(model, params, memory, query, window_tokens(query))[1]

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """Of the window and what stands behind it, over the whole row."""
    positions = query.t.shape[1]
    if during in ("refresh", "read"):
      return read_cost(model, positions - self._first(query, during == "refresh"), positions)
    if self.prefix == "refreshed":
      return NOTHING
    return read_cost(model, positions if during == "init" else query.needs.shape[1], positions)

  def _first(self, query: Query, refresh: bool) -> int:
    """The first position that a call reads."""
    return 0 if refresh and self.prefix == "refreshed" else query.start

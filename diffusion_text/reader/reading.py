"""What most readers are: they ask the network once, keep nothing, and read whole rows."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, Int

from diffusion_text.reader.rows import rows_of
from diffusion_text.types import Cost, Memory, Model, Params, Query

During = Literal["init", "refresh", "read", "finish"]
NOTHING = Cost(0, 0, 0)


class Reading:
  """Defaults for every part of `types.Reader` but `read`, which a subclass writes."""

  calls: ClassVar[int] = 1
  every: ClassVar[int] = 1
  unrolls: ClassVar[bool] = False

  def check(self, model: Model) -> None:
    """Any model can be asked."""

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """(): nothing is remembered."""
    return ()

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memory, unchanged."""
    return memory

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of `calls` readings of the whole row; 0 for "init" and "finish"."""
    if during in ("init", "finish"):
      return NOTHING
    return whole_row_cost(model, params, query).times(self.calls)


class Around(Reading):
  """The parts of a reader that asks another one, its field `reader`, once per read."""

  @property
  def calls(self) -> int:
    """The calls of the reader inside."""
    return self.reader.calls

  @property
  def every(self) -> int:
    """The `every` of the reader inside."""
    return self.reader.every

  @property
  def unrolls(self) -> bool:
    """The `unrolls` of the reader inside."""
    return self.reader.unrolls


def refreshed_cost(model: Model, query: Query, during: During, tokens: int) -> Cost:
  """The cost of a cache that reads the whole row at a refresh and `tokens` positions at every other
  call, each over the keys of the whole row. "init" and "finish" cost nothing.
  """
  if during in ("init", "finish"):
    return NOTHING
  positions = query.t.shape[1]
  return read_cost(model, positions if during == "refresh" else min(tokens, positions), positions)


def whole_row_cost(model: Model, params: Params, query: Query) -> Cost:
  """The cost of a call that reads all L' positions of the row over the keys of all."""
  rows = jax.eval_shape(functools.partial(rows_of, model), params, query)
  return read_cost(model, rows.t.shape[1], rows.t.shape[1])


def read_cost(model: Model, positions: int, keys: Int[Array, ""] | int) -> Cost:
  """The cost of a call that reads `positions` tokens per row, each of which sees `keys` keys."""
  layers = model.network.layers
  return Cost(1, positions * layers, positions * keys * layers)

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
  """The parts of `types.Reader` that a reader need not write; not a reader itself, as it has no
  `read`.
  """

  calls: ClassVar[int] = 1
  every: ClassVar[int] = 1
  unrolls: ClassVar[bool] = False

  def check(self, model: Model) -> None:
    """Any model can be asked."""

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """Nothing."""
    return ()

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """As it is."""
    return memory

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """`calls` readings of the whole row at each read."""
    if during in ("init", "finish"):
      return NOTHING
    return whole_row_cost(model, params, query).times(self.calls)


class Around(Reading):
  """The parts of a reader that asks another one, its field `reader`, once per read."""

  @property
  def calls(self) -> int:
    """Those of the reader inside."""
    return self.reader.calls

  @property
  def every(self) -> int:
    """That of the reader inside."""
    return self.reader.every

  @property
  def unrolls(self) -> bool:
    """Whether the reader inside does."""
    return self.reader.unrolls


def whole_row_cost(model: Model, params: Params, query: Query) -> Cost:
  """The cost of a call that reads all L' positions of the row, each of which sees all."""
  rows = jax.eval_shape(functools.partial(rows_of, model), params, query)
  return read_cost(model, rows.t.shape[1], rows.t.shape[1])


def read_cost(model: Model, positions: int, keys: Int[Array, ""] | int) -> Cost:
  """The cost of a call that reads so many positions, each of which sees so many keys."""
  layers = model.network.layers
  return Cost(1, positions * layers, positions * keys * layers)

"""A timing that is learned: each position of the row falls at a pace of its own.

A learned timing has parameters (`types.LearnedTimes`), and is the timing of their start until `bind_times` gives it others. Its speed
is differentiable in them, its times are not: an objective holds the speed constant in what it costs, and fits it to that cost beside.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.timing.along_row import OneRow, _grid, low_discrepancy
from diffusion_text.types import Array, Batch, Key, LearnedTimes, Params, Progress, Times


@dataclasses.dataclass(frozen=True, eq=False)
class Paced(OneRow):
  """Positions at a pace each, fixed: position i passes the k-th of K even stretches of time in shares[i, k] of the clock.

  shares: float32 [length, K], positive, each row summing to 1; a row of text that is shorter has the first positions.
  """

  shares: Array = dataclasses.field(repr=False)

  def times(self, clock: Array, length: int) -> tuple[Array, Array]:
    """(t, dt/dτ), float32 [..., L], at clock τ [..., 1]; only the speed is differentiable. Raises ValueError for rows that are longer."""
    most, bins = self.shares.shape
    if length > most:
      raise ValueError(
        f"timing 'by_position' has learned {most} positions, and the row has {length}; use rows of at most {most}"
      )
    held, place = jax.lax.stop_gradient(self.shares[:length]), jnp.arange(length)
    ends = jnp.cumsum(held[:, :-1], axis=1)  # [L, K - 1], where on the clock stretches end; the last one ends at 1
    stretch = jnp.sum(clock[..., None] > ends, axis=-1)  # half open, as τ is
    begins = jnp.pad(ends, ((0, 0), (1, 0)))[place, stretch]
    passed = jnp.clip((clock - begins) / held[place, stretch], 0.0, 1.0)
    t = jnp.where(clock == 1, 1.0, (stretch + passed) / bins)
    return t, 1 / (bins * self.shares[place, stretch])

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    t, speed = self.times(low_discrepancy(key, rows, progress)[:, None], length)
    return Times(t, speed, self._layout(length, batch.segment))

  def grid(self, steps: int, length: int) -> Array:
    """The times of each position at an even clock."""
    return self.times(_grid(steps), length)[0].at[-1].set(0.0)


@dataclasses.dataclass(frozen=True)
class ByPosition(OneRow):
  """The adaptive schedule of SeqDiffuSeq (arXiv 2212.10325 section 3.2): one noise schedule per position, such that a step costs the same
  everywhere in it.

  All positions share a clock τ, and position i passes the k-th of `bins` even stretches of time in a share of the clock: floor / bins +
  (1 - floor) softmax(levels_i), so that it falls from 1 to 0 once, and the bound holds, whatever the levels. What a stretch costs does not
  depend on its share, so the bound has no gradient for them; they follow cost · log speed, which is least where shares are as costs.
  Published schedules are interpolated anew every 20,000 steps until the training loss (mse and cross-entropy) rises linearly in time;
  ours move with every step, and what is made even is nats. The network is told the time of each token, not the clock.

  length: positions of a row. Raises ValueError for values out of range.
  """

  length: int
  bins: int = 20
  floor: float = 0.1

  def __post_init__(self):
    if self.bins < 2:
      raise ValueError(f"timing.bins={self.bins} must be at least 2 stretches of time; 20 is usual")
    if not 0 < self.floor <= 1:
      raise ValueError(f"timing.floor={self.floor} must be in (0, 1]; 0.1 leaves a tenth of the clock spread evenly over times")

  def init(self) -> Params:
    """{"levels": float32 [length, bins]}, zeros: every position at the pace of the clock."""
    return {"levels": jnp.zeros((self.length, self.bins), jnp.float32)}

  def bind(self, params: Params) -> Paced:
    """The timing as it stands, differentiable in its parameters where its speed is."""
    return Paced(self.floor / self.bins + (1 - self.floor) * jax.nn.softmax(params["levels"], axis=-1))

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    return self.bind(self.init()).draw(key, batch, progress)

  def grid(self, steps: int, length: int) -> Array:
    """The times at the start of training, the same for all positions."""
    return self.bind(self.init()).grid(steps, length)


def bind_times(thing: Any, params: Params) -> Any:
  """The same object with every learned timing in it, at any depth of its dataclass fields, bound to `params["timing"]`."""
  if isinstance(thing, LearnedTimes):
    return thing.bind(params["timing"])
  if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
    return thing
  before = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
  after = {name: bind_times(value, params) for name, value in before.items()}
  changes = {name: value for name, value in after.items() if value is not before[name]}
  return dataclasses.replace(thing, **changes) if changes else thing

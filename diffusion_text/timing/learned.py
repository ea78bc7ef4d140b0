"""A timing that is learned: each position of the row falls at a pace of its own.

A learned timing has parameters (`types.LearnedTimes`), and is the timing of their start until `bind_times` gives it others. Objectives fit
them, each by what it has: one that adds up rates, in nats per unit time, makes the shares of the clock as the rates are, so that each step
of the clock costs the same; one that has the loss of a token at its time makes that loss rise evenly over the clock. For an exact network
both are one thing: the loss is how little is known, and the rate its slope.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.timing.along_row import OneRow, _grid, low_discrepancy
from diffusion_text.types import Array, Batch, Key, LearnedTimes, Params, Progress, Time, Times


@dataclasses.dataclass(frozen=True, eq=False)
class Paced(OneRow):
  """Positions at a pace each, fixed: position i passes the k-th of K even stretches of time in shares[i, k] of the clock.

  shares: float32 [length, K], positive, each row summing to 1; a row of text that is shorter has the first positions. growth: float32
  [length, K], what the loss of a token is expected to rise by in each stretch, from 0 at t = 0; None expects nothing.
  """

  shares: Array = dataclasses.field(repr=False)
  growth: Array | None = dataclasses.field(default=None, repr=False)

  def times(self, clock: Array, length: int) -> tuple[Array, Array]:
    """(t, dt/dτ), float32 [..., L], at clock τ [..., 1]; only the speed is differentiable. Raises ValueError for rows that are longer."""
    most, bins = self.shares.shape
    if length > most:
      raise ValueError(
        f"timing 'by_position' has learned {most} positions, and the row has {length}; use rows of at most {most}"
      )
    held, place = jax.lax.stop_gradient(self.shares[:length]), jnp.arange(length)
    ends = jnp.cumsum(
      held[:, :-1], axis=1
    )  # [L, K - 1], where on the clock stretches end; the last one ends at 1
    stretch = jnp.sum(clock[..., None] > ends, axis=-1)  # half open, as τ is
    begins = jnp.pad(ends, ((0, 0), (1, 0)))[place, stretch]
    passed = jnp.clip((clock - begins) / held[place, stretch], 0.0, 1.0)
    t = jnp.where(clock == 1, 1.0, (stretch + passed) / bins)
    return t, 1 / (bins * self.shares[place, stretch])

  def expected(self, t: Time) -> Array | None:
    """The loss expected at times t [..., L]: float32 of that shape, differentiable in `growth`."""
    if self.growth is None:
      return None
    bins, place = self.growth.shape[1], jnp.arange(t.shape[-1])
    stretch = jnp.clip(jnp.ceil(t * bins).astype(jnp.int32) - 1, 0, bins - 1)
    before = jnp.pad(jnp.cumsum(self.growth[:, :-1], axis=1), ((0, 0), (1, 0)))
    return before[place, stretch] + (t * bins - stretch) * self.growth[place, stretch]

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    t, speed = self.times(low_discrepancy(key, rows, progress)[:, None], length)
    return Times(t, speed, self._layout(length, batch.segment), expected=self.expected(t))

  def grid(self, steps: int, length: int) -> Array:
    """The times of each position at an even clock."""
    return self.times(_grid(steps), length)[0].at[-1].set(0.0)


@dataclasses.dataclass(frozen=True)
class ByPosition(OneRow):
  """The adaptive schedule of SeqDiffuSeq (arXiv 2212.10325): one noise schedule per position, over whose steps the loss of that
  position rises evenly.

  All positions share a clock τ, and position i passes the k-th of `bins` even stretches of time in a share of the clock: floor / bins +
  (1 - floor) softmax(levels_i). It falls from 1 to 0 once, so that what is summed is a bound whatever the levels; like that of any other
  path it is the entropy for an exact network, and a number of its own for a trained one. Levels follow the fit alone, not the bound.
  Published schedules are interpolated anew every 20,000 steps from averages of the loss (mse and cross-entropy) by step and position; ours
  move with every update, as CDCD's warp does (arXiv 2211.15089 section 3.3). A position is a place in the row: of pairs, whose target
  begins where the source ends, that is not the place in the target. The network is told the time of each token, not the clock.

  length: positions of a row. Raises ValueError for values out of range.
  """

  length: int
  bins: int = 20
  floor: float = 0.1

  def __post_init__(self):
    if self.bins < 2:
      raise ValueError(f"timing.bins={self.bins} must be at least 2 stretches of time; 20 is usual")
    if not 0 < self.floor <= 1:
      raise ValueError(
        f"timing.floor={self.floor} must be in (0, 1]; 0.1 leaves a tenth of the clock spread evenly over times"
      )

  def init(self, key: Key | None = None) -> Params:
    """{"levels": float32 [length, bins], "size": [length]}, zeros: every position at the pace of the clock, and a loss of 1 at t = 1."""
    del key
    return {
      "levels": jnp.zeros((self.length, self.bins), jnp.float32),
      "size": jnp.zeros(self.length, jnp.float32),
    }

  def bind(self, params: Params) -> Paced:
    """The timing as it stands, differentiable in its parameters."""
    inner = jax.nn.softmax(params["levels"], axis=-1)
    size = jnp.exp(
      10 * params["size"]
    )  # 10: updates of Adam are of the size of its rate, and losses may be far from 1
    return Paced(self.floor / self.bins + (1 - self.floor) * inner, size[:, None] * inner)

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
  before = {
    field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init
  }
  after = {name: bind_times(value, params) for name, value in before.items()}
  changes = {name: value for name, value in after.items() if value is not before[name]}
  return dataclasses.replace(thing, **changes) if changes else thing

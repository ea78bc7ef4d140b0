"""Timings: which time each token has. A timing is that choice and nothing else; any timing goes with any process.

All times are driven by one clock τ, uniform on (0, 1]. `speed = dt/dτ` per token makes E_τ[Σ_i speed_i · rate_i] the bound,
because a token whose time sweeps 1 → 0 while the clock does pays ∫ rate dt = ∫ rate · (dt/dτ) dτ.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.types import Array, Batch, Key, Layout, Progress, Times


def low_discrepancy(key: Key, rows: int, progress: Progress) -> Array:
  """[rows] float32 in (0, 1]: this microbatch's share of N = rows · parts points spread evenly over the **whole** step's batch.

  The N points are (u + i)/N with one u for all hosts, devices and microbatches (VDM, arXiv 2107.00630, app. I.1), handed out
  in random order so that no device gets all the noisy rows. Each point alone is uniform, so the estimate stays unbiased.
  """
  total = rows * progress.parts
  key_offset, key_order = jax.random.split(key)
  place = jax.random.permutation(key_order, total)
  place = jax.lax.dynamic_slice_in_dim(place, jnp.asarray(progress.part) * rows, rows)
  u = jax.random.uniform(key_offset)
  return 1 - (place + u) / total  # u in [0, 1): never 0, where weights have a pole


def _grid(steps: int) -> Array:
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1; 64 is a good start, the length of the text is the most that helps")
  return 1 - jnp.arange(steps + 1, dtype=jnp.float32)[:, None] / steps  # exactly 1 and 0 at its ends


def _layout(batch: Batch) -> Layout:
  return Layout(segment=batch.segment)


@dataclasses.dataclass(frozen=True)
class Shared:
  """All tokens of a row share one time: MDLM, MD4, LLaDA, SEDD, Diffusion-LM and most others. One bidirectional block."""

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    t = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    return Times(t, jnp.ones_like(t), _layout(batch))

  def grid(self, steps: int, length: int) -> Array:
    return jnp.broadcast_to(_grid(steps), (steps + 1, length))


@dataclasses.dataclass(frozen=True)
class Slanted:
  """Times fall along a line, left tokens first: AR-Diffusion (arXiv 2305.09515). spread = 0 is `Shared`; large ones near left-to-right.

  Over the clock, position i of L rises from 0 to 1 during τ in [a, a + 1/(1 + spread)] with a = (spread / (1 + spread)) · (1 - i/(L-1)):
  the last token is the first to be lost. One bidirectional block; the bound holds, since each token sweeps [0, 1] once.
  """

  spread: float = 1.0

  def __post_init__(self):
    if self.spread < 0:
      raise ValueError(f"slanted spread={self.spread} must be >= 0; 0 gives every token the same time")

  def _times(self, clock: Array, length: int) -> tuple[Array, Array]:
    left = 1 - jnp.arange(length, dtype=jnp.float32) / max(length - 1, 1)
    slope = 1 + self.spread
    line = slope * clock - self.spread * left
    inside = (line > 0) & (line < 1)
    return jnp.clip(line, 0.0, 1.0), jnp.where(inside, slope, 0.0)

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    t, speed = self._times(low_discrepancy(key, rows, progress)[:, None], length)
    return Times(t, speed, _layout(batch))

  def grid(self, steps: int, length: int) -> Array:
    times = self._times(_grid(steps), length)[0]
    return times.at[0].set(1.0).at[-1].set(0.0)  # exact ends, whatever the rounding of the line


TIMINGS = {"shared": Shared, "slanted": Slanted}

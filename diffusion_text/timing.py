"""Timings: which time each token has. A timing is that choice and nothing else; any timing goes with any process.

All times are driven by one clock τ, uniform on (0, 1]. `speed = dt/dτ` per token makes E_τ[Σ_i speed_i · rate_i] the bound,
because a token whose time sweeps 1 → 0 while the clock does pays ∫ rate dt = ∫ rate · (dt/dτ) dτ.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.kernels import layout as layouts
from diffusion_text.schedules import TINY
from diffusion_text.types import Array, Batch, Denoise, Inputs, Key, Layout, Predict, Progress, Time, Times


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
  return jnp.maximum(1 - (place + u) / total, TINY)  # rounding may reach 0, where weights have a pole


def _grid(steps: int) -> Array:
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1; 64 is a good start, the length of the text is the most that helps")
  return 1 - jnp.arange(steps + 1, dtype=jnp.float32)[:, None] / steps  # exactly 1 and 0 at its ends


class OneBlock:
  """What timings have in common whose rows are one bidirectional block."""

  sampled_in_blocks = None
  shifted = False
  clipped = False

  def scoring(self):
    """The timing under which the bound is reported: this one."""
    return self

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """How a sampler reads the network: the whole row at once."""
    del noise
    return lambda inputs, t: predict(inputs, t, Layout(segment=segment))


@dataclasses.dataclass(frozen=True)
class Shared(OneBlock):
  """All tokens of a row share one time: MDLM, MD4, LLaDA, SEDD, Diffusion-LM and most others. One bidirectional block."""

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    t = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    return Times(t, jnp.ones_like(t), Layout(segment=batch.segment))

  def grid(self, steps: int, length: int) -> Array:
    return jnp.broadcast_to(_grid(steps), (steps + 1, length))


@dataclasses.dataclass(frozen=True)
class Slanted(OneBlock):
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
    return Times(t, speed, Layout(segment=batch.segment))

  def grid(self, steps: int, length: int) -> Array:
    times = self._times(_grid(steps), length)[0]
    return times.at[0].set(1.0).at[-1].set(0.0)  # exact ends, whatever the rounding of the line


@dataclasses.dataclass(frozen=True)
class PerBlock:
  """Each block of `block_size` tokens has its own time and sees the clean blocks before it: BD3-LM (arXiv 2503.09573).

  Training rows are noisy ‖ clean (2L). low, high: times are drawn from [low, high] only, which lowers the variance of the gradient
  (BD3-LM section 5) and is no bound any more, so the likelihood is always scored on [0, 1]. A block of one token is always at t = 1:
  with the linear schedule its cost does not depend on the time, so this is the exact autoregressive likelihood.
  """

  block_size: int
  low: float = 0.0
  high: float = 1.0

  shifted = False

  @property
  def sampled_in_blocks(self) -> int:
    return self.block_size

  def __post_init__(self):
    if self.block_size < 1:
      raise ValueError(f"timing.block_size={self.block_size} must be at least 1; 4, 8 and 16 are usual")
    if not 0 <= self.low <= self.high <= 1 or self.high == 0:
      raise ValueError(f"timing needs 0 <= low <= high <= 1 and high > 0, got low={self.low} and high={self.high}")

  @property
  def clipped(self) -> bool:
    """True if the expectation over times is right for the linear schedule only."""
    return self.block_size == 1 or (self.low, self.high) != (0.0, 1.0)

  def scoring(self):
    """The timing under which the bound is reported: unclipped."""
    return dataclasses.replace(self, low=0.0, high=1.0)

  def _blocks(self, length: int) -> int:
    if length % self.block_size:
      down = length - length % self.block_size
      raise ValueError(
        f"timing.block_size={self.block_size} must divide length={length}; use a length of {down or self.block_size}"
      )
    return length // self.block_size

  def _layout(self, length: int, segment: Array | None) -> Layout:
    """Blocks are counted from the start of the row, as their times are, also where documents begin within one."""
    return Layout(segment=segment, block=layouts.block_causal(length, self.block_size).block)

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    blocks = self._blocks(length)
    low, high = (1.0, 1.0) if self.block_size == 1 else (self.low, self.high)
    t = low + (high - low) * low_discrepancy(key, rows * blocks, progress).reshape(rows, blocks)
    t = jnp.repeat(t, self.block_size, axis=1)
    return Times(t, jnp.ones_like(t), layouts.doubled(self._layout(length, batch.segment), length))

  def grid(self, steps: int, length: int) -> Array:
    """Blocks fall from 1 to 0 one after the other, each in steps / blocks steps."""
    blocks = self._blocks(length)
    if steps % blocks:
      raise ValueError(
        f"steps={steps} must be a multiple of the {blocks} blocks of length={length}; use {-(-steps // blocks) * blocks}"
      )
    mine = jnp.arange(steps + 1)[:, None] - (jnp.arange(length) // self.block_size) * (steps // blocks)
    return 1 - jnp.clip(mine, 0, steps // blocks) / (steps // blocks)

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """One row of L: blocks in which all is clean are the context, the others are noisy and see only it and themselves."""
    del noise

    def denoise(inputs: Inputs, t: Time):
      length = inputs.ids.shape[1]
      open_blocks = jnp.any((t > 0).reshape(t.shape[0], -1, self.block_size), axis=2)
      own = self._layout(length, segment)
      noisy = jnp.repeat(open_blocks, self.block_size, axis=1).astype(jnp.int32)
      return predict(inputs, t, Layout(segment=own.segment, block=own.block, noisy=noisy))

    return denoise


@dataclasses.dataclass(frozen=True)
class LeftToRight:
  """One token after the other, in one causal pass: the autoregressive model as masked diffusion in blocks of one token.

  Every token is scored at t = 1 given the clean tokens before it (linear schedule: rate = CE). Instead of a noisy copy beside
  the clean row, position i reads token i - 1 and answers for token i, the usual shift; position 0 reads noise.
  """

  clipped = True
  shifted = True
  sampled_in_blocks = 1

  def scoring(self):
    """The timing under which the bound is reported: this one, exactly."""
    return self

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    del key, progress
    ones = jnp.ones(batch.ids.shape, jnp.float32)
    return Times(ones, ones, self._layout(batch.ids.shape[1], batch.segment), shifted=True)

  def _layout(self, length: int, segment: Array | None) -> Layout:
    return layouts.causal(length) if segment is None else layouts.packed(segment, 1)

  def grid(self, steps: int, length: int) -> Array:
    """One token per step: needs steps = length."""
    return PerBlock(1).grid(steps, length)

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """Reads the row shifted by one; only the first open token's answer means something, which is all that the grid asks for."""

    def denoise(inputs: Inputs, t: Time):
      return predict(shift_right(inputs, noise, segment), jnp.zeros_like(t), self._layout(inputs.ids.shape[1], segment))

    return denoise


def shift_right(inputs: Inputs, noise: Inputs, segment: Array | None) -> Inputs:
  """Position i reads what position i - 1 held; the first position of a row, and of each document in it, reads noise."""
  first = jnp.broadcast_to(noise.ids[:1, :1], (inputs.ids.shape[0], 1))
  ids = jnp.concatenate([first, inputs.ids[:, :-1]], axis=1)
  if segment is not None:
    begins = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    ids = jnp.where(begins, first, ids)
  return dataclasses.replace(inputs, ids=ids)


TIMINGS = {"shared": Shared, "slanted": Slanted, "per_block": PerBlock, "left_to_right": LeftToRight}

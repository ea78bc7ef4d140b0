"""Timings by a token's place in the row, or the same for all of it.

All times are driven by one clock τ, uniform on (0, 1]. `speed = dt/dτ` per token makes E_τ[Σ_i speed_i · rate_i] the bound,
because a token whose time sweeps 1 → 0 while the clock does pays ∫ rate dt = ∫ rate · (dt/dτ) dτ.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.kernels import layout as layouts
from diffusion_text.schedules.discrete import TINY
from diffusion_text.types import (
  Array,
  Batch,
  Denoise,
  Inputs,
  Key,
  Layout,
  Predict,
  Progress,
  Time,
  Times,
)


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
  return jnp.maximum(
    1 - (place + u) / total, TINY
  )  # rounding may reach 0, where weights have a pole


def _grid(steps: int) -> Array:
  if steps < 1:
    raise ValueError(
      f"steps={steps} must be at least 1; 64 is a good start, the length of the text is the most that helps"
    )
  # numpy: under jit XLA would round 1 - k / steps once instead of twice, and miss 0 for some steps (41, 47, 55, …)
  return jnp.asarray(1 - np.arange(steps + 1, dtype=np.float32)[:, None] / np.float32(steps))


def _causal(length: int, segment: Array | None) -> Layout:
  return layouts.causal(length) if segment is None else layouts.packed(segment, 1)


class OneRow:
  """What timings have in common whose rows are read once, as they are; one bidirectional block unless `_layout` says otherwise."""

  sampled_in_blocks = None
  shifted = False
  clipped = False

  def scoring(self):
    """The timing under which the bound is reported: this one."""
    return self

  def within_block(self):
    """The timing that a sampler of one block walks: this one, as the row is the block."""
    return self

  def _layout(self, length: int, segment: Array | None) -> Layout:
    del length
    return Layout(segment=segment)

  def grid(self, steps: int, length: int) -> Array:
    """All tokens fall together in even steps."""
    return jnp.broadcast_to(_grid(steps), (steps + 1, length))

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """How a sampler reads the network: the whole row at once."""
    del noise
    return lambda inputs, t: predict(inputs, t, self._layout(inputs.shape[1], segment))


@dataclasses.dataclass(frozen=True)
class Shared(OneRow):
  """All tokens of a row share one time: MDLM, MD4, LLaDA, SEDD, Diffusion-LM and most others. One bidirectional block.

  power: importance sampling of the time, t = τ^power at speed power · τ^(power-1); the bound is the same for every power. Above 1
  it draws small times more often and weighs them less, for rates whose tail is there; samplers' grids stay even.
  """

  power: float = 1.0

  def __post_init__(self):
    if not self.power > 0:
      raise ValueError(
        f"timing.power={self.power} must be positive; 1 draws times evenly, 2 and 3 draw more of the small ones"
      )

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    clock = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    layout = self._layout(batch.ids.shape[1], batch.segment)
    if self.power == 1:
      return Times(clock, jnp.ones_like(clock), layout)
    t = jnp.maximum(
      clock**self.power, 1e-30
    )  # far below TINY: reaching small times is what this is for
    return Times(t, self.power * clock ** (self.power - 1), layout)


@dataclasses.dataclass(frozen=True)
class Independent(OneRow):
  """Every token draws its own time: Diffusion Forcing (arXiv 2407.01392). Evenly spread over the step's rows at each position.

  E[Σ rate] is a **surrogate**, so the likelihood is scored under `Shared`. Rates are the slopes of one function of all times, and
  add up to the bound along a path from all noise to all clean; independent times average the slopes over the whole cube instead.
  For masked diffusion token i then costs CE given each other token with probability ∫ alpha dt, so the number of known tokens is
  binomial(L - 1, 1/2) for the linear schedule, where the bound has it uniform on 0 … L - 1. The two agree if L <= 2 (linear
  schedule) or if the tokens are independent. Else they may differ either way: four copies of a fair bit cost log 2 / 2 where the
  entropy is log 2, four bits of even parity 3.5 log 2 where it is 3 log 2.
  """

  def scoring(self):
    """The timing under which the bound is reported: `Shared`."""
    return Shared()

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    # One stratified column per position: spread over the batch, and exactly independent within a row.
    column = lambda key: low_discrepancy(key, rows, progress)
    t = jax.vmap(column, out_axes=1)(jax.random.split(key, length))
    return Times(t, jnp.ones_like(t), self._layout(length, batch.segment))


@dataclasses.dataclass(frozen=True)
class Counted(OneRow):
  """Masks an exact number of tokens: LLaDA's likelihood (arXiv 2502.09992 eq. 6) and RADD's k-DCE (arXiv 2406.03736).

  Of the n tokens of a row that are scored (not given, weight > 0), k ~ U{1 … n} chosen at random have t = 1 and speed n / k, all
  others t = 0 and speed 0; k is spread evenly over the step's rows. Masked diffusion with the linear schedule costs CE at t = 1, and
  masks each k = 1 … n equally often, so the expectation is the bound of `Shared`; the variance is lower, as k is not binomial given a
  time. `clipped`: it is a bound for masked diffusion in continuous time, with the linear schedule and a network without time.
  """

  clipped = True

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    key_count, key_choice = jax.random.split(key)
    scored = jnp.ones((rows, length), bool) if batch.weights is None else batch.weights > 0
    scored = scored if batch.given is None else scored & ~batch.given
    number = jnp.maximum(jnp.sum(scored, axis=1, keepdims=True), 1)
    count = jnp.ceil(low_discrepancy(key_count, rows, progress)[:, None] * number)
    place = jax.random.uniform(jax.random.fold_in(key_choice, progress.part), (rows, length))
    rank = jnp.argsort(
      jnp.argsort(jnp.where(scored, place, 2.0), axis=1), axis=1
    )  # of scored tokens, in a random order
    chosen = scored & (rank < count)
    speed = jnp.where(chosen, number / count, 0.0)
    return Times(chosen.astype(jnp.float32), speed, self._layout(length, batch.segment))


class Paths(OneRow):
  """Tokens that fall from 1 to 0 along lines of one slope, each with its own delay. The bound holds: each sweeps [0, 1] once.

  `_path(length)` gives (total, last [L], span): while total · τ falls from `total` to 0, token i falls from 1 to 0 on the stretch
  from last_i + span to last_i.
  """

  def _path(self, length: int) -> tuple[float, Array, float]:
    raise NotImplementedError

  def _at(self, left: Array, length: int) -> tuple[Array, Array]:
    """(t, dt/dτ) where left = total · τ."""
    total, last, span = self._path(length)
    line = (left - last) / span
    inside = (line > 0) & (
      line <= 1
    )  # half open, as τ is: what rounding takes at one end it gives at the other
    return jnp.clip(line, 0.0, 1.0), jnp.where(inside, total / span, 0.0)

  def times(self, clock: Array, length: int) -> tuple[Array, Array]:
    """(t, dt/dτ), float32 [..., L], at clock τ [..., 1]."""
    return self._at(self._path(length)[0] * clock, length)

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    t, speed = self.times(low_discrepancy(key, rows, progress)[:, None], length)
    return Times(t, speed, self._layout(length, batch.segment))

  def grid(self, steps: int, length: int) -> Array:
    """The times of the paths at an even clock."""
    _grid(steps)  # refuses what no grid can have
    # Multiplied before it is divided: exact wherever the clock meets the start or end of a token's fall.
    left = self._path(length)[0] * jnp.arange(steps, -1, -1, dtype=jnp.float32)[:, None] / steps
    return self._at(left, length)[0].at[0].set(1.0).at[-1].set(0.0)


@dataclasses.dataclass(frozen=True)
class Slanted(Paths):
  """Times fall along a line, left tokens first: AR-Diffusion (arXiv 2305.09515). spread = 0 is `Shared`; large ones near left-to-right.

  Over the clock, position i of L rises from 0 to 1 during τ in [a, a + 1/(1 + spread)] with a = (spread / (1 + spread)) · (1 - i/(L-1)):
  the last token is the first to be lost. One bidirectional block; the bound holds, since each token sweeps [0, 1] once.
  """

  spread: float = 1.0

  def __post_init__(self):
    if self.spread < 0:
      raise ValueError(
        f"slanted spread={self.spread} must be >= 0; 0 gives every token the same time"
      )

  def _path(self, length: int) -> tuple[float, Array, float]:
    left = 1 - jnp.arange(length, dtype=jnp.float32) / max(length - 1, 1)
    return 1 + self.spread, self.spread * left, 1.0


@dataclasses.dataclass(frozen=True)
class Hyperschedule(Paths):
  """A matrix of times, one row per step of the sampler: hyperschedules (arXiv 2504.06416). Training draws points of that same path.

  kind "wave": a slope of `width` tokens moves from left to right; a token falls from 1 to 0 while it passes. Width 1 is one token
  after the other, a wide wave tends to `Shared`; it is `Slanted` with spread = (L - 1) / width. L - 1 + width steps give the
  published integer levels. kind "blocks": blocks of `width` tokens fall one after the other, those on the left are clean, those
  on the right all noise; the last block may be shorter.

  context "full": every token sees the whole row. "causal": each sees itself and the tokens on its left, noisy as they are.
  """

  kind: str
  width: int
  context: str = "full"

  def __post_init__(self):
    if self.kind not in ("wave", "blocks"):
      raise ValueError(f"timing.kind={self.kind!r} is unknown; use 'wave' or 'blocks'")
    if self.width < 1:
      raise ValueError(
        f"timing.width={self.width} must be at least 1 token; 1 is one token after the other"
      )
    if self.context not in ("full", "causal"):
      raise ValueError(f"timing.context={self.context!r} is unknown; use 'full' or 'causal'")

  def _layout(self, length: int, segment: Array | None) -> Layout:
    return (
      _causal(length, segment) if self.context == "causal" else super()._layout(length, segment)
    )

  def _path(self, length: int) -> tuple[float, Array, float]:
    place = jnp.arange(length)
    if self.kind == "wave":
      return length - 1 + self.width, length - 1 - place, self.width
    blocks = -(-length // self.width)
    return blocks, blocks - 1 - place // self.width, 1


@dataclasses.dataclass(frozen=True)
class PerBlock:
  """Each block of `block_size` tokens has its own time and sees the clean blocks before it: BD3-LM (arXiv 2503.09573).

  Training rows are noisy ‖ clean (2L). low, high: times are drawn from [low, high] only, which lowers the variance of the gradient
  (BD3-LM section 5) and is no bound any more, so the likelihood is always scored on [0, 1]. A block of one token is always at t = 1:
  with the linear schedule its cost does not depend on the time, so this is the exact autoregressive likelihood.

  spread: how much later tokens of a block are masked more than earlier ones, as `Slanted` within each block; 0 is one time per
  block. Efficient-DLM, whose idea this is, masks token i more by a factor exp(beta (1 - t) i), at which the weight 1/t is no bound;
  on our line each token sweeps [0, 1] once, so the bound holds. low and high then cut the block's clock.
  """

  block_size: int
  low: float = 0.0
  high: float = 1.0
  spread: float = 0.0

  shifted = False

  @property
  def sampled_in_blocks(self) -> int:
    return self.block_size

  def __post_init__(self):
    if self.block_size < 1:
      raise ValueError(
        f"timing.block_size={self.block_size} must be at least 1; 4, 8 and 16 are usual"
      )
    if not 0 <= self.low <= self.high <= 1 or self.high == 0:
      raise ValueError(
        f"timing needs 0 <= low <= high <= 1 and high > 0, got low={self.low} and high={self.high}"
      )
    Slanted(self.spread)

  @property
  def clipped(self) -> bool:
    """True if the expectation over times is right for the linear schedule only."""
    return self.block_size == 1 or (self.low, self.high) != (0.0, 1.0)

  def scoring(self):
    """The timing under which the bound is reported: unclipped."""
    return dataclasses.replace(self, low=0.0, high=1.0)

  def within_block(self):
    """The timing that a sampler of one block walks. A block of one token has no slant."""
    return Slanted(self.spread) if self.spread > 0 and self.block_size > 1 else Shared()

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
    clock = low + (high - low) * low_discrepancy(key, rows * blocks, progress).reshape(
      rows, blocks, 1
    )
    spread = self.spread if self.block_size > 1 else 0.0
    t, speed = (x.reshape(rows, length) for x in Slanted(spread).times(clock, self.block_size))
    return Times(t, speed, layouts.doubled(self._layout(length, batch.segment), length))

  def grid(self, steps: int, length: int) -> Array:
    """Blocks fall from 1 to 0 one after the other, each in steps / blocks steps."""
    blocks = self._blocks(length)
    if steps % blocks:
      raise ValueError(
        f"steps={steps} must be a multiple of the {blocks} blocks of length={length}; use {-(-steps // blocks) * blocks}"
      )
    place = jnp.arange(length)
    mine = jnp.arange(steps + 1)[:, None] - (place // self.block_size) * (steps // blocks)
    own = self.within_block().grid(steps // blocks, self.block_size)
    return own[jnp.clip(mine, 0, steps // blocks), place % self.block_size]

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """One row of L: blocks in which all is clean are the context, the others are noisy and see only it and themselves."""
    del noise

    def denoise(inputs: Inputs, t: Time):
      length = inputs.shape[1]
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

  def within_block(self):
    """The timing that a sampler of one block walks."""
    return Shared()

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    del key, progress
    ones = jnp.ones(batch.ids.shape, jnp.float32)
    return Times(ones, ones, _causal(batch.ids.shape[1], batch.segment), shifted=True)

  def grid(self, steps: int, length: int) -> Array:
    """One token per step: needs steps = length."""
    return PerBlock(1).grid(steps, length)

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """Reads the row shifted by one; only the first open token's answer means something, which is all that the grid asks for."""

    def denoise(inputs: Inputs, t: Time):
      return predict(
        shift_right(inputs, noise, segment),
        jnp.zeros_like(t),
        _causal(inputs.ids.shape[1], segment),
      )

    return denoise


def shift_right(inputs: Inputs, noise: Inputs, segment: Array | None) -> Inputs:
  """Position i reads what position i - 1 held; the first position of a row, and of each document in it, reads noise."""
  first = jnp.broadcast_to(noise.ids[:1, :1], (inputs.ids.shape[0], 1))
  ids = jnp.concatenate([first, inputs.ids[:, :-1]], axis=1)
  if segment is not None:
    begins = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    ids = jnp.where(begins, first, ids)
  return dataclasses.replace(inputs, ids=ids)

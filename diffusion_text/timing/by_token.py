"""Timings by token: each token has an intrinsic time, drawn about the row's clock or set by how much the token tells.

Both are surrogates, and the likelihood is scored under `Shared`. A bound needs a law of times that can be known without the tokens, and
times that sweep [0, 1] along one path; `Poisson` lacks the second, `ByInformation` the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.timing.along_row import OneRow, Shared, low_discrepancy
from diffusion_text.types import Array, Batch, Key, Progress, Times


@dataclasses.dataclass(frozen=True)
class Poisson(OneRow):
  """Intrinsic times that count events: NeoDiff (arXiv 2505.22165), whose extrinsic time is the clock τ of the row.

  Of M = levels - 1 and λ = 2 M τ, each token draws its own k ~ Poisson(λ), and its level is λ + spread · λ (k - λ) / √λ, rounded and cut to
  0 … M; t = level / M. Before the cut, the mean is λ and the standard deviation spread · λ; spread = 1 and 100 levels are what is
  published. λ passes M at τ = 1/2, so that more than half of the draws are noise alone.

  A **surrogate** like `Independent`: times of a row are independent given τ and follow no path. Levels at 0 cost nothing. A sampler
  walks even times, the same for all tokens; the published one walks times that a network predicts (`Predicted`).
  """

  levels: int = 100
  spread: float = 1.0

  def __post_init__(self):
    if self.levels < 2:
      raise ValueError(f"timing.levels={self.levels} must be at least 2; NeoDiff has 100")
    if not self.spread >= 0:
      raise ValueError(f"timing.spread={self.spread} must be at least 0; NeoDiff's is 1")

  def scoring(self):
    """The timing under which the bound is reported: `Shared`."""
    return Shared()

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    rows, length = batch.ids.shape
    key_clock, key_count = jax.random.split(key)
    clock = low_discrepancy(key_clock, rows, progress)[:, None]
    count = jax.random.poisson(
      jax.random.fold_in(key_count, progress.part), self._mean(clock), (rows, length)
    )
    t = self._time(clock, count.astype(jnp.float32))
    return Times(t, (t > 0).astype(jnp.float32), self._layout(length, batch.segment), clock=clock)

  def _mean(self, clock: Array) -> Array:
    return 2 * (self.levels - 1) * clock

  def _time(self, clock: Array, count: Array) -> Array:
    """t of counts [B, L] at clock τ [B, 1]."""
    most, mean = self.levels - 1, self._mean(clock)
    return jnp.clip(jnp.round(mean + self.spread * jnp.sqrt(mean) * (count - mean)), 0, most) / most


def rarity(counts: np.ndarray) -> np.ndarray:
  """How little is as rare: float32 [V] in [0, 1], the share of a corpus that is commoner than each token, equals counting half.

  counts: how often each token occurs, [V]; tokens of one frequency have one rarity. Spread evenly over a corpus: its mean there is 1/2.
  A token's place in the order of -log frequency, which is its information.
  """
  counts = np.asarray(counts, np.float64)
  total = max(counts.sum(), 1.0)
  _, place = np.unique(counts, return_inverse=True)
  mass = (
    np.bincount(place, weights=counts) / total
  )  # of all tokens of one frequency, the rarest first
  return (1 - np.cumsum(mass) + mass / 2)[place].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ByInformation(OneRow):
  """Tokens that tell more fall first, or last: InfoDiffusion (arXiv 2310.11976), Masked-Diffuse LM (arXiv 2304.04746).

  As `Slanted`, along rarity instead of place: while the clock falls, a token falls from 1 to 0 on a stretch 1 / (1 + spread) long, which is
  the earlier the rarer it is among the training tokens (`rarity`). informative_first: what generation writes first is rare ("key
  information first", InfoDiffusion); False: common ("easy first", Masked-Diffuse LM, which noises important words first). Published
  information is of words, with tf-idf in the latter; ours is of tokens.

  A **surrogate**: each token does sweep [0, 1] once, but its times depend on what it is. A network that is told them reads the token off
  them, and what it costs then bounds nothing; so the network is told the clock (`Times.told`), as published ones are, which makes training
  and sampling alike. A bound would have to pay for the order. Neither published sampler knows the tokens it is about to write: both
  walk steps that all tokens share, and so does this grid.

  counts: () -> [V], how often each token occurs in the training split; asked when times are drawn, and by no sampler.
  """

  spread: float = 1.0
  informative_first: bool = True
  counts: Callable[[], np.ndarray] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def __post_init__(self):
    if not self.spread >= 0:
      raise ValueError(
        f"timing.spread={self.spread} must be at least 0, which gives every token the same time; 1 is a good start"
      )

  def scoring(self):
    """The timing under which the bound is reported: `Shared`."""
    return Shared()

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    if self.counts is None:
      raise ValueError(
        "timing 'by_information' needs the token counts of the training split; pass counts="
      )
    clock = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    t, speed = self.times(clock, jnp.asarray(rarity(self.counts()))[batch.ids])
    return Times(t, speed, self._layout(batch.ids.shape[1], batch.segment), told=clock)

  def times(self, clock: Array, rarity: Array) -> tuple[Array, Array]:
    """(t, dt/dτ), float32 [B, L], of tokens of this rarity [B, L] at clock τ [B, 1]."""
    early = rarity if self.informative_first else 1 - rarity
    line = (1 + self.spread) * clock - self.spread * early
    inside = (line > 0) & (line <= 1)
    return jnp.clip(line, 0.0, 1.0), jnp.where(inside, 1 + self.spread, 0.0)

"""Intrinsic times that a small network predicts while text is made: NeoDiff (arXiv 2505.22165, "context-aware" time predictor)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.timing.by_token import Poisson
from diffusion_text.types import Array, Inputs, Key, Params, Time


@dataclasses.dataclass(frozen=True)
class Predicted(Poisson):
  """Poisson times, and a network of `layers` layers that learns which of them each token should have.

  In training a row has a clock τ, and its tokens have a loss each. The label of the token of the r-th lowest of n losses is the time that
  the law of `Poisson` gives to the quantile (r - 1/2) / n at τ: tokens that are hard keep more noise. The network reads the guess x̂ of
  all tokens and the clock, and its one number per token is fitted to the label by squares; nothing of it reaches the guess. A sampler
  (`sampler.name` = "predicted_times") asks it, at each step, for the times at the clock that comes next.

  As their code does it with the flags of their training script (bc-li/neodiff, scheduler/nonsim.py and neodiff_model.py). Theirs reads
  positions no more than through its cross-attention to the source; here a source is part of the row, and is read as it stands.

  reader: the network, `init(key)` and `apply(params, inputs, t, layout) -> Prediction` whose logits are [B, L, 1]; build makes it.
  """

  layers: int = 1
  reader: Any = dataclasses.field(default=None, repr=False, compare=False)
  params: Params = dataclasses.field(default=None, repr=False, compare=False)

  def __post_init__(self):
    super().__post_init__()
    if self.layers < 1:
      raise ValueError(f"timing.layers={self.layers} must be at least 1; NeoDiff has 1")

  def init(self, key: Key) -> Params:
    """Those of the network, float32."""
    return self.reader.init(key)

  def bind(self, params: Params) -> Predicted:
    """The timing whose network has these parameters."""
    return dataclasses.replace(self, params=params)

  def labels(self, clock: Array, cost: Array, counts: Array) -> Time:
    """float32 [B, L] in [0, 1]: the time that a token's rank by cost [B, L] among those that count gives it at clock τ [B, 1]."""
    order = jnp.argsort(jnp.where(counts, cost, jnp.inf), axis=1)
    rank = jnp.argsort(order, axis=1)
    share = (rank + 0.5) / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    return self._time(clock, poisson_quantile(share, self._mean(clock), 2 * (self.levels - 1)))

  def fit(self, guess: Inputs, clock: Array, cost: Array, counts: Array, segment: Array | None) -> Array:
    """(prediction - label)², float32 [B, L], 0 where not counts; differentiable in the parameters alone."""
    guess, cost = jax.lax.stop_gradient((guess, cost))
    miss = self._predicted(guess, clock, segment) - self.labels(clock, cost, counts)
    return jnp.where(counts, miss**2, 0.0)

  def next_times(self, guess: Inputs, clock: Array, segment: Array | None) -> Time:
    """The prediction, cut to [0, 1]; 0 at clock 0, where text is done."""
    return jnp.where(clock > 0, jnp.clip(self._predicted(guess, clock, segment), 0.0, 1.0), 0.0)

  def _predicted(self, guess: Inputs, clock: Array, segment: Array | None) -> Array:
    layout = self._layout(guess.shape[1], segment)
    return self.reader.apply(self.params, guess, clock, layout).logits[..., 0]


def poisson_quantile(share: Array, mean: Array, most: float) -> Array:
  """The smallest k with P(Poisson(mean) <= k) >= share, float32 [B, L] of share [B, L] in (0, 1) and mean [B, 1] <= most.

  Counts end 10 standard deviations above `most`, where less than 1e-20 of the law is left.
  """
  counts = jnp.arange(int(most + 10 * most**0.5 + 20), dtype=jnp.float32)
  below = jax.scipy.special.gammaincc(counts + 1, mean)  # P(count <= k), [B, K]
  return jax.vmap(jnp.searchsorted)(below, share).astype(jnp.float32)

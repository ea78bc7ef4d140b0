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

  In training a row has a clock τ, and its noisy tokens have a loss each. The label of the token of the r-th lowest of the n losses of a
  document is the time that the law of `Poisson` gives to the quantile (r - 1/2) / n at τ: tokens that are hard keep more noise. The
  network reads the guess x̂ of all tokens and the clock, and its one number per token is fitted to the label by squares; nothing of it
  reaches the guess. A sampler (`sampler.name` = "predicted_times") asks it, at each step, for the times at the clock that comes next.

  So does their code with the flags of their training script (bc-li/neodiff: scheduler/nonsim.py, neodiff_model.py), but for three things.
  Their level 0 keeps a little noise and is ranked too; here it is t = 0, the token itself, of which there is nothing to predict, so a
  sampler's times end half a level above it. Their layer reads a source by cross-attention and knows no places; ours is one of the
  transformer's own, over a row in which the source stands. And it shares no map with the network that it serves.

  reader: the network, `init(key)` and `apply(params, inputs, t, layout) -> Prediction` whose logits are [B, L, 1]; build makes it.
  """

  layers: int = 1
  reader: Any = dataclasses.field(default=None, repr=False)
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

  def labels(self, clock: Array, cost: Array, counts: Array, segment: Array | None) -> Time:
    """float32 [B, L] in [0, 1]: the time that a token's rank by cost [B, L], among those that count in its document, gives it at clock τ
    [B, 1]."""
    rank, total = ranks(cost, counts, segment)
    return self._time(
      clock, poisson_quantile((rank + 0.5) / total, self._mean(clock), 2 * (self.levels - 1))
    )

  def fit(
    self, guess: Inputs, clock: Array, cost: Array, counts: Array, segment: Array | None
  ) -> Array:
    """(prediction - label)², float32 [B, L], 0 where not counts; differentiable in the parameters alone."""
    guess, cost = jax.lax.stop_gradient((guess, cost))
    miss = self._predicted(guess, clock, segment) - self.labels(clock, cost, counts, segment)
    return jnp.where(counts, miss**2, 0.0)

  def next_times(self, guess: Inputs, clock: Array, segment: Array | None) -> Time:
    """The prediction, from half a level to 1: a token that is being made is never taken for known."""
    return jnp.clip(self._predicted(guess, clock, segment), 0.5 / (self.levels - 1), 1.0)

  def _predicted(self, guess: Inputs, clock: Array, segment: Array | None) -> Array:
    layout = self._layout(guess.shape[1], segment)
    return self.reader.apply(self.params, guess, clock, layout).logits[..., 0]


def ranks(cost: Array, counts: Array, segment: Array | None) -> tuple[Array, Array]:
  """(rank from 0, how many there are), int32 [B, L] each: of cost, among the tokens of a document (segment) that count; the others are
  ranked among themselves."""
  segment = jnp.zeros(cost.shape, jnp.int32) if segment is None else segment
  place = jnp.broadcast_to(jnp.arange(cost.shape[1], dtype=jnp.int32), cost.shape)
  kind, segment, _, order = jax.lax.sort(
    (counts.astype(jnp.int32), segment, cost, place), dimension=1, num_keys=3
  )
  new = (kind[:, 1:] != kind[:, :-1]) | (segment[:, 1:] != segment[:, :-1])
  edge = jnp.ones((len(cost), 1), bool)
  first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, new], axis=1), place, 0), axis=1)
  end = jnp.where(jnp.concatenate([new, edge], axis=1), place + 1, cost.shape[1])
  total = jax.lax.cummin(end, axis=1, reverse=True) - first
  return jax.lax.sort((order, place - first, total), dimension=1, num_keys=1)[1:]


def poisson_quantile(share: Array, mean: Array, most: float) -> Array:
  """The smallest k with P(Poisson(mean) <= k) >= share, float32 [B, L] of share [B, L] in (0, 1) and mean [B, 1] <= most.

  Counts end 10 standard deviations above `most`, where less than 1e-20 of the law is left.
  """
  counts = jnp.arange(int(most + 10 * most**0.5 + 20), dtype=jnp.float32)
  below = jax.scipy.special.gammaincc(counts + 1, mean)  # P(count <= k), [B, K]
  return jax.vmap(jnp.searchsorted)(below, share).astype(jnp.float32)

"""The losses of embedding diffusion as named terms: a surrogate for any Gaussian process, with the bound of the same draw beside it.

  loss = mse + anchor_weight · anchor + rounding_weight · rounding + prior      per scored token, with

  term      what it sees                                                          its gradients reach
  mse       the token's vector x and x̂ = Σ_v p_v x_v, p read off the logits:      network, embedding
            w(t) |x - x̂|² / (k² E), a mean over the vector's E numbers
  anchor    the answer at the same t, through the read-out                        network, embedding
  rounding  the noised vector z_0+ and no network, through the read-out           embedding only
  prior     the clean vector: KL(q(z_1 | x) || prior) (Diffusion-LM's tT_loss)    embedding only

Vectors that are all the same have no mse, so mse alone shrinks a learned table; rounding or anchor keeps it apart. The read-out is how a
vector becomes a distribution over tokens, of which the cost is the cross-entropy:

  readout     anchor                                              rounding
  posterior   the network's p itself (CDCD's score interpolation, p ∝ q(z_0+ | x_v): t = 0 reconstruction,
              arXiv 2211.15089, and TESS have this term alone)    with the prior the ends of the bound
  inner       softmax_v <x̂, x_v> (Difformer, arXiv 2212.09412)    softmax_v <z_0+, x_v> (Diffusion-LM, arXiv 2205.14217: lm_head of
                                                                  x_start, tied to the embedding)

With label smoothing s the anchor is (1 - s) times that and s times the mean over v of -log p(v).

w is what regression of another target amounts to, as all are linear in x - x̂ given z_t: "uniform" of x (Diffusion-LM), "snr" of the noise,
|ε - ε̂|² = SNR |x - x̂|² / k², "v" of v = alpha ε - sigma x on variance-preserving paths, 1 + SNR. max_weight cuts it off: "snr" at 5 is
min-SNR (arXiv 2303.09556). The published swap of the target at the chain's first level (the clean vector there, z_0+ elsewhere) has
nothing to do here: the target is the clean vector at all times.

A timing that predicts times (`timing.Predicted`) learns the order of the tokens from mse + anchor_weight · anchor, w and s left out: one
more pass through the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_text.kernels.cross_entropy import map_rows, sum_rows
from diffusion_text.objective.bound import (
  Chunks,
  Noised,
  Rows,
  fit_level,
  noise_key,
  noised,
  scored_rows,
  scored_weights,
  with_auxiliary,
)
from diffusion_text.objective.cross_entropy import smoothed_cross_entropy
from diffusion_text.process.gaussian import Gaussian, by_position
from diffusion_text.process.masked import cross_entropy
from diffusion_text.schedules.discrete import TINY
from diffusion_text.types import (
  Array,
  Batch,
  Key,
  Loss,
  Params,
  Predict,
  PredictsTimes,
  Process,
  Progress,
  State,
  Time,
  Timing,
)

WEIGHTINGS = {
  "uniform": jnp.ones_like,
  "snr": jnp.exp,
  "v": lambda log_snr: 1 + jnp.exp(log_snr),
}  # of the log-SNR
READOUTS = ("posterior", "inner")


@dataclasses.dataclass(frozen=True)
class EmbeddingLosses:
  """The sum of the terms above. Reports each of them before its weight, and "bound", all in nats or units of mse per scored token; and
  "times", the squared error of predicted times.

  Raises ValueError for a process that has no vectors and for values out of range.
  """

  fits_next_times: ClassVar[bool] = True  # what a timing that predicts times needs

  process: Process
  timing: Timing
  chunks: Chunks = Chunks()
  weighting: str = "uniform"
  max_weight: float = math.inf
  rounding_weight: float = 1.0
  anchor_weight: float = 0.0
  readout: str = "posterior"
  label_smoothing: float = 0.0

  def __post_init__(self):
    if not isinstance(self.process, Gaussian):
      raise ValueError(
        f"objective 'mse_rounding' is of vectors, which {type(self.process).__name__} has none of; use process.name='embedding'"
      )
    if self.weighting not in WEIGHTINGS:
      raise ValueError(
        f"objective.weighting={self.weighting!r} is unknown to 'mse_rounding'; use one of {sorted(WEIGHTINGS)}"
      )
    if self.readout not in READOUTS:
      raise ValueError(f"objective.readout={self.readout!r} is unknown; use one of {READOUTS}")
    if not self.max_weight > 0:
      raise ValueError(
        f"objective.max_weight={self.max_weight} must be positive; 5 is usual for 'snr', inf does not clip"
      )
    if not (self.rounding_weight >= 0 and self.anchor_weight >= 0):
      raise ValueError(
        f"objective.rounding_weight={self.rounding_weight} and anchor_weight={self.anchor_weight} must be at least 0; 1 is usual"
      )
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"objective.label_smoothing={self.label_smoothing} must be in [0, 1); 0.1 is usual, 0 is none"
      )

  def weight(self, params: Params, t: Time) -> Array:
    """w(t) of the mse."""
    return jnp.minimum(
      WEIGHTINGS[self.weighting](self.process.path(params).log_snr(t)), self.max_weight
    )

  def anchor(
    self, params: Params, ids: Array, state: State, t: Time, logits: Array, smoothing: float = 0.0
  ) -> Array:
    """-log p of the true token in nats, [N], p read out of the network's answer."""
    logits = self.process.posterior(params, state, t, logits)
    if self.readout == "inner":
      vectors = self.process.mean(params, jax.nn.softmax(logits, axis=-1))
      logits = self.process.products(params, vectors)[0]
    return smoothed_cross_entropy(logits, ids, smoothing)

  def rounding(self, params: Params, key: Key, ids: Array) -> Array:
    """One draw of -log p of the true token in nats, [B, L], p read out of z_0+ by inner products."""
    state = self.process.corrupt(params, key, ids, jnp.full(ids.shape, TINY))
    return by_position(
      lambda state, ids: cross_entropy(self.process.products(params, state)[0], ids), state, ids
    )

  def next_times(self, params: Params, batch: Batch, noise: Noised) -> Array:
    """Σ weight · (predicted time - label)² over the noisy tokens, of a timing that predicts them."""
    process = self.process

    def one(rows: Rows):
      token = rows.state, rows.t, noise.prediction.unembed(rows.features)
      mse = process.squared_error(params, rows.ids, *token) / process.size
      return process.predicted(params, *token), mse + self.anchor_weight * self.anchor(
        params, rows.ids, *token
      )

    count, rows = scored_rows(noise, process, params, batch)
    flat = map_rows(one, count, rows, chunk=self.chunks.size, shards=self.chunks.shards)
    mean, cost = jax.tree.map(lambda leaf: leaf.reshape(*batch.ids.shape, *leaf.shape[1:]), flat)
    noisy = count.reshape(batch.ids.shape)
    guess = jnp.where(noisy[..., None], mean, process.encode(params, batch.ids))
    # Held constant before the timing reads them: the backward pass would go through the vocabulary for nothing.
    inputs, cost = jax.lax.stop_gradient(
      (process.inputs(params, guess, jnp.zeros(batch.ids.shape)), cost)
    )
    return jnp.sum(
      scored_weights(batch) * self.timing.fit(inputs, noise.times.clock, cost, noisy, batch.segment)
    )

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    return self.losses(params, noise_key(key, progress), batch, noise)

  def losses(self, params: Params, key: Key, batch: Batch, noise: Noised) -> Loss:
    """The loss of a batch that was read; key: `noise_key`."""
    process = self.process

    def score(rows: Rows):
      logits = noise.prediction.unembed(rows.features)
      token = rows.state, rows.t, logits
      mse = (
        self.weight(params, rows.t) * process.squared_error(params, rows.ids, *token) / process.size
      )
      anchor = self.anchor(params, rows.ids, *token, self.label_smoothing)
      rate = rows.speed * process.rate(params, rows.ids, *token)
      fit = process.fit_times(params, rows.t, rate) + fit_level(
        mse + self.anchor_weight * anchor, rows.expected
      )
      weight = (
        rows.weight * rows.speed
      )  # tokens whose time stands still, which no sampler asks for, cost nothing
      mse, anchor, bound = weight * mse, weight * anchor, rows.weight * rate
      return mse + self.anchor_weight * anchor + rows.weight * fit, {
        "mse": mse,
        "anchor": anchor,
        "bound": bound,
      }

    count, rows = scored_rows(noise, process, params, batch)
    total, sums = sum_rows(score, count, rows, chunk=self.chunks.size, shards=self.chunks.shards)
    weights = scored_weights(batch)
    prior = jnp.sum(weights * process.prior_cost(params, batch.ids))
    key_start = jax.random.fold_in(key, 2)
    reconstruction = jnp.sum(weights * process.reconstruction(params, key_start, batch.ids))
    rounding = (
      reconstruction
      if self.readout == "posterior"
      else jnp.sum(weights * self.rounding(params, key_start, batch.ids))
    )
    ends = prior + reconstruction
    sums = {**sums, "rounding": rounding, "prior": prior, "bound": sums["bound"] + ends}
    total = total + self.rounding_weight * rounding + prior
    if isinstance(self.timing, PredictsTimes):
      sums["times"] = self.next_times(params, batch, noise)
      total = total + sums["times"]
    return with_auxiliary(Loss(total, jnp.sum(weights), sums), noise.prediction)

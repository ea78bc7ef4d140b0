"""The losses of embedding diffusion as named terms: a surrogate for any Gaussian process, with the bound of the same draw beside it.

  loss = mse + anchor_weight · anchor + rounding_weight · rounding + prior      per scored token, with

  term      what it sees                                                          its gradients reach
  mse       the token's vector x and x̂ = Σ_v p_v x_v, p read off the logits:      network, embedding
            w(t) |x - x̂|² / (k² E), a mean over the vector's E numbers
  anchor    the network's p: -log p(x_i | z_t) at the same t (Difformer,          network, embedding (through z_t)
            arXiv 2212.09412, where it is of the rounded x̂; TESS has this term alone)
  rounding  the noised vector z_0+ and no network: -log p(x_i | z_0+) with        embedding only
            p ∝ q(z_0+ | x_v) (Diffusion-LM, arXiv 2205.14217: lm_head of x_start)
  prior     the clean vector: KL(q(z_1 | x) || prior) (Diffusion-LM's tT_loss)    embedding only

Vectors that are all the same have no mse, so mse alone shrinks a learned table; rounding or anchor keeps it apart. rounding + prior are
the ends of the bound. w is "uniform" (Diffusion-LM) or "snr", min(SNR, max_weight) (arXiv 2303.09556).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_text.kernels.cross_entropy import sum_rows
from diffusion_text.objective.bound import Chunks, Rows, noise_key, noised, scored_rows, scored_weights
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.process.masked import cross_entropy
from diffusion_text.types import Array, Batch, Key, Loss, Params, Predict, Process, Progress, Time, Timing

WEIGHTINGS = ("uniform", "snr")


@dataclasses.dataclass(frozen=True)
class EmbeddingLosses:
  """The sum of the terms above. Reports each of them before its weight, and "bound", all in nats or units of mse per scored token.

  Raises ValueError for a process that has no vectors and for values out of range.
  """

  process: Process
  timing: Timing
  chunks: Chunks = Chunks()
  weighting: str = "uniform"
  max_weight: float = math.inf
  rounding_weight: float = 1.0
  anchor_weight: float = 0.0

  def __post_init__(self):
    if not isinstance(self.process, Gaussian):
      raise ValueError(
        f"objective 'mse_rounding' is of vectors, which {type(self.process).__name__} has none of; use process.name='embedding'"
      )
    if self.weighting not in WEIGHTINGS:
      raise ValueError(f"objective.weighting={self.weighting!r} is unknown to 'mse_rounding'; use one of {WEIGHTINGS}")
    if not self.max_weight > 0:
      raise ValueError(f"objective.max_weight={self.max_weight} must be positive; 5 is usual for 'snr', inf does not clip")
    if not (self.rounding_weight >= 0 and self.anchor_weight >= 0):
      raise ValueError(
        f"objective.rounding_weight={self.rounding_weight} and anchor_weight={self.anchor_weight} must be at least 0; 1 is usual"
      )

  def weight(self, params: Params, t: Time) -> Array:
    """w(t) of the mse."""
    plain = jnp.ones_like(t) if self.weighting == "uniform" else jnp.exp(self.process.path(params).log_snr(t))
    return jnp.minimum(plain, self.max_weight)

  def __call__(self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict) -> Loss:
    process = self.process
    noise = noised(process, self.timing, params, key, batch, progress, predict)

    def score(rows: Rows):
      logits = noise.prediction.unembed(rows.features)
      token = rows.state, rows.t, logits
      mse = self.weight(params, rows.t) * process.squared_error(params, rows.ids, *token) / process.size
      anchor = cross_entropy(process.posterior(params, *token), rows.ids)
      bound = rows.speed * process.rate(params, rows.ids, *token)
      mse, anchor, bound = rows.weight * mse, rows.weight * anchor, rows.weight * bound
      fit = process.fit_times(params, rows.t, bound)
      return mse + self.anchor_weight * anchor + fit, {"mse": mse, "anchor": anchor, "bound": bound}

    count, rows = scored_rows(noise, process, params, batch)
    total, sums = sum_rows(score, count, rows, chunk=self.chunks.size, shards=self.chunks.shards)
    weights = scored_weights(batch)
    prior = jnp.sum(weights * process.prior_cost(params, batch.ids))
    key_start = jax.random.fold_in(noise_key(key, progress), 2)
    rounding = jnp.sum(weights * process.reconstruction(params, key_start, batch.ids))
    sums = {**sums, "rounding": rounding, "prior": prior, "bound": sums["bound"] + rounding + prior}
    return Loss(total + self.rounding_weight * rounding + prior, jnp.sum(weights), sums)

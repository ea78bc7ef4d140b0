"""Weighted cross-entropy on the corrupted tokens: a surrogate, trained with freely, never reported as a likelihood.

  loss = Σ over scored tokens of w(t) · (1 - e^-CE)^focusing · ((1 - s) · CE + s · mean over v of -log p(v)) / Σ over all tokens

w is one factor for all tokens of a row under a shared time (what the MGDM paper calls sequence-level reweighting). weighting:
"uniform" is the plain masked-LM loss (BERT; the unweighted loss of E2D2); "inverse_time" is 1/t, LLaDA's (arXiv 2502.09992 eq. 3)
and MGDM's "original"; "linear" is 1 - t, of RDM (arXiv 2302.05737) and MGDM. `max_weight` clips it (clipped weights
train with lower variance; then it is no bound). The divisor counts all tokens, not the masked ones: 1/t over the number of masked
tokens would be a 1/t² weight in disguise.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_text.objective.bound import (
  Chunks,
  Rows,
  check_posterior,
  noised,
  summed_loss,
  weighted_ends,
)
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.process.masked import cross_entropy
from diffusion_text.schedules.discrete import TINY
from diffusion_text.timing import PerBlock
from diffusion_text.types import (
  Array,
  Batch,
  Key,
  Loss,
  Params,
  Predict,
  Process,
  Progress,
  Time,
  Timing,
)

WEIGHTINGS = {
  "uniform": jnp.ones_like,
  "inverse_time": lambda t: 1 / jnp.maximum(t, TINY),
  "linear": lambda t: 1 - t,
}


def smoothed_cross_entropy(logits: Array, ids: Array, smoothing: float) -> Array:
  """(1 - s) · CE + s · mean over v of -log p(v), in nats: logits [..., V], ids [...] -> float32 [...]."""
  cost = cross_entropy(logits, ids)
  if not smoothing:
    return cost
  return (1 - smoothing) * cost + smoothing * (
    jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
  )


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
  """w(t) · CE at the tokens that the process scores; reports the bound of the same draw beside it, at no extra network call.

  Of Gaussian processes CE is that of the posterior, own evidence included: with x̂ = Σ_v p_v x_v in the steps, CDCD's score interpolation
  (arXiv 2211.15089), and with it logits that leave the evidence out are trained too (Plaid's output prior).
  label_smoothing: s, the share of the target that is spread evenly over the V tokens (RDM: 0.1 for translation).
  focusing: γ of MGDM's token-level reweighting (arXiv 2410.14157; 1 for sudoku, 2 for countdown): tokens that are easy already
    count less. As in their code the weight is part of the loss and is differentiated with it (the focal loss), not held constant:
    d/dCE = (1 - e^-CE)^γ + γ · CE · e^-CE · (1 - e^-CE)^(γ - 1). Their constant factor α = 0.25 is left to the learning rate.
  """

  process: Process
  timing: Timing
  weighting: str = "uniform"
  max_weight: float = math.inf
  chunks: Chunks = Chunks()
  label_smoothing: float = 0.0
  focusing: float = 0.0

  def __post_init__(self):
    if not isinstance(self.process, Gaussian):
      check_posterior(self.process, "objective.name='cross_entropy'")
    if self.weighting not in WEIGHTINGS:
      raise ValueError(
        f"objective weighting={self.weighting!r} is unknown; use one of {sorted(WEIGHTINGS)}"
      )
    blocks = isinstance(self.timing, PerBlock) and self.timing.block_size > 1
    if self.timing.clipped and not blocks and self.weighting != "inverse_time":
      raise ValueError(
        f"objective weighting={self.weighting!r} weighs times, and {self.timing} has t = 1 wherever it scores; use 'inverse_time', which"
        " is 1 there, or timing.name='shared'"
      )
    if not self.max_weight > 0:
      raise ValueError(
        f"objective max_weight={self.max_weight} must be positive; inf does not clip"
      )
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"objective label_smoothing={self.label_smoothing} must be in [0, 1); 0.1 is usual, 0 is none"
      )
    if not self.focusing >= 0:
      raise ValueError(
        f"objective focusing={self.focusing} must be at least 0; 1 and 2 are usual, 0 is plain cross-entropy"
      )

  def weight(self, t: Time) -> Array:
    return jnp.minimum(WEIGHTINGS[self.weighting](t), self.max_weight)

  def cost(self, logits: Array, ids: Array) -> Array:
    """The loss of each token before the weighting by time: logits [..., V], ids [...] -> float32 [...]."""
    cost = smoothed_cross_entropy(logits, ids, self.label_smoothing)
    if self.focusing:  # never below TINY: a power below 1 has no slope at 0
      cost = (-jnp.expm1(-jnp.maximum(cross_entropy(logits, ids), TINY))) ** self.focusing * cost
    return cost

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)

    def weighted(rows: Rows, logits: Array, rate: Array) -> Array:
      if isinstance(self.process, Gaussian):
        logits = self.process.posterior(params, rows.state, rows.t, logits)
      return rows.speed * self.weight(rows.t) * self.cost(logits, rows.ids)

    loss = summed_loss(noise, self.process, params, batch, self.chunks, weighted)
    ends = jnp.sum(weighted_ends(self.process, self.timing, params, key, batch, progress, predict))
    return loss._replace(sums={**loss.sums, "bound": loss.sums["bound"] + ends})

"""Weighted cross-entropy on the corrupted tokens: a surrogate, trained with freely, never reported as a likelihood.

  loss = Σ over scored tokens of w(t) · CE / Σ over all tokens

weighting "uniform" is the plain masked-LM loss (BERT; the unweighted loss of E2D2); "inverse_time" is 1/t, LLaDA's
(arXiv 2502.09992 eq. 3); `max_weight` clips it (clipped weights train with lower variance; then it is no bound). The divisor
counts all tokens, not the masked ones: 1/t over the number of masked tokens would be a 1/t² weight in disguise.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from diffusion_text.objective.bound import Chunks, noised, summed_loss
from diffusion_text.process.masked import cross_entropy
from diffusion_text.schedules import TINY
from diffusion_text.types import Array, Batch, Key, Loss, Params, Predict, Process, Progress, Time, Timing

WEIGHTINGS = {"uniform": jnp.ones_like, "inverse_time": lambda t: 1 / jnp.maximum(t, TINY)}


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
  """w(t) · CE at the tokens that the process scores; reports the bound of the same draw beside it, at no extra network call."""

  process: Process
  timing: Timing
  weighting: str = "uniform"
  max_weight: float = math.inf
  chunks: Chunks = Chunks()

  def __post_init__(self):
    if self.weighting not in WEIGHTINGS:
      raise ValueError(f"objective weighting={self.weighting!r} is unknown; use one of {sorted(WEIGHTINGS)}")
    if not self.max_weight > 0:
      raise ValueError(f"objective max_weight={self.max_weight} must be positive; inf does not clip")

  def weight(self, t: Time) -> Array:
    return jnp.minimum(WEIGHTINGS[self.weighting](t), self.max_weight)

  def __call__(self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    weighted = lambda ids, t, logits, rate: self.weight(t) * cross_entropy(logits, ids)
    return summed_loss(noise, self.process, params, batch, self.chunks, weighted)

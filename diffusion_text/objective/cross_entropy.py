"""Weighted cross-entropy of the clean tokens: trained with freely, a bound only where times jump.

  loss = Σ over tokens with a loss of w(t) · (1 - e^-CE)^focusing
           · ((1 - s) · CE + s · mean over v of -log p(v)) / Σ over all tokens

or, with `weigh_smoothing` False, as RDM's released loss has it,

         Σ over tokens with a loss of w(t) · (1 - e^-CE)^focusing · (1 - s) · CE
           + s · mean over v of -log p(v) / Σ over all tokens

CE is that of the posterior p(x_i | z), own evidence included, whatever the network's output means:
of a Gaussian process with x̂ = Σ_v p_v x_v that is the score interpolation of CDCD (arXiv
2211.15089), and it trains logits that leave the evidence out too.

w is one factor for all tokens of a row under a shared time (the MGDM paper calls it sequence-level
reweighting): "uniform" is the plain masked-LM loss (BERT; E2D2); "inverse_time" is 1/t, LLaDA's
(arXiv 2502.09992 eq. 3); "linear" is 1 - t, of RDM (arXiv 2302.05737) and MGDM, whose chains of T
steps weigh the k-th by 1 - (k - 1) / T: with `linear_steps` = T it is 1 - t + 1/T, which is 1/T at
t = 1. The divisor counts all tokens, not the masked ones: 1/t over the number of masked tokens
would be a 1/t² weight in disguise. "signal" is SNR / (1 + SNR), which is ᾱ = alpha² of a path that
preserves variance, for vectors in noise (ADD, arXiv 2510.01047): where little is left of a token
its loss counts little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import TINY, cross_entropy, expm1, mean_cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.types import (
  Batch,
  Key,
  Loss,
  Model,
  Params,
  Process,
  Progress,
  Times,
  TokenCosts,
)


def inverse_time(t: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """1/t."""
  return 1 / jnp.maximum(t, TINY)


def linear(t: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """1 - t."""
  return 1 - t


@runtime_checkable
class HasLogSNR(Protocol):
  """A process that adds noise to vectors."""

  def log_snr(self, params: Params, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The log signal-to-noise ratio that is trained at t."""


WEIGHTINGS: dict[str, Callable[[Array], Array]] = {  # of t, but "signal" of the log-SNR
  "uniform": jnp.ones_like,
  "inverse_time": inverse_time,
  "linear": linear,
  "signal": jax.nn.sigmoid,
}


@member
class CrossEntropy(OneReading):
  """w(t) · CE at the tokens that have a loss; reports the bound of the same draw beside it.

  The focal weight is that of MGDM (arXiv 2410.14157; γ = 1 for sudoku, 2 for countdown): easy
  tokens count less. As in their code the weight is differentiated with the loss, not held constant:
  d/dCE = (1 - e^-CE)^γ + γ · CE · e^-CE · (1 - e^-CE)^(γ - 1). Their constant factor α = 0.25 is
  left to the learning rate.
  """

  weighting: Literal["uniform", "inverse_time", "linear", "signal"] = option(
    "uniform", "w(t), the weight of a time: 1, 1/t, 1 - t, or for vectors SNR / (1 + SNR)"
  )
  linear_steps: int | None = option(
    None,
    "T of the weighting 'linear', which is then 1 - t + 1/T; RDM trains with 50, MDM with 20. None:"
    " 1 - t",
    ge=1,
  )
  max_weight: float = option(
    math.inf,
    "where w(t) is cut off: less variance, and no bound; inf does not cut",
    gt=0,
    le=math.inf,
    allow_inf_nan=True,
  )
  label_smoothing: float = option(
    0.0, "s, the share of the target that is spread over all tokens; 0.1 is usual", ge=0, lt=1
  )
  weigh_smoothing: bool = option(
    True,
    "whether w(t) and the focal weight apply to the share s too; False: it counts in full at all"
    " times, as in RDM",
  )
  focusing: float = option(
    0.0, "γ of the focal weight; 1 and 2 are usual, 0 is plain cross-entropy", ge=0
  )

  def __post_init__(self):
    if self.linear_steps is not None and self.weighting != "linear":
      raise ValueError(
        f"objective.linear_steps={self.linear_steps} is read by weighting='linear' alone, not by"
        f" weighting={self.weighting!r}; leave it unset, or use weighting='linear'"
      )

  @property
  def costs_nll(self) -> bool:
    """True where a token at t = 1 costs -log p."""
    plain = not self.label_smoothing and not self.focusing
    return plain and self.weighting in ("uniform", "inverse_time") and self.max_weight >= 1

  def check(self, model: Model) -> None:
    """Raises ValueError for learned noise, and for a weighting that is 0 wherever a loss is."""
    super().check(model)
    if self.weighting == "signal":
      require(
        model.process,
        HasLogSNR,
        "objective.weighting='signal'",
        "use weighting='linear', which is the share of clean tokens under a linear schedule",
      )
    nothing = self.weighting == "linear" and self.linear_steps is None
    if model.timing.path == "jumps" and nothing:
      raise ValueError(
        f"objective.weighting='linear' is 0 at t = 1, the only time at which {model.timing} has a"
        " loss; use 'uniform' or 'inverse_time', which are 1 there, or timing.name='shared'"
      )

  def measure(
    self, process: Process, process_params: Params, t: Float[Array, "*n"]
  ) -> Float[Array, "*n"]:
    """What `weight` is a function of: t or, for the weighting "signal", the log-SNR at t."""
    if self.weighting != "signal":
      return t
    return jax.lax.stop_gradient(process.log_snr(process_params, t))

  def weight(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """w, from `measure`."""
    weight = WEIGHTINGS[self.weighting](t)
    if self.linear_steps is not None:
      weight = weight + 1 / self.linear_steps
    return jnp.minimum(weight, self.max_weight)

  def cost(self, logits: Float[Array, "*n V"], ids: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """The loss of each token before the weight of its time."""
    spread = self.spread(logits)
    cost = (1 - self.label_smoothing) * cross_entropy(logits, ids)
    cost = cost + spread if self.weigh_smoothing else cost
    if self.focusing:  # never below TINY: a power below 1 has no slope at 0
      easy = jnp.maximum(cross_entropy(logits, ids), TINY)
      cost = (-expm1(-easy)) ** self.focusing * cost
    return cost if self.weigh_smoothing else cost + spread

  def spread(self, logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """s times the mean over v of -log p(v)."""
    if not self.label_smoothing:
      return jnp.zeros(logits.shape[:-1])
    return self.label_smoothing * mean_cross_entropy(logits)

  def weighted(
    self, t: Float[Array, "*n"], logits: Float[Array, "*n V"], at_time: Float[Array, "*n"]
  ) -> Float[Array, "*n"]:
    """The loss of each token with the weight of its time, from `at_time`, its `cost`; t is its
    `measure`."""
    weight = self.weight(t)
    if self.weigh_smoothing:
      return weight * at_time
    return weight * at_time + (1 - weight) * self.spread(logits)

  def token_cost(self, model: Model) -> engine.TokenFn:
    """What `engine.token_loss` asks of each token."""
    is_nll = model.timing.path == "jumps" and self.costs_nll

    def cost(consts, process_params, row, output, nats):
      del consts, nats
      logits = engine.posterior_logits(model.process, process_params, row, output)
      at_time = self.cost(logits, row.ids)
      measure = self.measure(model.process, process_params, row.t)
      minimised = row.dt_dtau * self.weighted(measure, logits, at_time)
      return minimised, at_time, {"bound": minimised} if is_nll else {}

    return cost

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    noised = engine.read(model, params, key, batch, times, progress)
    loss, costs = engine.token_loss(model, params, batch, noised, self.token_cost(model))
    loss = engine.add_boundary(model, params, key, batch, progress, loss, minimised=False)
    return loss, costs

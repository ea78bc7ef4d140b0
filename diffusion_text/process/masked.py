"""Masked (absorbing) diffusion: a token is clean until it is lost, and then it is the mask.

MDLM (arXiv 2406.07524), MD4 (arXiv 2406.04329), LLaDA (arXiv 2502.09992), SEDD-absorb (arXiv
2310.16834), D3PM-absorbing (arXiv 2107.03006). With alpha_t the probability of still being clean
(`schedules.discrete`):

  q(z_t | x)   = x with probability alpha_t, else the mask
  p(z_s | z_t) = z_t where it is clean; where it is masked, with probability
                 (alpha_s - alpha_t) / (1 - alpha_t) a draw of the predicted clean token (never the
                 mask: the network has no logit for it), else still the mask
  nelbo_rate   = -alpha'_t / (1 - alpha_t) · cross-entropy at masks, 0 elsewhere
                 (MDLM eq. 10, MD4 eq. 4)

Discrete time (`time_steps` = T): z changes at the times k/T only, and the bound is the sum of its T
divergences (D3PM eq. 2),

  nelbo_rate   = T · (alpha_s - alpha_t) / (1 - alpha_t) · cross-entropy, with t rounded up to k/T
                 and s = t - 1/T: its integral is that sum.

Scores (`prediction` = "score", SEDD): the logits are not normalised; y = log s(z, y) up to the
known factor alpha / (1 - alpha) / V, and

  nelbo_rate   = -alpha'_t / (1 - alpha_t) · (Σ_y e^y / V - 1 - y_x + log V)      (SEDD eq. 5)

which is the rate above plus e^N - 1 - N >= 0 for the log-normaliser N: the normaliser is free, and
has a price. `step` takes the scores as normalised; the steps of SEDD do not: `analytic` reveals a
token with e^N times the probability, cut at 1, and `leap` at e^N times the rate.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import NEVER, cross_entropy, expm1
from diffusion_text.core.options import internal, member, option, part
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import Absorbing, is_token
from diffusion_text.schedules.discrete import (
  SCHEDULES,
  Linear,
  Schedule,
  on_grid,
  reveal_probability,
  weight,
)
from diffusion_text.types import Keys, Params


@member
class Masked(Absorbing):
  """Masked diffusion over V clean tokens. State: ids int32, where the id V is the mask.

  *Whether* a token is revealed and *what* it becomes are drawn apart (two streams of each
  position's key): the first needs no logits, so nobody pays for logits where nothing happens, and
  neither draw can starve the other's tail in float32.
  """

  vocab_size: int = internal()
  schedule: Schedule = part(SCHEDULES, Linear(), "how fast tokens are lost")
  prediction: Literal["clean", "score"] = option(
    "clean", "what the logits are: log-probabilities of the clean token, or log-scores"
  )
  time_steps: int | None = option(
    None, "steps of a process in discrete time (D3PM: 1000); None: time is continuous", ge=1
  )

  @property
  def reads_logits_as(self) -> Literal["posterior", "score"]:
    """The posterior, unless the option `prediction` says that logits are scores."""
    return "score" if self.prediction == "score" else "posterior"

  @property
  def rate_at_noise_is_nll(self) -> bool:
    """True for the linear schedule in continuous time: its hazard at t = 1 is 1."""
    return self.schedule.is_linear and self.time_steps is None and self.prediction == "clean"

  def round_time(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """t rounded up to the next of the times k / time_steps."""
    return on_grid(t, self.time_steps)

  def corrupt(
    self, params: Params, keys: Keys, clean_state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Int[Array, "*n"]:
    """The mask with probability 1 - alpha_t, else the clean token: never at 0, always at 1."""
    del params
    lost = draw_uniform(fold(keys, 5)) < self.schedule(self.round_time(t)).noise
    return jnp.where(lost, self.mask_id, clean_state).astype(jnp.int32)

  def evidence(
    self, params: Params, state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Float[Array, "*n V"]:
    """log q(z_i | x_i = v) up to a constant: 0 where z_i is the mask or v, else NEVER."""
    del params, t
    fits = is_token(state, self.vocab_size) | (state == self.mask_id)[..., None]
    return jnp.where(fits, 0.0, NEVER)

  def nelbo_rate(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """The hazard times the cost of the clean token, at masks; 0 elsewhere."""
    cost = cross_entropy(output, clean_state)
    if self.prediction == "score":
      log_sum = self._log_normaliser(output)
      cost = cost + expm1(log_sum) - log_sum
    return jnp.where(self.has_loss(params, state, t), self._hazard(t) * cost, 0.0)

  def _hazard(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Reveals per unit of time; in discrete time, spread evenly over the step."""
    if self.time_steps is None:
      return weight(self.schedule, t)
    after = self.round_time(t)
    before = jnp.maximum(after - 1 / self.time_steps, 0.0)
    return self.time_steps * reveal_probability(self.schedule, after, before)

  def may_change(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Bool[Array, "*n"]:
    """True where `step` reveals a token: the coin needs no logits."""
    revealed = draw_uniform(fold(keys, 0)) < reveal_probability(self.schedule, t, s)
    return self.has_loss(params, state, t) & revealed

  def step(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """A draw of the predicted token where a mask is revealed; the state elsewhere."""
    revealed = self.may_change(params, keys, state, t, s)
    return jnp.where(revealed, draw_categorical(fold(keys, 1), output), state)

  def leap(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """One step of tau-leaping: a mask is revealed with probability (t - s) · hazard at t, e^N times
    that by scores.

    arXiv 2205.14987; the Euler sampler of SEDD (arXiv 2310.16834).
    """
    chance = (t - s) * weight(self.schedule, t)
    if self.prediction == "score":
      chance = chance * jnp.exp(self._log_normaliser(output))
    revealed = self.has_loss(params, state, t) & (draw_uniform(fold(keys, 0)) < chance)
    return jnp.where(revealed, draw_categorical(fold(keys, 1), output), state)

  def analytic(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """The analytic ("Tweedie") step of SEDD, of scores only: a mask is revealed with e^N times the
    probability of `step`; at s = 0 in any case."""
    chance = jnp.exp(self._log_normaliser(output)) * reveal_probability(self.schedule, t, s)
    due = (draw_uniform(fold(keys, 0)) < chance) | (s == 0)
    revealed = self.has_loss(params, state, t) & due
    return jnp.where(revealed, draw_categorical(fold(keys, 1), output), state)

  def _log_normaliser(self, output: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """N of scores: the logarithm of the mean of e^y, 0 where scores are exact."""
    return jax.nn.logsumexp(output, axis=-1) - math.log(self.vocab_size)

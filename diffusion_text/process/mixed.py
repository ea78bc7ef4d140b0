"""Masks and random tokens together, in shares that follow from the schedule and one number.

GIDD (arXiv 2503.04482), the hybrids of hyperschedules (arXiv 2504.06416) and, as limits, masked and
uniform diffusion; the maths is in `mixture`. `mixing` says how the shares of the clean token, the
mask and a random token follow from (alpha, noise) of the schedule and the option `share` = p:

  constant   clean = alpha, mask = (1 - p) noise, uniform = p noise; p = 0 is masked diffusion,
             p = 1 uniform diffusion
  peaked     clean : mask : uniform = alpha : noise : c, c = 2 p / (1 - p) · sqrt(alpha · noise):
             uniform noise peaks at p midway, the ends are clean text and all masks
             (GIDD with gamma = 1)
  gamma      the mask absorbs, and what survives is scrambled: the generator is
             (1 - p) · absorbing + p · uniform among clean tokens, so mask = 1 - alpha^(1-p),
             clean = alpha; p = 1 is uniform diffusion (γ-hybrid of hyperschedules)
  epsilon    the mask absorbs, and a share p · (1 - alpha^(1/onset)) of the survivors is scrambled:
             p · noise for onset = 1, nearly p wherever noise is several times onset. The ε-hybrid
             of hyperschedules has the share p at all times: the limit onset = 0, at which text
             would be scrambled at t = 0 already

A small onset has its price. At noise well above onset no more tokens are scrambled: a visible token
adds nothing to the bound there, and no posterior step changes it. All wrong tokens are mended at
noise about onset, in the last step of a sampler (`sampler.name="adaptive_correction"` mends them
before). The bound pays for them within that stretch of time, a share of about onset of all times,
at a rate that grows as 1 / onset; so does the variance of the bound at one drawn time. At onset = 0
the whole price is a jump at t = 0, -log p(x | z_0+) of the visible tokens by the network. Our bound
asks no network at its ends, so its value would be too low, and no bound. Published models train on
cross-entropies beside the bound, which do not see the jump (recalled).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import expm1
from diffusion_text.core.options import internal, member, option, part
from diffusion_text.process.discrete import WithMask
from diffusion_text.process.mixture import LEAST, Mixture, Shares
from diffusion_text.process.scores import above, entropy_at_mask, entropy_at_token
from diffusion_text.schedules.discrete import SCHEDULES, Level, Linear, Schedule
from diffusion_text.types import Params


def mix(mixing: str, share: float, level: Level, onset: float = 1.0) -> Shares:
  """The shares of a mixing (see the module), accurate in float32 at both ends."""
  alpha, noise = level
  if mixing == "constant":
    return Shares(alpha, (1 - share) * noise, share * noise)
  if mixing == "peaked":
    bump = 2 * share / (1 - share) * jnp.sqrt(alpha * noise) if share else jnp.zeros_like(alpha)
    return Shares(alpha / (1 + bump), noise / (1 + bump), bump / (1 + bump))
  if mixing == "epsilon":
    scrambled = share * noise
    if onset != 1:
      scrambled = share * -expm1(_log_alpha(level) / onset)
    return Shares(alpha * (1 - scrambled), noise, alpha * scrambled)
  log_alpha = _log_alpha(level)
  lost = jnp.where(alpha > 0, -expm1((1 - share) * log_alpha), float(share < 1))
  scrambled = -jnp.exp((1 - share) * log_alpha) * expm1(share * log_alpha)
  return Shares(alpha, lost, jnp.where(alpha > 0, scrambled, 1 - lost))


def _log_alpha(level: Level) -> Float[Array, "*n"]:
  """log alpha, accurate at both ends; that of LEAST where alpha is 0."""
  near_clean = jnp.log1p(-jnp.minimum(level.noise, 0.5))
  return jnp.where(level.noise < 0.5, near_clean, jnp.log(jnp.maximum(level.alpha, LEAST)))


@member
class Mixed(WithMask, Mixture):
  """Mask and uniform noise over V clean tokens. State: ids int32, where the id V is the mask."""

  vocab_size: int = internal()
  schedule: Schedule = part(SCHEDULES, Linear(), "how fast tokens are lost")
  mixing: Literal["constant", "peaked", "gamma", "epsilon"] = option(
    "peaked", "how the shares of masks and random tokens follow from the schedule"
  )
  share: float = option(
    0.1,
    "how much of the noise is uniform; GIDD: 0.1 and 0.2; below 1 for peaked and epsilon",
    ge=0,
    le=1,
  )
  onset: float = option(
    1.0,
    "of mixing 'epsilon', the noise at which the share approaches the full one; 0 in the paper,"
    " whose price the module names",
    ge=1e-4,
    le=1,
  )
  prediction: Literal["leave_one_out", "posterior", "score"] = option(
    "leave_one_out",
    "what the logits are: log p(x_i | z without z_i), log p(x_i | z), or log-scores, which are of"
    " mixings 'gamma' and 'epsilon'",
  )
  time_steps: int | None = option(
    None, "steps of a process in discrete time; None: time is continuous", ge=1
  )

  def __post_init__(self):
    super().__post_init__()
    if self.share == 1 and self.mixing in ("peaked", "epsilon"):
      raise ValueError(
        f"process.share={self.share} must be below 1 for mixing={self.mixing!r}; 0.1 and 0.2 are"
        " usual, and process.name='uniform' has no mask at all"
      )
    if self.prediction == "score" and (not self.mask_is_final or self.time_steps is not None):
      raise ValueError(
        f"process.prediction='score' with mixing={self.mixing!r}, time_steps={self.time_steps}:"
        " scores are of masks that absorb, in continuous time; use mixing='gamma' and leave"
        " time_steps unset"
      )
    if self.onset != 1 and self.mixing != "epsilon":
      raise ValueError(
        f"process.onset={self.onset} is read by mixing='epsilon' alone, not by"
        f" mixing={self.mixing!r}; leave it unset"
      )

  @property
  def mask_is_final(self) -> bool:
    """True for the mixings in which the mask absorbs."""
    return self.mixing in ("gamma", "epsilon")

  def shares(self, t: Float[Array, "*n"]) -> Shares:
    """The law of a token at time t."""
    return mix(self.mixing, self.share, self.schedule(t), self.onset)

  def leave_one_out(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i), normalised; of scores, the law above the noise floor."""
    if self.prediction != "score":
      return super().leave_one_out(params, state, t, output)
    return jnp.log(jnp.maximum(above(state, output, self._survivors(t).uniform), LEAST))

  def nelbo_rate(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """The rate of `Mixture`; of scores, the denoising score entropy."""
    if self.prediction != "score":
      return super().nelbo_rate(params, clean_state, state, t, output)
    shares, arrivals = self._jumps(t)
    masked = arrivals.mask / jnp.maximum(shares.mask, LEAST)
    masked = masked * entropy_at_mask(shares, clean_state, output)
    seen = arrivals.uniform / self.vocab_size * entropy_at_token(shares, clean_state, state, output)
    return jnp.where(t > 0, jnp.where(state == self.mask_id, masked, seen), 0.0)

  def dynamic_weight(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
  ) -> Float[Array, "*n"]:
    """Weights of the divergence for training: 2 at masks, 1 at wrong tokens, small at right ones.

    GIDD (arXiv 2503.04482, section 3.3). Raises ValueError unless mixing is 'peaked' in continuous
    time.
    """
    del params
    if self.mixing != "peaked" or self.time_steps is not None:
      raise ValueError(
        f"process.mixing={self.mixing!r}, time_steps={self.time_steps}: dynamic weights are of"
        " mixing='peaked' in continuous time; use these, or objective.name='bound'"
      )
    peak = 2 * self.share / (1 - self.share) / (self.vocab_size + 1)  # the mask counts there too
    right = peak * jnp.exp(jax.nn.sigmoid(-t) / 2)
    return jnp.where(state == self.mask_id, 2.0, jnp.where(state == clean_state, right, 1.0))

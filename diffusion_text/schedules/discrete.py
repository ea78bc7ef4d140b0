"""Schedules alpha(t): the probability that a token is still clean at time t.

A schedule is a pure function of t with alpha(0) = 1 and alpha(1) = 0 **exactly**, so a process
needs no reconstruction term and no prior term for a true bound. (Published code truncates at
1e-3 … 1e-4 and drops these terms. This moves the bound of masked diffusion by about 1e-4 nats per
token in either direction, and lowers the bound of GIDD by 1e-2.) Each schedule returns alpha *and*
1 - alpha, both to full relative float32 precision, which `1 - alpha` would not have near t = 0.
Derivatives come from `jax.jvp`, never by hand.

t is a float32 array in [0, 1] of any shape; results have its shape.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.numerics import LEAST, TINY, expm1
from diffusion_text.core.options import member, option


class Level(NamedTuple):
  """alpha = P(still clean) and noise = 1 - alpha, each accurate even if it is small."""

  alpha: Float[Array, "*n"]
  noise: Float[Array, "*n"]


class Schedule:
  """The base class of schedules, also of your own.

  Attributes:
    is_linear: True if alpha = 1 - t, so that the hazard at t = 1 is 1.
  """

  @property
  def is_linear(self) -> bool:
    """False, unless a schedule overrides it."""
    return False

  def __call__(self, t: Float[Array, "*n"]) -> Level:
    """alpha and 1 - alpha at time t."""
    raise NotImplementedError


@member
class Linear(Schedule):
  """alpha = 1 - t; the hazard is 1/t.

  Log-linear sigma of MDLM (arXiv 2406.07524) and SEDD (arXiv 2310.16834) without their epsilon.
  """

  @property
  def is_linear(self) -> bool:
    """True."""
    return True

  def __call__(self, t: Float[Array, "*n"]) -> Level:
    """1 - t and t."""
    return Level(1 - t, t)


@member
class Cosine(Schedule):
  """alpha = 1 - cos(π/2 (1 - t)), the cosine schedule of MD4 (arXiv 2406.04329, table 4)."""

  def __call__(self, t: Float[Array, "*n"]) -> Level:
    """alpha and 1 - alpha, without cancellation at either end."""
    # 1 - cos(x) = 2 sin²(x / 2), and cos(π/2 (1 - t)) = sin(π/2 t).
    return Level(2 * jnp.sin(jnp.pi / 4 * (1 - t)) ** 2, jnp.sin(jnp.pi / 2 * t))


@member
class Polynomial(Schedule):
  """alpha = 1 - t^power (MD4, arXiv 2406.04329, table 4); the hazard is power / t."""

  # t^power of a small time underflows float32 beyond 3.
  power: float = option(2.0, "the exponent; 1 is the linear schedule, 2 is common", gt=0, le=3)

  @property
  def is_linear(self) -> bool:
    """True for power 1."""
    return self.power == 1

  def __call__(self, t: Float[Array, "*n"]) -> Level:
    """alpha and 1 - alpha, with finite gradients at t = 0."""
    safe = jnp.maximum(t, TINY**2)  # the logarithm below needs a positive time
    return Level(-expm1(self.power * jnp.log(safe)), jnp.where(t > 0, safe**self.power, 0.0))


@member
class Geometric(Schedule):
  """exp(-sigma) with sigma = sigma_min^(1-t) sigma_max^t, rescaled to reach 1 and 0 exactly.

  SEDD (arXiv 2310.16834), its geometric noise schedule.
  """

  sigma_min: float = option(1e-3, "sigma at t = 0", gt=0)
  sigma_max: float = option(20.0, "sigma at t = 1", gt=0)

  def __post_init__(self):
    if not self.sigma_min < self.sigma_max:
      raise ValueError(
        f"schedule.sigma_min={self.sigma_min} must be below schedule.sigma_max={self.sigma_max};"
        " 1e-3 and 20 are the published values"
      )

  def __call__(self, t: Float[Array, "*n"]) -> Level:
    """alpha and 1 - alpha, without cancellation at either end."""
    log_ratio = jnp.log(self.sigma_max / self.sigma_min)
    total = -math.expm1(self.sigma_min - self.sigma_max)  # 1 - exp(-(sigma(1) - sigma(0)))
    rise = self.sigma_min * expm1(t * log_ratio)  # sigma(t) - sigma(0), accurate near t = 0
    rest = -self.sigma_max * expm1((t - 1) * log_ratio)  # sigma(1) - sigma(t), near t = 1
    # exp(-rise) - exp(-(rise + rest)) as a product: no cancellation, and nothing can overflow.
    alpha = -jnp.exp(-rise) * expm1(-rest) / total
    noise = jnp.minimum(-expm1(-rise) / total, 1.0)
    return Level(jnp.minimum(alpha, 1.0), jnp.where(t >= 1, 1.0, noise))


def weight(schedule: Schedule, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """-alpha'(t) / (1 - alpha(t)): the hazard, reveals of a masked token per unit of time.

  The masked-diffusion bound is E_t[weight(t) · cross-entropy of the masked tokens] (MDLM eq. 10,
  MD4 eq. 4). The weight is finite for every t: below TINY, where no token is masked in practice, it
  is the weight at TINY.
  """
  t = jnp.maximum(t, TINY)
  level, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
  return slope.noise / level.noise


def reveal_probability(
  schedule: Schedule, t: Float[Array, "*n"], s: Float[Array, "*n"]
) -> Float[Array, "*n"]:
  """(alpha_s - alpha_t) / (1 - alpha_t), s <= t: the chance that a token masked at t is clean at s.

  It is 1 at s = 0.
  """
  return 1 - schedule(s).noise / jnp.maximum(schedule(t).noise, LEAST)


def on_grid(t: Float[Array, "*n"], steps: int | None) -> Float[Array, "*n"]:
  """t rounded up to the next of the times k / steps, k = 0 … steps; t itself if steps is None.

  A time that is k / steps but for the rounding of float32 stays: 5 of the 1000 products
  (k / 1000) · 1000 are a little above k, and would be taken for k + 1.
  """
  return t if steps is None else jnp.ceil(t * (steps * (1 - 2**-21))) / steps


def time_of(schedule: Schedule, alpha: Float[Array, "*n"] | float) -> Float[Array, "*n"]:
  """The time at which a schedule has this alpha, found by bisection to within about 2^-24."""
  alpha = jnp.asarray(alpha, jnp.float32)

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    later = schedule(middle).alpha > alpha
    return jnp.where(later, middle, low), jnp.where(later, high, middle)

  return jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(alpha), jnp.ones_like(alpha)))[1]


SCHEDULES = {
  "cosine": Cosine,
  "geometric": Geometric,
  "linear": Linear,
  "polynomial": Polynomial,
}

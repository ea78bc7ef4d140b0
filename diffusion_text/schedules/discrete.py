"""How fast tokens are lost: schedules alpha(t), the probability that a token is still clean at time t.

A schedule is a pure function of t with alpha(0) = 1 and alpha(1) = 0 **exactly**, so that no process needs a hidden t-range,
a reconstruction term or a prior term to be a true bound (published code truncates at 1e-3 … 1e-4 and drops those terms, which
moves the bound of masked diffusion by some 1e-4 nats/token in either direction and lowers that of GIDD by 1e-2). Each one returns
alpha *and* 1 - alpha, both to full relative float32 precision: forming `1 - alpha` near t = 0 loses it. Derivatives come from
`jax.jvp`, never by hand.

t is a float32 array in [0, 1] of any shape; results have its shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_text.types import Array, Time

TINY = 1e-7  # the smallest time at which a weight is formed: 1/t stays finite in float32


class Level(NamedTuple):
  """alpha = P(still clean) and noise = 1 - alpha, each accurate where it is small."""

  alpha: Array
  noise: Array


Schedule = Callable[[Time], Level]


@dataclasses.dataclass(frozen=True)
class Linear:
  """alpha = 1 - t; the weight is 1/t. Log-linear sigma of MDLM (arXiv 2406.07524) and SEDD without their epsilon."""

  def __call__(self, t: Time) -> Level:
    return Level(1 - t, t)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """alpha = 1 - cos(pi/2 (1 - t)), the cosine schedule of MD4 (arXiv 2406.04329, table 4)."""

  def __call__(self, t: Time) -> Level:
    # 1 - cos(x) = 2 sin^2(x / 2) and cos(pi/2 (1 - t)) = sin(pi/2 t): no cancellation at either end.
    return Level(2 * jnp.sin(jnp.pi / 4 * (1 - t)) ** 2, jnp.sin(jnp.pi / 2 * t))


@dataclasses.dataclass(frozen=True)
class Polynomial:
  """alpha = 1 - t^power, the polynomial schedule of MD4 (arXiv 2406.04329, table 4); the weight is power / t."""

  power: float = 2.0

  def __post_init__(self):
    if not 0 < self.power <= 3:  # t^power of a small time underflows float32 beyond
      raise ValueError(
        f"polynomial power={self.power} must be in (0, 3]; 1 is the linear schedule, 2 is common"
      )

  def __call__(self, t: Time) -> Level:
    safe = jnp.maximum(t, TINY**2)  # log t below: gradients stay finite at t = 0
    return Level(-jnp.expm1(self.power * jnp.log(safe)), jnp.where(t > 0, safe**self.power, 0.0))


@dataclasses.dataclass(frozen=True)
class Geometric:
  """exp(-sigma) with sigma = sigma_min^(1-t) sigma_max^t (SEDD, arXiv 2310.16834), rescaled to reach 1 and 0 exactly."""

  sigma_min: float = 1e-3
  sigma_max: float = 20.0

  def __post_init__(self):
    if not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
        f"geometric schedule needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
      )

  def __call__(self, t: Time) -> Level:
    log_ratio = jnp.log(self.sigma_max / self.sigma_min)
    total = -jnp.expm1(self.sigma_min - self.sigma_max)  # 1 - exp(-(sigma(1) - sigma(0)))
    rise = self.sigma_min * jnp.expm1(t * log_ratio)  # sigma(t) - sigma(0), accurate near t = 0
    rest = -self.sigma_max * jnp.expm1(
      (t - 1) * log_ratio
    )  # sigma(1) - sigma(t), accurate near t = 1
    # exp(-rise) - exp(-(rise + rest)) as a product: no cancellation, and nothing can overflow.
    alpha = -jnp.exp(-rise) * jnp.expm1(-rest) / total
    return Level(
      jnp.minimum(alpha, 1.0), jnp.where(t >= 1, 1.0, jnp.minimum(-jnp.expm1(-rise) / total, 1.0))
    )


def weight(schedule: Schedule, t: Time) -> Array:
  """-alpha'(t) / (1 - alpha(t)): the rate at which a masked token is revealed, per unit time (1/t when linear).

  The masked-diffusion bound is E_t[weight(t) · CE over masked tokens] (MDLM eq. 10, MD4 eq. 4). Finite for every t > 0;
  t is clamped to TINY, where no token is masked in practice.
  """
  t = jnp.maximum(t, TINY)
  level, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
  return slope.noise / level.noise


def reveal_probability(schedule: Schedule, t: Time, s: Time) -> Array:
  """(alpha_s - alpha_t) / (1 - alpha_t), s <= t: the chance that a token masked at t is clean at s. 1 at s = 0."""
  return 1 - schedule(s).noise / jnp.maximum(schedule(t).noise, jnp.finfo(jnp.float32).tiny)


def on_grid(t: Time, steps: int | None) -> Array:
  """t rounded up to the next of the times k / steps, k = 0 … steps; t itself if steps is None. 0 stays 0."""
  return t if steps is None else jnp.ceil(t * steps) / steps


def time_of(schedule: Schedule, alpha: Array | float) -> Array:
  """The time at which a schedule has this alpha, by bisection: float32 of the shape of alpha, right to 2^-24 or so."""
  alpha = jnp.asarray(alpha, jnp.float32)

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    later = schedule(middle).alpha > alpha
    return jnp.where(later, middle, low), jnp.where(later, high, middle)

  return jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(alpha), jnp.ones_like(alpha)))[1]


SCHEDULES = {"linear": Linear, "cosine": Cosine, "polynomial": Polynomial, "geometric": Geometric}

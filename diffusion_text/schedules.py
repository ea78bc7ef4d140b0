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
import math
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
      raise ValueError(f"polynomial power={self.power} must be in (0, 3]; 1 is the linear schedule, 2 is common")

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
      raise ValueError(f"geometric schedule needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

  def __call__(self, t: Time) -> Level:
    log_ratio = jnp.log(self.sigma_max / self.sigma_min)
    total = -jnp.expm1(self.sigma_min - self.sigma_max)  # 1 - exp(-(sigma(1) - sigma(0)))
    rise = self.sigma_min * jnp.expm1(t * log_ratio)  # sigma(t) - sigma(0), accurate near t = 0
    rest = -self.sigma_max * jnp.expm1((t - 1) * log_ratio)  # sigma(1) - sigma(t), accurate near t = 1
    # exp(-rise) - exp(-(rise + rest)) as a product: no cancellation, and nothing can overflow.
    alpha = -jnp.exp(-rise) * jnp.expm1(-rest) / total
    return Level(jnp.minimum(alpha, 1.0), jnp.where(t >= 1, 1.0, jnp.minimum(-jnp.expm1(-rise) / total, 1.0)))


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


# A path says how a vector is lost: z_t = alpha_t x + sigma_t ε. Everything is read off its log-SNR, λ(t) = log(alpha_t² / sigma_t²), which
# falls from log_snr_max at t = 0+ to log_snr_min at t = 1, both finite: time runs over a window of the published curve, so that the bound
# needs no other cut (t == 0 itself is the clean vector, and what lies between is the reconstruction term).


class Gain(NamedTuple):
  """alpha and sigma of z = alpha x + sigma ε, and their log-SNR; float32, each accurate where it is small."""

  alpha: Array
  sigma: Array
  log_snr: Array


@dataclasses.dataclass(frozen=True)
class LogSNR:
  """λ falls along a line; variance preserving: alpha² = sigmoid(λ), sigma² = sigmoid(-λ) (VDM, arXiv 2107.00630, its initial γ).

  Raises ValueError for an empty window, as all paths do.
  """

  log_snr_max: float = 10.0
  log_snr_min: float = -10.0

  def __post_init__(self):
    if not self.log_snr_min < self.log_snr_max:
      raise ValueError(
        f"schedule.log_snr_min={self.log_snr_min} must be below schedule.log_snr_max={self.log_snr_max}; -10 and 10 are wide"
      )

  def log_snr(self, t: Time) -> Array:
    return self.log_snr_max + t * (self.log_snr_min - self.log_snr_max)

  def gain(self, log_snr: Array) -> Gain:
    """alpha and sigma at a log-SNR."""
    return Gain(jnp.exp(jax.nn.log_sigmoid(log_snr) / 2), jnp.exp(jax.nn.log_sigmoid(-log_snr) / 2), log_snr)

  def __call__(self, t: Time) -> Gain:
    return self.gain(self.log_snr(t))

  def snr_rate(self, t: Time) -> Array:
    """-dSNR/dt >= 0, by `jax.jvp` of the log-SNR."""
    value, slope = jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))
    return -slope * jnp.exp(value)


@dataclasses.dataclass(frozen=True)
class Exploding(LogSNR):
  """alpha = 1, sigma from exp(-log_snr_max / 2) to exp(-log_snr_min / 2), geometrically (variance exploding, arXiv 2011.13456)."""

  def gain(self, log_snr: Array) -> Gain:
    return Gain(jnp.ones_like(log_snr), jnp.exp(-log_snr / 2), log_snr)


@dataclasses.dataclass(frozen=True)
class Curve(LogSNR):
  """A path given by its published curve λ(u), of which t runs over the window of u between log_snr_max and log_snr_min."""

  @property
  def last(self) -> float:
    """The u at which alpha = 0."""
    return 1.0

  def at(self, u: Array, rest: Array) -> Array:
    """λ of the published curve; rest = last - u, handed over because forming it near the end loses it in float32."""
    raise NotImplementedError

  def when(self, log_snr: float) -> float:
    """The u at which the published curve has this log-SNR."""
    raise NotImplementedError

  def log_snr(self, t: Time) -> Array:
    low, high = self.when(self.log_snr_max), self.when(self.log_snr_min)
    return self.at(low + t * (high - low), (self.last - high) + (1 - t) * (high - low))


@dataclasses.dataclass(frozen=True)
class VPCosine(Curve):
  """alpha² = f(u) / f(0), f = cos²(π/2 (u + offset) / (1 + offset)) (arXiv 2102.09672 eq. 17).

  offset: 0.008 there, 1e-4 in TESS and SSD-LM.
  """

  offset: float = 0.008

  def __post_init__(self):
    super().__post_init__()
    if not self.offset >= 0:
      raise ValueError(f"schedule.offset={self.offset} must be at least 0; 0.008 is usual, TESS has 1e-4")

  def at(self, u: Array, rest: Array) -> Array:
    turn = math.pi / 2 / (1 + self.offset)
    # cos²a - cos²b = sin(b - a) sin(b + a), and cos x as the sine of what is left: no cancellation at either end.
    noise = jnp.log(jnp.sin(turn * u)) + jnp.log(jnp.sin(turn * (u + 2 * self.offset)))
    return 2 * jnp.log(jnp.sin(turn * rest)) - noise

  def when(self, log_snr: float) -> float:
    turn = math.pi / 2 / (1 + self.offset)
    # sin² of the angle is start + (1 - start) sigma²: accurate where sigma is small.
    start = math.sin(turn * self.offset) ** 2
    noise = 1 / (1 + math.exp(log_snr))
    return math.asin(math.sqrt(start + (1 - start) * noise)) / turn - self.offset


@dataclasses.dataclass(frozen=True)
class SquareRoot(Curve):
  """alpha² = (1 - √(u + offset)) / (1 - √offset): Diffusion-LM (arXiv 2205.14217 eq. 14; the chain's ᾱ[i] at u = (i + 1) / T).

  The chain of 2000 steps begins at log-SNR 4.209 and ends at -15.41.
  """

  offset: float = 1e-4

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.offset < 1:
      raise ValueError(f"schedule.offset={self.offset} must be between 0 and 1; Diffusion-LM has 1e-4")

  @property
  def last(self) -> float:
    return 1 - self.offset

  def at(self, u: Array, rest: Array) -> Array:
    root = jnp.sqrt(u + self.offset)
    return jnp.log(rest) - jnp.log1p(root) - jnp.log(u) + jnp.log(root + math.sqrt(self.offset))

  def when(self, log_snr: float) -> float:
    start = math.sqrt(self.offset)
    root = start + (1 - start) / (1 + math.exp(log_snr))
    return (root - start) * (root + start)


@dataclasses.dataclass(frozen=True)
class Flow(Curve):
  """alpha = 1 - u, sigma = slope · u: rectified flow (arXiv 2209.03003), where ρ = 0 steps are Euler steps. slope: 2 in ELF."""

  slope: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if not self.slope > 0:
      raise ValueError(f"schedule.slope={self.slope} must be positive; 1 is usual")

  def at(self, u: Array, rest: Array) -> Array:
    return 2 * (jnp.log(rest) - jnp.log(u)) - 2 * math.log(self.slope)

  def when(self, log_snr: float) -> float:
    return 1 / (1 + self.slope * math.exp(log_snr / 2))

  def gain(self, log_snr: Array) -> Gain:
    odds = log_snr / 2 + math.log(self.slope)
    return Gain(jax.nn.sigmoid(odds), self.slope * jax.nn.sigmoid(-odds), log_snr)


@dataclasses.dataclass(frozen=True)
class Tangent(Curve):
  """sigma / alpha = slope · tan(π u / 2), variance preserving: the tan-d path of TEncDM (arXiv 2402.19097), d = 9."""

  slope: float = 9.0

  def __post_init__(self):
    super().__post_init__()
    if not self.slope > 0:
      raise ValueError(f"schedule.slope={self.slope} must be positive; 9 is usual, 1 is the cosine path without offset")

  def at(self, u: Array, rest: Array) -> Array:
    return 2 * (jnp.log(jnp.sin(math.pi / 2 * rest)) - jnp.log(jnp.sin(math.pi / 2 * u))) - 2 * math.log(self.slope)

  def when(self, log_snr: float) -> float:
    return 2 / math.pi * math.atan(math.exp(-log_snr / 2) / self.slope)


@dataclasses.dataclass(frozen=True)
class Arctangent(Curve):
  """alpha = 1 / w², w = 1 + (ratio - 1) (2 / π) arctan(√(u / (1 - u)) / slope), variance preserving: Smoothie (arXiv 2505.18853).

  w is how wide the kernel of distances is at u, in units of its smallest width; ratio: the largest, 200 / 1.5 there; slope: 9 there.
  """

  slope: float = 9.0
  ratio: float = 400 / 3

  def __post_init__(self):
    super().__post_init__()
    if not self.slope > 0:
      raise ValueError(f"schedule.slope={self.slope} must be positive; Smoothie has 9")
    if not self.ratio > 1 or self.when(self.log_snr_min) > 1:
      raise ValueError(
        f"schedule.ratio={self.ratio} ends at log-SNR {-4 * math.log(max(self.ratio, 1)):.1f}, above"
        f" schedule.log_snr_min={self.log_snr_min}; use a larger ratio (Smoothie: 133.3) or raise log_snr_min"
      )

  def at(self, u: Array, rest: Array) -> Array:
    log_width = jnp.log1p((self.ratio - 1) * (2 / math.pi) * jnp.arctan2(jnp.sqrt(u), self.slope * jnp.sqrt(rest)))
    return -4 * log_width - jnp.log(-jnp.expm1(-4 * log_width))

  def when(self, log_snr: float) -> float:
    wider = math.expm1(math.log1p(math.exp(-log_snr)) / 4)  # w - 1, from alpha² = sigmoid(λ) = w^-4
    turn = math.pi / 2 * wider / (self.ratio - 1)
    if turn >= math.pi / 2:  # the curve ends before
      return 1.0 if turn == math.pi / 2 else 2.0
    return 1 / (1 + (self.slope * math.tan(turn)) ** -2)

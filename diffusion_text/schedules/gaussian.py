"""Paths: the log-SNR of a noisy vector as a function of time.

z_t = alpha_t x + sigma_t ε. A path is defined by its log signal-to-noise ratio,
λ(t) = log(alpha_t² / sigma_t²), which falls from log_snr_max at t -> 0+ to log_snr_min at t = 1.
Both are finite: time covers a window of the published curve, so the bound needs no other cut. (t ==
0 itself is the clean vector, and the step from t -> 0+ to it is the reconstruction term.)

t is a float32 array in [0, 1] of any shape; results have its shape.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_text.core.numerics import expm1
from diffusion_text.core.options import member, option, part


class Gain(NamedTuple):
  """alpha and sigma of z = alpha x + sigma ε, and their log-SNR, each accurate even if small."""

  alpha: Float[Array, "*n"]
  sigma: Float[Array, "*n"]
  log_snr: Float[Array, "*n"]


class Path:
  """The base class of paths, also of your own, which define `log_snr`.

  A path is variance preserving unless it overrides `gain`.
  """

  def log_snr(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The log-SNR at time t. It falls strictly."""
    raise NotImplementedError

  def gain(self, log_snr: Float[Array, "*n"]) -> Gain:
    """alpha and sigma at a log-SNR: alpha² = sigmoid(λ), sigma² = sigmoid(-λ)."""
    alpha = jnp.exp(jax.nn.log_sigmoid(log_snr) / 2)
    return Gain(alpha, jnp.exp(jax.nn.log_sigmoid(-log_snr) / 2), log_snr)

  def __call__(self, t: Float[Array, "*n"]) -> Gain:
    """alpha and sigma at time t. At t == 0 they are the limits for t -> 0+."""
    return self.gain(self.log_snr(t))

  def snr_rate(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-dSNR/dt >= 0, from `jax.jvp` of the log-SNR."""
    value, slope = jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))
    return -slope * jnp.exp(value)

  def time_of(self, log_snr: float | Array) -> Float[Array, ""]:
    """The time at which the path has this log-SNR, found by bisection; 0 for one above the path.

    Raises:
      ValueError: For a number (not for a traced value) that is not above the end of the path.
    """
    with jax.ensure_compile_time_eval():
      highest = float(self.log_snr(jnp.float32(0)))
      lowest = float(self.log_snr(jnp.float32(1)))
    if isinstance(log_snr, int | float) and not log_snr > lowest:
      raise ValueError(
        f"log-SNR {log_snr} must be above the path's end, log-SNR {lowest:.3g}: there is nothing"
        " left to see there"
      )

    def halve(_, ends):
      low, high = ends
      middle = (low + high) / 2
      later = self.log_snr(middle) > log_snr
      return jnp.where(later, middle, low), jnp.where(later, high, middle)

    # More halvings than float32 has digits: a steep path has its high log-SNRs at times of 1e-8.
    found = jax.lax.fori_loop(0, 60, halve, (jnp.float32(0), jnp.float32(1)))[1]
    return jnp.where(log_snr >= highest, 0.0, found)

  def around(self, log_snr: float) -> tuple[float, float]:
    """(the time at which the path has this log-SNR, the time in which the path falls from 1 above
    it to 1 below it, 0.02 at least), interpolated between 1024 times.
    """
    times = np.linspace(0, 1, 1025)[1:]
    levels = np.asarray(self.log_snr(jnp.asarray(times, jnp.float32)), np.float64)
    # Log-SNRs fall, and `interp` wants what rises.
    places = -log_snr + np.array([-1.0, 0.0, 1.0])
    before, time, after = np.interp(places, -levels, times).tolist()
    return time, max(after - before, 0.02)


@member
class LogSNR(Path):
  """λ falls linearly (VDM, arXiv 2107.00630, its initial γ)."""

  log_snr_max: float = option(10.0, "log-SNR at t -> 0+")
  log_snr_min: float = option(-10.0, "log-SNR at t = 1")

  def __post_init__(self):
    if not self.log_snr_min < self.log_snr_max:
      raise ValueError(
        f"schedule.log_snr_min={self.log_snr_min} must be below"
        f" schedule.log_snr_max={self.log_snr_max}; -10 and 10 are wide"
      )

  def log_snr(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The line from log_snr_max to log_snr_min."""
    return self.log_snr_max + t * (self.log_snr_min - self.log_snr_max)


@member
class Exploding(LogSNR):
  """alpha = 1; sigma grows geometrically (variance exploding, arXiv 2011.13456)."""

  def gain(self, log_snr: Float[Array, "*n"]) -> Gain:
    """alpha = 1 and sigma = exp(-λ / 2)."""
    return Gain(jnp.ones_like(log_snr), jnp.exp(-log_snr / 2), log_snr)


@member
class Curve(LogSNR):
  """A published curve λ(u). t covers its window between log_snr_max and log_snr_min."""

  @property
  def last(self) -> float:
    """The u at which alpha = 0."""
    return 1.0

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the published curve.

    Args:
      u: The time of the published curve.
      rest: last - u, an argument because the difference near the end would lose its float32
        precision.
    """
    raise NotImplementedError

  def when(self, log_snr: float) -> float:
    """The u at which the published curve has this log-SNR."""
    raise NotImplementedError

  def log_snr(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ at the u of time t."""
    low = self.when(self.log_snr_max)
    high = self.when(self.log_snr_min)
    return self.at(low + t * (high - low), (self.last - high) + (1 - t) * (high - low))


@member
class VPCosine(Curve):
  """alpha² = f(u) / f(0), f = cos²(π/2 (u + offset) / (1 + offset)) (arXiv 2102.09672 eq. 17)."""

  offset: float = option(0.008, "0.008 is usual; 1e-4 in TESS and SSD-LM", ge=0)

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the curve, without cancellation at either end."""
    turn = math.pi / 2 / (1 + self.offset)
    # cos²a - cos²b = sin(b - a) sin(b + a), and cos x = sin(π/2 - x).
    noise = jnp.log(jnp.sin(turn * u)) + jnp.log(jnp.sin(turn * (u + 2 * self.offset)))
    return 2 * jnp.log(jnp.sin(turn * rest)) - noise

  def when(self, log_snr: float) -> float:
    """The u of a log-SNR."""
    turn = math.pi / 2 / (1 + self.offset)
    # sin² of the angle is start + (1 - start) sigma²: accurate where sigma is small.
    start = math.sin(turn * self.offset) ** 2
    noise = 1 / (1 + math.exp(log_snr))
    return math.asin(math.sqrt(start + (1 - start) * noise)) / turn - self.offset


@member
class SquareRoot(Curve):
  """alpha² = (1 - √(u + offset)) / (1 - √offset): Diffusion-LM (arXiv 2205.14217 eq. 14).

  ᾱ[i] of the published chain is at u = (i + 1) / T. Its 2000 steps begin at log-SNR 4.209 and end
  at -15.41.
  """

  offset: float = option(1e-4, "Diffusion-LM has 1e-4", gt=0, lt=1)

  @property
  def last(self) -> float:
    """1 - offset."""
    return 1 - self.offset

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the curve."""
    root = jnp.sqrt(u + self.offset)
    return jnp.log(rest) - jnp.log1p(root) - jnp.log(u) + jnp.log(root + math.sqrt(self.offset))

  def when(self, log_snr: float) -> float:
    """The u of a log-SNR."""
    start = math.sqrt(self.offset)
    root = start + (1 - start) / (1 + math.exp(log_snr))
    return (root - start) * (root + start)


@member
class Flow(Curve):
  """alpha = 1 - u, sigma = slope · u: rectified flow (arXiv 2209.03003).

  Steps without fresh noise (rho = 0) are Euler steps here.
  """

  slope: float = option(1.0, "1 is usual; 2 in ELF", gt=0)

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the curve."""
    return 2 * (jnp.log(rest) - jnp.log(u)) - 2 * math.log(self.slope)

  def when(self, log_snr: float) -> float:
    """The u of a log-SNR."""
    return 1 / (1 + self.slope * math.exp(log_snr / 2))

  def gain(self, log_snr: Float[Array, "*n"]) -> Gain:
    """alpha = 1 - u and sigma = slope · u."""
    odds = log_snr / 2 + math.log(self.slope)
    return Gain(jax.nn.sigmoid(odds), self.slope * jax.nn.sigmoid(-odds), log_snr)


@member
class Tangent(Curve):
  """sigma / alpha = slope · tan(π u / 2): the tan-d path of TEncDM (arXiv 2402.19097)."""

  slope: float = option(9.0, "d; 9 is usual, 1 is the cosine path without offset", gt=0)

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the curve."""
    angle = math.pi / 2
    ratio = jnp.log(jnp.sin(angle * rest)) - jnp.log(jnp.sin(angle * u))
    return 2 * ratio - 2 * math.log(self.slope)

  def when(self, log_snr: float) -> float:
    """The u of a log-SNR."""
    return 2 / math.pi * math.atan(math.exp(-log_snr / 2) / self.slope)


@member
class Arctangent(Curve):
  """alpha = 1 / w², w = 1 + (ratio - 1) (2 / π) arctan(√(u / (1 - u)) / slope).

  Smoothie (arXiv 2505.18853). w is the width of its kernel of distances at u, in units of the
  smallest width.
  """

  slope: float = option(9.0, "9 in Smoothie", gt=0)
  ratio: float = option(
    400 / 3, "the largest width in units of the smallest; 200 / 1.5 there", gt=1
  )

  def __post_init__(self):
    super().__post_init__()
    if self.when(self.log_snr_min) > 1:
      raise ValueError(
        f"schedule.ratio={self.ratio} ends at log-SNR {-4 * math.log(self.ratio):.1f}, above"
        f" schedule.log_snr_min={self.log_snr_min}; use a larger ratio (133.3 is usual) or raise"
        " log_snr_min"
      )

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the curve."""
    angle = jnp.arctan2(jnp.sqrt(u), self.slope * jnp.sqrt(rest))
    log_width = jnp.log1p((self.ratio - 1) * (2 / math.pi) * angle)
    return -4 * log_width - jnp.log(-expm1(-4 * log_width))

  def when(self, log_snr: float) -> float:
    """The u of a log-SNR; 2 if the curve ends before that log-SNR."""
    wider = math.expm1(math.log1p(math.exp(-log_snr)) / 4)  # w - 1, from alpha² = sigmoid(λ) = w^-4
    turn = math.pi / 2 * wider / (self.ratio - 1)
    if turn >= math.pi / 2:
      return 1.0 if turn == math.pi / 2 else 2.0
    return 1 / (1 + (self.slope * math.tan(turn)) ** -2)


def falling(
  t: Float[Array, "*n"], times: Float[Array, " K"], log_snrs: Float[Array, " K"]
) -> Float[Array, "*n"]:
  """The piecewise linear λ(t) through the points (times, log_snrs), times rising from 0 to 1."""
  piece = jnp.clip(jnp.searchsorted(times, t, side="right") - 1, 0, len(times) - 2)
  share = (t - times[piece]) / (times[piece + 1] - times[piece])
  return log_snrs[piece] + share * (log_snrs[piece + 1] - log_snrs[piece])


@member
class Table(Curve):
  """The curve through a table of log-SNRs, linear in between, for the ᾱ of any chain."""

  levels: tuple[float, ...] = option(
    ..., "log-SNRs at the even times u = 0 … 1, which fall and hold the window", min_length=2
  )

  def __post_init__(self):
    super().__post_init__()
    levels = self.levels
    if any(after >= before for before, after in itertools.pairwise(levels)):
      raise ValueError(
        f"schedule.levels={levels} must be log-SNRs that fall; (10.0, 0.0, -10.0), say"
      )
    if not (levels[0] >= self.log_snr_max and levels[-1] <= self.log_snr_min):
      raise ValueError(
        f"schedule.levels run from {levels[0]} to {levels[-1]}, which does not hold the window"
        f" log_snr_max={self.log_snr_max} … log_snr_min={self.log_snr_min}; narrow the window or"
        " lengthen the table"
      )

  def at(self, u: Float[Array, "*n"], rest: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the table."""
    del rest
    times = jnp.linspace(0.0, 1.0, len(self.levels))
    return falling(u, times, jnp.asarray(self.levels, jnp.float32))

  def when(self, log_snr: float) -> float:
    """The u of a log-SNR."""
    rising = [-level for level in self.levels]
    return float(np.interp(-log_snr, rising, np.linspace(0, 1, len(self.levels))))


def _paths() -> dict[str, type]:
  return PATHS


@member
class Noisier(Path):
  """Another path at SNR / F², F = factor + growth · t. Its window has the same shift.

  A factor alone is the noise factor of Difformer (arXiv 2212.09412), ᾱ / (F² - (F² - 1) ᾱ). With
  growth it is the time-aware variance scaling of TREC (arXiv 2402.14843), linear in t; the linear
  form has not been compared with the paper.
  """

  base: Path = part(_paths, LogSNR(), "the path that is made noisier")
  factor: float = option(1.0, "F at t = 0; 4 is usual, 1 is none", ge=1)
  growth: float = option(0.0, "how much F grows until t = 1", ge=0)

  def log_snr(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """λ of the base minus 2 log F."""
    grown = jnp.log(self.factor + self.growth * t) if self.growth else math.log(self.factor)
    return self.base.log_snr(t) - 2 * grown

  def gain(self, log_snr: Float[Array, "*n"]) -> Gain:
    """alpha and sigma of the base at this log-SNR."""
    return self.base.gain(log_snr)


PATHS = {
  "arctangent": Arctangent,
  "cosine": VPCosine,
  "exploding": Exploding,
  "linear": Flow,
  "log_snr": LogSNR,
  "noisier": Noisier,
  "sqrt": SquareRoot,
  "table": Table,
  "tangent": Tangent,
}

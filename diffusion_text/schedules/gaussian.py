"""Paths: how a vector is lost, as its log-SNR over time; those with a formula, tables, learned ones, and noisier ones.

A path says how a vector is lost: z_t = alpha_t x + sigma_t ε. Everything is read off its log-SNR, λ(t) = log(alpha_t² / sigma_t²),
which falls from log_snr_max at t = 0+ to log_snr_min at t = 1, both finite: time runs over a window of the published curve, so that
the bound needs no other cut (t == 0 itself is the clean vector, and what lies between is the reconstruction term).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.types import Array, Params, Time


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
    return Gain(
      jnp.exp(jax.nn.log_sigmoid(log_snr) / 2), jnp.exp(jax.nn.log_sigmoid(-log_snr) / 2), log_snr
    )

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
      raise ValueError(
        f"schedule.offset={self.offset} must be at least 0; 0.008 is usual, TESS has 1e-4"
      )

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
      raise ValueError(
        f"schedule.offset={self.offset} must be between 0 and 1; Diffusion-LM has 1e-4"
      )

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
      raise ValueError(
        f"schedule.slope={self.slope} must be positive; 9 is usual, 1 is the cosine path without offset"
      )

  def at(self, u: Array, rest: Array) -> Array:
    return 2 * (
      jnp.log(jnp.sin(math.pi / 2 * rest)) - jnp.log(jnp.sin(math.pi / 2 * u))
    ) - 2 * math.log(self.slope)

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
    log_width = jnp.log1p(
      (self.ratio - 1) * (2 / math.pi) * jnp.arctan2(jnp.sqrt(u), self.slope * jnp.sqrt(rest))
    )
    return -4 * log_width - jnp.log(-jnp.expm1(-4 * log_width))

  def when(self, log_snr: float) -> float:
    wider = math.expm1(math.log1p(math.exp(-log_snr)) / 4)  # w - 1, from alpha² = sigmoid(λ) = w^-4
    turn = math.pi / 2 * wider / (self.ratio - 1)
    if turn >= math.pi / 2:  # the curve ends before
      return 1.0 if turn == math.pi / 2 else 2.0
    return 1 / (1 + (self.slope * math.tan(turn)) ** -2)


def falling(t: Array, times: Array, log_snrs: Array) -> Array:
  """The piecewise linear λ(t) through the points (times, log_snrs), both [K + 1], the times rising from 0 to 1."""
  piece = jnp.clip(jnp.searchsorted(times, t, side="right") - 1, 0, len(times) - 2)
  share = (t - times[piece]) / (times[piece + 1] - times[piece])
  return log_snrs[piece] + share * (log_snrs[piece + 1] - log_snrs[piece])


@dataclasses.dataclass(frozen=True)
class Table(Curve):
  """The curve through a table of log-SNRs at even times u = 0 … 1, linear in between, variance preserving: any chain's own ᾱ.

  levels: λ at u = j / (len - 1), falling strictly; the window log_snr_max … log_snr_min must lie within them.
  """

  levels: tuple[float, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    levels = self.levels
    if len(levels) < 2 or any(after >= before for before, after in itertools.pairwise(levels)):
      raise ValueError(
        f"schedule.levels={levels} must be at least two log-SNRs that fall; (10.0, 0.0, -10.0), say"
      )
    if not (levels[0] >= self.log_snr_max and levels[-1] <= self.log_snr_min):
      raise ValueError(
        f"schedule.levels run from {levels[0]} to {levels[-1]}, which does not hold the window log_snr_max={self.log_snr_max} …"
        f" log_snr_min={self.log_snr_min}; narrow the window or lengthen the table"
      )

  def at(self, u: Array, rest: Array) -> Array:
    del rest
    return falling(
      u, jnp.linspace(0.0, 1.0, len(self.levels)), jnp.asarray(self.levels, jnp.float32)
    )

  def when(self, log_snr: float) -> float:
    return float(
      np.interp(-log_snr, [-level for level in self.levels], np.linspace(0, 1, len(self.levels)))
    )


@dataclasses.dataclass(frozen=True)
class Noisier(LogSNR):
  """Another path at SNR / F²: the noise factor of Difformer (arXiv 2212.09412), ᾱ / (F² - (F² - 1) ᾱ). Its window moves with it.

  F = factor + growth · t; with growth, the time-aware variance scaling of TREC (arXiv 2402.14843) as recalled: λ(t) there, a line.
  """

  base: LogSNR = LogSNR()
  factor: float = 1.0
  growth: float = 0.0

  def log_snr(self, t: Time) -> Array:
    return self.base.log_snr(t) - 2 * (
      jnp.log(self.factor + self.growth * t) if self.growth else math.log(self.factor)
    )

  def gain(self, log_snr: Array) -> Gain:
    return self.base.gain(log_snr)


@dataclasses.dataclass(frozen=True)
class Learned(LogSNR):
  """A path that is learned while training: λ falls from log_snr_max to log_snr_min, both fixed, along `bins` lines whose shares of
  the time are parameters; variance preserving.

  Each bin spans the same stretch of λ, and its share of the time is floor / bins + (1 - floor) softmax(levels): positive, so the path
  is monotone by construction. What it costs to cross a bin does not depend on its share (VDM, arXiv 2107.00630 section 5.1), so the
  bound gives these parameters no gradient. They follow `fit` instead, until each share is as E[cost^power]^(1 / power) of its bin:

  power 2  the least second moment of a token's rate, what Plaid (arXiv 2305.18619) trains its γ for
  power 1  the same expected cost in every stretch of time: the time warping of CDCD (arXiv 2211.15089 section 3.3), fitted to nats here

  Either way times are drawn more often where tokens become known, and the rate divides the density out: the bound stays what it was.
  """

  bins: int = 50
  floor: float = 0.1
  power: float = 2.0

  def __post_init__(self):
    super().__post_init__()
    if not 1 <= self.power <= 2:
      raise ValueError(
        f"schedule.power={self.power} must be in [1, 2]; 2 is the least variance (Plaid), 1 even cost (CDCD)"
      )
    if self.bins < 2:
      raise ValueError(f"schedule.bins={self.bins} must be at least 2; 50 is usual")
    if not 0 < self.floor <= 1:
      raise ValueError(
        f"schedule.floor={self.floor} must be in (0, 1]; 0.1 leaves a tenth of the times spread evenly over log-SNR"
      )

  def init(self) -> Params:
    """{"levels": float32 [bins]}, zeros: a line."""
    return {"levels": jnp.zeros(self.bins, jnp.float32)}

  def shares(self, params: Params) -> Array:
    """float32 [bins]: the stretch of time of each bin, summing to 1, differentiable in the parameters."""
    return self.floor / self.bins + (1 - self.floor) * jax.nn.softmax(params["levels"])

  def bind(self, params: Params) -> LogSNR:
    """The path as it stands; no gradient flows through it."""
    return Fixed(self.log_snr_max, self.log_snr_min, jax.lax.stop_gradient(self.shares(params)))

  def fit(self, params: Params, t: Time, cost: Array, unit: float) -> Array:
    """[...] zeros, whose gradient in params is that of -(cost / unit)^power · unit · log share(bin of t), cost being held constant.

    cost: >= 0, nats per unit time. unit: nats, a size of it that keeps this gradient comparable to that of the bound.
    """
    times = self.bind(params).times
    piece = jnp.clip(jnp.searchsorted(times, t, side="right") - 1, 0, self.bins - 1)
    weight = jax.lax.stop_gradient((cost / unit) ** self.power * unit)
    loss = -weight * jnp.log(self.shares(params))[piece]
    return loss - jax.lax.stop_gradient(loss)

  def log_snr(self, t: Time) -> Array:
    raise ValueError(
      "a learned path has no log-SNR without its parameters; ask process.path(params)"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed(LogSNR):
  """A learned path with its parameters: shares [bins] of the time, each spent on an equal stretch of log-SNR."""

  shares: Array | None = None

  @property
  def times(self) -> Array:
    """[bins + 1], where the bins begin and end."""
    inner = jnp.cumsum(self.shares[:-1])
    return jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)])

  def log_snr(self, t: Time) -> Array:
    return falling(
      t, self.times, jnp.linspace(self.log_snr_max, self.log_snr_min, len(self.shares) + 1)
    )


PATHS = {
  "arctangent": Arctangent,
  "cosine": VPCosine,
  "exploding": Exploding,
  "learned": Learned,
  "linear": Flow,
  "log_snr": LogSNR,
  "sqrt": SquareRoot,
  "table": Table,
  "tangent": Tangent,
}

"""Paths made of numbers rather than of a formula: tables, learned ones, and noisier ones; and the table of all paths.

What a path is, and those with a formula, is in `schedules`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.schedules import Arctangent, Curve, Exploding, Flow, Gain, LogSNR, SquareRoot, Tangent, VPCosine
from diffusion_text.types import Array, Params, Time


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
      raise ValueError(f"schedule.levels={levels} must be at least two log-SNRs that fall; (10.0, 0.0, -10.0), say")
    if not (levels[0] >= self.log_snr_max and levels[-1] <= self.log_snr_min):
      raise ValueError(
        f"schedule.levels run from {levels[0]} to {levels[-1]}, which does not hold the window log_snr_max={self.log_snr_max} …"
        f" log_snr_min={self.log_snr_min}; narrow the window or lengthen the table"
      )

  def at(self, u: Array, rest: Array) -> Array:
    del rest
    return falling(u, jnp.linspace(0.0, 1.0, len(self.levels)), jnp.asarray(self.levels, jnp.float32))

  def when(self, log_snr: float) -> float:
    return float(np.interp(-log_snr, [-level for level in self.levels], np.linspace(0, 1, len(self.levels))))


@dataclasses.dataclass(frozen=True)
class Noisier(LogSNR):
  """Another path at SNR / F²: the noise factor of Difformer (arXiv 2212.09412), ᾱ / (F² - (F² - 1) ᾱ). Its window moves with it.

  F = factor + growth · t; with growth, the time-aware variance scaling of TREC (arXiv 2402.14843) as recalled: λ(t) there, a line.
  """

  base: LogSNR = LogSNR()
  factor: float = 1.0
  growth: float = 0.0

  def log_snr(self, t: Time) -> Array:
    return self.base.log_snr(t) - 2 * (jnp.log(self.factor + self.growth * t) if self.growth else math.log(self.factor))

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
      raise ValueError(f"schedule.power={self.power} must be in [1, 2]; 2 is the least variance (Plaid), 1 even cost (CDCD)")
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
    raise ValueError("a learned path has no log-SNR without its parameters; ask process.path(params)")


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
    return falling(t, self.times, jnp.linspace(self.log_snr_max, self.log_snr_min, len(self.shares) + 1))


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

"""Duo's Gaussian curriculum for uniform-state diffusion (arXiv 2506.10892): the network reads
softened tokens before it reads hard ones.

A one-hot token under Gaussian noise, z = (nu · x + ε) / sqrt(1 + nu²) in R^V, has an argmax that is
distributed as uniform-state diffusion with

  alpha = (V · P - 1) / (V - 1)                                                      (its eq. 10)
  P = P(argmax z = x) = E_m[Phi(nu - m)],  m the largest of V - 1 standard normals

so z and the discrete z_t = argmax z are drawn together, at the nu that has the schedule's alpha_t.
The loss is the rate of the discrete process at z_t; the network reads softmax(z / temperature),
from which z_t is easier to see through. While the input is soft that is no bound (its reader knows
more than z_t), and it is reported as "surrogate".

z itself is never made. Its coordinates but the clean token's are V - 1 independent standard
normals, of which only the largest weigh in a softmax at low temperature: those are drawn in order,
by the spacings of uniform order statistics, at V-independent cost.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.context.rows import soft
from diffusion_text.core.capability import require
from diffusion_text.core.numerics import expm1, select
from diffusion_text.core.options import internal, member, option
from diffusion_text.core.prng import draw_integer, draw_normal, fold, position_keys, stream
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.objective.bound import bound_cost
from diffusion_text.schedules.discrete import Level
from diffusion_text.types import (
  Batch,
  Inputs,
  Key,
  Keys,
  Loss,
  Model,
  Params,
  Progress,
  Times,
  TokenCosts,
)

STEP, TOP = (
  1 / 256,
  12.0,
)  # of the table over nu; beyond its top less than 1e-11 of the tokens are noise, whatever V


@runtime_checkable
class SharesNoise(Protocol):
  """What the curriculum asks of a process beyond `Process`; one without a mask has clean and
  uniform shares only.
  """

  def shares(self, t: Float[Array, "*n"]) -> Any:
    """The shares (clean, mask, uniform) of the law of a token at time t."""


@np.vectorize
def upper_tail(x: float) -> float:
  """P(a standard normal > x), in float64."""
  return math.erfc(x / math.sqrt(2)) / 2


@functools.lru_cache(maxsize=8)
def level_table(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(nu, alpha, -log(1 - alpha)), float64 [K], all rising: alpha of the module's formula on a grid
  of nu = 0 … TOP.

  By the trapezoidal rule over m, whose density (V-1) φ(m) Phi(m)^(V-2) is analytic and vanishes at
  both ends; P and 1 - P are both summed, so neither end cancels.
  """
  peak = np.arange(-9, 10, STEP)
  log_cdf = np.where(
    peak > 0, np.log1p(-upper_tail(np.maximum(peak, 0))), np.log(upper_tail(-peak))
  )
  log_density = (
    math.log(vocab_size - 1) - peak**2 / 2 - math.log(2 * math.pi) / 2 + (vocab_size - 2) * log_cdf
  )
  density = STEP * np.exp(log_density)
  nu = np.arange(0, TOP + STEP / 2, STEP)
  ahead = np.concatenate([peak[0] - nu[:0:-1], peak])  # m - nu, for every pair of the two grids
  chance, missed = (
    np.correlate(upper_tail(sign * ahead), density, "valid")[::-1] for sign in (1, -1)
  )
  alpha = (vocab_size * chance - 1) / (vocab_size - 1)
  alpha[0] = 0.0
  return nu, alpha, -np.log(missed * vocab_size / (vocab_size - 1))


def signal(vocab_size: int, level: Level) -> Array:
  """nu of the Gaussian whose argmax is clean with this alpha, float32 of any shape; 0 at alpha = 0
  and at most TOP.
  """
  nu, alpha, clarity = (jnp.asarray(column, jnp.float32) for column in level_table(vocab_size))
  near_clean = jnp.interp(
    -jnp.log(jnp.maximum(level.noise, jnp.finfo(jnp.float32).tiny)), clarity, nu
  )
  return jnp.where(level.noise < 0.5, near_clean, jnp.interp(level.alpha, alpha, nu))


def largest_normals(keys: Keys, number: int, count: int) -> Float[Array, "... {count}"]:
  """The `count` largest of `number` independent standard normals, falling: keys [...] -> [...,
  count].

  Upper-tail probabilities of the largest are order statistics of uniforms,
  1 - exp(-Σ_j E_j / (number - j)) with exponentials E.
  """
  draw = jax.vmap(functools.partial(jax.random.exponential, shape=(count,)))
  spacings = draw(keys.reshape(-1)).reshape(*keys.shape, count) / (number - jnp.arange(count))
  total = jnp.maximum(jnp.cumsum(spacings, axis=-1), jnp.finfo(jnp.float32).tiny)
  tail = -expm1(-total)
  return jnp.where(tail < 0.5, -ndtri(jnp.minimum(tail, 0.5)), ndtri(jnp.exp(-total)))


def distinct_ids(
  keys: Keys, first: Int[Array, "..."], vocab_size: int, count: int
) -> Int[Array, "... {count}"]:
  """`first` and then count - 1 ids drawn uniformly without replacement among the others, in random
  order: int32 [..., count].
  """
  chosen = first[..., None].astype(jnp.int32)
  for j in range(1, count):
    rank = draw_integer(fold(keys, j), vocab_size - j)
    before = jnp.sort(chosen, axis=-1) - jnp.arange(j) <= rank[..., None]
    new = (rank + jnp.sum(before, axis=-1))[..., None].astype(jnp.int32)
    chosen = jnp.concatenate([chosen, new], axis=-1)
  return chosen


@member
class GaussianCurriculum(OneReading):
  """The rate of uniform-state diffusion, read through soft tokens at first and through hard ones
  after that.

  While tokens are soft, times are drawn from [low, high] (the timing's, rescaled), so that the
  window means the same for every V. Duo's is one of the Gaussian's log noise-to-signal ratio,
  [-3.55, -1.85] for V = 50257: alpha in [0.049, 0.945], and so t in [0.055, 0.951] of the linear
  schedule. A learned timing is fitted to times of its own only, once the tokens are hard.
  """

  train_steps: int = internal()
  curriculum: float = option(
    0.5, "the share of the training steps that reads soft tokens; Duo: the first half", gt=0, le=1
  )
  temperature: float = option(
    1e-3, "of the softmax at the start of the curriculum; it changes log-linearly", gt=0
  )
  final_temperature: float = option(
    1e-3, "of the softmax at the end of the curriculum; Duo: 1e-3 all along", gt=0
  )
  low: float = option(0.05, "the smallest time while tokens are soft", ge=0)
  high: float = option(0.95, "the largest time while tokens are soft", le=1)
  candidates: int = option(
    8,
    "M, the tokens of a soft token: the clean one and the M - 1 others with the largest"
    " coordinates; 8 is enough at temperature 1e-3, V is the whole softmax",
    ge=2,
  )

  def __post_init__(self):
    if not self.low < self.high:
      raise ValueError(
        f"objective.low={self.low} must be below high={self.high}; 0.05 and 0.95 are usual"
      )

  def check(self, model: Model) -> None:
    """Raises ValueError for other noise than uniform, for rows without noisy tokens, and for more
    candidates than there are tokens.
    """
    super().check(model)
    process = model.process
    who, fix = "objective.name='gaussian_curriculum'", "use process.name='uniform'"
    require(process, SharesNoise, who, fix)
    if process.mask_id is not None:
      raise ValueError(f"{who} is of uniform noise, and {process} has a mask; {fix}")
    if not model.context.reads_noisy:
      raise ValueError(
        f"objective.name='gaussian_curriculum' has nothing to soften under {model.context}, which"
        " reads clean tokens only; use context.name='full'"
      )
    if self.candidates > process.vocab_size:
      raise ValueError(
        f"objective.candidates={self.candidates} must be at most"
        f" vocab_size={process.vocab_size}; 8 is enough at temperature 1e-3"
      )

  def soften(
    self,
    keys: Keys,
    ids: Int[Array, "*n"],
    level: Level,
    temperature: Float[Array, ""] | float,
    vocab_size: int,
  ) -> tuple[Int[Array, "*n"], Inputs]:
    """(z_t = argmax z, softmax(z / temperature) over the candidates: ids and weights [*n, M])."""
    nu = jnp.broadcast_to(signal(vocab_size, level), ids.shape)
    own = nu + draw_normal(fold(keys, 0), 1)[..., 0]
    others = largest_normals(fold(keys, 1), vocab_size - 1, self.candidates - 1)
    z = jnp.concatenate([own[..., None], others], axis=-1)
    tokens = distinct_ids(fold(keys, 2), ids, vocab_size, self.candidates)
    state = jnp.take_along_axis(tokens, jnp.argmax(z, axis=-1)[..., None], axis=-1)[..., 0]
    unit = z / jnp.sqrt(1 + nu**2)[..., None]
    return state, Inputs(tokens, weights=jax.nn.softmax(unit / temperature, axis=-1))

  def window(
    self, times: Times, soften: Bool[Array, ""], dropped: Bool[Array, "B N"] | None
  ) -> Times:
    """The times in [low, high] while tokens are soft; known, dropped and resting tokens keep
    theirs.
    """
    width = self.high - self.low
    moved = soften & (times.t > 0) & (times.dt_dtau > 0)
    moved = moved if dropped is None else moved & ~dropped
    speed = jnp.where(soften, width, 1.0)

    def within(t: Array) -> Array:
      return jnp.where(moved, self.low + width * t, t)

    return times._replace(
      t=within(times.t),
      network_time=within(times.network_time),
      dt_dtau=speed * times.dt_dtau,
    )

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost, of weight 0 while its time is not the
    timing's.
    """
    process = model.process
    done = jnp.asarray(progress.step, jnp.float32) / (self.curriculum * self.train_steps)
    soften = done < 1
    times = self.window(times, soften, batch.dropped)
    clean, hard = engine.corrupted(model, params, key, batch, times, progress)

    keys = position_keys(stream(key, "soft tokens"), *batch.ids.shape, progress)
    clean_share, _, noise_share = process.shares(process.round_time(times.t))
    ratio = self.final_temperature / self.temperature
    temperature = self.temperature * ratio ** jnp.minimum(done, 1.0)
    state, inputs = self.soften(
      keys, batch.ids, Level(clean_share, noise_share), temperature, process.vocab_size
    )
    softened = soften & (times.t > 0)
    softened = softened if batch.dropped is None else softened & ~batch.dropped
    state = jnp.where(softened, state, hard)
    plain = soft(process.inputs(params["process"], hard, times.t), self.candidates)
    noisy = select(softened, inputs, plain)

    noised = engine.read(
      model, params, key, batch, times, progress, corrupted=(clean, state), noisy=noisy
    )
    loss, costs = engine.token_loss(model, params, batch, noised, bound_cost)
    sums = {name: value for name, value in loss.sums.items() if name != "bound"}
    # Uniform noise is exact at both ends of time, so that there are no other terms.
    loss = loss._replace(sums={**sums, "surrogate": loss.sums["bound"]})
    return loss, costs._replace(weight=jnp.where(soften, 0.0, costs.weight))

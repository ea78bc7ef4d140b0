"""Duo's Gaussian curriculum for uniform-state diffusion (arXiv 2506.10892): the network reads softened tokens before it reads hard ones.

A one-hot token under Gaussian noise, z = (nu · x + ε) / sqrt(1 + nu²) in R^V, has an argmax that is distributed as uniform-state
diffusion with

  alpha = (V · P - 1) / (V - 1),   P = P(argmax z = x) = E_m[Phi(nu - m)],  m the largest of V - 1 standard normals    (its eq. 10)

so z and the discrete z_t = argmax z are drawn together, at the nu that has the schedule's alpha_t. The loss is the rate of the
discrete process at z_t; the network reads softmax(z / temperature), from which z_t is easier to see through. While the input is soft
that is no bound (its reader knows more than z_t), and it is reported as "surrogate".

z itself is never made. Its coordinates but the clean token's are V - 1 independent standard normals, of which only the largest weigh in
a softmax at low temperature: those are drawn in order, by the spacings of uniform order statistics, at V-independent cost.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from diffusion_text.objective.bound import (
  Chunks,
  Noised,
  corrupted,
  drawn_times,
  noise_key,
  one_hot_inputs,
  read,
  summed_loss,
)
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Level, on_grid
from diffusion_text.types import (
  Array,
  Batch,
  Inputs,
  Key,
  Loss,
  Params,
  Predict,
  Process,
  Progress,
  Timing,
)

STEP, TOP = (
  1 / 256,
  12.0,
)  # of the table over nu; beyond its top less than 1e-11 of the tokens are noise, whatever V


@functools.lru_cache(maxsize=8)
def level_table(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(nu, alpha, -log(1 - alpha)), float64 [K], all rising: alpha of the module's formula on a grid of nu = 0 … TOP.

  By the trapezoidal rule over m, whose density (V-1) φ(m) Phi(m)^(V-2) is analytic and vanishes at both ends; P and 1 - P are both
  summed, so neither end cancels.
  """
  peak = np.arange(-9, 10, STEP)
  erfc = np.vectorize(
    lambda x: math.erfc(x / math.sqrt(2)) / 2, otypes=[float]
  )  # the upper tail of a standard normal
  log_cdf = np.where(peak > 0, np.log1p(-erfc(np.maximum(peak, 0))), np.log(erfc(-peak)))
  log_density = (
    math.log(vocab_size - 1) - peak**2 / 2 - math.log(2 * math.pi) / 2 + (vocab_size - 2) * log_cdf
  )
  density = STEP * np.exp(log_density)
  nu = np.arange(0, TOP + STEP / 2, STEP)
  ahead = np.concatenate([peak[0] - nu[:0:-1], peak])  # m - nu, for every pair of the two grids
  chance, missed = (np.correlate(erfc(sign * ahead), density, "valid")[::-1] for sign in (1, -1))
  alpha = (vocab_size * chance - 1) / (vocab_size - 1)
  alpha[0] = 0.0
  return nu, alpha, -np.log(missed * vocab_size / (vocab_size - 1))


def signal(vocab_size: int, level: Level) -> Array:
  """nu of the Gaussian whose argmax is clean with this alpha, float32 of any shape; 0 at alpha = 0 and at most TOP."""
  nu, alpha, clarity = (jnp.asarray(column, jnp.float32) for column in level_table(vocab_size))
  near_clean = jnp.interp(
    -jnp.log(jnp.maximum(level.noise, jnp.finfo(jnp.float32).tiny)), clarity, nu
  )
  return jnp.where(level.noise < 0.5, near_clean, jnp.interp(level.alpha, alpha, nu))


def largest_normals(key: Key, shape: tuple[int, ...], number: int, count: int) -> Array:
  """The `count` largest of `number` independent standard normals, falling: float32 [*shape, count].

  Upper-tail probabilities of the largest are order statistics of uniforms, 1 - exp(-Σ_j E_j / (number - j)) with exponentials E.
  """
  spacings = jax.random.exponential(key, (*shape, count)) / (number - jnp.arange(count))
  total = jnp.maximum(jnp.cumsum(spacings, axis=-1), jnp.finfo(jnp.float32).tiny)
  tail = -jnp.expm1(-total)
  return jnp.where(tail < 0.5, -ndtri(jnp.minimum(tail, 0.5)), ndtri(jnp.exp(-total)))


def distinct_ids(key: Key, first: Array, vocab_size: int, count: int) -> Array:
  """int32 [..., count]: `first` [...] and then count - 1 ids drawn uniformly without replacement among the others, in random order."""
  chosen = first[..., None].astype(jnp.int32)
  for j in range(1, count):
    rank = jax.random.randint(jax.random.fold_in(key, j), first.shape, 0, vocab_size - j)
    below = (
      jnp.sort(chosen, axis=-1) - jnp.arange(j) <= rank[..., None]
    )  # chosen ids before the rank-th that is free
    chosen = jnp.concatenate(
      [chosen, (rank + jnp.sum(below, axis=-1))[..., None].astype(jnp.int32)], axis=-1
    )
  return chosen


@dataclasses.dataclass(frozen=True)
class GaussianCurriculum:
  """The rate of uniform-state diffusion, read through soft tokens at first and through hard ones after that.

  curriculum: the share of the train_steps that reads soft tokens (Duo: the first half). temperature, final_temperature: of the softmax,
    at the start and the end of the curriculum, changing log-linearly (Duo: 1e-3 all along). After it the loss is that of `bound`.
  low, high: while soft, times are drawn from [low, high] (the timing's, rescaled), so that the window means the same for every V. Duo's
    is one of the Gaussian's log noise-to-signal ratio, [-3.55, -1.85] for V = 50257: alpha in [0.049, 0.945], and so t in [0.055, 0.951]
    of the linear schedule.
  candidates: M, the tokens of a soft token: the clean one and the M - 1 others with the largest coordinates; M = V is the whole softmax.

  Raises ValueError for a process with another noise, for a timing that reads clean tokens only, and for values out of range.
  """

  process: Process
  timing: Timing
  train_steps: int
  curriculum: float = 0.5
  temperature: float = 1e-3
  final_temperature: float = 1e-3
  low: float = 0.05
  high: float = 0.95
  candidates: int = 8
  chunks: Chunks = Chunks()

  def __post_init__(self):
    V = self.process.vocab_size
    if not isinstance(self.process, Uniform):
      raise ValueError(
        f"objective 'gaussian_curriculum' is of uniform noise, not of {type(self.process).__name__}; use process.name='uniform'"
      )
    if self.timing.shifted:
      raise ValueError(
        f"objective 'gaussian_curriculum' has nothing to soften under {self.timing}: it reads clean tokens only"
      )
    if not 0 < self.curriculum <= 1:
      raise ValueError(
        f"objective.curriculum={self.curriculum} must be in (0, 1], a share of train.steps; 0.5 is usual"
      )
    if not (self.temperature > 0 and self.final_temperature > 0):
      raise ValueError(
        f"objective temperature={self.temperature} and final_temperature={self.final_temperature} must be positive; 1e-3 is usual"
      )
    if not 0 <= self.low < self.high <= 1:
      raise ValueError(
        f"objective needs 0 <= low < high <= 1, got low={self.low} and high={self.high}"
      )
    if not 2 <= self.candidates <= V:
      raise ValueError(
        f"objective.candidates={self.candidates} must lie in [2, vocab_size={V}]; 8 is enough at temperature 1e-3"
      )

  def soften(self, key: Key, ids: Array, level: Level, temperature: Array) -> tuple[Array, Inputs]:
    """(z_t = argmax z, softmax(z / temperature) over the candidates): int32 ids [B, L] -> int32 [B, L] and ids, weights [B, L, M]."""
    V, M = self.process.vocab_size, self.candidates
    key_clean, key_others, key_ids = jax.random.split(key, 3)
    nu = jnp.broadcast_to(signal(V, level), ids.shape)
    own = nu + jax.random.normal(key_clean, ids.shape)
    z = jnp.concatenate(
      [own[..., None], largest_normals(key_others, ids.shape, V - 1, M - 1)], axis=-1
    )
    tokens = distinct_ids(key_ids, ids, V, M)
    state = jnp.take_along_axis(tokens, jnp.argmax(z, axis=-1)[..., None], axis=-1)[..., 0]
    unit = z / jnp.sqrt(1 + nu**2)[..., None]
    return state, Inputs(tokens, weights=jax.nn.softmax(unit / temperature, axis=-1))

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    done = jnp.asarray(progress.step, jnp.float32) / (self.curriculum * self.train_steps)
    soft = done < 1
    times = drawn_times(self.process, self.timing, key, batch, progress)
    width = self.high - self.low
    moved = soft & (times.t > 0) & (times.speed > 0)
    moved = moved if batch.hidden is None else moved & ~batch.hidden
    t = jnp.where(moved, self.low + width * times.t, times.t)
    times = times._replace(t=t, speed=jnp.where(soft, width, 1.0) * times.speed)

    key_noise = noise_key(key, progress)
    hard = corrupted(self.process, params, key_noise, batch, t)
    level = self.process.schedule(on_grid(t, self.process.grid))
    temperature = self.temperature * (self.final_temperature / self.temperature) ** jnp.minimum(
      done, 1.0
    )
    state, inputs = self.soften(jax.random.fold_in(key_noise, 1), batch.ids, level, temperature)
    softened = jnp.broadcast_to(soft & (t > 0), batch.ids.shape)
    state = jnp.where(softened, state, hard)
    choose = lambda soft, hard: jnp.where(softened[..., None], soft, hard)
    inputs = jax.tree.map(choose, inputs, one_hot_inputs(hard, self.candidates))

    prediction = read(self.process, params, key, batch.ids, state, inputs, times, predict)
    rates = lambda rows, logits, rate: rate
    loss = summed_loss(
      Noised(state, times, prediction), self.process, params, batch, self.chunks, rates
    )
    others = {name: value for name, value in loss.sums.items() if name != "bound"}
    return loss._replace(
      sums={**others, "surrogate": loss.sums["bound"]}
    )  # uniform noise has exact ends: no other terms

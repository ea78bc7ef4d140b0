"""Masked diffusion in which *when* a token is lost depends on *which* token it is.

GenMD4 (arXiv 2406.04329), DiffusionBERT's spindle (arXiv 2211.15029), frequency-informed masking (arXiv 2509.05056). Each token x of
the vocabulary has its own survival alpha_x(t), falling from 1 to 0 exactly; noise_x = 1 - alpha_x, and mu is softmax(logits):

  q(z_t | x)   = x with probability alpha_x(t), else the mask
  p(z_s | z_t) = z_t where it is clean; a masked token becomes y with probability mu_y r_y, r_y = 1 - noise_y(s) / noise_y(t), and stays
                 masked with what is left, 1 - Σ_y mu_y r_y: *whether* it is revealed depends on what it would be
  rate         = w_x CE + Σ_y mu_y w_y - w_x at masked positions, w_y = -alpha_y' / noise_y; 0 elsewhere

*Rate.* Given x, the reverse process jumps to x only, at rate lambda_x = w_x; the model jumps to each y at rate mu_y w_y. Two jump processes
are apart by Σ_y (mu_y w_y - lambda_y + lambda_y log(lambda_y / (mu_y w_y))) per unit time, which is the line above (GenMD4 writes it as
w · (x log mu + x - mu)). Equal survivals leave w · CE, the rate of `Masked`. Only for those does a uniform prediction cost log V.

*Time.* The bound is tight for mu = p(x_i | the visible tokens, and which ones are masked at t): that a token is lost says something
about it, with likelihood noise_v(t) for each token v it may be. So mu depends on t even given the row, and the network should be
conditioned on time; without that the bound holds, but is not tight.

*Laws.* Each has one number per token, its shape θ, and works on any schedule, whose noise at t is n (`loss_order`):

  learned    noise = n^θ, θ = softplus(params["power"]), which begins at 1. Where n^θ is drawn depends on θ: train it with objective.name
             "reinforce", for the bound alone has no gradient through the draw.
  spindle    noise = n + θ sin(πn), θ = strength · information. It falls monotonically iff π|θ| < 1. Positive strength: informative tokens
             are lost first, so that easy ones are generated first. Ours in continuous time; published with T = 2048 and strength 0.3.
  frequency  noise = n^θ, θ = exp(-strength · information), information by rank of frequency. Positive strength: rarer tokens are masked
             more. With either law the sign of the strength says whether the important tokens are lost first or last.

The information of a token is a parameter that is counted once, at init, and never trained: a checkpoint needs no corpus. It is centred
so that its mean over the corpus is zero: under the spindle the share of masked tokens is n, as for plain masking.

Where n^θ falls no faster than t the variance of a drawn bound is infinite (n = t with θ = 1, plain masking, is the edge): draw times
with timing.power = 2, or use the polynomial schedule with power 2, if some θ are below 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import Absorbing
from diffusion_text.process.masked import cross_entropy
from diffusion_text.schedules.discrete import TINY, Level, Schedule, weight
from diffusion_text.types import Array, Key, Params, State, Time

LOSS_ORDERS = ("learned", "spindle", "frequency")
NEVER = -1e30  # log of zero that survives subtraction
LEAST = float(jnp.finfo(jnp.float32).tiny)


def information(counts: np.ndarray, ranked: bool = False) -> np.ndarray:
  """How telling each token is: float32 [V] in [-1, 1], of mean zero over the corpus and largest magnitude 1; rare tokens are positive.

  counts: how often each token occurs, [V]; one is added to each, so that tokens never seen are the rarest. ranked: by the rank of the
  frequency (equal counts share one) instead of -log frequency. All zero if the tokens are equally frequent.
  """
  counts = np.asarray(counts, np.float64) + 1
  frequency = counts / counts.sum()
  value = (
    np.unique(-counts, return_inverse=True)[1].astype(np.float64) if ranked else -np.log(frequency)
  )
  value = value - (frequency * value).sum()
  largest = np.abs(value).max()
  return (value / largest if largest > 1e-6 else 0 * value).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class TokenMasked(Absorbing):
  """Masked diffusion over `vocab_size` clean tokens, each lost in its own time. State: ids int32, where the id V is the mask.

  It is no `Reveals`: when a token is revealed depends on what it becomes, so no reveal time can be drawn in advance.

  loss_order: the law, "learned", "spindle" or "frequency" (see the module). strength: how far tokens differ, for the latter two; None
  for "learned". counts: () -> [V], how often each token occurs in the training split; asked once, by `init`.
  Raises ValueError for values out of range.
  """

  vocab_size: int
  schedule: Schedule
  loss_order: str = "learned"
  strength: float | None = None
  counts: Callable[[], np.ndarray] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def __post_init__(self):
    if self.vocab_size < 1:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 1; take it from the tokenizer"
      )
    if self.loss_order not in LOSS_ORDERS:
      raise ValueError(
        f"process.loss_order={self.loss_order!r} is unknown; use one of {', '.join(LOSS_ORDERS)}"
      )
    learned = self.loss_order == "learned"
    if learned and self.strength is not None:
      raise ValueError(
        f"process.strength={self.strength} is not read by loss_order='learned'; leave it None"
      )
    if not learned and (self.strength is None or not math.isfinite(self.strength)):
      raise ValueError(
        f"process.strength={self.strength} must be a number for loss_order={self.loss_order!r}; use 0.3"
      )
    if self.loss_order == "spindle" and not abs(self.strength) * math.pi < 1:
      raise ValueError(
        f"process.strength={self.strength} would make a spindle that gives tokens back: it must be below 1/π = 0.318; use 0.3"
      )

  @property
  def learned(self) -> bool:
    """Whether the survivals are trained; then the draw of z depends on parameters."""
    return self.loss_order == "learned"

  def init(self, key: Key) -> Params:
    """{"power": [V]} before its softplus, or {"information": [V]}, for which `counts` is asked, here and nowhere else."""
    del key  # no randomness
    if self.loss_order == "learned":
      return {"power": jnp.full(self.vocab_size, math.log(math.expm1(1)), jnp.float32)}
    if self.counts is None:
      raise ValueError(
        f"loss_order={self.loss_order!r} needs the token counts of the training split; pass counts="
      )
    return {"information": jnp.asarray(information(self.counts(), self.loss_order == "frequency"))}

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    return self._lose(params, jax.random.uniform(key, ids.shape), ids, t)

  def renoise(self, params: Params, keys: Key, ids: Array, t: Time) -> State:
    """As `corrupt`, with one key per position."""
    return self._lose(params, draw_uniform(fold(keys, 5)), ids, t)

  def log_corruption(self, params: Params, ids: Array, state: State, t: Time) -> Array:
    masked = state == self.mask_id
    log_noise = self._log_noise(self._shape(params)[ids], self.schedule(t))
    log_alpha = jnp.log(
      jnp.maximum(-jnp.expm1(jnp.where(masked, -1.0, log_noise)), LEAST)
    )  # the other branch has a pole
    return jnp.where(masked, log_noise, log_alpha)

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    shape = self._shape(params)
    growth = self._growth(shape[ids], t)
    surplus = (
      self._growth(shape, t[..., None]) - growth[..., None]
    )  # zero exactly if all tokens are alike
    cost = growth * cross_entropy(logits, ids) + jnp.sum(jax.nn.softmax(logits) * surplus, axis=-1)
    rate = weight(self.schedule, t) * cost
    return jnp.where(self.scored(params, state, t), rate, 0.0)

  def moves(self, params: Params, keys: Key, state: State, t: Time, s: Time) -> Array:
    """Where the token that is revealed soonest would be: r is monotonic in the shape, so that one is at an end of the shapes."""
    shape = self._shape(params)
    most = jnp.maximum(self._reveal(shape.min(), t, s), self._reveal(shape.max(), t, s))
    return self.scored(params, state, t) & (draw_uniform(fold(keys, 0)) < most)

  def step(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    may_move = self.moves(params, keys, state, t, s)
    return self._jump(
      keys, state, logits, may_move, self._reveal(self._shape(params), t[..., None], s[..., None])
    )

  def leap(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    """Tau-leaping: becomes y with probability (t - s) · mu_y w_y, by the hazards at t."""
    hazard = weight(self.schedule, t)[..., None] * self._growth(self._shape(params), t[..., None])
    return self._jump(
      keys, state, logits, self.scored(params, state, t), (t - s)[..., None] * hazard
    )

  def guess(self, params: Params, keys: Key, state: State, logits: Array, t: Time) -> Array:
    """The clean tokens: those that are not masked, and a draw from mu for each that is."""
    return jnp.where(self.scored(params, state, t), draw_categorical(fold(keys, 1), logits), state)

  def _jump(self, keys: Key, state: State, logits: Array, may_move: Array, chance: Array) -> State:
    """Becomes y with probability mu_y · chance_y [..., V], where it may move: first whether, then what (two streams of the key)."""
    total = jnp.sum(jax.nn.softmax(logits) * chance, axis=-1)
    total = jnp.clip(
      total, chance.min(axis=-1), chance.max(axis=-1)
    )  # an average: 1 exactly if all chances are 1, at s = 0
    token = draw_categorical(fold(keys, 1), logits + jnp.log(jnp.maximum(chance, LEAST)))
    return jnp.where(may_move & (draw_uniform(fold(keys, 0)) < total), token, state)

  def _lose(self, params: Params, u: Array, ids: Array, t: Time) -> State:
    noise = jnp.exp(self._log_noise(self._shape(params)[ids], self.schedule(t)))
    return jnp.where(u < noise, self.mask_id, ids).astype(
      jnp.int32
    )  # never at t = 0, always at t = 1

  def _shape(self, params: Params) -> Array:
    """θ of every token: float32 [V]."""
    if self.loss_order == "learned":
      return jax.nn.softplus(params["power"])
    theta = self.strength * jax.lax.stop_gradient(params["information"])
    return theta if self.loss_order == "spindle" else jnp.exp(-theta)

  def _log_noise(self, shape: Array, level: Level) -> Array:
    """log noise for shapes and levels that broadcast; with -expm1 of it, the survival, it is accurate at both ends."""
    alpha, noise = level
    log_n = jnp.where(
      noise < 0.5, jnp.log(jnp.maximum(noise, LEAST)), jnp.log1p(-jnp.minimum(alpha, 0.5))
    )
    value = (
      log_n + jnp.log1p(shape * _bulge(level)) if self.loss_order == "spindle" else shape * log_n
    )
    return jnp.where(noise > 0, value, NEVER)

  def _growth(self, shape: Array, t: Time) -> Array:
    """d log noise / d log n, of shapes and times that broadcast: the hazard w in units of the schedule's own `weight`."""
    if self.loss_order != "spindle":
      return shape
    level = self.schedule(jnp.maximum(t, TINY))
    return (1 + shape * jnp.pi * jnp.cos(jnp.pi * level.noise)) / (1 + shape * _bulge(level))

  def _reveal(self, shape: Array, t: Time, s: Time) -> Array:
    """r = 1 - noise(s) / noise(t), of shapes and times that broadcast: 1 exactly at s = 0."""
    return -jnp.expm1(
      self._log_noise(shape, self.schedule(s)) - self._log_noise(shape, self.schedule(t))
    )


def _bulge(level: Level) -> Array:
  """sin(πn) / n, accurate at both ends: π at n = 0, falling to 0 at n = 1."""
  near_one = (
    jnp.sinc(level.alpha) * level.alpha / jnp.maximum(level.noise, 0.5)
  )  # sin(πn) = sin(π alpha)
  return jnp.pi * jnp.where(level.noise < 0.5, jnp.sinc(level.noise), near_one)

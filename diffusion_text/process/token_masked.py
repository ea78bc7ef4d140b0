"""Masked diffusion in which *when* a token is lost depends on *which* token it is.

GenMD4 (arXiv 2406.04329), the spindle of DiffusionBERT (arXiv 2211.15029), frequency-informed
masking (arXiv 2509.05056). Each token x of the vocabulary has its own survival alpha_x(t), falling
from 1 to 0 exactly; noise_x = 1 - alpha_x, and mu is softmax(logits):

  q(z_t | x)   = x with probability alpha_x(t), else the mask
  p(z_s | z_t) = z_t where it is clean; a masked token becomes y with probability mu_y r_y,
                 r_y = 1 - noise_y(s) / noise_y(t), and stays masked with what is left,
                 1 - Σ_y mu_y r_y: *whether* it is revealed depends on what it would be
  nelbo_rate   = w_x CE + Σ_y mu_y w_y - w_x at masks, w_y = -alpha_y' / noise_y; 0 elsewhere

*Rate.* Given x, the reverse process jumps to x only, at rate lambda_x = w_x; the model jumps to
each y at rate mu_y w_y. Two jump processes are apart by
Σ_y (mu_y w_y - lambda_y + lambda_y log(lambda_y / (mu_y w_y))) per unit of time, which is the line
above. (GenMD4 writes it as w · (x log mu + x - mu).) Equal survivals leave w · CE, the rate of
`Masked`. Only for those does a uniform prediction cost log V.

*Time.* The bound is tight for mu = p(x_i | the visible tokens, and which ones are masked at t):
that a token is lost says something about it, with likelihood noise_v(t) for each token v it may be.
So mu depends on t even given the row, and the network should be conditioned on time; without that
the bound holds, but is not tight.

*Laws* (`loss_order`). Each has one number per token, its shape θ, and works on any schedule, whose
noise at t is n:

  learned    noise = n^θ, θ = softplus(params["power"]), which begins at 1. Where n^θ is drawn
             depends on θ: train it with objective.name = "score_function", for the bound alone has
             no gradient through the draw.
  spindle    noise = n + θ sin(πn), θ = strength · information. It falls monotonically iff π|θ| < 1.
             Positive strength: informative tokens are lost first, so that easy ones are generated
             first. Ours in continuous time; published with T = 2048 and strength 0.3.
  frequency  noise = n^θ, θ = exp(-strength · information), information by rank of frequency.
             Positive strength: rarer tokens are masked more. With either law the sign of the
             strength says whether the important tokens are lost first or last.

The information of a token is a parameter that is counted once, at init, and never trained: a
checkpoint needs no corpus. It is centred so that its mean over the corpus is zero: under the
spindle the share of masked tokens is n, as for plain masking.

Where n^θ falls no faster than t the variance of a drawn bound is infinite (n = t with θ = 1, plain
masking, is the edge): draw times with timing.power = 2, or use the polynomial schedule with power
2, if some θ are below 1.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import LEAST, NEVER, TINY, cross_entropy, expm1
from diffusion_text.core.options import internal, member, option, part
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import Absorbing, is_token
from diffusion_text.schedules.discrete import SCHEDULES, Level, Linear, Schedule, weight
from diffusion_text.types import DataFacts, Key, Keys, Params


def information(counts: np.ndarray, ranked: bool = False) -> np.ndarray:
  """float32 [V] in [-1, 1]: how telling each token is; rare tokens are positive.

  Its mean over the corpus is zero and its largest magnitude 1; all zero if the tokens are equally
  frequent.

  Args:
    counts: how often each token occurs, [V]; one is added to each, so that tokens never seen are
      the rarest.
    ranked: by the rank of the frequency (equal counts share one) instead of -log frequency.
  """
  counts = np.asarray(counts, np.float64) + 1
  frequency = counts / counts.sum()
  value = -np.log(frequency)
  if ranked:
    value = np.unique(-counts, return_inverse=True)[1].astype(np.float64)
  value = value - (frequency * value).sum()
  largest = np.abs(value).max()
  return (value / largest if largest > 1e-6 else 0 * value).astype(np.float32)


@member
class TokenMasked(Absorbing):
  """Masked diffusion over V clean tokens, each lost in its own time.

  State: ids int32, where the id V is the mask. `init` counts tokens where the law needs it.
  """

  vocab_size: int = internal()
  schedule: Schedule = part(SCHEDULES, Linear(), "how fast tokens are lost, before their own laws")
  loss_order: Literal["learned", "spindle", "frequency"] = option(
    "learned", "the law: trained powers, the spindle of the information, or powers of the frequency"
  )
  strength: float | None = option(
    None, "how far tokens differ, for spindle and frequency; 0.3 is usual", ge=-100, le=100
  )

  def __post_init__(self):
    super().__post_init__()
    if self.loss_order == "learned":
      if self.strength is not None:
        raise ValueError(
          f"process.strength={self.strength} is not read by loss_order='learned'; leave it unset"
        )
    elif self.strength is None:
      raise ValueError(
        f"process.strength=None must be a number for loss_order={self.loss_order!r}; use 0.3"
      )
    elif self.loss_order == "spindle" and not abs(self.strength) * math.pi < 1:
      raise ValueError(
        f"process.strength={self.strength} would make a spindle that gives tokens back: it must be"
        " below 1/π = 0.318; use 0.3"
      )

  @property
  def reads_logits_as(self) -> Literal["posterior"]:
    """The posterior, that a token is lost at t included."""
    return "posterior"

  @property
  def noise_is_learned(self) -> bool:
    """True if the survivals are trained; then the draw of z depends on parameters."""
    return self.loss_order == "learned"

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"power": [V]} before its softplus, or {"information": [V]}, which is counted here only."""
    del key
    if self.loss_order == "learned":
      return {"power": jnp.full(self.vocab_size, math.log(math.expm1(1)), jnp.float32)}
    if facts.token_counts is None:
      raise ValueError(
        f"process.loss_order={self.loss_order!r} needs the token counts of the training split; pass"
        " DataFacts(token_counts=…)"
      )
    counts = facts.token_counts()
    return {"information": jnp.asarray(information(counts, self.loss_order == "frequency"))}

  def corrupt(
    self, params: Params, keys: Keys, clean_state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Int[Array, "*n"]:
    """The mask with the token's own probability, else the token: never at 0, always at 1."""
    log_noise = self._log_noise(self._shape(params)[clean_state], self.schedule(t))
    lost = draw_uniform(fold(keys, 5)) < jnp.exp(log_noise)
    return jnp.where(lost, self.mask_id, clean_state).astype(jnp.int32)

  def log_corruption(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
  ) -> Float[Array, "*n"]:
    """log q(z_t | x), differentiable in the parameters."""
    masked = state == self.mask_id
    log_noise = self._log_noise(self._shape(params)[clean_state], self.schedule(t))
    return jnp.where(masked, log_noise, self._log_kept(masked, log_noise))

  def _log_kept(
    self, masked: Bool[Array, "*n"], log_noise: Float[Array, "*n"]
  ) -> Float[Array, "*n"]:
    """log alpha where the token is visible. (The other branch has a pole.)"""
    return jnp.log(jnp.maximum(-expm1(jnp.where(masked, -1.0, log_noise)), LEAST))

  def evidence(
    self, params: Params, state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Float[Array, "*n V"]:
    """log q(z_i | x_i = v): log noise_v where z_i is the mask, else NEVER but at v = z_i."""
    visible = jnp.where(is_token(state, self.vocab_size), 0.0, NEVER)
    lost = self._log_noise(self._shape(params), self.schedule(t[..., None]))
    return jnp.where((state == self.mask_id)[..., None], lost, visible)

  def nelbo_rate(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """w_x CE + Σ_y mu_y w_y - w_x at masks."""
    shape = self._shape(params)
    growth = self._growth(shape[clean_state], t)
    # Zero exactly if all tokens are alike.
    surplus = self._growth(shape, t[..., None]) - growth[..., None]
    cost = growth * cross_entropy(output, clean_state)
    cost = cost + jnp.sum(jax.nn.softmax(output) * surplus, axis=-1)
    return jnp.where(self.has_loss(params, state, t), weight(self.schedule, t) * cost, 0.0)

  def may_change(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Bool[Array, "*n"]:
    """True where the token that is revealed soonest would be.

    r is monotonic in the shape, so that token is at an end of the shapes.
    """
    shape = self._shape(params)
    most = jnp.maximum(self._reveal(shape.min(), t, s), self._reveal(shape.max(), t, s))
    return self.has_loss(params, state, t) & (draw_uniform(fold(keys, 0)) < most)

  def step(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """Token y with probability mu_y r_y at masks, the state elsewhere."""
    may_change = self.may_change(params, keys, state, t, s)
    chance = self._reveal(self._shape(params), t[..., None], s[..., None])
    return self._jump(keys, state, output, may_change, chance)

  def leap(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """One step of tau-leaping: token y with probability (t - s) · mu_y w_y, by the hazards at t."""
    hazard = weight(self.schedule, t)[..., None] * self._growth(self._shape(params), t[..., None])
    chance = (t - s)[..., None] * hazard
    return self._jump(keys, state, output, self.has_loss(params, state, t), chance)

  def _jump(
    self,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    may_change: Bool[Array, "*n"],
    chance: Float[Array, "*n V"],
  ) -> Int[Array, "*n"]:
    """y with probability mu_y · chance_y: first whether, then what (two streams of the key)."""
    total = jnp.sum(jax.nn.softmax(output) * chance, axis=-1)
    # An average: 1 exactly if all chances are 1, at s = 0.
    total = jnp.clip(total, chance.min(axis=-1), chance.max(axis=-1))
    token = draw_categorical(fold(keys, 1), output + jnp.log(jnp.maximum(chance, LEAST)))
    return jnp.where(may_change & (draw_uniform(fold(keys, 0)) < total), token, state)

  def _shape(self, params: Params) -> Float[Array, " V"]:
    """θ of every token."""
    if self.loss_order == "learned":
      return jax.nn.softplus(params["power"])
    theta = self.strength * jax.lax.stop_gradient(params["information"])
    return theta if self.loss_order == "spindle" else jnp.exp(-theta)

  def _log_noise(self, shape: Array, level: Level) -> Array:
    """log noise, of shapes and levels that broadcast.

    With -expm1 of it, the survival, it is accurate at both ends.
    """
    alpha, noise = level
    near_clean = jnp.log(jnp.maximum(noise, LEAST))
    log_n = jnp.where(noise < 0.5, near_clean, jnp.log1p(-jnp.minimum(alpha, 0.5)))
    if self.loss_order == "spindle":
      value = log_n + jnp.log1p(shape * _bulge(level))
    else:
      value = shape * log_n
    return jnp.where(noise > 0, value, NEVER)

  def _growth(self, shape: Array, t: Array) -> Array:
    """d log noise / d log n, of shapes and times that broadcast.

    It is the hazard w in units of the schedule's own `weight`.
    """
    if self.loss_order != "spindle":
      return shape
    level = self.schedule(jnp.maximum(t, TINY))
    return (1 + shape * jnp.pi * jnp.cos(jnp.pi * level.noise)) / (1 + shape * _bulge(level))

  def _reveal(self, shape: Array, t: Array, s: Array) -> Array:
    """r = 1 - noise(s) / noise(t), of shapes and times that broadcast: 1 exactly at s = 0."""
    before = self._log_noise(shape, self.schedule(s))
    return -expm1(before - self._log_noise(shape, self.schedule(t)))


def _bulge(level: Level) -> Array:
  """sin(πn) / n, accurate at both ends: π at n = 0, falling to 0 at n = 1."""
  # sin(πn) = sin(π alpha)
  near_one = jnp.sinc(level.alpha) * level.alpha / jnp.maximum(level.noise, 0.5)
  return jnp.pi * jnp.where(level.noise < 0.5, jnp.sinc(level.noise), near_one)

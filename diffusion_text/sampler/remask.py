"""Remasking: masked diffusion that may take tokens back (ReMDM, arXiv 2503.00307).

From time t to s, with a remasking probability sigma,

  clean token    becomes the mask with probability sigma
  masked token   becomes a draw of the prediction with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)

which leaves the marginals of masked diffusion as they are for **every** sigma (one that is the same for clean and masked tokens): the
share of masks is (1 - alpha_s - sigma alpha_t) + sigma alpha_t = 1 - alpha_s. Both are probabilities iff sigma <= limit(t, s) =
min(1, (1 - alpha_s) / alpha_t), which falls along the grid and is 0 at s = 0: the text ends clean.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_uniform, fold
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import Canvas, answers
from diffusion_text.schedules.discrete import Level, time_of
from diffusion_text.types import Array, Params, Prediction, Process, Time

TINY = jnp.finfo(jnp.float32).tiny

# Each strategy with the strength that was published for it (ReMDM scripts, 1024 tokens with top_p = 0.9).
STRATEGIES = {"cap": 0.008, "rescale": 0.015, "conf": 1.0}


def limit(now: Level, after: Level) -> Array:
  """The largest sigma of a step from level `now` (time t) to `after` (time s <= t): min(1, (1 - alpha_s) / alpha_t)."""
  return jnp.minimum(1.0, after.noise / jnp.maximum(now.alpha, TINY))


def unmask_probability(now: Level, after: Level, sigma: Array) -> Array:
  """(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), formed from what stays masked; 1 at s = 0, and the ancestral one at sigma = 0."""
  return 1 - (after.noise - sigma * now.alpha) / jnp.maximum(now.noise, TINY)


@dataclasses.dataclass(frozen=True)
class Remasking(Ancestral):
  """ReMDM for masked processes; `eta` = 0 is the ancestral sampler, key by key. All `steps` calls are made.

  strategy: how sigma follows from eta and the limit of each step,
    cap         min(eta, limit)
    rescale     eta · limit
    conf        eta · limit, shared out among the clean tokens of a row by the softmax of minus the probability that the network gave
                each (before guidance) when it was drawn. What a token has depends on the state, so here the marginals are not kept.
  eta: None is the published value of the strategy (STRATEGIES).
  loop: (t_on, t_off, alpha_on), published as (0.55, 0.05, 0.9) with cap and eta 0.02: clock times t_on … t_off of the grid are spent at
    the constant alpha_on, and tokens are remasked only there; the ancestral steps before and after share what is left of the clock.

  It corrects a network's errors; with a perfect network it only adds dependence errors (more tokens are drawn at a time). Raises
  ValueError for a process that is not masked and for values out of range.
  """

  strategy: str = "cap"
  eta: float | None = None
  loop: tuple[float, float, float] | None = None

  def __post_init__(self):
    if self.strategy not in STRATEGIES:
      raise ValueError(f"strategy={self.strategy!r} is unknown; use one of {sorted(STRATEGIES)}")
    if self.eta is not None and not 0 <= self.eta <= 1:
      raise ValueError(
        f"eta={self.eta} must lie in [0, 1]; {STRATEGIES[self.strategy]} is usual for {self.strategy!r}"
      )
    if self.loop is not None:
      loop = self.loop if isinstance(self.loop, (tuple, list)) else ()
      if not (len(loop) == 3 and all(isinstance(number, (int, float)) for number in loop)):
        raise ValueError(
          f"loop={self.loop!r} must be three numbers (t_on, t_off, alpha_on); (0.55, 0.05, 0.9) is usual"
        )
      t_on, t_off, alpha_on = loop
      if not (0 < t_off < t_on < 1 and 0 < alpha_on < 1):
        raise ValueError(
          f"loop={self.loop} needs 0 < t_off < t_on < 1 and 0 < alpha_on < 1; (0.55, 0.05, 0.9) is usual"
        )

  def plan(self, process: Process, params: Params, canvas: Canvas) -> tuple[Array, Array, Array]:
    """Times [S + 1, L]; bool [S, L], the steps that remask; float32 [B, L], the probability of each token when it was drawn."""
    if not isinstance(process, Masked):
      raise ValueError(
        f"{type(process).__name__} has no masks to go back to; use the predictor_corrector sampler for it"
      )
    clock, chance = super().plan(process, params, canvas), jnp.zeros(canvas.open.shape, jnp.float32)
    if self.loop is None:
      return clock, jnp.ones((self.steps, clock.shape[1]), bool), chance
    t_on, t_off, alpha_on = self.loop
    held = time_of(process.schedule, alpha_on)
    before = jnp.maximum(1 - (1 - held) * (1 - clock) / (1 - t_on), held)
    after = jnp.minimum(held * clock / t_off, held)
    times = jnp.where(clock > t_on, before, jnp.where(clock < t_off, after, held))
    return times, (clock[:-1] <= t_on) & (clock[1:] >= t_off), chance

  def grid(self, canvas: Canvas) -> Array:
    return canvas.plan[0]

  def sigma(self, now: Level, after: Level, clean: Array, chance: Array) -> Array:
    """The remasking probability [B, L] of a step. clean: bool [B, L], tokens that may be taken back; chance: as in `plan`."""
    eta, most = STRATEGIES[self.strategy] if self.eta is None else self.eta, limit(now, after)
    if self.strategy == "cap":
      return jnp.minimum(eta, most)
    if self.strategy == "rescale":
      return eta * most
    weight = jnp.where(clean, jnp.exp(-chance), 0.0)
    return eta * most * weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), TINY)

  def advance(
    self, process: Masked, params: Params, canvas: Canvas, prediction: Prediction
  ) -> Canvas:
    times, remasks, chance = canvas.plan
    fresh, t, s = self.turn(canvas)
    now, after = process.schedule(t), process.schedule(s)
    masked = process.scored(params, canvas.state, t)
    clean = canvas.open & ~masked
    sigma = jnp.where(remasks[canvas.call], self.sigma(now, after, clean, chance), 0.0)
    u = draw_uniform(fold(fresh.keys, 0))
    reveals = canvas.open & masked & (u < unmask_probability(now, after, sigma))

    def draw(keys: Array, state: Array, logits: Array, s: Time) -> tuple[Array, Array]:
      token = process.draw(params, keys, state, self.guided(logits, s))
      return token, jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), token[:, None], axis=-1)[
        :, 0
      ]

    token, sure = answers(fresh, prediction, reveals, draw, s)
    kept = jnp.where(clean & (u < sigma), process.mask_id, canvas.state)
    plan = (times, remasks, jnp.where(reveals, sure, chance))
    return canvas._replace(state=jnp.where(reveals, token, kept).astype(jnp.int32), plan=plan)

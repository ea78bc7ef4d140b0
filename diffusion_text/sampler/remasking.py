"""Remasking: masked diffusion that may take tokens back (ReMDM, arXiv 2503.00307).

From time t to s, with a remasking probability sigma,

  clean token    becomes the mask with probability sigma
  masked token   becomes a draw of the prediction with probability
                 (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)

which leaves the marginals of masked diffusion as they are for **every** sigma (one that is the same
for clean and masked tokens): the share of masks is (1 - alpha_s - sigma alpha_t) + sigma alpha_t =
1 - alpha_s. Both are probabilities if and only if sigma <= limit(t, s) = min(1, (1 - alpha_s) /
alpha_t), which falls along the grid and is 0 at s = 0: the text ends clean.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.numerics import LEAST, at_ids
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.sampler.lost_tokens import need_schedule, visible_may_be_wrong
from diffusion_text.schedules.discrete import Level, Schedule, time_of
from diffusion_text.types import Canvas, Model, Params, Prediction, State

# Each strategy with the strength that was published for it (1024 tokens with top_p = 0.9).
PUBLISHED = {"cap": 0.008, "rescale": 0.015, "conf": 1.0}


def limit(now: Level, after: Level) -> Float[Array, "..."]:
  """The largest sigma of a step from level `now` to `after`: min(1, (1 - alpha_s) / alpha_t)."""
  return jnp.minimum(1.0, after.noise / jnp.maximum(now.alpha, LEAST))


def unmask_probability(
  now: Level, after: Level, sigma: Float[Array, "..."] | float
) -> Float[Array, "..."]:
  """(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), formed from what stays masked.

  It is 1 at s = 0, and the posterior step's at sigma = 0.
  """
  return 1 - (after.noise - sigma * now.alpha) / jnp.maximum(now.noise, LEAST)


def check_loop(loop: tuple[float, float, float] | None) -> None:
  """Raises ValueError for a loop (t_on, t_off, alpha_on) that is none."""
  if loop is None:
    return
  t_on, t_off, alpha_on = loop
  if not (0 < t_off < t_on < 1 and 0 < alpha_on < 1):
    raise ValueError(
      f"loop={loop} needs 0 < t_off < t_on < 1 and 0 < alpha_on < 1; (0.55, 0.05, 0.9) is usual"
    )


def looped(
  schedule: Schedule, loop: tuple[float, float, float], clock: Float[Array, "B S1 u"]
) -> Float[Array, "B S1 u"]:
  """The times at which a loop (t_on, t_off, alpha_on) spends the clock."""
  t_on, t_off, alpha_on = loop
  held = time_of(schedule, alpha_on)
  before = jnp.maximum(1 - (1 - held) * (1 - clock) / (1 - t_on), held)
  after = jnp.minimum(held * clock / t_off, held)
  return jnp.where(clock > t_on, before, jnp.where(clock < t_off, after, held))


@member
class Strategies(Walk):
  """What `Remasking` and `Renoising` share: how much goes back to noise at each step, and where a
  loop stands still. Not a sampler itself.
  """

  strategy: Literal["cap", "rescale", "conf"] = option("cap", "how sigma follows from eta")
  eta: float | None = option(
    None,
    "strength; None: the published one of the strategy (cap 0.008, rescale 0.015, conf 1)",
    ge=0,
    le=1,
  )
  loop: tuple[float, float, float] | None = option(
    None, "(t_on, t_off, alpha_on) of a loop; (0.55, 0.05, 0.9) is usual. None: no loop"
  )

  def __post_init__(self):
    check_loop(self.loop)

  def init(self, model: Model, params: Params, canvas: Canvas) -> Walked:
    """Every row at its first step; with a loop, on the grid of the loop."""
    state = super().init(model, params, canvas)
    if self.loop is None:
      return state
    grid = looped(model.process.schedule, self.loop, state.grid)
    state = state._replace(grid=grid, step=jnp.zeros_like(state.step))
    return self._enter(model, params, canvas, state)

  def remembers(self, model: Model, params: Params, canvas: Canvas) -> Float[Array, "B u"]:
    """The probability that the network gave each token when it was drawn."""
    return jnp.zeros(canvas.active.shape, jnp.float32)


@member
class Remasking(Strategies):
  """ReMDM for masked processes; eta = 0 is `grid`, key by key. All `steps` calls are made.

  strategy: how sigma follows from eta and the limit of each step,
    cap      min(eta, limit)
    rescale  eta · limit
    conf     eta · limit, shared out among the clean tokens of a row by the softmax of minus the
             probability that the network gave each (before temperature and top_p) when it was
             drawn. What a token has depends on the state, so here the marginals are not kept.

  loop: (t_on, t_off, alpha_on), published as (0.55, 0.05, 0.9) with cap and eta 0.02. The clock
  times t_on … t_off of the grid are spent at the constant alpha_on, and tokens are remasked only
  there; the steps before and after share what is left of the clock.

  It corrects a network's errors; with a perfect network it only adds dependence errors, as more
  tokens are drawn at a time. The marginals are those of a process that loses all tokens by its one
  schedule (`masked`); where each token has a schedule of its own they are kept roughly.
  """

  def check(self, model: Model) -> None:
    """Refuses processes without masks, and those whose visible tokens may be wrong."""
    super().check(model)
    process = model.process
    fix = "use sampler.name='grid' with kappa=0.95"
    if process.mask_id is None or visible_may_be_wrong(process, 0.5):
      raise ValueError(
        f"{type(process).__name__} has no masks that are all of its noise, to go back to; {fix}"
      )
    need_schedule(process, "Remasking", fix)

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """The masks that are revealed, and the clean tokens that may be taken back."""
    now, after = model.process.schedule(turn.t), model.process.schedule(turn.s)
    u = draw_uniform(fold(turn.keys, 0))
    most = jnp.where(self._remasks(model, turn), self._largest(now, after), 0.0)
    masked = canvas.state == model.process.mask_id
    reveals = u < unmask_probability(now, after, self._of_masks(most))
    return jnp.where(masked, reveals, u < most)

  def sigma(
    self,
    now: Level,
    after: Level,
    clean: Bool[Array, "B u"],
    chance: Float[Array, "B u"],
  ) -> Float[Array, "B u"]:
    """The probability with which each clean token is remasked at a step that remasks.

    Args:
      now: the level at t.
      after: the level at s.
      clean: tokens that may be taken back.
      chance: the probability that the network gave each when it was drawn.
    """
    most = self._largest(now, after)
    if self.strategy != "conf":
      return jnp.broadcast_to(most, clean.shape)
    weight = jnp.where(clean, jnp.exp(-chance), 0.0)
    return most * weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), LEAST)

  def moved(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Walked,
    prediction: Prediction,
    moves: Bool[Array, "B u"],
    turn: Turn,
  ) -> tuple[State, Any]:
    """Tokens where masks are revealed, masks where clean tokens are taken back."""
    mask_id = model.process.mask_id
    masked = canvas.state == mask_id
    now, after = model.process.schedule(turn.t), model.process.schedule(turn.s)
    clean = canvas.active & ~masked
    sigma = self.sigma(now, after, clean, state.extra)
    sigma = jnp.where(self._remasks(model, turn), sigma, 0.0)
    taken_back = draw_uniform(fold(turn.keys, 0)) < sigma

    def one(of_process, output, keys, s):
      del of_process
      ids = draw_categorical(fold(keys, 1), self.transform(output, s))
      return ids, at_ids(jax.nn.softmax(output, axis=-1), ids)

    reveals = moves & masked
    rows = (turn.keys, turn.s)
    ids, chance = on_tokens(model, params, prediction, reveals, one, *rows, few=True)
    text = jnp.where(taken_back, mask_id, canvas.state)
    text = jnp.where(reveals, ids, text).astype(jnp.int32)
    return text, jnp.where(reveals, chance, state.extra)

  def _largest(self, now: Level, after: Level) -> Float[Array, "..."]:
    """Sigma; with conf, what all clean tokens of a row have together."""
    eta = PUBLISHED[self.strategy] if self.eta is None else self.eta
    most = limit(now, after)
    return jnp.minimum(eta, most) if self.strategy == "cap" else eta * most

  def _of_masks(self, sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sigma that the reveal of masks makes up for; conf makes up for none."""
    return jnp.zeros_like(sigma) if self.strategy == "conf" else sigma

  def _remasks(self, model: Model, turn: Turn) -> Bool[Array, "..."] | bool:
    """True at the steps that take tokens back: those that stand still in a loop."""
    if self.loop is None:
      return True
    held = time_of(model.process.schedule, self.loop[2])
    return (turn.t == held) & (turn.s == held)

"""Samplers that go back on what they drew, for processes whose tokens can be guessed and noised again one by one (`Renoises`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import (
  CHUNK,
  COIN,
  STEPS,
  WIDE_CHUNK,
  Canvas,
  answers,
  select,
  update,
)
from diffusion_text.types import Array, Key, Params, Prediction, Process, Renoises, State, Time


def need_renoising(process: Process) -> None:
  """Raises ValueError for a process that cannot noise single tokens again."""
  if not isinstance(process, Renoises):
    raise ValueError(
      f"{type(process).__name__} cannot noise single tokens again; use the ancestral sampler for it"
    )


def leave_one_out(process: Process, state: State, t: Time, logits: Array) -> Array:
  """log p(x_i | z without z_i), [N, V], whatever the logits of the process mean; log-softmax where it knows of no such thing (masks)."""
  if hasattr(process, "leave_one_out"):
    return process.leave_one_out(state, t, logits)
  return jax.nn.log_softmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Ancestral):
  """Ψ-samplers (Duo++, arXiv 2602.21185): token by token, the posterior step with probability kappa, else a guess, noised again,

    Ψ(z_s | z_t, x̂) = kappa · q(z_s | z_t, x̂) + (1 - kappa) · q_s(z_s | x̂).

  Both parts have the marginal q_s, so any kappa keeps the marginals, for any noise. kappa = 1 is the ancestral sampler key by key,
  kappa = 0 predicts and noises everything at every step. For masked noise it is ReMDM with sigma = (1 - kappa)(1 - alpha_s): a clean
  token is remasked by the second part alone, with that probability, and a masked one is unmasked with kappa (alpha_s - alpha_t) /
  (1 - alpha_t) + (1 - kappa) alpha_s = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). Raises ValueError for kappa outside [0, 1].
  """

  kappa: float = dataclasses.field(kw_only=True)

  def __post_init__(self):
    if not 0 <= self.kappa <= 1:
      raise ValueError(
        f"kappa={self.kappa} must lie in [0, 1]; 1 is the ancestral sampler, 0.95 noises one token in 20 again"
      )

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Array:
    need_renoising(process)
    return super().plan(process, params, canvas)

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State:
    canvas, t, s = self.turn(canvas)
    steps = draw_uniform(fold(canvas.keys, COIN)) < self.kappa
    moves = jnp.where(
      steps, process.moves(params, canvas.keys, canvas.state, t, s), (t > 0) & (s < 1)
    )

    def one(keys: Key, state: State, logits: Array, t: Time, s: Time, steps: Array) -> State:
      guess = process.guess(params, keys, state, self.guided(logits, s), t)
      return select(
        steps,
        self.step(process, params, keys, state, logits, t, s),
        process.renoise(params, keys, guess, s),
      )

    chunk = WIDE_CHUNK if self.kappa < 0.5 else CHUNK
    return update(canvas, prediction, canvas.open & moves, one, t, s, steps, chunk=chunk)


@dataclasses.dataclass(frozen=True)
class SelfCorrecting(Ancestral):
  """Ancestral steps, then corrections one token at a time (GIDD, arXiv 2503.04482, self-correction step).

  After `steps` calls the text is clean. In each of up to `corrections` further calls the network reads it as if it were at
  `correction_time`, every open token is drawn anew at `correction_temperature`, and in each row the one token that gains most,
  log p(new) - log p(old), takes its new value (the leftmost of equals). A row stops when no token has a likelier value than its own:
  then no draw can gain any more. This climbs towards a mode and lowers entropy; it is no sample of the model's law.

  p is the leave-one-out prediction, whatever the process takes its logits to mean, so that a token does not vote for itself. Raises
  ValueError for values out of range, for processes without such a prediction at clean tokens (a network that only ever predicted masks
  has learned nothing about them) and for rows or blocks of one token (which it never saw but at t = 1).
  """

  corrections: int = 128
  correction_time: float = 0.01
  correction_temperature: float = 0.1

  def __post_init__(self):
    if self.corrections < 0:
      raise ValueError(
        f"corrections={self.corrections} must not be negative; 0 is the ancestral sampler"
      )
    if not 0 < self.correction_time <= 1:
      raise ValueError(
        f"correction_time={self.correction_time} must lie in (0, 1]: nothing is trained at 0; 0.01 is usual"
      )
    Guidance(self.correction_temperature)

  def plan(self, process: Process, params: Params, canvas: Canvas) -> tuple[Array, Array]:
    """Times [S + 1, L]; bool [B], the rows in which a token may have a likelier value still."""
    need_renoising(process)
    if not hasattr(process, "leave_one_out") or getattr(process, "share", 1) == 0:
      raise ValueError(
        f"{process} has no leave-one-out prediction at clean tokens, which self-correction reads; use the predictor_corrector sampler"
      )
    if canvas.open.shape[1] == 1:
      raise ValueError(
        "self-correction of a row or block of 1 token has nothing to read it by; use blocks of 4 tokens or more"
      )
    return super().plan(process, params, canvas), jnp.ones(canvas.open.shape[0], bool)

  def grid(self, canvas: Canvas) -> Array:
    return canvas.plan[0]

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    correcting = canvas.plan[1] & (canvas.call < self.steps + self.corrections)
    return jnp.any(canvas.open, axis=1) & ((canvas.call < self.steps) | correcting)

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    return jnp.where(
      canvas.call < self.steps, super().times(process, params, canvas), self.correction_time
    )

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> Canvas:
    draft = lambda: canvas._replace(
      state=Ancestral.advance(self, process, params, canvas, prediction)
    )
    return jax.lax.cond(
      canvas.call < self.steps, draft, lambda: self.correct(process, params, canvas, prediction)
    )

  def correct(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> Canvas:
    """The canvas after one correction of every row that still has something to gain."""
    grid, gains_B = canvas.plan
    live = canvas.open & gains_B[:, None]
    fresh = canvas._replace(keys=fold(fold(canvas.keys, STEPS), canvas.call))

    def anew(keys: Key, state: State, logits: Array, old: Array) -> tuple[Array, Array, Array]:
      logp = leave_one_out(process, state, jnp.full(old.shape, self.correction_time), logits)
      new = draw_categorical(fold(keys, 1), Guidance(self.correction_temperature)(logp))
      at = lambda ids: jnp.take_along_axis(logp, ids[:, None], axis=-1)[:, 0]
      return new, at(new) - at(old), jnp.max(logp, axis=-1) - at(old)

    new, gain, most = answers(
      fresh, prediction, live, anew, process.decode(params, canvas.state), chunk=WIDE_CHUNK
    )
    best = jnp.arange(gain.shape[1]) == jnp.argmax(gain, axis=1)[:, None]
    clean = process.renoise(params, fresh.keys, new, jnp.zeros(new.shape, jnp.float32))
    state = select(live & best & (gain > 0), clean, canvas.state)
    return canvas._replace(state=state, plan=(grid, gains_B & jnp.any(most > 0, axis=1)))

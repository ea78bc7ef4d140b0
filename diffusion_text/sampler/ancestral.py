"""Ancestral sampling: p(z_s | z_t) along a grid of times; its event-driven form, which visits only the steps that matter; and
tau-leaping, which freezes the jump rates within a step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from diffusion_text.core.prng import fold
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import STEPS, WIDE_CHUNK, Canvas, select, update
from diffusion_text.types import (
  Array,
  Key,
  Leaps,
  Params,
  Prediction,
  Process,
  Reveals,
  State,
  Time,
  Timing,
)


@dataclasses.dataclass(frozen=True)
class Ancestral:
  """The exact posterior, step by step: `steps` steps are exactly `steps` network calls, for any process and any timing.

  The law tends to the model's own as steps grow (total variation ~ 1/steps; MDLM app. A, MD4 app. C).

  greedy_tail: in the step that makes a token clean (s = 0) it is the argmax of the logits instead of a draw, as MDLM and Duo end. It
  lowers entropy by a share that vanishes with the steps. Where the logits are leave-one-out predictions (uniform noise), the argmax
  ignores what the token itself shows, as Duo's does.

  Raises ValueError for guidance or greedy_tail where the logits are scores that are no law over tokens (SEDD with uniform noise).
  """

  timing: Timing
  steps: int
  guidance: Guidance = Guidance()
  greedy_tail: bool = False

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Any:
    ratios = getattr(process, "prediction", "") == "score" and not isinstance(process, Reveals)
    if ratios and (self.greedy_tail or self.guidance != Guidance()):
      raise ValueError(
        f"{type(process).__name__} with prediction='score' has logits that are ratios to the token shown, which guidance cannot read:"
        f" greedy_tail={self.greedy_tail}, temperature={self.guidance.temperature}, top_p={self.guidance.top_p},"
        f" guidance_scale={self.guidance.guidance_scale}; leave these at False, 1, 1 and 1, or use prediction='leave_one_out'"
      )
    # XLA may round 1 - k/S once instead of twice, and so miss the 0 at which text is clean.
    return self.timing.grid(self.steps, canvas.open.shape[1]).at[-1].set(0.0)

  def grid(self, canvas: Canvas) -> Array:
    """The times [S + 1, L] within the plan."""
    return canvas.plan

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return jnp.any(canvas.open, axis=1) & (canvas.call < self.steps)

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    return jnp.broadcast_to(self.grid(canvas)[canvas.call], canvas.open.shape)

  def turn(self, canvas: Canvas) -> tuple[Canvas, Time, Time]:
    """This call's canvas, with a fresh key per token, and the times t -> s, [B, L] each, that it goes through."""
    t, s = (jnp.broadcast_to(self.grid(canvas)[canvas.call + i], canvas.open.shape) for i in (0, 1))
    return canvas._replace(keys=fold(fold(canvas.keys, STEPS), canvas.call)), t, s

  def guided(self, logits: Array, s: Time) -> Array:
    """The logits [N, V] that tokens on their way to time s [N] are drawn from."""
    drawn = self.guidance(logits)
    return (
      jnp.where((s == 0)[:, None], Guidance(temperature=0)(logits), drawn)
      if self.greedy_tail
      else drawn
    )

  def step(
    self, process: Process, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time
  ) -> State:
    """The process's posterior step at a flat list of positions."""
    return process.step(params, keys, state, self.guided(logits, s), t, s)

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State | Canvas:
    canvas, t, s = self.turn(canvas)
    moves = canvas.open & process.moves(params, canvas.keys, canvas.state, t, s)
    return update(canvas, prediction, moves, functools.partial(self.step, process, params), t, s)


@dataclasses.dataclass(frozen=True)
class EventDriven:
  """The law of `Ancestral` with the same grid, without the calls at which a row would not change.

  When each token is revealed does not depend on what the others become, so those steps are drawn first (`process.arrival`) and each
  row jumps from one of its own to the next: at most min(steps, L) calls per row, S(1 - (1 - 1/S)^L) expected for a linear
  schedule (226 at S = 1000, L = 256), however many rows share the batch. First-hitting (arXiv 2409.02908) is steps -> ∞.
  The network is told each row's own time, so it may be conditioned on it.
  """

  timing: Timing
  steps: int
  guidance: Guidance = Guidance()

  def plan(self, process: Process, params: Params, canvas: Canvas) -> tuple[Array, Array]:
    if not isinstance(process, Reveals):
      raise ValueError(
        f"{type(process).__name__} draws no reveal times in advance; use the ancestral sampler for it"
      )
    grid = self.timing.grid(self.steps, canvas.open.shape[1])
    return jnp.where(canvas.open, process.arrival(params, canvas.keys, grid), self.steps), grid

  def _event(self, process: Process, params: Params, canvas: Canvas) -> tuple[Array, Array]:
    arrival_BxL, _ = canvas.plan
    waiting = canvas.open & process.scored(params, canvas.state, jnp.ones(canvas.open.shape))
    event_B = jnp.min(jnp.where(waiting, arrival_BxL, self.steps), axis=1)
    return event_B, waiting & (arrival_BxL == event_B[:, None])

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return self._event(process, params, canvas)[0] < self.steps

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    event_B, _ = self._event(process, params, canvas)
    return canvas.plan[1][event_B]

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State:
    _, moves = self._event(process, params, canvas)
    return update(
      canvas,
      prediction,
      moves,
      lambda k, z, logits: process.draw(params, k, z, self.guidance(logits)),
    )


@dataclasses.dataclass(frozen=True)
class TauLeaping(Ancestral):
  """Euler steps of the reverse jump process, jump rates frozen at t (arXiv 2205.14987; SEDD's "euler" sampler, arXiv 2310.16834).

  Any token that the process still scores may jump; only the step to s = 0 is the exact posterior step, so that no noise is left.
  The law tends to the model's own as steps grow. For masked noise with the linear schedule a leap is the posterior step itself.
  """

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Array:
    if not isinstance(process, Leaps):
      raise ValueError(
        f"{type(process).__name__} has no jump rates to leap by; use the ancestral sampler for it"
      )
    return super().plan(process, params, canvas)

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State:
    canvas, t, s = self.turn(canvas)
    lands = process.moves(params, canvas.keys, canvas.state, t, s)
    jumps = process.scored(params, canvas.state, t) & (t > s)

    def leap(keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
      leapt = process.leap(params, keys, state, self.guided(logits, s), t, s)
      return select(s == 0, self.step(process, params, keys, state, logits, t, s), leapt)

    return update(
      canvas,
      prediction,
      canvas.open & jnp.where(s == 0, lands, jumps),
      leap,
      t,
      s,
      chunk=WIDE_CHUNK,
    )

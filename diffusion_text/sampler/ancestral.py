"""Ancestral sampling: p(z_s | z_t) along a grid of times, and its event-driven form, which visits only the steps that matter."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from diffusion_text.draws import fold
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import STEPS, Canvas, update
from diffusion_text.types import Array, Params, Prediction, Process, Reveals, State, Time, Timing


@dataclasses.dataclass(frozen=True)
class Ancestral:
  """The exact posterior, step by step: `steps` steps are exactly `steps` network calls, for any process and any timing.

  The law tends to the model's own as steps grow (total variation ~ 1/steps; MDLM app. A, MD4 app. C).
  """

  timing: Timing
  steps: int
  guidance: Guidance = Guidance()

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return self.timing.grid(self.steps, canvas.open.shape[1])

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return jnp.any(canvas.open, axis=1) & (canvas.call < self.steps)

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    return jnp.broadcast_to(canvas.plan[canvas.call], canvas.open.shape)

  def advance(self, process: Process, params: Params, canvas: Canvas, prediction: Prediction) -> State:
    canvas = canvas._replace(keys=fold(fold(canvas.keys, STEPS), canvas.call))  # a fresh key per token and step
    t, s = (jnp.broadcast_to(canvas.plan[canvas.call + i], canvas.open.shape) for i in (0, 1))
    moves = canvas.open & process.moves(params, canvas.keys, canvas.state, t, s)
    step = lambda keys, state, logits, t, s: process.step(params, keys, state, self.guidance(logits), t, s)
    return update(canvas, prediction, moves, step, t, s)


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
      raise ValueError(f"{type(process).__name__} draws no reveal times in advance; use the ancestral sampler for it")
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

  def advance(self, process: Process, params: Params, canvas: Canvas, prediction: Prediction) -> State:
    _, moves = self._event(process, params, canvas)
    return update(canvas, prediction, moves, lambda k, z, logits: process.draw(params, k, z, self.guidance(logits)))

"""Sampling at times that the timing predicts as the text comes into view (NeoDiff, arXiv 2505.22165): the guess is noised anew at each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from diffusion_text.core.prng import fold
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import WIDE_CHUNK, Canvas, answers, select
from diffusion_text.types import Array, Key, Params, Prediction, PredictsTimes, Process, State, Time


@dataclasses.dataclass(frozen=True)
class PredictedTimes(Ancestral):
  """While the clock falls in even steps, z = alpha_t P + k sigma_t ε with a t per token, predicted from x̂ at the clock that comes next.

  Times need not fall: a token that looks wrong beside the others may be given more noise than it had, which is why each step takes its
  noise anew (`process.rho` = 1). At clock 0 tokens are drawn from this call's prediction, as all samplers do. Temperature and top_p change
  what P and the tokens are taken from, not the x̂ that times are predicted from, which is what training showed: the network's answer.

  Raises ValueError for a timing that predicts nothing, and, when traced, for a process that is not Gaussian or that keeps old noise.
  """

  def __post_init__(self):
    if not isinstance(self.timing, PredictsTimes):
      raise ValueError(
        f"sampler.name='predicted_times' asks the timing for times, and {self.timing} predicts none; use timing.name='predicted', or"
        " sampler.name='ancestral'"
      )

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Any:
    """The clock [S + 1, L], and the time of every token, [B, L]."""
    if not isinstance(process, Gaussian) or process.rho != 1:
      kept = (
        f"process.rho={process.rho}" if isinstance(process, Gaussian) else type(process).__name__
      )
      raise ValueError(
        f"sampler.name='predicted_times' noises the guess anew at times that may rise, which {kept} does not; use a Gaussian process with"
        " process.rho=1"
      )
    return super().plan(process, params, canvas), jnp.ones(canvas.open.shape)

  def grid(self, canvas: Canvas) -> Array:
    return canvas.plan[0]

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    return canvas.plan[1]

  def advance(
    self, process: Gaussian, params: Params, canvas: Canvas, prediction: Prediction
  ) -> Canvas:
    grid, t = canvas.plan
    canvas, _, clock = self.turn(canvas)

    def one(keys: Key, state: State, logits: Array, t: Time, clock: Time) -> tuple[State, State]:
      target, drawn = process.aimed(params, keys, state, self.guided(logits, clock), t)
      return process.predicted(params, state, t, logits), jnp.where(
        clock[:, None] > 0, target, drawn
      )

    asked = answers(canvas, prediction, canvas.open, one, t, clock, chunk=WIDE_CHUNK)
    mean, target = (select(canvas.open, vectors, canvas.state) for vectors in asked)
    guess = process.inputs(params, mean, jnp.zeros_like(t))
    t = jnp.where(
      canvas.open & (clock > 0), self.timing.next_times(guess, clock[:, :1], canvas.segment), 0.0
    )
    state = process.renoise_vectors(params, fold(canvas.keys, 0), target, t)
    return canvas._replace(state=select(canvas.open, state, canvas.state), plan=(grid, t))

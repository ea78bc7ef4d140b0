"""Sampling at times that the timing predicts as the text comes into view (NeoDiff, arXiv 2505.22165): the guess is noised anew at each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from diffusion_text.draws import fold
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import WIDE_CHUNK, Canvas, answers, select
from diffusion_text.types import Array, Key, Params, Prediction, PredictsTimes, Process, State, Time


@dataclasses.dataclass(frozen=True)
class PredictedTimes(Ancestral):
  """While the clock falls in even steps, z = alpha_t P + k sigma_t ε with a t per token, predicted from x̂ at the clock that comes next.

  Times need not fall: a token that looks wrong beside the others may be given more noise than it had, which is why each step takes its
  noise anew (`process.rho` = 1). At clock 0 tokens are drawn from this call's prediction, as all samplers do; tokens that were without
  noise stay as they are (their network's answer is trained at no time, t = 0 is no time of the bound).

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
      kept = f"process.rho={process.rho}" if isinstance(process, Gaussian) else type(process).__name__
      raise ValueError(
        f"sampler.name='predicted_times' noises the guess anew at times that may rise, which {kept} does not; use a Gaussian process with"
        " process.rho=1"
      )
    return super().plan(process, params, canvas), jnp.ones(canvas.open.shape)

  def grid(self, canvas: Canvas) -> Array:
    return canvas.plan[0]

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    return canvas.plan[1]

  def advance(self, process: Gaussian, params: Params, canvas: Canvas, prediction: Prediction) -> Canvas:
    grid, t = canvas.plan
    canvas, _, clock = self.turn(canvas)
    noisy = canvas.open & (t > 0)

    def one(keys: Key, state: State, logits: Array, t: Time, clock: Time) -> tuple[State, State, State]:
      logits = self.guided(logits, clock)
      posterior = process.posterior(params, state, t, logits)
      drawn = process.encode(params, process.guess(params, keys, state, logits, t))
      target = drawn if process.projection == "sample" else process.project(params, posterior)
      return process.predicted(params, state, t, logits), target, drawn

    asked = answers(canvas, prediction, noisy, one, t, clock, chunk=WIDE_CHUNK)
    mean, target, drawn = (select(noisy, vectors, canvas.state) for vectors in asked)
    guess = process.inputs(params, mean, jnp.zeros_like(t))
    t = jnp.where(canvas.open, self.timing.next_times(guess, clock[:, :1], canvas.segment), 0.0)
    after = process.renoise_vectors(params, fold(canvas.keys, 0), target, t)
    state = select(canvas.open, select(clock > 0, after, drawn), canvas.state)
    return canvas._replace(state=state, plan=(grid, t))

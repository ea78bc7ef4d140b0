"""Adaptive routing (RDM, arXiv 2302.05737): predict every token, keep the surest, send the rest back to noise, and again."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from diffusion_text.core.prng import draw_uniform, fold
from diffusion_text.process.discrete import Discrete
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.correct import leave_one_out, need_renoising
from diffusion_text.sampler.loop import ORDER, WIDE_CHUNK, Canvas, answers
from diffusion_text.schedules.discrete import time_of
from diffusion_text.types import Array, Key, Params, Prediction, Process, State, Time

RATES = ("linear", "cosine")


@dataclasses.dataclass(frozen=True)
class Routed(Ancestral):
  """Call k of S guesses every open token, keeps the floor(rate · open tokens) best of each row as clean tokens, and puts noise on all
  others, also on tokens that an earlier call had kept. The last call keeps all; exactly `steps` calls.

  What is kept decides how noisy the row is, so the timing is not walked: all open tokens of a call have the time at which the schedule
  of the process keeps that share (1 at the first call).

  The score is the log-probability (leave-one-out, before guidance) of the token that was **drawn**, plus Gumbel noise times
  noise_scale · (1 - rate), as published. So it seeks modes and is biased at temperature 1 even with a perfect network (DESIGN, "two
  facts": total variation 0.43 on the toy where `Ordered` is exact): use it for translation-like tasks, not to sample a language. Of
  equal scores the leftmost is kept (the published code drops all of them).

  rate: "linear", k / S, or "cosine", 1 - cos(pi/2 · k / S), which keeps few tokens early. Raises ValueError for values out of range.
  """

  rate: str = "linear"
  noise_scale: float = 0.0

  def __post_init__(self):
    if self.rate not in RATES:
      raise ValueError(f"rate={self.rate!r} is unknown; use one of {RATES}")
    if not self.noise_scale >= 0:
      raise ValueError(
        f"noise_scale={self.noise_scale} must not be negative; 0 keeps the best tokens whatever the seed"
      )

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Array:
    need_renoising(process)
    if not isinstance(process, Discrete):
      raise ValueError(
        f"{type(process).__name__} keeps no tokens whole, which the routed sampler counts; use predictor_corrector"
      )
    grid = super().plan(process, params, canvas)
    times = time_of(process.schedule, self.share(jnp.arange(self.steps + 1)))
    return jnp.broadcast_to(times[:, None], grid.shape).at[0].set(1.0).at[-1].set(0.0)

  def share(self, done: Array) -> Array:
    """The share of the open tokens that are kept after `done` calls, float32; exactly 1 after the last."""
    if self.rate == "linear":
      return done / self.steps
    return jnp.where(done >= self.steps, 1.0, 1 - jnp.cos(jnp.pi / 2 * done / self.steps))

  def kept(self, call: Array, total: Array) -> tuple[Array, Array]:
    """How many of `total` tokens call `call` (from 0) keeps, int32, and the rate, float32; exactly all of them in the last call."""
    rate = self.share(call + 1)
    if self.rate == "linear":
      return total * (call + 1) // self.steps, rate
    return jnp.floor(rate * total).astype(jnp.int32), rate

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State:
    canvas, t, s = self.turn(canvas)

    def guess(keys: Key, state: State, logits: Array, t: Time, s: Time) -> tuple[Array, Array]:
      ids = process.guess(params, keys, state, self.guided(logits, s), t)
      return ids, jnp.take_along_axis(
        leave_one_out(process, state, t, logits), ids[:, None], axis=-1
      )[:, 0]

    ids, score = answers(canvas, prediction, canvas.open, guess, t, s, chunk=WIDE_CHUNK)
    keeps_B, rate = self.kept(canvas.call, jnp.sum(canvas.open, axis=1))
    u = jnp.maximum(draw_uniform(fold(canvas.keys, ORDER)), jnp.finfo(jnp.float32).tiny)
    score = score - self.noise_scale * (1 - rate) * jnp.log(-jnp.log(u))
    rank = jnp.argsort(
      jnp.argsort(jnp.where(canvas.open, -score, jnp.inf), axis=1, stable=True), axis=1
    )
    noise = jnp.where(rank < keeps_B[:, None], 0.0, 1.0)
    routed = process.renoise(params, canvas.keys, ids, noise)
    return jnp.where(canvas.open, routed, canvas.state)

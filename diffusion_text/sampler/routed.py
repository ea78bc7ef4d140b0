"""Adaptive routing (RDM, arXiv 2302.05737): every token is predicted, the surest are kept, the rest
go back to noise, and again.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import LEAST, at_ids
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold, streams
from diffusion_text.sampler.budget import best
from diffusion_text.sampler.loop import on_tokens
from diffusion_text.sampler.lost_tokens import need_schedule
from diffusion_text.sampler.transform import LogitsTransform, refuse_scores
from diffusion_text.schedules.discrete import time_of
from diffusion_text.types import Canvas, Model, Params, Prediction, Query, State


class Routing(NamedTuple):
  """step: int32 [B], the calls that each row has made in this window."""

  step: Int[Array, " B"]


@member
class Routed:
  """Call k of S guesses every active token, keeps the floor(rate · active tokens) best of each row
  as clean tokens, and puts noise on all others, also on tokens that an earlier call had kept. The
  last call keeps all; exactly `steps` calls.

  What is kept decides how noisy the row is, so the timing's grid is not walked: all active tokens
  of a call have the time at which the schedule of the process keeps that share (1 at the first).

  The score is the log-probability (leave-one-out, before temperature and top_p) of the token that
  was **drawn**, plus Gumbel noise times noise_scale · (1 - rate), as published. So it seeks modes
  and is biased at temperature 1 even with a perfect network (total variation 0.43 on the toy where
  `reveal` is exact): use it for translation-like tasks, not to sample a language. Of equal scores
  the leftmost is kept (the published code drops all of them).
  """

  steps: int = option(64, "calls, per unit of the context", ge=1)
  temperature: float = option(1.0, "of the guesses; 0 takes the likeliest token", ge=0)
  top_p: float = option(1.0, "share of the probability that is kept; 1 keeps all", gt=0, le=1)
  rate: Literal["linear", "cosine"] = option(
    "linear", "share kept after k of S calls: k / S, or 1 - cos(π/2 · k / S), few tokens early"
  )
  noise_scale: float = option(
    0.0, "of the Gumbel noise on the scores; 0 keeps the best whatever the key", ge=0
  )

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Refuses vectors, which are not kept whole, and transforms of logits that are no law."""
    need_schedule(model.process, "Routed", "use sampler.name='grid'")
    refuse_scores(model, "Routed", (self.temperature, self.top_p) != (1, 1))

  def init(self, model: Model, params: Params, canvas: Canvas) -> Routing:
    """No call made."""
    return Routing(jnp.zeros_like(canvas.call))

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Routing
  ) -> Bool[Array, "B u"]:
    """All active tokens, at every call."""
    return canvas.active & (state.step < self.steps)[:, None]

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Routing
  ) -> Float[Array, "B u"]:
    """The time at which the schedule keeps the share that was kept."""
    t = time_of(model.process.schedule, self.share(state.step))
    t = jnp.where(state.step == 0, 1.0, t)
    return jnp.broadcast_to(t[:, None], canvas.active.shape)

  def share(self, done: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """The share of the tokens that are kept after `done` calls; exactly 1 after the last."""
    if self.rate == "linear":
      return done / self.steps
    return jnp.where(done >= self.steps, 1.0, 1 - jnp.cos(jnp.pi / 2 * done / self.steps))

  def kept(self, step: Int[Array, "*n"], total: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """How many of `total` tokens call `step` (from 0) keeps; exactly all of them at the last."""
    if self.rate == "linear":
      return total * (step + 1) // self.steps
    return jnp.floor(self.share(step + 1) * total).astype(jnp.int32)

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Routing,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Routing]:
    """The surest guesses as clean tokens, noise elsewhere."""
    if prediction.fresh is not None:
      raise ValueError(
        "sampler.name='routed' compares all tokens of a row, and this reader answers some of them"
        " at a call; use reader.name='whole_row'"
      )
    process, of_process = model.process, params["process"]
    keys = fold(streams(canvas.keys, "step"), state.step[:, None])
    t = self.times(model, params, canvas, state)
    ids, score = on_tokens(
      model, params, prediction, needs, self._guess(process), keys, canvas.state, t
    )
    u = jnp.maximum(draw_uniform(streams(keys, "order")), LEAST)
    spread = self.noise_scale * (1 - self.share(state.step + 1))[:, None]
    score = score - spread * jnp.log(-jnp.log(u))
    count = self.kept(state.step, jnp.sum(canvas.active, axis=1))
    level = jnp.where(best(score, canvas.active, count), 0.0, 1.0)
    text = process.corrupt(of_process, keys, process.clean(of_process, ids), level)
    return text, Routing(state.step + jnp.any(needs, axis=1))

  def _guess(self, process):
    transform = LogitsTransform(self.temperature, self.top_p)

    def guess(of_process, output, keys, state, t):
      """A draw for each token, and its log-probability as the other tokens see it."""
      said = process.posterior(of_process, state, t, transform(output))
      ids = draw_categorical(streams(keys, "guess"), said)
      return ids, at_ids(process.leave_one_out(of_process, state, t, output), ids)

    return guess

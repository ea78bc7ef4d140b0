"""Adaptive routing (RDM, arXiv 2302.05737): every token is predicted, the surest are kept, the rest
go back to noise, and again.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import LEAST, at_ids, select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold, streams
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.budget import best
from diffusion_text.sampler.lost_tokens import need_schedule
from diffusion_text.sampler.transform import LogitsTransform, refuse_scores
from diffusion_text.schedules.discrete import time_of
from diffusion_text.types import Canvas, Model, Params, Prediction, Query, State


class Routing(NamedTuple):
  """The state of `Routed`.

  Attributes:
    step: int32 [B], the calls that each row has made in this window.
    kept: bool [B, u], the tokens that the last call has kept.
  """

  step: Int[Array, " B"]
  kept: Bool[Array, "B u"]


@member
class Routed:
  """Call k of S guesses every active token, puts noise on the floor((1 - rate) · active tokens)
  worst of each row, also on tokens that an earlier call had kept, and keeps all others as clean
  tokens. The last call keeps all; exactly `steps` calls.

  What is kept decides how noisy the row is, so the timing's grid is not walked: all active tokens
  of a call have the time at which the schedule of the process keeps that share (1 at the first).

  A token that an earlier call had kept is guessed from the other tokens alone, and its guess
  decides whether it is kept again. Then it stays what it was (RDM), or with `rewrites` it becomes
  the guess (the code of MDM, arXiv 2410.14157). That needs a network whose answers at visible
  tokens mean something: a loss of masked tokens alone does not train them.

  The score is the log-probability (leave-one-out, before temperature and top_p) of the guess that
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
  rewrites: bool = option(
    False,
    "a token that is kept again becomes its new guess, which the loss must have trained at visible"
    " tokens; False: it stays as it is",
  )

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Refuses vectors, which are not kept whole, and transforms of logits that are no law."""
    need_schedule(model.process, "Routed", "use sampler.name='grid'")
    refuse_scores(model, "Routed", (self.temperature, self.top_p) != (1, 1))

  def init(self, model: Model, params: Params, canvas: Canvas) -> Routing:
    """No call made, nothing kept."""
    return Routing(jnp.zeros_like(canvas.call), jnp.zeros_like(canvas.active))

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

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Routing
  ) -> Float[Array, "B u"]:
    """Those of `times`."""
    return self.times(model, params, canvas, state)

  def share(self, done: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """The share of the tokens that are kept after `done` calls; exactly 1 after the last."""
    return 1 - self._noisy_share(done)

  def kept(self, step: Int[Array, "*n"], total: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """How many of `total` tokens call `step` (from 0) keeps; exactly all of them at the last."""
    if self.rate == "linear":
      return total - total * (self.steps - 1 - step) // self.steps
    return total - jnp.floor(self._noisy_share(step + 1) * total).astype(jnp.int32)

  def _noisy_share(self, done: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """1 - rate after `done` calls: of numpy, so that a half of the tokens is exactly a half."""
    made = np.arange(self.steps + 1) / self.steps
    share = 1 - made if self.rate == "linear" else np.cos(np.pi / 2 * made)
    share[-1] = 0.0
    return jnp.asarray(share, jnp.float32)[done]

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
    """The tokens of the surest guesses as clean tokens, noise elsewhere."""
    if prediction.fresh is not None:
      raise ValueError(
        "sampler.name='routed' compares all tokens of a row, and this reader answers some of them"
        " at a call; use reader.name='whole_row'"
      )
    process, of_process = model.process, params["process"]
    keys = fold(streams(canvas.keys, "step"), state.step[:, None])
    t = self.times(model, params, canvas, state)
    ids, score = on_tokens(
      model, params, prediction, needs, self._guess(process), keys, canvas.state, t, state.kept
    )
    u = jnp.maximum(draw_uniform(streams(keys, "order")), LEAST)
    spread = self.noise_scale * (1 - self.share(state.step + 1))[:, None]
    score = score - spread * jnp.log(-jnp.log(u))
    count = self.kept(state.step, jnp.sum(canvas.active, axis=1))
    kept = best(score, canvas.active, count)
    clean = process.clean(of_process, ids)
    if not self.rewrites:
      clean = select(state.kept, canvas.state, clean)
    text = process.corrupt(of_process, keys, clean, jnp.where(kept, 0.0, 1.0))
    return text, Routing(state.step + jnp.any(needs, axis=1), kept)

  def _guess(self, process):
    transform = LogitsTransform(self.temperature, self.top_p)

    def guess(of_process, output, keys, state, t, kept):
      """A draw for each token, and its log-probability as the other tokens see it."""
      drawn = transform(output)
      by_others = process.leave_one_out(of_process, state, t, drawn)
      said = select(kept, by_others, process.posterior(of_process, state, t, drawn))
      ids = draw_categorical(streams(keys, "guess"), said)
      return ids, at_ids(process.leave_one_out(of_process, state, t, output), ids)

    return guess

"""Self-correction (GIDD, arXiv 2503.04482): posterior steps to clean text, then corrections of one
token at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import select, steep_cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, fold, streams
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Grid, Walked
from diffusion_text.sampler.lost_tokens import visible_may_be_wrong
from diffusion_text.sampler.transform import LogitsTransform
from diffusion_text.types import Canvas, Model, Params, Prediction, Query, State


class Correcting(NamedTuple):
  """The state of `SelfCorrecting`.

  Attributes:
    walked: how far each row has come in its draft.
    made: int32 [B], corrections that each row has been through.
    right: bool [B, u], the tokens that were the likeliest at their places when they were last read.
    most: int32 [B], the most tokens of a row that have been right at a time; -1 before the first.
    since: int32 [B], corrections since then.
  """

  walked: Walked
  made: Int[Array, " B"]
  right: Bool[Array, "B u"]
  most: Int[Array, " B"]
  since: Int[Array, " B"]


@member
class SelfCorrecting(Grid):
  """The steps of `grid`, then corrections one token at a time.

  After `steps` steps the text is clean. In each of up to `corrections` further calls the network
  reads it as if it were at `correction_time`, every active token is drawn again at
  `correction_temperature`, and in each row one token takes its new value: of those whose draw
  differs from what stands there, the one whose draw is likeliest at that temperature (the leftmost
  of equals), as published. The accuracy of a row is the share of its tokens that are the likeliest
  at their places; a row stops after `patience` corrections without a new best. (The published code
  averages the accuracy over its batch.) This climbs towards a mode and lowers entropy; it is no
  sample of the model's law.

  p is the leave-one-out prediction, whatever the process takes its outputs to mean, so that a token
  does not vote for itself. Processes whose visible tokens are always right are refused (a network
  that only ever predicted masks has learned nothing about them), and so are windows of one token
  (which it never saw but at t = 1).
  """

  corrections: int = option(128, "most calls after the last step", ge=0)
  correction_time: float = option(
    0.01, "the time at which clean text is read; nothing is trained at 0", gt=0, le=1
  )
  correction_temperature: float = option(0.1, "of the new draws; 0 takes the likeliest", ge=0)
  patience: int = option(
    32, "a row stops after so many corrections in a row without a new best accuracy", ge=1
  )

  def check(self, model: Model) -> None:
    """Refuses models that have learned nothing about clean tokens."""
    super().check(model)
    process = model.process
    if process.input_sizes.vectors or not visible_may_be_wrong(process, self.correction_time):
      raise ValueError(
        f"{process} predicts nothing at clean tokens, which self-correction reads; use"
        " sampler.name='grid' with kappa=0.95"
      )
    if model.context.unit == 1:
      raise ValueError(_ONE)

  def init(self, model: Model, params: Params, canvas: Canvas) -> Correcting:
    """Every row at the first step of its draft."""
    if canvas.active.shape[1] == 1:
      raise ValueError(_ONE)
    walked = super().init(model, params, canvas)
    nothing = jnp.zeros_like(canvas.call)
    return Correcting(walked, nothing, jnp.zeros_like(canvas.active), nothing - 1, nothing)

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Correcting
  ) -> Bool[Array, "B u"]:
    """What the draft needs; then all tokens, as long as patience lasts."""
    lasts = (state.since < self.patience) & (state.made < self.corrections)
    corrects = ~self._drafts(state) & lasts
    of_draft = super().needs(model, params, canvas, state.walked)
    return of_draft | (canvas.active & corrects[:, None])

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Correcting
  ) -> Float[Array, "B u"]:
    """The grid's, then `correction_time`."""
    of_draft = super().times(model, params, canvas, state.walked)
    return jnp.where(self._drafts(state)[:, None], of_draft, self.correction_time)

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Correcting,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Correcting]:
    """A step of the draft, or a correction, in each row."""
    drafts = self._drafts(state)
    of_draft = needs & drafts[:, None]
    text, walked = super().step(model, params, canvas, state.walked, prediction, query, of_draft)
    of_correction = needs & ~drafts[:, None]
    corrected, right = self.correct(model, params, canvas, state, prediction, of_correction)
    text = select(jnp.broadcast_to(drafts[:, None], needs.shape), text, corrected)
    count = jnp.sum(right, axis=1)
    corrects = jnp.any(of_correction, axis=1)
    best = corrects & (count > state.most)
    return text, Correcting(
      walked,
      made=state.made + corrects,
      right=right,
      most=jnp.where(best, count, state.most),
      since=jnp.where(best, 0, state.since + corrects),
    )

  def correct(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Correcting,
    prediction: Prediction,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Bool[Array, "B u"]]:
    """(the text with one token of each row corrected, where its tokens are the likeliest)."""
    process, of_process = model.process, params["process"]
    transform = LogitsTransform(self.correction_temperature)

    def draw_again(of_process, output, keys, text):
      t = jnp.full(text.shape, self.correction_time)
      said = process.leave_one_out(of_process, text, t, output)
      drawn_from = transform(said)
      new = draw_categorical(keys, drawn_from)
      # At low temperatures most draws have a probability of nearly 1; rounding must not choose.
      return new, -steep_cross_entropy(drawn_from, new), jnp.argmax(said, axis=-1)

    keys = fold(streams(canvas.keys, "correct"), state.made[:, None])
    old = process.decode(of_process, canvas.state)
    new, chance, likeliest = on_tokens(
      model, params, prediction, needs, draw_again, keys, canvas.state
    )
    score = jnp.where(needs & (new != old), chance, -jnp.inf)
    first = jnp.arange(score.shape[1]) == jnp.argmax(score, axis=1)[:, None]
    ids = jnp.where(first & jnp.isfinite(score), new, old)
    text = select(needs, process.clean(of_process, ids), canvas.state)
    return text, jnp.where(needs, ids == likeliest, state.right)

  def _drafts(self, state: Correcting) -> Bool[Array, " B"]:
    return state.walked.step < self.steps


_ONE = (
  "self-correction of a window of 1 token has nothing to read it by; use a context with units of 4"
  " tokens or more"
)

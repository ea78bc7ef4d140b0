"""Self-correction (GIDD, arXiv 2503.04482): posterior steps to clean text, then corrections of one
token at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import at_ids, select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, fold, streams
from diffusion_text.sampler.grid import Grid, Walked
from diffusion_text.sampler.loop import on_tokens
from diffusion_text.sampler.lost_tokens import visible_may_be_wrong
from diffusion_text.sampler.transform import LogitsTransform
from diffusion_text.types import Canvas, Model, Params, Prediction, Query, State


class Correcting(NamedTuple):
  """The state of `SelfCorrecting`.

  Attributes:
    walked: how far each row has come in its draft.
    made: int32 [B], corrections that each row has been through.
    gains: bool [B], the rows in which a token may have a likelier value still.
  """

  walked: Walked
  made: Int[Array, " B"]
  gains: Bool[Array, " B"]


@member
class SelfCorrecting(Grid):
  """The steps of `grid`, then corrections one token at a time.

  After `steps` steps the text is clean. In each of up to `corrections` further calls the network
  reads it as if it were at `correction_time`, every active token is drawn again at
  `correction_temperature`, and in each row the one token that gains most, log p(new) - log p(old),
  takes its new value (the leftmost of equals). A row stops when no token has a likelier value than
  its own: then no draw can gain any more. This climbs towards a mode and lowers entropy; it is no
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
    return Correcting(walked, jnp.zeros_like(canvas.call), jnp.ones(canvas.call.shape, bool))

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Correcting
  ) -> Bool[Array, "B u"]:
    """What the draft needs; then all tokens, while there is something to gain."""
    corrects = ~self._drafts(state) & state.gains & (state.made < self.corrections)
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
    corrected, gains = self.correct(model, params, canvas, state, prediction, of_correction)
    made = state.made + jnp.any(of_correction, axis=1)
    text = select(jnp.broadcast_to(drafts[:, None], needs.shape), text, corrected)
    return text, Correcting(walked, made, jnp.where(drafts, state.gains, gains))

  def correct(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Correcting,
    prediction: Prediction,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Bool[Array, " B"]]:
    """(the text with one token of each row corrected, the rows that may gain more)."""
    process, of_process = model.process, params["process"]
    transform = LogitsTransform(self.correction_temperature)

    def anew(of_process, output, keys, text, old):
      t = jnp.full(old.shape, self.correction_time)
      said = process.leave_one_out(of_process, text, t, output)
      new = draw_categorical(keys, transform(said))
      before = at_ids(said, old)
      return new, at_ids(said, new) - before, jnp.max(said, axis=-1) - before

    keys = fold(streams(canvas.keys, "correct"), state.made[:, None])
    old = process.decode(of_process, canvas.state)
    rows = (keys, canvas.state, old)
    new, gain, most = on_tokens(model, params, prediction, needs, anew, *rows)
    dearest = jnp.arange(gain.shape[1]) == jnp.argmax(gain, axis=1)[:, None]
    text = select(needs & dearest & (gain > 0), process.clean(of_process, new), canvas.state)
    unread = canvas.active & ~needs
    return text, state.gains & jnp.any((most > 0) | unread, axis=1)

  def _drafts(self, state: Correcting) -> Bool[Array, " B"]:
    return state.walked.step < self.steps


_ONE = (
  "self-correction of a window of 1 token has nothing to read it by; use a context with units of 4"
  " tokens or more"
)

"""The sampler of `contrib.joint_layer`: several tokens per network call, one after the other."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.contrib.joint_layer import (
  ORDERS,
  Places,
  at,
  check_layer,
  first_places,
  law_at,
  read_layer,
  scores,
)
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option, part
from diffusion_text.core.prng import draw_categorical, fold, streams
from diffusion_text.sampler.budget import even_share
from diffusion_text.sampler.score import Random
from diffusion_text.sampler.transform import LogitsTransform
from diffusion_text.schedules.discrete import time_of
from diffusion_text.types import Canvas, Keys, Model, Params, Prediction, Query, State


class Waiting(NamedTuple):
  """The state of `Joint`.

  Attributes:
    waiting: bool [B, u], tokens that are not drawn yet.
    total: int32 [B], the tokens that are to be generated.
    step: int32 [B], the sampler's own steps so far.
  """

  waiting: Bool[Array, "B u"]
  total: Int[Array, " B"]
  step: Int[Array, " B"]


@member
class Joint:
  """Draws an even share of the tokens at each call, each from the network's logits and the layer's
  correction, which depends on the tokens that the call drew before.

  A row of n tokens takes min(steps, n) calls of the network. `score` chooses the places of a call
  before any of its tokens is drawn: a choice by the probability of drawn tokens would change the
  law. With one token per call the tokens are those of `reveal` with the same score.

  The sampler is an approximation: it has the law of one token per call only if the layer predicts
  what a new forward pass would. `Sample.calls` counts calls of the network without passes of the
  layer, and the log-probabilities of a trace are the network's, without the correction.
  """

  steps: int = option(64, "most calls; a row of fewer tokens makes one call per token", ge=1)
  score: Any = part(ORDERS, Random(), "the order of the places")
  temperature: float = option(1.0, "of the draw; 0 takes the likeliest token", ge=0)
  top_p: float = option(1.0, "share of the probability that is kept; 1 keeps all", gt=0, le=1)
  blind: bool = option(
    False, "hides the drawn tokens from the layer: a control, whose tokens are independent"
  )

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Raises ValueError as `check_layer` does."""
    check_layer(model, "sampler.name='joint'")

  def init(self, model: Model, params: Params, canvas: Canvas) -> Waiting:
    """Every token waits."""
    del model, params
    return Waiting(canvas.active, jnp.sum(canvas.active, axis=1), jnp.zeros_like(canvas.call))

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Waiting
  ) -> Bool[Array, "B u"]:
    """The tokens that wait."""
    return state.waiting

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Waiting
  ) -> Float[Array, "B u"]:
    """float32 [B, u]: the time at which the noise masks as many tokens as wait, as in `reveal`."""
    share = jnp.sum(state.waiting, axis=1) / jnp.maximum(state.total, 1)
    t = time_of(model.process.schedule, 1 - share)
    return jnp.broadcast_to(t[:, None], state.waiting.shape)

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Waiting
  ) -> Float[Array, "B u"]:
    """Those of `times`."""
    return self.times(model, params, canvas, state)

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Waiting,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Waiting]:
    """(the text after the tokens of this call were drawn, the sampler's next state).

    Raises:
      ValueError: for a reader that answers some of the tokens only, and for windows that are a part
        of the row, as the layer reads the features of whole rows.
    """
    if prediction.fresh is not None or needs.shape != query.t.shape:
      raise ValueError(
        f"sampler.name='joint' reads the features of all {query.t.shape[1]} tokens at each call,"
        " and here only some are there; use reader.name='whole_row', and no blocks"
      )
    t = self.times(model, params, canvas, state)
    order = streams(canvas.keys, "order")
    asked = (prediction, canvas.state, t, state.waiting)
    score = scores(model, params, self.score, order, *asked)
    size = needs.shape[1]
    most = -(-size // min(self.steps, size))
    places = first_places(score, state.waiting, most, self._count(state))
    keys = streams(fold(streams(canvas.keys, "step"), state.step[:, None]), "token")
    drawn = self._drawn(model, params, canvas, prediction, t, keys, places)
    made = drawn < model.process.vocab_size
    ids = jnp.where(made, drawn, 0)
    text = select(made, model.process.clean(params["process"], ids), canvas.state)
    step = state.step + jnp.any(needs, axis=1)
    return text, Waiting(state.waiting & ~made, state.total, step)

  def _count(self, state: Waiting) -> Int[Array, " B"]:
    """int32 [B]: how many tokens this call draws, so that none is behind the even share."""
    target = even_share(self.steps, state.total, state.step)
    return jnp.maximum(target - (state.total - jnp.sum(state.waiting, axis=1)), 1)

  def _drawn(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    prediction: Prediction,
    t: Float[Array, "B u"],
    keys: Keys,
    places: Places,
  ) -> Int[Array, "B u"]:
    """int32 [B, u]: the tokens of this call at their places, V at all others."""
    transform = LogitsTransform(self.temperature, self.top_p)
    nothing = jnp.full(t.shape, model.process.vocab_size, jnp.int32)
    row = jnp.arange(t.shape[0])

    def drawn_at(k, drawn, correction):
      place, exists = places.place[:, k], places.exists[:, k]
      here = (canvas.state, t, place)
      law = law_at(model, params, prediction, *here, correction=correction)
      token = draw_categorical(at(keys, place), transform(law))
      return drawn.at[row, place].set(jnp.where(exists, token, drawn[row, place]))

    def one(k, drawn):
      seen = nothing if self.blind else drawn
      layer = read_layer(model, params, prediction.features, seen, canvas.segment)
      return drawn_at(k, drawn, layer)

    return jax.lax.fori_loop(1, places.place.shape[1], one, drawn_at(0, nothing, None))

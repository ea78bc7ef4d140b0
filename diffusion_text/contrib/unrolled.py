"""Training on what the network made of noise, and sampling by drawing every token anew: SUNDAE
(arXiv 2112.06749) as AR2Diff trains it (arXiv 2401.17181).

  z ~ q(z_t | x), t ~ U(0, 1): random tokens in the place of a share t;  y_1 = argmax of l_1(z),
  loss = CE(l_1(z), x) + CE(l_2 = l(y_1), x) over all tokens, no gradient through y_1

Tokens that are right count as much as those that are noise: the network learns to keep a token as
well as to replace one. The loss is no bound on -log p(x), whatever is sampled, and none is
reported. (`experiments.evaluate` prints the bound of the uniform process that reads this network's
answers as posteriors: of texts drawn by sampler.name='grid', not of those drawn here.)

Of the paper (recalled through a careful note, no official code): the argmax, two readings, full
attention, no time input, 10 calls at temperature 0.2, the best of 8 texts by the model's own score.
SUNDAE itself draws y_1 and averages the losses (`draws=True` and half the learning rate).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import LEAST, cross_entropy, select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import (
  draw_categorical,
  draw_uniform,
  fold,
  position_keys,
  stream,
  streams,
)
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.parts import best
from diffusion_text.sampler.transform import LogitsTransform, refuse_scores
from diffusion_text.types import (
  Batch,
  Canvas,
  Key,
  Loss,
  Model,
  Params,
  Prediction,
  Progress,
  Query,
  State,
  Times,
  TokenCosts,
)


def _check(model: Model, who: str) -> None:
  """Raises ValueError for a process whose states are not tokens of the vocabulary."""
  process = model.process
  fits = process.mask_id is None and process.input_sizes.ids == process.vocab_size
  if not fits or process.reads_logits_as != "posterior":
    raise ValueError(
      f"{who} puts guesses in the place of tokens, and answers all of them; that needs random"
      f" tokens as noise and logits that are posteriors, unlike {process}; use"
      " process.name='uniform' with prediction='posterior'"
    )


@member
class Unrolled(OneReading):
  """Cross-entropy of all tokens in two readings: of the noisy row, and of the guesses made of it.

  Reports "first" and "second", nats per token each. `second=0` leaves the second reading out, which
  is the ablation of the paper.
  """

  passes: ClassVar[float] = 2.0

  second: float = option(1.0, "the weight of the second reading; 0 leaves it out", ge=0)
  draws: bool = option(False, "whether guesses are drawn, as in SUNDAE; False: the likeliest")

  def check(self, model: Model) -> None:
    """Raises ValueError for noise that is not random tokens, for logits that are no posteriors, and
    for contexts whose rows are more than the noisy tokens."""
    super().check(model)
    _check(model, "objective.name='unrolled'")
    if not model.context.reads_noisy or model.context.unit is not None:
      raise ValueError(
        f"objective.name='unrolled' reads rows of noisy tokens alone, not those of {model.context};"
        " use context.name='full' or 'annealed'"
      )

  def guesses(
    self,
    model: Model,
    params: Params,
    key: Key,
    batch: Batch,
    noised: engine.Noised,
    progress: Progress,
  ) -> Int[Array, "B N"]:
    """int32 [B, N]: the guess of each token that is not observed, and the observed ones; constant.

    Padding keeps what it has.
    """
    positions = model.process.in_positions(batch)
    active = engine.scored_weights(positions) > 0
    keys = position_keys(stream(key, "guesses"), *active.shape, progress)

    def guess(head, rows):
      features, keys = rows
      output = head(features)
      return draw_categorical(keys, output) if self.draws else jnp.argmax(output, axis=-1)

    rows = (noised.prediction.features, keys)
    made = engine.map_tokens(model, guess, noised.prediction.head, active, rows)
    return jax.lax.stop_gradient(jnp.where(active, made, noised.state))

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost in its first reading."""
    ask = model, params, key, batch, times, progress
    noised = engine.read(*ask)
    other = noised.prediction
    if self.second:
      made = self.guesses(model, params, key, batch, noised, progress)
      other = engine.read(*ask, corrupted=(noised.clean, made)).prediction

    def cost(head, process_params, row, output, nats):
      del process_params, nats
      first = cross_entropy(output, row.ids)
      if not self.second:
        return row.dt_dtau * first, first, {"first": first}
      second = cross_entropy(head(row.extra), row.ids)
      minimised = row.dt_dtau * (first + self.second * second)
      return minimised, first, {"first": first, "second": second}

    loss, costs = engine.token_loss(
      model,
      params,
      batch,
      noised,
      cost,
      extra=other.features,
      consts=other.head,
      other_readings=(other,) if self.second else (),
      everywhere=True,
    )
    sums = {name: value for name, value in loss.sums.items() if name != "bound"}
    return loss._replace(sums=sums), costs


class Drawing(NamedTuple):
  """The state of `Redraw`: step int32 [B], the calls that each row has made in this window."""

  step: Int[Array, " B"]


@member
class Redraw:
  """Each call draws active tokens anew from the network's answers, all of them or a random share;
  exactly `steps` calls.

  The text after the last call is a draw given the text before it, not from a law that the network
  was trained to have: at temperature 1 it is biased even with a perfect network. AR2Diff makes 10
  calls at temperature 0.2 and keeps the best of 8 texts.
  """

  steps: int = option(10, "calls, per unit of the context", ge=1)
  temperature: float = option(0.2, "of the draws; 0 takes the likeliest token", ge=0)
  top_p: float = option(1.0, "share of the probability that is kept; 1 keeps all", gt=0, le=1)
  share: float = option(
    1.0, "share of the tokens that a call draws anew, at random places; 1: all", gt=0, le=1
  )

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Raises ValueError for processes whose states are not tokens."""
    refuse_scores(model, "Redraw", True)
    _check(model, "sampler.name='redraw'")

  def init(self, model: Model, params: Params, canvas: Canvas) -> Drawing:
    """No call made."""
    del model, params
    return Drawing(jnp.zeros_like(canvas.call))

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Drawing
  ) -> Bool[Array, "B u"]:
    """All active tokens, at every call."""
    return canvas.active & (state.step < self.steps)[:, None]

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Drawing
  ) -> Float[Array, "B u"]:
    """1 before the first call, and evenly less at each; no time is read by the networks of the
    paper."""
    t = 1 - state.step.astype(jnp.float32) / self.steps
    return jnp.broadcast_to(jnp.maximum(t, LEAST)[:, None], canvas.active.shape)

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Drawing
  ) -> Float[Array, "B u"]:
    """Those of `times`."""
    return self.times(model, params, canvas, state)

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Drawing,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Drawing]:
    """The text with new tokens in the chosen places."""
    del query
    transform = LogitsTransform(self.temperature, self.top_p)
    keys = fold(streams(canvas.keys, "step"), state.step[:, None])

    def draw(of_process, output, keys):
      del of_process
      return draw_categorical(keys, transform(output))

    chosen = needs if prediction.fresh is None else needs & prediction.fresh
    if self.share < 1:
      count = jnp.ceil(self.share * jnp.sum(needs, axis=1)).astype(jnp.int32)
      chosen = chosen & best(draw_uniform(streams(keys, "places")), needs, count)
    ids = on_tokens(model, params, prediction, chosen, draw, streams(keys, "token"))
    text = select(chosen, model.process.clean(params["process"], ids), canvas.state)
    return text, Drawing(state.step + jnp.any(needs, axis=1))

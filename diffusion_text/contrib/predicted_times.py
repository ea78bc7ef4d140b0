"""Intrinsic times that a small network predicts while text is made: the "context-aware" time
predictor of NeoDiff (arXiv 2505.22165).

In training a row has a clock τ (timing "poisson"), and its noisy tokens have a loss each. The label
of the token of the r-th lowest of the n losses of a document is the time that the law of the timing
gives to the quantile (r - 1/2) / n at τ: tokens that are hard keep more noise. A network of its own
reads the guess x̂ of all tokens and the clock, and its one number per token is fitted to the label
by squares; nothing of the fit reaches the guess. The sampler asks that network, at each step, for
the times at the clock that comes next.

So does their code with the flags of their training script (bc-li/neodiff: scheduler/nonsim.py,
neodiff_model.py), but for three things. In NeoDiff level 0 is slightly noisy and takes part in the
ranking; here it is t = 0, the clean token, which needs no prediction, so sampling stops half a
level above it. The published layer reads a source by cross-attention and has no positions; ours is
a layer of the transformer over a row that contains the source. And the predictor shares no
parameters with the network that it serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.context.whole import plain_rows
from diffusion_text.core.capability import require
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, fold, stream
from diffusion_text.objective import engine
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walked
from diffusion_text.sampler.guessed_times import OwnTimes
from diffusion_text.types import (
  Batch,
  Canvas,
  DataFacts,
  Inputs,
  Key,
  Keys,
  Loss,
  Model,
  Network,
  Params,
  Prediction,
  Progress,
  State,
  Times,
  TokenCosts,
)

GROUP = "time_predictor"  # of the parameters


@runtime_checkable
class RanksTimes(Protocol):
  """What is asked of the timing: the times that it would have drawn in the order of some cost.

  Attributes:
    levels: how many times there are.
  """

  levels: int

  def labels(
    self,
    tau: Float[Array, "B 1"],
    cost: Float[Array, "B N"],
    counts: Bool[Array, "B N"],
    segment: Int[Array, "B N"] | None,
  ) -> Float[Array, "B N"]:
    """The time that a token's rank by cost gives it at clock τ, among those that count."""


@runtime_checkable
class Alike(Protocol):
  """What is asked of the network: another one of its kind."""

  def like(self, **changes: Any) -> Network:
    """A network of the same options but for the changes."""


@runtime_checkable
class NoisesAnew(Protocol):
  """What the sampler asks of a process."""

  def mean(self, params: Params, probabilities: Float[Array, "*n V"]) -> Float[Array, "*n E"]:
    """x̂ = Σ_v p_v x_v."""

  def project(
    self, params: Params, logits: Float[Array, "*n V"], projection: str
  ) -> Float[Array, "*n E"]:
    """The vector that a step aims at."""

  def renoise(
    self, params: Params, keys: Keys, vectors: Float[Array, "*n E"], t: Float[Array, "*n"]
  ) -> State:
    """The vectors, noised to time t along the path that steps walk."""


def check_predictor(model: Model, who: str) -> None:
  """Raises ValueError for a model whose times cannot be predicted."""
  require(model.timing, RanksTimes, who, "use timing.name='poisson'")
  require(model.network, Alike, who, "use model.name='transformer'")
  if model.context.unit is not None or not model.context.reads_noisy:
    raise ValueError(
      f"{who} predicts the times of a whole row, not those of {model.context}; use"
      " context.name='full'"
    )
  # Vectors of V numbers are weights of tokens, and those at t = 0 are read as one token each.
  if model.process.input_sizes.vectors in (0, model.process.vocab_size):
    raise ValueError(
      f"{who} predicts times from means of the tokens' vectors, which {model.process} would not"
      " read as they are; use process.name='embedding', or no predicted times"
    )


def predictor(network: Alike, layers: int) -> Network:
  """The network that predicts times: as wide as the one that it serves, shown the clock, one number
  per token.
  """
  plain = {
    "layers": layers,
    "output_size": 1,
    "time_conditioning": "adaln",
    "tie_embeddings": False,
    "dropout": 0.0,
    "first_stage_layers": 0,
    "self_conditioning": "none",
    "absent": "zeros",
  }
  dense = dict.fromkeys(("experts", "experts_per_token", "expert_width", "shared_width"), 0)
  free = dict.fromkeys(("balance_weight", "router_z_weight"), 0.0)
  return network.like(**plain, **dense, **free)


def predict(
  model: Model,
  params: Params,
  layers: int,
  guess: Inputs,
  tau: Float[Array, "B 1"],
  segment: Int[Array, "B N"] | None,
) -> Float[Array, "B N"]:
  """The times that the predictor gives to the guess at clock τ; neither is cut to [0, 1]."""
  shape = guess.shape
  batch = Batch(jnp.zeros(shape, jnp.int32), segment=segment)
  rows = plain_rows(guess, jnp.broadcast_to(tau, shape), batch, None)
  return predictor(model.network, layers).apply(params[GROUP], rows).logits[..., 0]


@member
class PredictedTimesLosses(EmbeddingLosses):
  """The losses of embedding diffusion, and the fit of a network that predicts times.

  The order of the tokens is that of mse + anchor_weight · anchor, without the weight of the time
  and without label smoothing: one more pass through the vocabulary. Reports "times" beside the
  terms, the squared error of predicted times per token.
  """

  layers: int = option(1, "layers of the network that predicts times; 1 is published", ge=1)

  trains: ClassVar[frozenset[str]] = EmbeddingLosses.trains | {GROUP}

  def check(self, model: Model) -> None:
    """Raises ValueError for a model whose times cannot be predicted."""
    super().check(model)
    check_predictor(model, "objective.name='predicted_times'")

  def init(self, model: Model, key: Key, facts: DataFacts) -> Mapping[str, Params]:
    """The predictor's parameters."""
    del facts
    return {GROUP: predictor(model.network, self.layers).init(stream(key, GROUP))}

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    noised = engine.read(model, params, key, batch, times, progress)
    loss, costs = self.losses(model, params, key, batch, noised, progress)
    miss = self.fit(model, params, batch, noised)
    return Loss(loss.total + miss, loss.count, {**loss.sums, "times": miss}), costs

  def fit(
    self, model: Model, params: Params, batch: Batch, noised: engine.Noised
  ) -> Float[Array, ""]:
    """Σ weight · (predicted time - label)² over the noisy tokens; its gradient reaches the
    predictor alone.
    """
    process = model.process
    batch = process.in_positions(batch)
    # Held constant before anything is read: the backward pass would go through the vocabulary.
    own, noised = jax.lax.stop_gradient((params["process"], noised))

    def one(consts, row: engine.TokenRow):
      head, process_params = consts
      output = head(row.features)
      logits = engine.posterior_logits(process, process_params, row, output)
      mean = process.mean(process_params, jax.nn.softmax(logits, axis=-1))
      mse = self.squared_error(process, process_params, row, output)
      return mean, mse + self.anchor_weight * self.anchor(process, process_params, row, output)

    where, rows = engine.token_rows(model, {**params, "process": own}, batch, noised)
    mean, cost = engine.map_tokens(model, one, (noised.prediction.head, own), where, rows)
    guess = process.inputs(own, select(where, mean, noised.clean), jnp.zeros(where.shape))
    tau = noised.times.tau
    labels = model.timing.labels(tau, cost, where, batch.segment)
    predicted = predict(model, params, self.layers, guess, tau, batch.segment)
    return jnp.sum(rows.weight * jnp.where(where, (predicted - labels) ** 2, 0.0))


@member
class PredictedTimes(OwnTimes):
  """While the clock falls, z = alpha_t P + k sigma_t ε with a t per token, predicted
  from x̂ at the clock that comes next.

  Times may rise: a token that looks wrong next to the others can get more noise than before. Every
  step therefore draws fresh noise. At clock 0 tokens are drawn from this call's prediction, as in
  all samplers. Temperature and top_p affect P and the drawn tokens, but not the x̂ that the time
  predictor reads, because it was trained on the unmodified prediction.
  """

  projection: Literal["expectation", "sample", "argmax", "nearest"] = option(
    "expectation",
    "P: the posterior mean, a drawn token, the likeliest, or the one nearest to the mean",
  )
  layers: int = option(1, "layers of the network that predicts times, as in training", ge=1)

  def check(self, model: Model) -> None:
    """Raises ValueError for a model whose times cannot be predicted."""
    super().check(model)
    who = "sampler.name='predicted_times'"
    check_predictor(model, who)
    require(model.process, NoisesAnew, who, "use process.name='embedding'")

  def next_times(
    self,
    model: Model,
    params: Params,
    guess: Inputs,
    clock: Float[Array, "B 1"],
    segment: Int[Array, "B u"] | None,
  ) -> Float[Array, "B u"]:
    """From half a level to 1: a token that is being made is never taken for known."""
    least = 0.5 / (model.timing.levels - 1)
    return jnp.clip(predict(model, params, self.layers, guess, clock, segment), least, 1.0)

  def moved(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Walked,
    prediction: Prediction,
    moves: Bool[Array, "B u"],
    turn: Turn,
  ) -> tuple[State, Any]:
    """The tokens, aimed at the projection, with fresh noise at their predicted times."""
    process, own = model.process, params["process"]

    def one(process_params, output, keys, text, t, clock):
      said = process.posterior(process_params, text, t, output)
      mean = process.mean(process_params, jax.nn.softmax(said, axis=-1))
      aimed = process.posterior(process_params, text, t, self.transform(output, clock))
      drawn = process.clean(process_params, draw_categorical(fold(keys, 1), aimed))
      if self.projection == "sample":
        return mean, drawn
      target = process.project(process_params, aimed, self.projection)
      return mean, select(clock > 0, target, drawn)

    rows = turn.keys, canvas.state, state.extra, turn.s
    mean, target = on_tokens(model, params, prediction, moves, one, *rows)
    guess = process.inputs(own, select(moves, mean, canvas.state), jnp.zeros(moves.shape))
    going = moves & (turn.s > 0)
    ahead = self.next_times(model, params, guess, turn.s[:, :1], canvas.segment)
    t = jnp.where(going, ahead, jnp.where(moves, 0.0, state.extra))
    return process.renoise(own, fold(turn.keys, 0), target, t), t

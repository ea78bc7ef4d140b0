"""Approximate joint sampling (ADJUST, arXiv 2509.22738): several tokens per network call, drawn one
after the other by one extra layer.

Tokens that are drawn at the same call from their own distributions do not know of each other. Here
the network is frozen and asked once; a transformer of one layer then reads its features, and the
embeddings of the tokens that have been drawn at this call, at their places, and corrects the logits
of the next place. K tokens cost one call and K - 1 passes of the layer, which is

  (layers + K - 1) / layers

of the time of a call, if a layer costs what a layer of the network does.

The layer is fitted to the network itself: the target for the k-th token is what the frozen network
answers once the k - 1 tokens before it have been written in, and the loss is KL(target ‖ layer).

Recalled (the abstract and the README were at hand, the formulas were not): that one layer reads
hidden states and embeddings of drawn tokens, that it is fitted by KL to the frozen network asked
anew, and that the states are those of the network's own trajectories. Ours: that the layer corrects
the network's logits and starts as no correction, so that an untrained layer draws independent
tokens; its inputs, which are features through a linear map and the id of the token drawn at a place
or one id more where none is; and that the order of the places is any score of the distributions.

Which states it learns from is a choice of the data. A masked row that is made one token at a time
in a random order passes through the final row with a random set of places masked, and its order is
independent of the row. So the noise of the process on rows that the network made itself gives the
states of its own trajectories, exactly; on rows of the corpus, the states that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.context.whole import plain_rows
from diffusion_text.core.capability import require
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option, part
from diffusion_text.core.prng import draw_categorical, position_keys, stream, streams
from diffusion_text.objective import engine
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.lost_tokens import need_schedule
from diffusion_text.sampler.score import (
  Candidates,
  Entropy,
  LeftToRight,
  Margin,
  MaxProb,
  Random,
)
from diffusion_text.types import (
  Batch,
  DataFacts,
  Inputs,
  InputSizes,
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
)

GROUP = "joint_layer"  # of the parameters

# Scores of a token by its distribution that remember nothing from call to call.
ORDERS = {
  "random": Random,
  "left_to_right": LeftToRight,
  "entropy": Entropy,
  "max_prob": MaxProb,
  "margin": Margin,
}


@runtime_checkable
class Alike(Protocol):
  """What is asked of the network: the number of its features, and another one of its kind.

  Attributes:
    width: D.
  """

  width: int

  def like(self, **changes: Any) -> Network:
    """A network of the same options but for the changes."""


def check_layer(model: Model, who: str) -> None:
  """Raises ValueError for a model whose tokens are no masks of one whole row."""
  require(model.network, Alike, who, "use model.name='transformer'")
  need_schedule(model.process, who, "use process.name='masked'")
  if model.process.mask_id is None:
    raise ValueError(
      f"{who} draws tokens that are masked until then, and {model.process} has no mask; use"
      " process.name='masked'"
    )
  if model.context.unit is not None or not model.context.reads_noisy:
    raise ValueError(
      f"{who} reads the features of a whole row at once, not those of {model.context}; use"
      " context.name='full'"
    )
  if model.network.remembers:
    raise ValueError(
      f"{who} knows nothing of what a network remembers of its own answers; use"
      " model.self_conditioning='none'"
    )


def layer_of(model: Model) -> Network:
  """The extra layer: of the network's kind and width. It reads features and drawn tokens and
  answers with V numbers, which are 0 before training.
  """
  vocab_size = model.process.vocab_size
  plain = {
    "layers": 1,
    "input_sizes": InputSizes(ids=vocab_size + 1, vectors=model.network.width),
    "output_size": vocab_size,
    "time_conditioning": "none",
    "tie_embeddings": False,
    "dropout": 0.0,
    "first_stage_layers": 0,
    "self_conditioning": "none",
    "absent": "zeros",
  }
  dense = dict.fromkeys(("experts", "experts_per_token", "expert_width", "shared_width"), 0)
  free = dict.fromkeys(("balance_weight", "router_z_weight"), 0.0)
  return model.network.like(**plain, **dense, **free)


def read_layer(
  model: Model,
  params: Params,
  features: Float[Array, "B N D"],
  drawn: Int[Array, "B N"],
  segment: Int[Array, "B N"] | None,
) -> Prediction:
  """The layer's prediction [B, N]: a correction of the logits of every place.

  Args:
    model, params: the model and the whole tree.
    features: what the network answered, before any of the tokens was drawn.
    drawn: the token that this call has drawn at each place, V where there is none.
    segment: the document of each token.
  """
  # A feature and a drawn token are embedded at one size; among loud features a token is not heard.
  vectors = features.astype(jnp.float32) * features.shape[-1] ** -0.5
  inputs = Inputs(ids=drawn, vectors=vectors)
  rows = plain_rows(inputs, jnp.zeros(drawn.shape), Batch(drawn, segment=segment), None)
  return layer_of(model).apply(params[GROUP], rows)


class Places(NamedTuple):
  """Which tokens are drawn, and in which order.

  Attributes:
    place: int32 [B, K], the place of the k-th token of each row.
    exists: bool [B, K], False where the row draws fewer than K.
  """

  place: Int[Array, "B K"]
  exists: Bool[Array, "B K"]


def first_places(
  score: Float[Array, "B N"], waiting: Bool[Array, "B N"], most: int, count: Int[Array, " B"]
) -> Places:
  """The `count` places that score highest among those that wait, best first; ties go to the left.

  `most` is K, which no count may exceed.
  """
  order = jnp.argsort(jnp.where(waiting, -score, jnp.inf), axis=1, stable=True)[:, :most]
  count = jnp.minimum(count, jnp.sum(waiting, axis=1))
  return Places(order.astype(jnp.int32), jnp.arange(most) < count[:, None])


def scores(
  model: Model,
  params: Params,
  score: Any,
  keys: Keys,
  prediction: Prediction,
  state: State,
  t: Float[Array, "B N"],
  waiting: Bool[Array, "B N"],
) -> Float[Array, "B N"]:
  """The score of each waiting token, by its own distribution; 0 elsewhere."""
  place = jnp.broadcast_to(jnp.arange(waiting.shape[1]), waiting.shape)
  if not score.reads_logits:
    return score(Candidates(keys, place, None))

  def one(of_process, output, keys, place, state, t):
    return score(Candidates(keys, place, model.process.posterior(of_process, state, t, output)))

  return on_tokens(model, params, prediction, waiting, one, keys, place, state, t)


def at(tree: Any, place: Int[Array, " B"]) -> Any:
  """Every leaf [B, N, …] at one place of each row: [B, …]."""
  return jax.tree.map(lambda leaf: leaf[jnp.arange(leaf.shape[0]), place], tree)


def law_at(
  model: Model,
  params: Params,
  prediction: Prediction,
  state: State,
  t: Float[Array, "B N"],
  place: Int[Array, " B"],
  *,
  correction: Prediction | None = None,
) -> Float[Array, "B V"]:
  """log p of the clean token at one place of each row, by the network's logits and the layer's
  correction of them.
  """
  logits = prediction.head(at(prediction.features, place))
  if correction is not None:
    logits = logits + correction.head(at(correction.features, place))
  return model.process.posterior(params["process"], *at((state, t), place), logits)


def kl(log_p: Float[Array, "*n V"], log_q: Float[Array, "*n V"]) -> Float[Array, "*n"]:
  """KL(p ‖ q) in nats, of normalised log-probabilities."""
  p = jnp.exp(log_p)
  return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


@member
class JointLayer:
  """Σ over k = 2 … K of KL(the frozen network with k - 1 tokens written in ‖ the layer), in nats.

  One draw of the noise gives a state; K of its masked tokens, in the order of `score`, are drawn
  one after the other by the network itself, which is asked anew after each of them: K calls per
  row, without gradient. Reports "layer_kl", what is minimised, and "independent_kl", the same for
  tokens that are drawn from their own distributions, per token of text.

  Only the group of the layer is trained. The network is to be a trained one
  (`train.initialize_from`); to freeze it, say train.frozen=("network",), as no gradient reaches it
  but weight decay would.

  A network that is shown the time reads 0 at the tokens that were written in, and what it read
  before at all others.
  """

  tokens: int = option(8, "K, tokens that are drawn one after the other; 2, 4 and 8", ge=2)
  score: Any = part(ORDERS, Random(), "the order of the places, as the sampler has it")
  draws: Literal["network", "data"] = option(
    "network", "whose tokens are written in: those that the network draws, or those of the text"
  )
  blind: bool = option(
    False, "hides the drawn tokens from the layer: the control, which should learn nothing"
  )

  trains: ClassVar[frozenset[str]] = frozenset({GROUP})
  costs_nll: ClassVar[bool] = False

  @property
  def passes(self) -> float:
    """K."""
    return float(self.tokens)

  def check(self, model: Model) -> None:
    """Raises ValueError for a model that masks no whole rows."""
    engine.check_readings(model)
    check_layer(model, "objective.name='joint_layer'")

  def init(self, model: Model, key: Key, facts: DataFacts) -> Mapping[str, Params]:
    """The layer's parameters."""
    del facts
    return {GROUP: layer_of(model).init(stream(key, GROUP))}

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, None]:
    """(the loss of one draw, None): a timing that learns is not fitted to it."""
    held = jax.lax.stop_gradient({name: v for name, v in params.items() if name != GROUP})
    params = {**held, GROUP: params[GROUP]}
    noised = engine.read(model, params, key, batch, times, progress, dropout=False)
    waiting, rows = engine.token_rows(model, params, batch, noised)
    keys = position_keys(stream(key, GROUP), *waiting.shape, progress)
    asked = (streams(keys, "order"), noised.prediction, noised.state, times.t, waiting)
    most = min(self.tokens, waiting.shape[1])
    count = jnp.full(waiting.shape[0], most)
    places = first_places(scores(model, params, self.score, *asked), waiting, most, count)
    chain = _Chain(self, model, params, key, batch, noised, progress, streams(keys, "token"))
    cost, independent = chain.costs(places, rows)
    sums = {"layer_kl": cost, "independent_kl": independent}
    return Loss(cost, jnp.sum(engine.scored_weights(batch)), sums), None


class _Written(NamedTuple):
  """What the network reads once tokens have been written in, the tokens [B, N], and the next one
  [B].
  """

  state: State
  times: Times
  drawn: Int[Array, "B N"]
  token: Int[Array, " B"]


class _Chain(NamedTuple):
  """One draw of the objective: tokens are drawn one after the other, and each costs its KL."""

  objective: JointLayer
  model: Model
  params: Params
  key: Key
  batch: Batch
  noised: engine.Noised
  progress: Progress
  keys: Keys

  def costs(
    self, places: Places, rows: engine.TokenRow
  ) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(Σ weight · KL of the layer, the same of independent tokens), over all tokens but the first
    of each row.
    """
    noised, first = self.noised, places.place[:, 0]
    times = noised.times
    shown = jnp.broadcast_to(times.network_time, times.t.shape)
    nothing = jnp.full(times.t.shape, self.model.process.vocab_size, jnp.int32)
    law = law_at(self.model, self.params, noised.prediction, noised.state, times.t, first)
    token = self._drawn(law, rows, first)
    written = _Written(noised.state, times._replace(network_time=shown), nothing, token)

    def one(written: _Written, turn):
      place, ahead, exists, follows = turn
      written = self._write(written, place, exists)
      target, *laws = self._laws(written, ahead)
      token = self._drawn(target, rows, ahead)
      weight = jnp.where(follows, at(rows.weight, ahead), 0.0)
      return written._replace(token=token), [jnp.sum(weight * kl(target, law)) for law in laws]

    place, exists = places.place.T, places.exists.T
    turns = place[:-1], place[1:], exists[:-1], exists[1:]
    _, (layer, independent) = jax.lax.scan(one, written, turns)
    return jnp.sum(layer), jnp.sum(independent)

  def _drawn(self, law: Float[Array, "B V"], rows: engine.TokenRow, place) -> Int[Array, " B"]:
    """The token of each row that is written in at a place."""
    if self.objective.draws == "data":
      return at(rows.ids, place)
    return draw_categorical(at(self.keys, place), law)

  def _write(self, written: _Written, place, exists) -> _Written:
    """What is read once the next token stands at its place."""
    state, times, drawn, token = written
    row = jnp.arange(place.shape[0])
    here = jnp.zeros(drawn.shape, bool).at[row, place].set(exists)
    clean = self.model.process.clean(self.params["process"], token)
    state = select(here, jnp.broadcast_to(clean[:, None], drawn.shape), state)
    t, shown = (jnp.where(here, 0.0, each) for each in (times.t, times.network_time))
    drawn = jnp.where(here, token[:, None], drawn)
    return _Written(state, times._replace(t=t, network_time=shown), drawn, token)

  def _laws(self, written: _Written, place) -> tuple[Array, Array, Array]:
    """log p of the token at a place, [B, V] each: the network's, asked anew; that of the layer; and
    the one that knows of no drawn token.
    """
    model, params, noised = self.model, self.params, self.noised
    states = (noised.clean, written.state)
    asked = (model, params, self.key, self.batch, written.times, self.progress)
    target = engine.read(*asked, corrupted=states, dropout=False).prediction
    here = (written.state, written.times.t, place)
    blind = self.objective.blind
    drawn = jnp.full_like(written.drawn, model.process.vocab_size) if blind else written.drawn
    layer = read_layer(model, params, noised.prediction.features, drawn, self.batch.segment)
    return (
      jax.lax.stop_gradient(law_at(model, params, target, *here)),
      law_at(model, params, noised.prediction, *here, correction=layer),
      law_at(model, params, noised.prediction, *here),
    )

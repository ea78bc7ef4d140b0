"""Approximate joint sampling (ADJUST, arXiv 2509.22738): several tokens per network call, drawn one
after the other by one extra layer.

Tokens that one call draws from their own distributions are independent of each other. Here the
network is frozen and called once. A transformer of one layer then reads the network's features and
the embeddings of the tokens that this call has already drawn, and corrects the logits of the next
token. K tokens cost one call and K - 1 passes of the layer, which is

  (layers + K - 1) / layers

of the time of a call, if a layer costs what a layer of the network does.

The layer is fitted to the network itself. The target of the k-th token is the distribution that the
frozen network predicts in a new forward pass, after the k - 1 tokens before it have been written
into the row. The loss is KL(target ‖ layer).

Recalled (the abstract and the README were at hand, the formulas were not): one layer reads hidden
states and embeddings of drawn tokens; its target is a new forward pass of the frozen network; the
states are taken from the network's own trajectories. Ours: the layer corrects the network's logits,
and its correction is 0 before training, so that an untrained layer draws independent tokens; a
place without a drawn token has the id V; the order of the places is any score of `ORDERS`.

The data decide from which states the layer learns. If the network writes a row one token at a time
in a random order, each state on the way is the final row with a random set of places masked. So
masking rows that the network wrote gives exactly the states of its own trajectories, and masking
rows of the corpus gives the states that the network was trained on.
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
  """A network that can make another network of its kind.

  Attributes:
    width: D, the numbers of a feature.
  """

  width: int

  def like(self, **changes: Any) -> Network:
    """A network with the same options, except for `changes`."""


def check_layer(model: Model, who: str) -> None:
  """Raises ValueError unless the model is a masked one that reads a whole row at once."""
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
  """A network of one layer, of the kind and width of the model's own. It reads features and drawn
  tokens, and returns V numbers per place, which are 0 before training.
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
  """The layer's prediction for all N places: corrections of the network's logits.

  Args:
    model, params: the model, and the parameters of network, process and layer.
    features: the network's, of the call before any of the tokens was drawn.
    drawn: the token that this call has drawn at each place; V at places without one.
    segment: the document of each token.
  """
  # Features are scaled to the size of an embedding; larger ones would drown the drawn tokens.
  vectors = features.astype(jnp.float32) * features.shape[-1] ** -0.5
  inputs = Inputs(ids=drawn, vectors=vectors)
  rows = plain_rows(inputs, jnp.zeros(drawn.shape), Batch(drawn, segment=segment), None)
  return layer_of(model).apply(params[GROUP], rows)


class Places(NamedTuple):
  """The places of the tokens of a call, in the order in which they are drawn.

  Attributes:
    place: int32 [B, K], the place of the k-th token of each row.
    exists: bool [B, K], False from the first k on that the row does not draw.
  """

  place: Int[Array, "B K"]
  exists: Bool[Array, "B K"]


def first_places(
  score: Float[Array, "B N"], waiting: Bool[Array, "B N"], most: int, count: Int[Array, " B"]
) -> Places:
  """Those `count` waiting places of each row that score highest, best first; ties go to the left.

  `most` is K, the largest count that is allowed.
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
  """float32 [B, N]: the score of the distribution at each waiting place, 0 at other places."""
  place = jnp.broadcast_to(jnp.arange(waiting.shape[1]), waiting.shape)
  if not score.reads_logits:
    return score(Candidates(keys, place, None))

  def one(of_process, output, keys, place, state, t):
    return score(Candidates(keys, place, model.process.posterior(of_process, state, t, output)))

  return on_tokens(model, params, prediction, waiting, one, keys, place, state, t)


def at(tree: Any, place: Int[Array, " B"]) -> Any:
  """The tree with leaves [B, …]: every leaf [B, N, …] at one place of each row."""
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
  """float32 [B, V]: log p of the clean token at one place of each row, from the network's logits
  plus the layer's correction, if there is one.
  """
  logits = prediction.head(at(prediction.features, place))
  if correction is not None:
    logits = logits + correction.head(at(correction.features, place))
  return model.process.posterior(params["process"], *at((state, t), place), logits)


def kl(log_p: Float[Array, "*n V"], log_q: Float[Array, "*n V"]) -> Float[Array, "*n"]:
  """float32 [*n]: KL(p ‖ q) in nats of normalised log-probabilities."""
  p = jnp.exp(log_p)
  return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


@member
class JointLayer:
  """Σ over k = 2 … K of KL(frozen network after k - 1 tokens ‖ layer), in nats: the loss of a row.

  The noise masks a row. K of the masked tokens, in the order of `score`, are then written into the
  row one after the other, with a forward pass of the network after each: K passes per row, without
  gradient. "layer_kl" reports the loss per token of text; "independent_kl" reports the same sum for
  the network's logits without a correction.

  Only the layer's parameters have a gradient. The network should be trained already
  (`train.initialize_from`) and named in train.frozen=("network",), or weight decay would move it.

  A network that reads the time is shown 0 at the tokens that were written in.
  """

  tokens: int = option(8, "K, the most tokens of a call for which the layer is fitted", ge=2)
  score: Any = part(ORDERS, Random(), "the order of the places, as the sampler has it")
  draws: Literal["network", "data"] = option(
    "network", "where the tokens that are written in come from: draws of the network, or the text"
  )
  blind: bool = option(
    False, "hides the drawn tokens from the layer: a control, which has nothing to learn from"
  )

  trains: ClassVar[frozenset[str]] = frozenset({GROUP})
  costs_nll: ClassVar[bool] = False

  @property
  def passes(self) -> float:
    """K, the forward passes of the network per row."""
    return float(self.tokens)

  def check(self, model: Model) -> None:
    """Raises ValueError as `check_layer` does."""
    engine.check_readings(model)
    check_layer(model, "objective.name='joint_layer'")

  def init(self, model: Model, key: Key, facts: DataFacts) -> Mapping[str, Params]:
    """{"joint_layer": the initial parameters of the layer}."""
    del facts
    return {GROUP: layer_of(model).init(stream(key, GROUP))}

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, None]:
    """(the loss of one draw of the noise, None). No learned timing is fitted to this loss."""
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
  """A row into which tokens have been written.

  Attributes:
    state, times: of the row, as the network reads it.
    drawn: the tokens that were written in, V at all other places.
    token: the next token of each row, which is not written in yet.
  """

  state: State
  times: Times
  drawn: Int[Array, "B N"]
  token: Int[Array, " B"]


class _Chain(NamedTuple):
  """What does not change while the tokens of one draw are written in one after the other."""

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
    """(Σ weight · KL to the layer, Σ weight · KL to the network without a correction), over all
    tokens of a row but its first.
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
    """int32 [B]: the token that is to be written in at a place of each row."""
    if self.objective.draws == "data":
      return at(rows.ids, place)
    return draw_categorical(at(self.keys, place), law)

  def _write(self, written: _Written, place, exists) -> _Written:
    """The row after its next token was written in at a place."""
    state, times, drawn, token = written
    row = jnp.arange(place.shape[0])
    here = jnp.zeros(drawn.shape, bool).at[row, place].set(exists)
    clean = self.model.process.clean(self.params["process"], token)
    state = select(here, jnp.broadcast_to(clean[:, None], drawn.shape), state)
    t, shown = (jnp.where(here, 0.0, each) for each in (times.t, times.network_time))
    drawn = jnp.where(here, token[:, None], drawn)
    return _Written(state, times._replace(t=t, network_time=shown), drawn, token)

  def _laws(self, written: _Written, place) -> tuple[Array, Array, Array]:
    """Three log p [B, V] of the token at a place: of a new forward pass of the network, of the old
    logits with the layer's correction, and of the old logits alone.
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

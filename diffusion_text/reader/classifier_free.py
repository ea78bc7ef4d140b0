"""Classifier-free guidance (arXiv 2207.12598): a reading with the observed tokens, one without, and
an optional one with a negative prompt in their place.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.chunked import map_rows
from diffusion_text.core.numerics import flatten_tokens, select, unflatten_tokens
from diffusion_text.core.options import member, option, part
from diffusion_text.reader import READERS
from diffusion_text.reader.mixture import mixed
from diffusion_text.reader.reading import NOTHING, Around, During
from diffusion_text.reader.rows import window
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query, Reader

NEGATIVE = "negative"  # the name of the negative prompt among `Batch.extras`


class Guided(NamedTuple):
  """The memory of `ClassifierFree`.

  Attributes:
    readings: one memory per reading.
    agreed: bool [B], True for rows whose answers agree, so that only the first reading counts; None
      without the option `agree`.
  """

  readings: tuple[Memory, ...]
  agreed: Array | None


@member
class ClassifierFree(Around):
  """The guided prediction u + scale · (c - u) - away · (n - u): c reads the observed tokens, u
  noise at t = 1 in their place, and n a negative prompt.

  Prompt dropout trains a network for u. Each reading has its own memory, so readings may be cached.
  A reading of weight 0 is not made: with scale = away + 1 only c and n are, as in image models.

  With `agree` the guidance is adaptive (arXiv 2312.12487, recalled, which compares by cosine): once
  the answers of a row agree, only the first reading counts until the window is done. A row is
  charged for the others while its own answers differ; the network is called while those of any row
  do.
  """

  reader: Any = part(READERS, ..., "how the network is asked, each time")
  scale: float = option(
    1.0,
    "1: the answer with the observed tokens, at one call; 0: the answer without them; above 1:"
    " guided. Some papers call scale - 1 the scale",
    ge=0,
  )
  space: Literal["logits", "probabilities"] = option(
    "logits",
    "what is combined. Probabilities (TESS, arXiv 2305.08379) below 0 are cut off and the rest"
    " divided by its sum, so that a large scale forbids tokens that the observed ones make less"
    " likely",
  )
  away: float = option(
    0.0,
    "weight of the step away from the answer to a negative prompt, whose ids are"
    " batch.extras['negative'] (int32 [B, L], read at observed positions); 0: there is none",
    ge=0,
  )
  agree: float | None = option(
    None,
    "largest total variation between the answers, over the unknown tokens of the window, at which a"
    " row is no longer guided, such as 0.01. None: it always is",
    ge=0,
    le=1,
  )

  @property
  def calls(self) -> int:
    """The calls of the reader inside, times the number of readings."""
    return self.reader.calls * len(self._weights)

  @property
  def _weights(self) -> dict[str, float]:
    """Name of each reading -> its weight, without weights of 0; "seen" is always read."""
    weights = {"seen": self.scale, "unseen": 1 - self.scale + self.away, "negative": -self.away}
    return {name: weight for name, weight in weights.items() if weight or name == "seen"}

  def unprompted(self) -> Reader:
    """The reader inside: without observed tokens all readings give the same answer."""
    return self.reader

  def check(self, model: Model) -> None:
    """Raises ValueError where the reader inside does."""
    self.reader.check(model)

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """One memory per reading; no row's answers agree yet."""
    readings = self._readings(model, params, query)
    memories = tuple(self.reader.init(model, params, each) for each in readings)
    return Guided(memories, self._nobody(query))

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the guided prediction, the memory). The answers are combined where logits are asked for."""
    first, *others = self._readings(model, params, query)
    answer, kept = self.reader.read(model, params, memory.readings[0], first, refresh=refresh)
    answers, memories = [answer], [kept]
    for own, each in zip(memory.readings[1:], others, strict=True):
      if self.agree is None:
        said, own = self.reader.read(model, params, own, each, refresh=refresh)
      else:
        asked = (model, params, each, refresh)
        said, own = self._asked_while_they_differ(asked, own, memory.agreed, answer)
      answers.append(said)
      memories.append(own)
    agreed = memory.agreed
    if self.agree is not None:
      for said in answers[1:]:
        agreed = agreed | self._agree(model, params, query, answer, said)
    if len(answers) == 1:
      return answer, Guided(tuple(memories), agreed)
    weights = tuple(self._weights.values())
    return mixed(tuple(answers), weights, self.space), Guided(tuple(memories), agreed)

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memories of all readings; in the next window every row is guided again."""
    readings = self._readings(model, params, query)
    memories = tuple(
      self.reader.finish(model, params, own, each)
      for own, each in zip(memory.readings, readings, strict=True)
    )
    return Guided(memories, self._nobody(query))

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of all readings; a row whose answers agree is charged for the first one only."""
    readings = self._readings(model, params, query)
    kept = (None,) * len(readings) if memory is None else memory.readings
    costs = [
      self.reader.cost(model, params, own, each, during)
      for own, each in zip(kept, readings, strict=True)
    ]
    others = NOTHING.plus(*costs[1:])
    if self.agree is not None and during in ("refresh", "read"):
      others = others.times(~memory.agreed)
    return costs[0].plus(others)

  def _asked_while_they_differ(
    self, asked: tuple, own: Memory, agreed: Bool[Array, " B"], answer: Prediction
  ) -> tuple[Prediction, Memory]:
    """(the answer of another reading, `answer` in rows that agree; the memory of that reading). The
    network is not called if no row needs it.
    """
    model, params, query, refresh = asked
    query = query._replace(needs=query.needs & ~agreed[:, None])

    def ask(_, kept):
      said, own = self.reader.read(model, params, kept[2], query, refresh=refresh)
      return said.features, said.fresh, own

    # A loop of one turn or none. A branch (`lax.cond`) would copy the cache.
    turns = jnp.any(query.needs).astype(jnp.int32)
    kept = (answer.features, answer.fresh, own)
    features, fresh, own = jax.lax.fori_loop(0, turns, ask, kept)
    features = select(agreed, answer.features, features)
    if fresh is not None:
      fresh = select(agreed, answer.fresh, fresh)
    # One reader and one network: the head of every reading is the same.
    return dataclasses.replace(answer, features=features, fresh=fresh), own

  def _agree(
    self, model: Model, params: Params, query: Query, one: Prediction, other: Prediction
  ) -> Bool[Array, " B"]:
    """True for rows whose two answers are close at every unknown token of the window, whether or
    not it is needed at this call.
    """
    cut = (query.start, query.needs.shape[1])
    state, t = window((query.state, query.t), *cut)
    where = model.process.has_loss(params["process"], state, t) & (t > 0)
    where &= ~window(query.batch.observed, *cut) & jnp.any(query.needs, axis=1, keepdims=True)
    for prediction in (one, other):
      where = where if prediction.fresh is None else where & prediction.fresh

    def apart(consts, rows):
      head, of_process = consts
      state, t, *features = rows
      laws = (jnp.exp(model.process.posterior(of_process, state, t, head(x))) for x in features)
      return _total_variation(*laws)

    rows = flatten_tokens((state, t, one.features, other.features))
    consts = (one.head, params["process"])
    flat = map_rows(apart, consts, where.reshape(-1), rows, chunk=model.chunk)
    most = jnp.max(unflatten_tokens(flat, where.shape), axis=1)
    return jnp.any(where, axis=1) & (most <= self.agree)

  def _nobody(self, query: Query) -> Bool[Array, " B"] | None:
    return None if self.agree is None else jnp.zeros(query.needs.shape[0], bool)

  def _readings(self, model: Model, params: Params, query: Query) -> tuple[Query, ...]:
    """The query of each reading: as given, without observed tokens, with the negative prompt."""
    if len(self._weights) == 1:
      return (query,)
    observed, weights = query.batch.observed, query.batch.weights
    if observed is None:
      raise ValueError(
        f"reader.name='classifier_free' with scale={self.scale} guides by the observed tokens, and"
        " the batch has none; use the reader inside it alone"
      )
    shown = observed if weights is None else observed & (weights > 0)
    hidden = shown if query.hidden is None else query.hidden | shown
    made = {"seen": query, "unseen": query._replace(hidden=hidden)}
    if self.away:
      ids = _negative_ids(query)
      instead = model.process.clean(params["process"], ids)
      made["negative"] = query._replace(state=select(shown, instead, query.state))
    return tuple(made[name] for name in self._weights)


def _negative_ids(query: Query) -> Array:
  """The ids of the negative prompt, [B, N]. Raises ValueError if there are none of this shape."""
  ids = query.batch.extras.get(NEGATIVE)
  shape = None if ids is None else ids.shape
  if shape != query.t.shape:
    raise ValueError(
      f"reader.away needs batch.extras['{NEGATIVE}'], ids of the shape {query.t.shape} that stand"
      f" where others are observed, not {shape}; use reader.away=0.0 without a negative prompt"
    )
  return ids


def _total_variation(p: Float[Array, "n V"], q: Float[Array, "n V"]) -> Float[Array, " n"]:
  return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)

"""A depth-recurrent network decoded by a wavefront: several positions are iterated at the same time
(Geiping et al. 2025, arXiv 2510.14961; released in seal-rg/recurrent-pretraining).

Sequential decoding runs r iterations of the core for a token before it begins the next. Here each
read runs a few iterations for all positions of a wave, guesses all their tokens, and adds a
position; a position is frozen once its state has settled:

  e <- (1 - ema) · prelude(guesses) + ema · e        s <- (1 - β) s + β · noise, β = noise / (1 + k)
  s <- core([s, e]), `inner` times                   token <- coda(s)

k counts the iterations of the position. Each read freezes the longest run of settled positions from
the left, up to and including the first token that this read has changed: positions behind it have
read the old token. (The released rule freezes all positions up to the last settled one.) Keys and
values of frozen positions stay in the caches; those of the wave are overwritten at every iteration.
The core has one cache for all iterations, whereas sequential decoding has one for each iteration,
so the tokens may differ; both reach the same fixed point if the core has one.

How this fits the contracts. A window of `next_token` is one token, so the context `next_token_row`
makes the whole row one window. Readers have no keys, so noise is drawn from a fixed key by position
and iteration, the same for all rows. The reader has the states and the sampler decides, so
`Prediction.hidden` carries the states. A trace omits guesses that replaced earlier guesses.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.context.blocks import NextToken
from diffusion_text.contrib.recurrent_depth import everywhere
from diffusion_text.core.capability import require
from diffusion_text.core.numerics import differs, select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, make_key, streams
from diffusion_text.reader.rows import rows_of
from diffusion_text.reader.slots import taken
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.padding import generated
from diffusion_text.sampler.transform import LogitsTransform
from diffusion_text.types import (
  Canvas,
  Cost,
  Model,
  Params,
  Prediction,
  Query,
  Rows,
  State,
)

BEFORE, AFTER = 0, 1  # of `Prediction.hidden`: states after the last read and after this one


@member
class NextTokenRow(NextToken):
  """`next_token` with the whole row as one window, so that a sampler may guess ahead.

  Training and likelihood are those of `next_token`. So are the texts of sampler `reveal` from left
  to right with one token per call, but without a cache.
  """

  unit: ClassVar[None] = None


@runtime_checkable
class Recurs(Protocol):
  """A network with the parts prelude, core and coda, which runs its core `recurrences` times."""

  parts: dict[str, Any]
  recurrences: int


class Wave(NamedTuple):
  """The memory of the reader.

  Attributes:
    state: [B, N, D], the state of each position; zeros before its first read.
    embedded: [B, N, D], e of each position.
    count: int32 [B, N], iterations of each position.
    prelude, core, coda: caches.
  """

  state: Array
  embedded: Array
  count: Array
  prelude: Any
  core: Any
  coda: Any


@member
class WavefrontReader:
  """A reader that runs `inner` iterations of the core for the positions in `needs`, the leftmost
  `width` of them at most, and leaves the states of all others as they were.

  Observed tokens are read once, with as many iterations as in sequential decoding.
  """

  inner: int = option(4, "iterations of the core per read; 4 is published", ge=1)
  noise: float = option(0.5, "share of noise in a state before its first iteration", ge=0, lt=1)
  ema: float = option(0.1, "share of the old e in the new one; 0.1 is published", ge=0, lt=1)
  width: int = option(128, "most positions of a wave; 128 is published", ge=1)

  calls: ClassVar[int] = 1
  every: ClassVar[int] = 1
  unrolls: ClassVar[bool] = False

  def check(self, model: Model) -> None:
    """Raises ValueError for a network without a core."""
    require(model.network, Recurs, "reader.name='wavefront'", "use model.name='recurrent_depth'")
    check_row(model, "reader.name='wavefront'")

  def init(self, model: Model, params: Params, query: Query) -> Wave:
    """The memory after the observed tokens were read, empty at the tokens to be generated."""
    parts, own = model.network.parts, params["network"]
    rows = rows_of(model, params, query)
    batch, size = query.t.shape
    width = model.network.width
    zeros = jnp.zeros((batch, size, width), model.network.dtype)
    caches = {name: parts[name].cache(own[name], rows, size) for name in parts}
    wave = Wave(zeros, zeros, jnp.zeros((batch, size), jnp.int32), **caches)
    if query.batch.observed is None:
      return wave
    known = ~generated(query.batch)
    index = jnp.broadcast_to(jnp.arange(size), (batch, size))
    read = dataclasses.replace(self, inner=model.network.recurrences, noise=0.0, ema=0.0)
    _, wave = read._advanced(model, params, wave, rows, index, jnp.where(known, index, size))
    return wave

  def read(
    self, model: Model, params: Params, memory: Wave, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Wave]:
    """(the prediction of the wave, whose `hidden` has the states BEFORE and AFTER; the memory)."""
    batch, size = query.needs.shape
    first = jnp.argmax(query.needs, axis=1)[:, None]
    index = first + jnp.arange(min(self.width, size))
    place = jnp.minimum(index, size - 1)
    asked = (index < size) & jnp.take_along_axis(query.needs, place, axis=1)
    slots = jnp.where(asked, index, size)
    rows = taken(rows_of(model, params, query), place)
    answer, wave = self._advanced(model, params, memory, rows, place, slots)
    features = jnp.zeros((batch, size, answer.features.shape[-1]), answer.features.dtype)
    features = put(features, answer.features, slots)
    fresh = put(jnp.zeros((batch, size), bool), asked, slots)
    hidden = {BEFORE: memory.state, AFTER: wave.state}
    answer = dataclasses.replace(answer, features=features, hidden=hidden, fresh=fresh)
    return answer, wave

  def finish(self, model: Model, params: Params, memory: Wave, query: Query) -> Wave:
    """The memory, unchanged."""
    return memory

  def cost(self, model: Model, params: Params, memory: Any, query: Query, during: str) -> Cost:
    """Of a read: the width of the wave, in all layers and iterations, each seeing the whole row."""
    size, network = query.t.shape[1], model.network
    iterations, read = self.inner, min(self.width, size)
    if during == "finish" or (during == "init" and query.batch.observed is None):
      return Cost(0, 0, 0)
    if during == "init":
      iterations, read = network.recurrences, size
    layers = network.prelude + iterations * network.core + network.coda
    return Cost(1, read * layers, read * size * layers)

  def _advanced(self, model, params, wave: Wave, rows: Rows, place, slots):
    """(the answers at Q places, the memory with their states, counts and slots)."""
    parts, own = model.network.parts, params["network"]

    def take(leaf):
      return jnp.take_along_axis(leaf, place.reshape(*place.shape, *(1,) * (leaf.ndim - 2)), axis=1)

    count, state, old = take(wave.count), take(wave.state), take(wave.embedded)
    said, prelude = parts["prelude"].extend(own["prelude"], rows, wave.prelude, slots)
    ema = jnp.where(count == 0, 0.0, self.ema)[..., None]
    embedded = ((1 - ema) * said.features + ema * old).astype(old.dtype)
    share = (self.noise / (1 + count))[..., None]
    state = ((1 - share) * state + share * noise_of(place, count, state)).astype(state.dtype)

    def once(_, carry):
      state, core = carry
      asked = everywhere(rows, jnp.concatenate([state, embedded], axis=-1))
      found, core = parts["core"].extend(own["core"], asked, core, slots)
      return found.features, core

    state, core = jax.lax.fori_loop(0, self.inner, once, (state, wave.core))
    answer, coda = parts["coda"].extend(own["coda"], everywhere(rows, state), wave.coda, slots)
    kept = put(wave.state, state, slots), put(wave.embedded, embedded, slots)
    count = put(wave.count, count + self.inner, slots)
    return answer, Wave(*kept, count, prelude, core, coda)


def check_row(model: Model, who: str) -> None:
  """Raises ValueError for a context whose row is no single window from left to right."""
  context = model.context
  if context.unit is not None or context.horizon != 1 or context.reads_noisy:
    raise ValueError(
      f"{who} guesses ahead in a row that is read from left to right, not in {context}; use"
      " context.name='next_token_row'"
    )


def noise_of(
  place: Int[Array, "B Q"], count: Int[Array, "B Q"], like: Float[Array, "B Q D"]
) -> Float[Array, "B Q D"]:
  """Standard normals by position and iteration, the same in every row."""
  key = make_key(0)

  def one(place, count, like):
    own = jax.random.fold_in(jax.random.fold_in(key, place), count)
    return jax.random.normal(own, like.shape)

  return jax.vmap(jax.vmap(one))(place, count, like)


def put(old: Array, new: Array, slots: Int[Array, "B Q"]) -> Array:
  """`old` [B, N, …] with `new` [B, Q, …] written in the slots; slots >= N are left out."""
  row = jnp.arange(slots.shape[0])[:, None]
  return old.at[row, slots].set(new.astype(old.dtype), mode="drop")


class Front(NamedTuple):
  """The state of `Wavefront`.

  Attributes:
    start: int32 [B], the first position that is not frozen.
    end: int32 [B], the position behind the wave.
    reads: int32 [B, u], how often each position has been answered.
  """

  start: Int[Array, " B"]
  end: Int[Array, " B"]
  reads: Int[Array, "B u"]


@member
class Wavefront:
  """A sampler that guesses all tokens of the wave at each read, freezes the settled ones, and adds
  `headway` positions to the wave if the reader has answered for all of it.

  A position draws with the same random numbers at every read, so that its token changes only if its
  distribution does.
  """

  exit: float = option(
    0.03, "relative change of a state between two reads below which it has settled", ge=0
  )
  headway: int = option(1, "positions that a read adds; 1 is published", ge=1)
  patience: int = option(16, "reads after which a position counts as settled in any case", ge=1)
  temperature: float = option(1.0, "of the draw; 0 takes the likeliest token", ge=0)
  top_p: float = option(1.0, "share of the probability that is kept; 1 keeps all", gt=0, le=1)

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Raises ValueError for a row whose positions see what comes later, and without a mask."""
    check_row(model, "sampler.name='wavefront'")
    if model.process.mask_id is None:
      raise ValueError(
        f"sampler.name='wavefront' overwrites guesses as if nothing stood there, and"
        f" {model.process} has no mask to say so; use process.name='masked'"
      )

  def init(self, model: Model, params: Params, canvas: Canvas) -> Front:
    """A wave of one position, the first that is to be generated."""
    del model, params
    start = jnp.argmax(canvas.active, axis=1)
    end = jnp.minimum(start + self.headway, _stop(canvas))
    return Front(start, end, jnp.zeros(canvas.active.shape, jnp.int32))

  def needs(self, model: Model, params: Params, canvas: Canvas, state: Front) -> Bool[Array, "B u"]:
    """The wave."""
    place = jnp.arange(canvas.active.shape[1])
    wave = (place >= state.start[:, None]) & (place < state.end[:, None])
    return canvas.active & wave

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Front
  ) -> Float[Array, "B u"]:
    """0 where a token is frozen, else 1."""
    place = jnp.arange(canvas.active.shape[1])
    return (place >= state.start[:, None]).astype(jnp.float32)

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Front
  ) -> Float[Array, "B u"]:
    """Those of `times`."""
    return self.times(model, params, canvas, state)

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Front,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Front]:
    """(the text with new guesses, the next wave).

    Raises:
      ValueError: for a reader that says nothing of states.
    """
    if AFTER not in prediction.hidden:
      raise ValueError(
        "sampler.name='wavefront' asks how states have changed, which this reader does not say; use"
        " reader.name='wavefront'"
      )
    guesses = self._guesses(model, params, canvas, prediction, query, needs)
    text = select(needs, guesses, canvas.state)
    changed = needs & differs(text, canvas.state)
    before, after = prediction.hidden[BEFORE], prediction.hidden[AFTER]
    moved = jnp.linalg.norm((after - before).astype(jnp.float32), axis=-1)
    settled = moved < self.exit * jnp.linalg.norm(after.astype(jnp.float32), axis=-1)
    reads = state.reads + needs
    settled = needs & (settled | (reads >= self.patience))
    wave = self.needs(model, params, canvas, state)
    start = jnp.minimum(state.start + self.frozen(wave, settled, changed), _stop(canvas))
    whole = ~jnp.any(wave & ~needs, axis=1)
    end = jnp.minimum(state.end + jnp.where(whole, self.headway, 0), _stop(canvas))
    return text, Front(start, jnp.maximum(end, start), reads)

  def frozen(
    self,
    wave: Bool[Array, "B u"],
    settled: Bool[Array, "B u"],
    changed: Bool[Array, "B u"],
  ) -> Int[Array, " B"]:
    """int32 [B]: how many positions are frozen, from the left of the wave up to the first that has
    not settled or that has read a token which this read changed.
    """
    changes_before = jnp.cumsum(changed, axis=1) - changed
    stops = wave & ~(settled & (changes_before == 0))
    run = wave & (jnp.cumsum(stops, axis=1) == 0)
    return jnp.sum(run, axis=1)

  def _guesses(self, model, params, canvas, prediction, query, needs) -> State:
    """The token of each answered position, drawn as if nothing stood there."""
    transform = LogitsTransform(self.temperature, self.top_p)

    def one(of_process, output, keys, noise, t):
      law = model.process.posterior(of_process, noise, t, output)
      return model.process.clean(of_process, draw_categorical(keys, transform(law)))

    keys = streams(canvas.keys, "token")
    rows = (keys, query.noise, jnp.ones(needs.shape))
    return on_tokens(model, params, prediction, needs, one, *rows)


def _stop(canvas: Canvas) -> Int[Array, " B"]:
  """The position behind the last one that is to be generated; 0 where there is none."""
  place = jnp.arange(1, canvas.active.shape[1] + 1)
  return jnp.max(jnp.where(canvas.active, place, 0), axis=1)

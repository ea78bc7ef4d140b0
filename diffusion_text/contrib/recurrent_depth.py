"""A causal network whose depth is a loop (Huginn, arXiv 2502.05171): layers that read the text, a
core that is run again and again on a state per position, and layers that answer.

  e = prelude(tokens)                       s_0 = noise
  s_k = core([s_{k - 1}, e]), k = 1 … r     answer = coda(s_r)

Prelude, core and coda are transformers of this package. The first linear map of the core, from
[s, e] to its width, is the adapter of the paper, and its final norm the norm of the state; the
coda's first map is one more matrix than published. Keys and values of the core are those of the
same iteration, in training and by its cache.

Training draws the number of iterations, from a Poisson law whose rate is log-normal about the mean
(the paper's; σ = 0.5), one number per microbatch, and the first state from a normal law. Gradients
flow through the last `back` iterations. Evaluation and sampling take r = `recurrences` iterations
and begin at zero, the middle of that law: published sampling draws the first state, and readers
have no keys to draw with.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import stream
from diffusion_text.model.linear_maps import trains
from diffusion_text.model.options import TransformerOptions
from diffusion_text.model.partition import decays
from diffusion_text.model.transformer import Transformer
from diffusion_text.types import (
  Inputs,
  InputSizes,
  Key,
  Model,
  Params,
  Prediction,
  Rows,
  Span,
)

SPREAD = 0.5  # σ of the log-normal rate


class Caches(NamedTuple):
  """The caches of the parts; that of the core has one more axis in front, the iterations."""

  prelude: Any
  core: Any
  coda: Any


@member
class RecurrentDepth(TransformerOptions):
  """A `types.Network` whose core is a loop. `layers` counts the layers that a token passes, the
  core's once per iteration, so that reported costs are right.
  """

  prelude: int = option(1, "layers that read the text", ge=1)
  core: int = option(
    1,
    "layers of the loop, which is run (layers - prelude - coda) / core times, at least once; in"
    " training that is the mean number of runs",
    ge=1,
  )
  coda: int = option(1, "layers that answer", ge=1)
  back: int = option(8, "iterations through which gradients flow, the last ones", ge=1)

  def __post_init__(self):
    super().__post_init__()
    loop = self.layers - self.prelude - self.coda
    if loop > 0 and loop % self.core:
      raise ValueError(
        f"layers={self.layers} less prelude={self.prelude} and coda={self.coda} is no multiple of"
        f" core={self.core}; use layers={self.layers - loop % self.core}"
      )
    unused = {
      "time_conditioning": (self.time_conditioning, "none"),
      "first_stage_layers": (self.first_stage_layers, 0),
      "self_conditioning": (self.self_conditioning, "none"),
      "experts": (self.experts, 0),
      "tie_embeddings": (self.tie_embeddings, False),
    }
    for name, (value, only) in unused.items():
      if value != only:
        raise ValueError(
          f"{name}={value!r} is nothing that model.name='recurrent_depth' has; leave it at {only!r}"
        )

  @property
  def recurrences(self) -> int:
    """r, how often the core is run."""
    return max((self.layers - self.prelude - self.coda) // self.core, 1)

  @property
  def parts(self) -> dict[str, Transformer]:
    """Prelude, core and coda."""
    return _parts(self)

  @property
  def remembers(self) -> bool:
    """False."""
    return False

  def check(self, model: Model, data: Any) -> None:
    """Any context and data will do."""

  def decays(self, path: tuple[str, ...]) -> bool:
    """True for matrices; norms, biases and embedding tables do not decay."""
    return decays(path)

  def trains(self, path: tuple[str, ...]) -> bool:
    """True for parameters that move: all of them, unless there are integers or a low rank."""
    return trains(self, path)

  def init(self, key: Key) -> Params:
    """The parameters of the parts. Every prediction is uniform."""
    return {name: part.init(stream(key, name)) for name, part in self.parts.items()}

  def apply(
    self,
    params: Params,
    rows: Rows,
    *,
    memory: Float[Array, "B N D"] | None = None,
    key: Key | None = None,
    hidden_layers: tuple[int, ...] = (),
  ) -> Prediction:
    """The answers for `rows.answers`, after r iterations; with a key, after a number that is drawn
    with it.

    Raises:
      ValueError: for a memory, and for hidden layers, of which there are none.
    """
    if memory is not None or hidden_layers:
      raise ValueError(
        f"memory and hidden_layers={hidden_layers} are nothing that model.name='recurrent_depth'"
        " has; leave them out"
      )
    keys = dict.fromkeys(("prelude", "core", "coda"))
    if key is not None:
      keys = {name: stream(key, name) for name in keys}
    embedded = self.embed(params, rows, key=keys["prelude"])
    state = jnp.zeros_like(embedded)
    if key is None:
      state = self.iterate(params, rows, state, embedded, self.recurrences)
    else:
      state = self._train(params, rows, state, embedded, keys["core"])
    return self.answer(params, rows, state, key=keys["coda"])

  def embed(self, params: Params, rows: Rows, *, key: Key | None = None) -> Float[Array, "B L D"]:
    """e [B, L, D], the output of the prelude."""
    return self.parts["prelude"].apply(params["prelude"], everywhere(rows), key=key).features

  def iterate(
    self,
    params: Params,
    rows: Rows,
    state: Float[Array, "B L D"],
    embedded: Float[Array, "B L D"],
    times: int | Int[Array, ""],
    *,
    key: Key | None = None,
  ) -> Float[Array, "B L D"]:
    """float32 [B, L, D]: the state after `times` more iterations of the core. If `times` is traced,
    the result has no gradient.
    """
    core = self.parts["core"]

    def once(number, state):
      own = None if key is None else jax.random.fold_in(key, number)
      asked = everywhere(rows, jnp.concatenate([state, embedded], axis=-1))
      return core.apply(params["core"], asked, key=own).features

    return jax.lax.fori_loop(0, times, once, state)

  def answer(
    self, params: Params, rows: Rows, state: Float[Array, "B L D"], *, key: Key | None = None
  ) -> Prediction:
    """The coda's prediction from a state, for `rows.answers`."""
    inputs = Inputs(vectors=state, position=rows.inputs.position)
    asked = dataclasses.replace(rows, inputs=inputs)
    return self.parts["coda"].apply(params["coda"], asked, key=key)

  def first_state(self, key: Key, like: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """A draw of s_0: standard normal, as wide as a state after its norm."""
    return jax.random.normal(key, like.shape, like.dtype)

  def drawn_count(self, key: Key) -> Int[Array, ""]:
    """int32: a draw of the number of iterations in training, at least 1 and r on average."""
    # The mean of 1 + Poisson is r if the mean of the rate is r - 1.
    normal = SPREAD * jax.random.normal(stream(key, "rate")) - SPREAD**2 / 2
    rate = (self.recurrences - 1) * jnp.exp(normal)
    return 1 + jax.random.poisson(stream(key, "count"), rate)

  def _train(self, params, rows, state, embedded, key) -> Float[Array, "B L D"]:
    """The state after a random number of iterations, of which the last `back` have gradients."""
    count = self.drawn_count(key)
    state = self.first_state(stream(key, "state"), state)
    dropped = stream(key, "dropout") if self.dropout else None
    free = jnp.maximum(count - self.back, 0)
    held = jax.lax.stop_gradient((params, state, embedded))
    state = self.iterate(held[0], rows, *held[1:], free, key=dropped)
    state = jax.lax.stop_gradient(state)
    core = self.parts["core"]

    def once(state, number):
      own = None if dropped is None else jax.random.fold_in(dropped, number + free)
      asked = everywhere(rows, jnp.concatenate([state, embedded], axis=-1))
      after = core.apply(params["core"], asked, key=own).features
      return jnp.where(number < count - free, after, state), None

    return jax.lax.scan(once, state, jnp.arange(self.back))[0]

  def cache(self, params: Params, rows: Rows, slots: int) -> Caches:
    """Empty caches with `slots` slots for each of the rows."""
    parts = self.parts
    made = {name: parts[name].cache(params[name], rows, slots) for name in parts}

    def each(leaf):
      return jnp.broadcast_to(leaf, (self.recurrences, *leaf.shape))

    return Caches(made["prelude"], jax.tree.map(each, made["core"]), made["coda"])

  def extend(
    self,
    params: Params,
    rows: Rows,
    cache: Caches,
    slots: Int[Array, "B Q"],
    *,
    memory: Float[Array, "B Q D"] | None = None,
  ) -> tuple[Prediction, Caches]:
    """The answers of all Q tokens of `rows`, and the caches in which they are written: those of
    `apply` on a row that holds the tokens of all written slots.

    Raises:
      ValueError: for a memory, of which there is none.
    """
    if memory is not None:
      raise ValueError("memory is nothing that model.name='recurrent_depth' has; leave it out")
    parts = self.parts
    read, prelude = parts["prelude"].extend(params["prelude"], rows, cache.prelude, slots)

    def once(state, core):
      asked = everywhere(rows, jnp.concatenate([state, read.features], axis=-1))
      found, core = parts["core"].extend(params["core"], asked, core, slots)
      return found.features, core

    state, core = jax.lax.scan(once, jnp.zeros_like(read.features), cache.core)
    asked = everywhere(rows, state)
    prediction, coda = parts["coda"].extend(params["coda"], asked, cache.coda, slots)
    return prediction, Caches(prelude, core, coda)


def everywhere(rows: Rows, vectors: Float[Array, "B L E"] | None = None) -> Rows:
  """The rows with an answer at every position; their inputs are replaced by `vectors`, if given."""
  inputs = rows.inputs
  if vectors is not None:
    inputs = Inputs(vectors=vectors, position=rows.inputs.position)
  return dataclasses.replace(rows, inputs=inputs, answers=Span(0, rows.t.shape[1]))


@functools.cache
def _parts(network: RecurrentDepth) -> dict[str, Transformer]:
  names = {field.name for field in dataclasses.fields(TransformerOptions)}
  options = {name: getattr(network, name) for name in names}
  # Prelude and core need no head: with tied embeddings theirs has no parameters of its own.
  inner = {"output_size": 1, "tie_embeddings": True}
  width = network.width

  def part(layers: int, **changes: Any) -> Transformer:
    return Transformer(**{**options, "layers": layers, **changes})

  return {
    "prelude": part(network.prelude, **inner),
    "core": part(network.core, **inner, input_sizes=InputSizes(vectors=2 * width)),
    "coda": part(network.coda, input_sizes=InputSizes(vectors=width)),
  }

"""The exact network: the posterior of each query's clean token given what the layout shows it.

It stands in for a trained network wherever a law is to be tested without training. Because it
answers through the layout (segment, block, noisy flag), by rotary position, and with a cache of its
own (keys are the evidence that was written into slots), a wrong mask, shift, segment or slot shows
up as a wrong number.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import NEVER
from diffusion_text.core.options import member, option
from diffusion_text.kernels.layout import visible
from diffusion_text.testing.languages import Enumerable, chain_law, enumerated_law
from diffusion_text.types import (
  Cache,
  Head,
  Inputs,
  Key,
  Layout,
  Params,
  Prediction,
  Rows,
  pytree,
)

_HIGHEST = jax.lax.Precision.HIGHEST


def exact_params(language: Any, process_params: Params | None = None, **groups: Params) -> Params:
  """The parameters of a model whose network is an ExactNetwork of the language.

  The network's group is {"language": its arrays, "kernel": [V, V], the identity, for the head,
  "process": the process's own}. `groups` are added or put in place of empty ones.
  """
  process_params = {} if process_params is None else process_params
  network = {
    "language": jax.tree.map(jnp.asarray, language.arrays()),
    "kernel": jnp.eye(language.vocab_size),
    "process": process_params,
  }
  return {"network": network, "process": process_params, "timing": {}, **groups}


@pytree()
class Seen:
  """What stands in the slots of an exact network: its keys.

  Attributes:
    evidence: float32 [B, K, V], log q(z | x = v) of the token at the slot.
    memory: float32 [B, K, D], what self-conditioning remembers of it.
    position: int32 [B, K], the place in the language; outside of 0 … L - 1 the slot says nothing.
    layout: of the K slots, every field set.
    written: bool [B, K].
  """

  evidence: Array
  memory: Array
  position: Array
  layout: Layout
  written: Array


@member
class ExactNetwork:
  """A network that knows the language. Its parameters are made by `exact_params`.

  Its answer means what the process takes outputs to mean (`reads_logits_as`).
  """

  process: Any = option(..., "the process whose states it reads")
  answer_shift: int = option(0, "how many places before the token the query stands", ge=0)
  reads: Literal["linear", "softmax"] = option(
    "linear", "how the process makes inputs of vectors: a multiple of the state, or its softmax"
  )
  router: float = option(0.0, "size of a loss of its own, reported as 'router'", ge=0)
  echo: float = option(
    0.0,
    "how much of what self-conditioning remembers is added to the answer: above 0 the answer is"
    " not exact, and a memory that is lost or put at a wrong place shows",
    ge=0,
  )
  staged: bool = option(False, "whether there is an earlier stage, whose answer is the same")
  length: int = option(4, "places of the language that `init` draws", ge=1)

  layers: ClassVar[int] = 1

  def __post_init__(self):
    scores = self.process.reads_logits_as == "score" and self.process.mask_id is None
    if scores and self.answer_shift:
      raise ValueError(
        f"answer_shift={self.answer_shift}: scores compare with the token at the query's own place;"
        " use answer_shift=0"
      )

  def init(self, key: Key) -> Params:
    """The parameters of a language that is drawn with the key."""
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    language = Enumerable.dirichlet(seed, 0.5, self.process.vocab_size, self.length)
    return exact_params(language)["network"]

  def apply(
    self,
    params: Params,
    rows: Rows,
    *,
    memory: Float[Array, "B N D"] | None = None,
    key: Key | None = None,
    hidden_layers: tuple[int, ...] = (),
  ) -> Prediction:
    """The exact answers, as features of a head that is the identity."""
    del key
    rows_count, length = rows.t.shape
    padded = self._at_tokens(params, rows, memory)
    seen = self._read(params, rows, padded)
    sees = visible(rows.layout, rows.layout)
    sees = jnp.ones((1, 1, 1), bool) if sees is None else sees
    sees = jnp.broadcast_to(sees, (rows_count, length, length))
    queries = slice(rows.answers.start, rows.answers.stop)
    here = jax.tree.map(lambda x: x[:, queries], (seen.position, seen.evidence))
    features = self._answer(params, rows, seen, sees[:, queries], *here, queries)
    return self._prediction(params, rows, features, queries, hidden_layers)

  def cache(self, params: Params, rows: Rows, slots: int) -> Cache:
    """Nothing written."""
    del params
    count = rows.t.shape[0]
    zeros = jnp.zeros((count, slots), jnp.int32)
    return Seen(
      evidence=jnp.zeros((count, slots, self.process.vocab_size)),
      memory=jnp.zeros((count, slots, self.process.estimate_size)),
      position=zeros - 1,
      layout=Layout(zeros, zeros, zeros),
      written=jnp.zeros((count, slots), bool),
    )

  def extend(
    self,
    params: Params,
    rows: Rows,
    cache: Cache,
    slots: Int[Array, "B Q"],
    *,
    memory: Float[Array, "B Q D"] | None = None,
  ) -> tuple[Prediction, Cache]:
    """The answers of Q tokens, which see every written slot and their own, and the next cache."""
    count, queries = rows.t.shape
    if memory is None:
      empty = self.no_memory(params)
      memory = jnp.broadcast_to(empty, (count, queries, empty.shape[0]))
    new = self._read(params, rows, memory)
    row = jnp.arange(count)[:, None]
    cache = jax.tree.map(lambda old, now: old.at[row, slots].set(now), cache, new)
    # A field that is None means the same for every position, and the cache has it as zeros.
    sees = visible(_filled(rows.layout, count, queries), cache.layout) & cache.written[:, None, :]
    here = (new.position, new.evidence)
    features = self._answer(params, rows, cache, sees, *here, slice(0, queries))
    return Prediction(features, Head(params["kernel"])), cache

  def first_values(
    self, params: Params, rows: Rows, *, memory: Float[Array, "B N D"] | None = None
  ) -> Float[Array, "B L V"]:
    """What each token shows of itself: the distribution that its evidence makes of even odds."""
    del memory
    return jax.nn.softmax(self._evidence(params["process"], rows.inputs, rows.t), axis=-1)

  def remember(self, params: Params, estimate: Float[Array, "n E"]) -> Float[Array, "n E"]:
    """The estimate itself."""
    del params
    return estimate

  def no_memory(self, params: Params) -> Float[Array, " E"]:
    """A half everywhere: not zero, so that a zero in its place shows."""
    del params
    return jnp.full((self.process.estimate_size,), 0.5)

  def _prediction(self, params, rows, features, queries, hidden_layers) -> Prediction:
    head = Head(params["kernel"])
    losses = {}
    if self.router:
      weights = jnp.ones(rows.t.shape) if rows.weights is None else rows.weights
      weights = jnp.broadcast_to(weights, rows.t.shape)[:, queries]
      # Bounded, so that no answer near certainty drowns the loss beside it.
      size = jnp.mean(jnp.tanh(features), axis=-1) ** 2
      losses["router"] = self.router * jnp.sum(weights * size) / jnp.sum(weights)
    stages = (Prediction(features, head),) if self.staged else ()
    return Prediction(features, head, losses, stages, {layer: features for layer in hidden_layers})

  def _at_tokens(self, params, rows, memory) -> Array:
    """The memory of all L' positions: as given where the tokens stand, none elsewhere."""
    count, length = rows.t.shape
    empty = self.no_memory(params)
    everywhere = jnp.broadcast_to(empty, (count, length, empty.shape[0]))
    if memory is None:
      return everywhere
    return everywhere.at[:, rows.tokens.start : rows.tokens.stop].set(memory)

  def _read(self, params, rows, memory) -> Seen:
    count, length = rows.t.shape
    position = jnp.arange(length)[None] if rows.inputs.position is None else rows.inputs.position
    return Seen(
      evidence=self._evidence(params["process"], rows.inputs, rows.t),
      memory=memory,
      position=jnp.broadcast_to(position, (count, length)).astype(jnp.int32),
      layout=_filled(rows.layout, count, length),
      written=jnp.ones((count, length), bool),
    )

  def _evidence(self, params, inputs: Inputs, t) -> Array:
    """float32 [B, L', V], finite. A vector at t = 0 is known for certain."""
    if inputs.vectors is None:
      return jnp.maximum(self.process.evidence(params, inputs.ids, t), NEVER)
    vectors = inputs.vectors
    table = self.process.clean(params, jnp.arange(self.process.vocab_size))
    zeros = jnp.zeros(table.shape[0])
    shown = self.process.inputs(params, table[None], zeros[None]).vectors[0]
    miss = jnp.sum((vectors[..., None, :] - shown) ** 2, axis=-1)
    token = jnp.argmin(miss, axis=-1)
    state = self._state(params, vectors, t, table.shape[-1])
    state = jnp.where(t[..., None] > 0, state, table[token])
    certain = jnp.where(token[..., None] == jnp.arange(len(zeros)), 0.0, NEVER)
    noisy = self.process.evidence(params, state, t)
    return jnp.maximum(jnp.where(t[..., None] > 0, noisy, certain), NEVER)

  def _state(self, params, vectors, t, width) -> Array:
    """The state of which a process has made inputs; behind a softmax, up to a constant."""
    if self.reads == "softmax":
      return jnp.log(jnp.maximum(vectors, 1e-37))
    ones = jnp.ones((*vectors.shape[:-1], width))
    return vectors / self.process.inputs(params, ones, t).vectors

  def _answer(self, params, rows, seen: Seen, sees: Bool[Array, "B Q K"], position, own, queries):
    """The output for each query: [B, Q, V], or [B, Q, E] of a process that reads a vector."""
    process, language = self.process, params["language"]
    length = language["places" if "places" in language else "sequences"].shape[-1]
    target = jnp.clip(position + self.answer_shift, 0, length - 1)
    alone = process.reads_logits_as in ("leave_one_out", "score")
    keys = sees & (seen.position[:, None, :] != target[..., None]) if alone else sees
    place = (seen.position[..., None] == jnp.arange(length)).astype(jnp.float32)
    at_place = place[..., None] * seen.evidence[:, :, None, :]
    clues = jnp.einsum("bqk,bklv->bqlv", keys.astype(jnp.float32), at_place, precision=_HIGHEST)
    law = _law(language, clues)
    law = jnp.take_along_axis(law, target[..., None, None], axis=2)[:, :, 0]
    output = output_of(process, params["process"], law, own, rows.t[:, queries])
    if not self.echo:
      return output
    share = sees / jnp.maximum(jnp.sum(sees, axis=-1, keepdims=True), 1)
    remembered = jnp.einsum("bqk,bkd->bqd", share, seen.memory, precision=_HIGHEST)
    width, size = remembered.shape[-1], output.shape[-1]
    mix = np.cos(np.outer(np.arange(1, width + 1), np.arange(1, size + 1)))
    return output + self.echo * jnp.matmul(remembered, jnp.float32(mix), precision=_HIGHEST)


def output_of(
  process: Any,
  params: Params,
  law: Float[Array, "*n V"],
  own: Float[Array, "*n V"],
  t: Float[Array, "*n"],
) -> Float[Array, "*n O"]:
  """The output of a network that knows the law, in the terms of the process.

  Args:
    process: its `reads_logits_as` says what outputs mean.
    params: of the process.
    law: log-probabilities of the clean token, own evidence included where the process reads the
      posterior (or a vector), and left out where it reads leave-one-out laws or scores.
    own: the evidence of the token's own state; only scores need it.
    t: the times; only scores need them.
  """
  if process.reads_logits_as == "vector":
    table = process.clean(params, jnp.arange(process.vocab_size))
    return jnp.matmul(jnp.exp(law), table, precision=_HIGHEST)
  if process.reads_logits_as != "score":
    return law
  if process.mask_id is not None:  # up to the known factor, which is left to the process
    return law + np.log(process.vocab_size)
  # Scores: log q(y in place of z_i) - log q(z_i), given all others.
  everyone = [
    process.evidence(params, jnp.full(t.shape, token), t) for token in range(process.vocab_size)
  ]
  others = jnp.stack([jax.nn.logsumexp(law + each, axis=-1) for each in everyone], axis=-1)
  return others - jax.nn.logsumexp(law + own, axis=-1, keepdims=True)


def _law(language: Params, clues: Float[Array, "B Q L V"]) -> Float[Array, "B Q L V"]:
  if "places" in language:
    return chain_law(language["log_initial"], language["log_transition"], clues)
  return enumerated_law(language["sequences"], language["log_p"], clues)


def _filled(layout: Layout, rows: int, length: int) -> Layout:
  """The layout with every field set, int32 [rows, length]."""

  def fill(field):
    field = jnp.zeros((1, 1), jnp.int32) if field is None else field
    return jnp.broadcast_to(field, (rows, length)).astype(jnp.int32)

  return Layout(fill(layout.segment), fill(layout.block), fill(layout.noisy))

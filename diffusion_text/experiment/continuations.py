"""log p(continuation | context) of many texts: the bound of rows whose context is observed.

A row is the tokens of context and continuation, and padding up to a multiple of `BUCKET` that no
token sees. Only the continuation is scored. What a request gets depends on its own tokens and the
seed: neither on the other requests, nor on the batch size (but for rounding). Its times are spread
evenly over its own draws, and noise and times are named by its context, so that all continuations
of one context are compared under the same noise, where it matters which of them costs least.

For models that answer from clean tokens alone (autoregressive ones) one draw is exact.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_text import train
from diffusion_text.data.packing import PADDING_SEGMENT
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained
from diffusion_text.objective import engine
from diffusion_text.types import Array, Batch, Key, Keys, Model, Params, Progress

BUCKET = 32  # rows are padded to a multiple of it: one program is compiled for each

Ids = Int[np.ndarray, " n"]


class Request(NamedTuple):
  """Tokens to score.

  Attributes:
    context: int32 [c], observed.
    continuation: int32 [n], scored, at least one token.
    noise: a number below 2**31 that names its noise and times.
  """

  context: Ids
  continuation: Ids
  noise: int


class Scored(NamedTuple):
  """What a request costs.

  Attributes:
    log_prob: nats, at most log p(continuation | context) but for the error of the draws; equal to
      it for an exact model.
    standard_error: of `log_prob` over its draws, as if these were independent (they are spread
      evenly, so the true error is smaller); 0 for an exact model, nan for one draw of another.
    greedy: True if the continuation is what the model holds likeliest; None if nobody asked.
  """

  log_prob: float
  standard_error: float
  greedy: bool | None = None


def request_of(tokenizer: Any, context: str, continuation: str) -> Request:
  """The request of two texts. Spaces at the end of the context are scored, as lm_eval has it; the
  context is what tokens the whole text shares with the context alone.

  Raises:
    ValueError: for an empty continuation.
  """
  if not continuation:
    raise ValueError(f"context {context!r} has an empty continuation; give at least one character")
  whole = encoded(tokenizer, context + continuation)
  alone = encoded(tokenizer, context.rstrip())
  shared = min(len(alone), len(whole) - 1)
  differs = np.flatnonzero(alone[:shared] != whole[:shared])
  cut = int(differs[0]) if len(differs) else shared
  return request(whole[:cut], whole[cut:])


def request(context: Ids, continuation: Ids) -> Request:
  """A request whose noise is named by its context."""
  return Request(context, continuation, name_of(context))


def name_of(ids: Ids) -> int:
  """A number below 2**31 that is equal for equal tokens, in every process."""
  return zlib.crc32(np.asarray(ids, np.int32).tobytes()) >> 1


def windows(ids: Ids, length: int, last: str) -> list[Request]:
  """Requests that score every token of a text once: rows of `length` tokens without context.

  Args:
    ids: the text.
    length: tokens of a row.
    last: "context": the last window is a whole row too, in which the tokens that were scored before
      are the context (as lm_eval has it). "rows": it has no context, as in `experiments.evaluate`.

  Raises:
    ValueError: for a text without tokens.
  """
  if not len(ids):
    raise ValueError("a text without tokens cannot be scored; give at least one character")
  found = []
  for start in range(0, len(ids), length):
    stop = min(start + length, len(ids))
    begin = max(stop - length, 0) if last == "context" else start
    row = np.asarray(ids[begin:stop], np.int32)
    found.append(Request(row[: start - begin], row[start - begin :], name_of(row)))
  return found


def encoded(tokenizer: Any, text: str) -> Ids:
  """int32 [n]."""
  return np.asarray(tokenizer.encode(text), np.int32)


def without_begin(experiment: Experiment, ids: Ids) -> Ids:
  """The ids of a prompt without the token that begins texts, where the context puts it before every
  row, as one does that answers from clean tokens alone: twice is not what weights have seen."""
  begun = len(ids) > 1 and ids[0] == experiment.tokenizer.special["begin"]
  return ids[1:] if begun and not experiment.model.context.reads_noisy else ids


class Rows(NamedTuple):
  """Requests as rows of one length: [R, L] each, on the host."""

  ids: np.ndarray
  observed: np.ndarray
  weights: np.ndarray
  segment: np.ndarray


def rows_of(requests: Sequence[Request], length: int) -> Rows:
  """Rows of context, continuation and padding; padding has weight 0 and its own segment."""
  shape = (len(requests), length)
  ids, observed = np.zeros(shape, np.int32), np.ones(shape, bool)
  weights, segment = np.zeros(shape, np.float32), np.full(shape, PADDING_SEGMENT, np.int32)
  for row, each in enumerate(requests):
    start, stop = len(each.context), len(each.context) + len(each.continuation)
    ids[row, :stop] = np.concatenate([each.context, each.continuation])
    observed[row, start:stop] = False
    weights[row, :stop], segment[row, :stop] = 1.0, 1
  return Rows(ids, observed, weights, segment)


def padded_length(tokens: int, model: Model, longest: int) -> int:
  """The length of the row of so many tokens: a multiple of BUCKET, at most `longest`, and whole
  units of the context."""
  unit = model.context.unit or 1
  length = min(-(-tokens // BUCKET) * BUCKET, longest)
  return -(-max(length, tokens) // unit) * unit


def by_length(lengths: Sequence[int], size: int) -> Iterator[tuple[int, list[int]]]:
  """(length, at most `size` places with it), from the longest rows on: the first batch is the one
  that may not fit in memory."""
  for length in sorted(set(lengths), reverse=True):
    places = [place for place, each in enumerate(lengths) if each == length]
    for start in range(0, len(places), size):
      yield length, places[start : start + size]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Scores requests with a workdir.

  Attributes:
    trained: a workdir, loaded on one device.
    num_draws: draws of time and noise for each request; 1 is enough for an exact model.
    batch_size: rows in memory at a time.
    longest: tokens of a row, at most.
    seed: of the draws.
  """

  trained: Trained
  num_draws: int
  batch_size: int
  longest: int
  seed: int = 0

  def __post_init__(self):
    model = self.trained.experiment.scoring
    if not model.process.has_bound:
      raise ValueError(
        f"{model.process} has no bound on log p, so it cannot be scored; generate with it, or use a"
        " workdir of another process"
      )
    if self.num_draws < 1:
      raise ValueError(f"num_draws={self.num_draws} must be at least 1")

  @property
  def exact(self) -> bool:
    """True if the bound is -log p itself: the network answers from clean tokens alone."""
    return not self.trained.experiment.scoring.context.reads_noisy

  @property
  def draws_at_once(self) -> int:
    """Draws of a request in one call: the largest divisor of `num_draws` that fits in a batch."""
    sizes = range(1, min(self.num_draws, self.batch_size) + 1)
    return max(size for size in sizes if self.num_draws % size == 0)

  def check(self, each: Request) -> None:
    """Raises ValueError for a request that is longer than a row, or scores nothing."""
    context, continuation = len(each.context), len(each.continuation)
    if not continuation:
      raise ValueError(f"a continuation after {context} tokens is empty; give at least one token")
    if context + continuation > self.longest:
      raise ValueError(
        f"context of {context} and continuation of {continuation} tokens are more than"
        f" max_length={self.longest}; use a larger max_length (training had"
        f" {self.trained.experiment.data.length}), or longer=cut, which leaves out the begin of"
        " contexts"
      )

  def score(self, requests: Sequence[Request], *, greedy: bool = False) -> list[Scored]:
    """What each request costs, in order. `greedy`: whether the continuation is the likeliest one is
    found out too, which costs one more reading; of exact models only.

    Raises:
      ValueError: for a request that is longer than a row.
    """
    for each in requests:
      self.check(each)
    model = self.trained.experiment.scoring
    sizes = [len(each.context) + len(each.continuation) for each in requests]
    lengths = [padded_length(size, model, self.longest) for size in sizes]
    found: list[Scored | None] = [None] * len(requests)
    size = max(self.batch_size // self.draws_at_once, 1)
    for length, places in by_length(lengths, size):
      # The last batch is filled up with its last row: all batches are one compiled program.
      filled = [requests[place] for place in (places + places[-1:] * size)[:size]]
      nats, hits = self._batch(filled, length, greedy)
      for row, place in enumerate(places):
        found[place] = self._scored(nats[row], bool(hits[row]) if greedy else None)
    return found

  def _scored(self, nats: Float[np.ndarray, " D"], greedy: bool | None) -> Scored:
    spread = nats.std(ddof=1) if len(nats) > 1 else math.nan
    error = 0.0 if self.exact else float(spread) / math.sqrt(len(nats))
    return Scored(-float(nats.mean()), error, greedy)

  def _batch(self, requests: Sequence[Request], length: int, greedy: bool):
    """(nats [R, D] float64, bool [R] or None)."""
    rows = rows_of(requests, length)
    base = train.named_key(self.seed, "evaluate", 0)
    names = jnp.asarray([each.noise for each in requests], jnp.int32)
    keys = jax.vmap(functools.partial(jax.random.fold_in, base))(names)
    params, draws = self.trained.params, self.draws_at_once
    level = self.trained.experiment.evaluate.decode_at
    model, parts = self._model(self.batch_size // draws), self.num_draws // draws
    nats = [
      np.asarray(_nats(model, draws, parts, level, params, keys, rows, part), np.float64)
      for part in range(parts)
    ]
    hits = _hits(self._model(self.batch_size), params, keys, rows) if greedy else None
    return np.concatenate(nats, axis=1), None if hits is None else np.asarray(hits)

  def _model(self, requests: int) -> Model:
    """The model that is scored, with as many logits at a time over all requests as of one batch."""
    model = self.trained.experiment.scoring
    return model._replace(chunk=max(model.chunk // max(requests, 1), 1), shards=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _nats(
  model: Model,
  draws: int,
  parts: int,
  level: float | None,
  params: Params,
  keys: Keys,
  rows: Rows,
  part: Array,
) -> Float[Array, "R {draws}"]:
  """Nats [R, draws] of part `part` of the draws of each request, which are parts · draws in all."""

  def one(key: Key, row: Rows):
    batch, progress = _batch_of(row, draws), Progress(part=part, parts=parts)
    return jnp.sum(engine.nats(model, params, key, batch, progress, decode_at=level), axis=1)

  return jax.vmap(one)(keys, rows)


@functools.partial(jax.jit, static_argnums=0)
def _hits(model: Model, params: Params, keys: Keys, rows: Rows) -> Bool[Array, " R"]:
  """bool [R]: every scored token of a request is the likeliest one, as the network reads it."""

  def best(consts, row: engine.TokenRow):
    head, own = consts
    logits = engine.posterior_logits(model.process, own, row, head(row.features))
    return jnp.argmax(logits, axis=-1) == row.ids

  def one(key: Key, row: Rows):
    batch, progress = _batch_of(row, 1), Progress()
    times = engine.draw_times(model, params, key, batch, progress)
    noised = engine.read(model, params, key, batch, times, progress, dropout=False)
    where, tokens = engine.token_rows(model, params, batch, noised)
    consts = noised.prediction.head, params["process"]
    return jnp.all(engine.map_tokens(model, best, consts, where, tokens) | ~where)

  return jax.vmap(one)(keys, rows)


def _batch_of(row: Rows, draws: int) -> Batch:
  """A batch of copies of a row."""
  copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (draws, *leaf.shape)), row)
  return Batch(copies.ids, copies.observed, None, copies.weights, copies.segment)

"""Models whose network is exact, their parameters, and what they cost."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_text.context.whole import Full
from diffusion_text.objective import engine
from diffusion_text.testing.exact_network import ExactNetwork, exact_params
from diffusion_text.testing.languages import Enumerable, MarkovChain
from diffusion_text.timing.along_row import Shared
from diffusion_text.types import (
  Batch,
  Context,
  DataFacts,
  Key,
  Model,
  Params,
  Process,
  Progress,
  Timing,
)

CHUNK = 8192  # positions whose logits exist at a time: all of them, as vocabularies are tiny here

Language = Enumerable | MarkovChain


def facts_of(language: Language, length: int | None = None) -> DataFacts:
  """What members may know of data in this language; `length` positions, if not those of a row."""
  ids = language.sample(np.random.default_rng(0), 4096)
  # Every token occurs: a count of 0 is refused by members that weigh by rarity.
  counts = np.bincount(ids.reshape(-1), minlength=language.vocab_size) + 1
  length = language.length if length is None else length
  return DataFacts(length, language.vocab_size, lambda: counts, lambda: counts, steps=1000)


def small_language(vocab_size: int) -> Enumerable:
  """A language of up to 4 tokens per row and about 100 sequences, with the probabilities drawn."""
  length = next(length for length in (4, 3, 2, 1) if vocab_size**length <= 100 or length == 1)
  return Enumerable.dirichlet(0, 0.5, vocab_size, length)


def exact_model(
  process: Process,
  language: Language,
  *,
  timing: Timing | None = None,
  context: Context | None = None,
  answer_shift: int = 0,
  reads: Literal["linear", "softmax"] = "linear",
  self_conditioning: float = 0.0,
  process_params: Params | None = None,
  **network: Any,
) -> tuple[Model, Params]:
  """(a model that knows the language, its parameters).

  Args:
    process: its parameters are made here, or passed as `process_params`.
    language: what the network knows.
    timing: None: one shared time.
    context: None: bidirectional rows.
    answer_shift: of the network: 1 for a context whose answers stand one place before the token.
    reads: of the network: "softmax" for a process that shows the softmax of its state.
    self_conditioning: of the model.
    **network: further options of `ExactNetwork`.
  """
  timing = Shared() if timing is None else timing
  context = Full() if context is None else context
  facts = facts_of(language, process.positions(language.length))
  if process_params is None:
    process_params = process.init(jax.random.key(0), facts)
  unit = facts._replace(length=context.unit or facts.length)
  exact = ExactNetwork(process, answer_shift=answer_shift, reads=reads, **network)
  params = exact_params(language, process_params, timing=timing.init(jax.random.key(1), unit))
  model = Model(exact, process, timing, context, CHUNK, self_conditioning=self_conditioning)
  return model, params


class Estimate(NamedTuple):
  """A mean of independent draws.

  Attributes:
    mean: the mean.
    error: its standard error.
  """

  mean: float
  error: float

  @staticmethod
  def of(values: Any) -> Estimate:
    """The estimate from independent draws."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


@functools.partial(jax.jit, static_argnums=0)
def excess(
  model: Model, params: Params, key: Key, batch: Batch, log_p: Float[Array, " B"]
) -> Float[Array, ""]:
  """The mean over rows of one draw of the bound, in nats, less -log p of each row."""
  nats = engine.nats(model, params, key, batch, Progress())
  return jnp.mean(jnp.sum(nats, axis=1) + log_p)


def excess_of_bound(
  model: Model,
  params: Params,
  language: Enumerable,
  *,
  costs: Enumerable | None = None,
  rows: int = 2048,
  draws: int = 16,
  documents: int = 1,
  seed: int = 0,
) -> Estimate:
  """The bound in nats per row, less -log p(x) row by row: 0 where the bound is tight.

  Rows are drawn systematically, so that what is left is the noise of times and corruption alone.

  Args:
    model: its network is exact for the language `costs`.
    params: the whole tree.
    language: of the data.
    costs: the language whose -log p(x) is subtracted; None: that of the data.
    rows: rows of a draw.
    draws: independent draws; the standard error is taken between them.
    documents: texts that share a row, each in a segment of its own.
    seed: of keys and data.
  """
  costs = language if costs is None else costs
  values = []
  for number in range(draws):
    ids = language.systematic(rows * documents, seed=1000 * seed + number)
    log_p = np.float32(costs.log_likelihood(ids)).reshape(rows, documents).sum(1)
    batch = Batch(ids.reshape(rows, -1))
    if documents > 1:
      segment = np.repeat(np.arange(documents, dtype=np.int32), language.length)
      segment = np.broadcast_to(segment, batch.ids.shape)
      batch = Batch(batch.ids, segment=segment)
    key = jax.random.key(1000 * seed + number)
    values.append(float(excess(model, params, key, batch, log_p)))
  return Estimate.of(values)

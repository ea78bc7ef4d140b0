"""Caches on a trained model that sees the whole row: how often they write the tokens of whole rows,
and what they read for it.

Every line decodes the same rows with the same keys, order and budget (by default two tokens per
call) in windows from left to right; only the reader differs. Text is decoded greedily behind a
prompt. Rows of a chain are drawn at temperature 1, so that their law can be compared with that of
the chain; as all lines use the same random numbers, agreement has a meaning there too. Controls: a
delayed cache without its delay, and a cache that reads (almost) nothing between two refreshes.

The gates of dKV-Cache (arXiv 2505.15781): at most half of the token-layers at an agreement of 0.95,
and less agreement without the delay.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from diffusion_text.context import Full
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.data import tokenizers
from diffusion_text.data.corpora import Austen
from diffusion_text.experiment.api import TextData, fit
from diffusion_text.experiment.registry import check_names
from diffusion_text.objective import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.reader.delayed_cache import DelayedCache
from diffusion_text.reader.layer_cache import LayerCache
from diffusion_text.reader.roll_out_cache import RollOutCache
from diffusion_text.reader.similar_cache import SimilarCache
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.reader.window_cache import SuffixCache, WindowCache
from diffusion_text.sampler.accounting import CostReport, cost_report
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import MaxProb
from diffusion_text.studies.chains import Chain, chain_of, masked_model, network_of
from diffusion_text.studies.measures import (
  markdown,
  mean_and_error,
  neighbours,
  pooled_entropy,
  total_variation,
  write,
)
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model, Params, Reader

HEADER = ("reader", "options", "token-layers", "attention", "agreement", "bigram TV")
HEADER = (*HEADER, "token entropy, nats")
TEXT, EXACT = "text", "exact"
NEVER_AGAIN = 10**6
Exact = Callable[[Chain], tuple[Model, Params]]


@member
class Settings:
  """How the study is run; the defaults are those of text."""

  layers: int = option(4, "of the network", ge=1)
  width: int = option(128, "of the network", ge=2)
  length: int = option(128, "characters of a row of text; a chain has its own", ge=8)
  prompt: int = option(32, "characters of text that are observed", ge=0)
  block: int = option(32, "positions of a window; chains have a quarter of the row", ge=2)
  per_call: int = option(2, "tokens of a window that are committed per call", ge=1)
  steps: int = option(450, "updates, of 32 rows of text or 64 of a chain", ge=1)
  rows: int = option(32, "texts of each line", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Problem(NamedTuple):
  """What is decoded.

  Attributes:
    model, params: a masked model that sees the whole row.
    batch: the rows, of which some tokens may be observed.
    bigrams: float64 [V, V], the law of two neighbours that the texts are compared with.
    block: positions of a window.
    temperature: of the draws.
    per_call: tokens that a call commits.
  """

  model: Model
  params: Params
  batch: Batch
  bigrams: Float[np.ndarray, "V V"]
  block: int
  temperature: float
  per_call: int


class Line(NamedTuple):
  """One line of the table: a reader, the texts that it led to, and what they cost."""

  name: str
  options: str
  ids: Int[np.ndarray, "B L"]
  cost: CostReport | None


def text_problem(settings: Settings) -> tuple[Problem, Int[np.ndarray, "B L"]]:
  """(a model of characters of the bundled novels, with held-out rows whose beginning is observed;
  the same rows as they go on).
  """
  corpus, seed = Austen(), settings.seed
  tokenizer = tokenizers.build_tokenizer("characters", None, corpus.documents("train"))
  data = TextData(corpus, tokenizer, settings.length)
  process = Masked(vocab_size=data.vocab_size)
  network = network_of(process, settings.layers, settings.width, scan_layers=True)
  model = Model(network, process, Shared(), Full(), chunk=1024)
  facts, batches = data.facts(settings.steps), data.batches(32, seed=seed)
  params = fit(model, Bound(), batches, facts, learning_rate=2e-3, seed=seed)
  held_out, _ = next(data.held_out("test", settings.rows))
  ids = np.asarray(held_out.ids)
  train = np.asarray(next(iter(data.batches(512, seed=seed + 1))).ids)
  observed = np.broadcast_to(np.arange(settings.length) < settings.prompt, ids.shape)
  law = neighbours(train, data.vocab_size)
  batch = Batch(ids, observed)
  return Problem(model, params, batch, law, settings.block, 0.0, settings.per_call), ids


def chain_problem(name: str, settings: Settings) -> tuple[Problem, Int[np.ndarray, "B L"]]:
  """(the masked model of a chain and rows of which nothing is observed, rows of the chain)."""
  chain = chain_of(name)
  made = masked_model(chain, settings.layers, settings.width, settings.steps, settings.seed)
  return _of_chain(chain, *made, settings)


def exact_problem(exact: Exact, settings: Settings) -> tuple[Problem, Int[np.ndarray, "B L"]]:
  """As `chain_problem`, for the chain "branchy" and a network that computes its exact posterior.

  The slot of a position holds only what its own token shows. A cache therefore errs only where a
  token has changed since its slot was written.
  """
  chain = chain_of("branchy")
  return _of_chain(chain, *exact(chain), settings)


def _of_chain(
  chain: Chain, model: Model, params: Params, settings: Settings
) -> tuple[Problem, Int[np.ndarray, "B L"]]:
  ids = chain.sample(np.random.default_rng(settings.seed + 2), settings.rows)
  batch = Batch(np.zeros_like(ids), np.zeros(ids.shape, bool))
  block = chain.length // 4
  return Problem(model, params, batch, chain.bigrams(), block, 1.0, settings.per_call), ids


def readers(block: int, length: int) -> Iterator[tuple[str, str, Reader]]:
  """(name, options as text, reader) of every line; the first reads whole rows."""
  calls = block // 2
  often = [each for each in (2, 4, 8) if each < calls]
  yield "whole rows", "–", WholeRow()
  yield "window", "once a window", WindowCache()
  yield from (("window", f"every {each}", WindowCache(every=each)) for each in often)
  yield "suffix", "once a window", SuffixCache()
  yield "suffix kept", "once", SuffixCache(prefix="kept")
  for queries in dict.fromkeys((block + 4, block * 3 // 2)):
    for each in (*often[-2:], NEVER_AGAIN):
      for delay in (1, 0, 2) if each == often[-1] else (1, 0):
        name = "delayed" if delay else "undelayed (control)"
        said = f"{queries} tokens, every {_number(each)}"
        said += f", delay {delay}" if delay > 1 else ""
        yield name, said, DelayedCache(queries=queries, every=each, delay=delay)
  for share in (0.125, 0.25, 0.5):
    for each in often[-2:]:
      said = f"share {share:g}, every {each}"
      yield "similar", said, SimilarCache(share=share, every=each)
      yield "similar by layer", said, LayerCache(share=share, every=each)
  for each in often[-2:]:
    reader = RollOutCache(queries=block + 4, masked=block // 2, every=each)
    yield "roll-out", f"{block + 4} tokens, every {each}", reader
  yield "one token (control)", "every 3", SimilarCache(share=1 / length, every=3)


def _number(every: int) -> str:
  return "window" if every == NEVER_AGAIN else str(every)


def sampler_of(problem: Problem) -> Reveal:
  """The sampler of every line: the likeliest tokens of a window first, `per_call` in each call."""
  budget = EvenShare(steps=-(-problem.block // problem.per_call))
  return Reveal(score=MaxProb(), budget=budget, temperature=problem.temperature)


def decoded(problem: Problem, reader: Reader, seed: int) -> tuple[np.ndarray, CostReport]:
  """(the ids [B, L] of the texts, what they cost)."""
  sampler = sampler_of(problem)
  keys = row_keys(seed, len(problem.batch.ids))
  how = {"batch": problem.batch, "reader": reader, "block": problem.block}
  made = jax.device_get(sample(problem.model, problem.params, sampler, keys, **how))
  return np.asarray(made.ids), cost_report(made, problem.model, batch=problem.batch)


def agreement(problem: Problem, line: Line, whole: Line) -> tuple[float, float]:
  """(the share of generated tokens that are those of whole rows, its standard error over rows)."""
  drawn = ~np.asarray(problem.batch.observed)
  return mean_and_error(((line.ids == whole.ids) & drawn).sum(1) / drawn.sum(1))


def cells(problem: Problem, line: Line, whole: Line) -> tuple[str, ...]:
  """The cells of a line. Agreement is with the texts of whole rows, over generated tokens."""
  size = problem.model.process.vocab_size
  distance = total_variation(neighbours(line.ids, size), problem.bigrams)
  drawn = ~np.asarray(problem.batch.observed)
  entropy = pooled_entropy(line.ids[drawn])
  found = (f"{distance:.3f}", f"{entropy:.3f}")
  if line.cost is None:
    return line.name, line.options, "–", "–", "–", *found
  mean, error = agreement(problem, line, whole)
  cost = (f"{line.cost.relative_layers:.3f}", f"{line.cost.relative_attention:.3f}")
  return line.name, line.options, *cost, f"{mean:.3f} ± {error:.3f}", *found


def table(problem: Problem, lines: Sequence[Line]) -> str:
  """The lines in Markdown; the second is that of whole rows."""
  rows = [cells(problem, line, lines[1]) for line in lines]
  return markdown(HEADER, rows, left=(0, 1))


def fits(reader: Reader, model: Model) -> bool:
  """True if a reader can read this model: some choose in each layer, and an exact network has no
  layers.
  """
  try:
    reader.check(model)
  except ValueError:
    return False
  return True


def run(
  name: str,
  settings: Settings,
  workdir: pathlib.Path,
  only: Collection[str] = (),
  exact: Exact | None = None,
) -> str:
  """The table of readers in Markdown, which is also written to the workdir after every line.

  Args:
    name: what is decoded: TEXT, EXACT or the name of a chain.
    settings: how.
    workdir: where the table is written.
    only: names of readers; if empty, all that can read the model. Whole rows are always read.
    exact: for EXACT: a chain -> a model whose network knows the chain, and its parameters.

  Raises:
    ValueError: for a chain or a reader that is unknown, and for a reader of `only` that cannot read
      the model.
  """
  known = dict.fromkeys(name for name, *_ in readers(32, 128))
  check_names("--readers", only, known)
  if name == EXACT:
    problem, ids = exact_problem(exact, settings)
  elif name == TEXT:
    problem, ids = text_problem(settings)
  else:
    problem, ids = chain_problem(name, settings)
  whole, *others = readers(problem.block, ids.shape[1])
  if only:
    chosen = [each for each in others if each[0] in only]
    for _, _, reader in chosen:
      reader.check(problem.model)
  else:
    chosen = [each for each in others if fits(each[2], problem.model)]
  lines: list[Line] = [Line("data", "–", ids, None)]
  text = ""
  for called, options, reader in (whole, *chosen):
    lines.append(Line(called, options, *decoded(problem, reader, settings.seed + 1)))
    text = table(problem, lines)
    kept: dict[str, Any] = {"what": name, "settings": dataclasses.asdict(settings)}
    write(workdir, name, text, **kept, lines=[cells(problem, x, lines[1]) for x in lines[1:]])
    jax.clear_caches()
  return text

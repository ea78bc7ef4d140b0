"""Calls and quality with a budget of agreement with an autoregressive scorer: on sums of two
numbers, which can be checked, at temperature 0, and on a Markov chain at temperature 1.

A row of the task is a, b and a + b, least significant digits first; a and b are observed. Masked
model and scorer have the same size, so a pass of either is one call. "random" scorers were never
trained, or know another chain: they agree by chance alone, and then the rule commits about one
token per call from left to right.

With the default options of `python -m experiments.guided` the scorer adds without a mistake and the
masked model has not learned to add. The sums therefore show a right scorer beside wrong proposals,
which does not help, as no token is the scorer's. On the chain both models are trained.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from diffusion_text.context import Full, NextToken
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key, row_keys
from diffusion_text.experiment.api import fit
from diffusion_text.experiment.build import init
from diffusion_text.objective import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.agreement import Agreement
from diffusion_text.sampler.budget import EvenShare, Threshold
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import LeftToRight, MaxProb
from diffusion_text.studies import energy
from diffusion_text.studies.chains import QUALITY, network_of, phrase, quality
from diffusion_text.studies.energy import Pair
from diffusion_text.studies.measures import markdown, mean_and_error, pooled_entropy, write
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, DataFacts, Model, Sampler

SUMS = ("decoder", "calls", "scorer's", "tokens per call", "sums right", "digits right")
SUMS = (*SUMS, "digit entropy, nats")
CHAIN = ("decoder", "calls", "scorer's", "tokens per call", *QUALITY)


@member
class Settings:
  """How the study is run."""

  digits: int = option(10, "of each number", ge=1, le=1000)
  layers: int = option(2, "of both networks", ge=1)
  width: int = option(64, "of both networks", ge=2)
  steps: int = option(1200, "updates of each network, of 128 sums or 64 rows of the chain", ge=1)
  shares: tuple[float, ...] = option((0.0, 0.5, 0.8, 1.0), "R of the diffusion model's logits")
  rows: int = option(512, "texts of each line", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Cost(NamedTuple):
  """Means over rows: calls of the diffusion model, passes of the scorer, and tokens per call."""

  calls: float
  scorer: float
  tokens: float

  def cells(self) -> tuple[str, str, str]:
    """The cells of a table."""
    return f"{self.calls:.2f}", f"{self.scorer:.2f}", f"{self.tokens:.2f}"


def sums(rng: np.random.Generator, rows: int, digits: int) -> Int[np.ndarray, "B N"]:
  """int32 [B, 3 · digits + 1]: rows of a, b and a + b, least significant digits first."""
  a, b = rng.integers(0, 10, (2, rows, digits))
  total, carry = np.zeros((rows, digits + 1), int), np.zeros(rows, int)
  for place in range(digits):
    here = a[:, place] + b[:, place] + carry
    total[:, place], carry = here % 10, here // 10
  total[:, digits] = carry
  return np.concatenate([a, b, total], axis=1).astype(np.int32)


def problem(ids: Int[np.ndarray, "B N"], digits: int) -> Batch:
  """The rows with both numbers observed."""
  return Batch(ids, np.broadcast_to(np.arange(ids.shape[1]) < 2 * digits, ids.shape))


def trained_pair(settings: Settings) -> Pair:
  """Both models of sums, and two scorers: the trained model, and one of random parameters."""
  digits, seed = settings.digits, settings.seed
  process = Masked(vocab_size=10)
  network = network_of(process, settings.layers, settings.width)
  facts = DataFacts(3 * digits + 1, 10, steps=settings.steps)

  def batches(seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
      yield problem(sums(rng, 128, digits), digits)

  model = Model(network, process, Shared(), Full())
  ar = Model(network, process, AtNoise(), NextToken())
  how = {"facts": facts, "learning_rate": 2e-3, "seed": seed}
  params = fit(model, Bound(), batches(seed), **how)
  groups = {
    "trained": fit(ar, Bound(), batches(seed + 1), **how),
    # Not what `init` makes of its last layer, which may be zero: a head of a network of noise.
    "random": jax.tree.map(
      lambda leaf: leaf + 0.3 * np.random.default_rng(seed).normal(size=leaf.shape),
      init(ar, make_key(seed + 7), facts),
    ),
  }
  scorers = {name: Other(reader=WholeRow(), model=ar, group=name) for name in groups}
  return Pair(model, {**params, **groups}, scorers)


def drawn(pair: Pair, sampler: Sampler, seed: int, **batch):
  """(ids, the cost of a row)."""
  rows = batch["rows"] if "rows" in batch else len(batch["batch"].ids)
  result = sample(pair.model, pair.params, sampler, row_keys(seed, rows), **batch)
  result = jax.device_get(result)
  calls = result.row_calls.mean() / (1 + sampler.extra_calls)
  scorer = calls * sampler.extra_calls
  tokens = (result.committed >= 0).sum(1).mean() / (calls + scorer)
  return np.asarray(result.ids), Cost(float(calls), float(scorer), float(tokens))


def decoders(pair: Pair, tokens: int, temperature: float, shares: Sequence[float]):
  """name -> sampler."""
  plain = {"temperature": temperature}
  one = EvenShare(steps=tokens)
  found = {
    "left to right": Reveal(score=LeftToRight(), budget=one, **plain),
    "surest first": Reveal(score=MaxProb(), budget=one, **plain),
    "threshold 0.9": Reveal(score=MaxProb(), budget=Threshold(least=0.9), **plain),
    "all at once": Reveal(budget=EvenShare(steps=1), **plain),
  }
  for name in ("trained", "random"):
    budget = Agreement(scorer=pair.scorers[name])
    found[f"guided, {name} scorer"] = Reveal(score=LeftToRight(), budget=budget, **plain)
  for share in shares:
    if share:
      budget = Agreement(scorer=pair.scorers["trained"], share=share)
      name = f"guided, trained scorer, R = {share:g}"
      found[name] = Reveal(score=LeftToRight(), budget=budget, **plain)
  return found


def study_sums(settings: Settings) -> list[tuple[str, ...]]:
  """The lines of the task."""
  digits, seed = settings.digits, settings.seed
  pair = trained_pair(settings)
  truth = sums(np.random.default_rng(seed + 2), settings.rows, digits)
  batch = problem(truth, digits)
  lines = []

  def add(name, ids, cost):
    answer = ids[:, 2 * digits :]
    right = answer == truth[:, 2 * digits :]
    whole, error = mean_and_error(right.all(1))
    found = f"{whole:.3f} ± {error:.3f}", f"{right.mean():.4f}", f"{pooled_entropy(answer):.3f}"
    lines.append((name, *cost.cells(), *found))

  add("data", truth, Cost(0.0, 0.0, 0.0))
  for name, sampler in decoders(pair, digits + 1, 0.0, ()).items():
    add(name, *drawn(pair, sampler, seed + 3, batch=batch))
  alone = pair._replace(model=pair.scorers["trained"].model, params=pair.params["trained"])
  greedy = Reveal(score=LeftToRight(), budget=EvenShare(steps=1), temperature=0.0)
  ids, cost = drawn(alone, greedy, seed + 3, batch=batch)
  add("scorer alone", ids, Cost(0.0, cost.calls, cost.tokens))
  return lines


def study_chain(settings: Settings) -> list[tuple[str, ...]]:
  """The lines of the chain, at temperature 1."""
  chain, seed = phrase(), settings.seed
  sizes = {"layers": settings.layers, "width": settings.width, "steps": settings.steps}
  pair = energy.trained_pair(chain, energy.Settings(**sizes, seed=seed))
  lines = []

  def add(name, ids, cost):
    lines.append((name, *cost.cells(), *quality(chain, ids).cells()))

  data = chain.sample(np.random.default_rng(seed + 2), settings.rows)
  add("data", data, Cost(0.0, 0.0, 0.0))
  for name, sampler in decoders(pair, chain.length, 1.0, settings.shares).items():
    add(name, *drawn(pair, sampler, seed + 3, rows=settings.rows, length=chain.length))
  return lines


def run(settings: Settings, workdir: pathlib.Path) -> str:
  """Both tables, which are also written to the workdir."""
  of_sums, of_chain = study_sums(settings), study_chain(settings)
  kept = {"settings": dataclasses.asdict(settings), "sums": of_sums, "chain": of_chain}
  parts = [
    f"Sums of {settings.digits} digits, temperature 0:",
    markdown(SUMS, of_sums),
    "Chain 'phrase', temperature 1:",
    markdown(CHAIN, of_chain),
  ]
  text = "\n\n".join(parts)
  write(workdir, "guided", text, **kept)
  return text

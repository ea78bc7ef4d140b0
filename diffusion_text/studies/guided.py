"""Calls and quality of decoders where the answer can be checked (sums of two numbers, Sudoku of
4 × 4 cells, Countdown with 3 numbers), at temperature 0, and on a Markov chain, at temperature 1:
orders of one model, and a budget of agreement with an autoregressive scorer.

Masked model and scorer have the same size, so a pass of either is one call. "random" scorers were
never trained, or know another chain: they agree by chance alone, and then the rule commits about
one token per call from left to right. `ccd` with one call is the order of entropy (its control);
with two it averages over calls (CCD, arXiv 2512.02044), and "adaptive" commits what two calls agree
on.

In puzzles the positions of the masked model are learned, with which it begins to add sooner than
with rotary ones (tried once, by no command that is kept). Whether and when networks of this size
begin to add differs from run to run, so look at the lines of both models alone first.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

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
from diffusion_text.sampler.budget import Consistent, EntropyBound, EvenShare, Threshold
from diffusion_text.sampler.history import Averaged
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Entropy, LeftToRight, MaxProb
from diffusion_text.studies import energy
from diffusion_text.studies.chains import QUALITY, network_of, phrase, quality
from diffusion_text.studies.energy import Pair
from diffusion_text.studies.measures import markdown, mean_and_error, pooled_entropy, write
from diffusion_text.studies.puzzle_rows import Puzzle, countdown_puzzle, sudoku_puzzle, sum_puzzle
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import DataFacts, Model, Sampler

PARTS = ("puzzle", "chain")
PUZZLE = ("decoder", "calls", "scorer's", "tokens per call", "answers right", "tokens right")
PUZZLE = (*PUZZLE, "token entropy, nats")
CHAIN = ("decoder", "calls", "scorer's", "tokens per call", *QUALITY)


@member
class Settings:
  """How the study is run."""

  puzzle: Literal["sums", "sudoku", "countdown"] = option(
    "sums", "the task whose answers are checked"
  )
  digits: int = option(3, "of each number of a sum", ge=1, le=1000)
  layers: int = option(2, "of both networks", ge=1)
  width: int = option(64, "of both networks", ge=2)
  embedding_std: float = option(0.02, "model.embedding_std of both networks of a puzzle", gt=0)
  steps: int = option(1200, "updates of each network, of 128 problems or 64 chains", ge=1)
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


def puzzle_of(settings: Settings) -> Puzzle:
  """The task."""
  if settings.puzzle == "sums":
    return sum_puzzle(settings.digits)
  return {"sudoku": sudoku_puzzle, "countdown": countdown_puzzle}[settings.puzzle]()


def trained_pair(puzzle: Puzzle, settings: Settings) -> Pair:
  """Both models of a task, and two scorers: the trained model, and one of random parameters."""
  seed = settings.seed
  process = Masked(vocab_size=puzzle.vocab_size)
  sizes, wide = (settings.layers, settings.width), {"embedding_std": settings.embedding_std}
  learned = {"positions": "learned", "max_positions": puzzle.length}
  network = network_of(process, *sizes, **learned, **wide)
  facts = DataFacts(puzzle.length, puzzle.vocab_size, steps=settings.steps)
  model = Model(network, process, Shared(), Full())
  ar = Model(network_of(process, *sizes, **wide), process, AtNoise(), NextToken())
  how = {"facts": facts, "seed": seed}
  params = fit(model, Bound(), puzzle.batches(128, seed), learning_rate=3e-3, **how)
  groups = {
    "trained": fit(ar, Bound(), puzzle.batches(128, seed + 1), learning_rate=2e-3, **how),
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


def orders(tokens: int) -> dict[str, Reveal]:
  """name -> sampler at temperature 0: of different orders, at a half of the calls and, of long
  answers, at a quarter; and those that choose the number of tokens themselves.
  """
  found = {}
  scores = {"max_prob": MaxProb(), "entropy": Entropy()}
  scores |= {f"ccd, d = {each}": Averaged(calls=each) for each in (1, 2, 3)}
  for part in (2, 4) if tokens >= 8 else (2,):
    for name, score in scores.items():
      budget = EvenShare(steps=-(-tokens // part))
      found[f"{name}, {part} a call"] = Reveal(score=score, budget=budget, temperature=0.0)
  rules = {f"threshold {least:g}": (MaxProb(), Threshold(least=least)) for least in (0.7, 0.9)}
  rules |= {f"entropy bound {g:g}": (Entropy(), EntropyBound(gamma=g)) for g in (0.01, 0.1)}
  rules["ccd, adaptive"] = Entropy(), Consistent(warm_up=1)
  for name, (score, budget) in rules.items():
    found[name] = Reveal(score=score, budget=budget, temperature=0.0)
  return found


def study_puzzle(settings: Settings) -> list[tuple[str, ...]]:
  """The lines of the task."""
  puzzle, seed = puzzle_of(settings), settings.seed
  pair = trained_pair(puzzle, settings)
  truth = puzzle.test(np.random.default_rng(seed + 2), settings.rows)
  batch = puzzle.batch(truth)
  lines = []

  def add(name, ids, cost):
    answer = ids[:, puzzle.prompt :]
    right = answer == truth[:, puzzle.prompt :]
    whole, error = mean_and_error(puzzle.right(ids))
    found = f"{whole:.3f} ± {error:.3f}", f"{right.mean():.4f}", f"{pooled_entropy(answer):.3f}"
    lines.append((name, *cost.cells(), *found))

  add("data", truth, Cost(0.0, 0.0, 0.0))
  samplers = {**decoders(pair, puzzle.answer, 0.0, ()), **orders(puzzle.answer)}
  for name, sampler in samplers.items():
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


def run(settings: Settings, workdir: pathlib.Path, parts: Sequence[str] = PARTS) -> str:
  """The tables of the parts, which are also written to the workdir.

  Raises:
    ValueError: for a part that is unknown.
  """
  wrong = [part for part in parts if part not in PARTS]
  if wrong or not parts:
    raise ValueError(f"parts={parts} must be of {', '.join(PARTS)}")
  kept: dict[str, object] = {"settings": dataclasses.asdict(settings)}
  texts = []
  if "puzzle" in parts:
    kept["puzzle"] = study_puzzle(settings)
    texts += [f"{puzzle_of(settings).name}, temperature 0:", markdown(PUZZLE, kept["puzzle"])]
  if "chain" in parts:
    kept["chain"] = study_chain(settings)
    texts += ["Chain 'phrase', temperature 1:", markdown(CHAIN, kept["chain"])]
  text = "\n\n".join(texts)
  write(workdir, "guided", text, **kept)
  return text

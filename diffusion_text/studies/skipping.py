"""The error of skipped steps where times differ by place: embedding diffusion of a Markov chain,
with a network that knows the chain exactly, so that all errors are the sampler's.

The lines of AR-Diffusion (arXiv 2305.09515) with T levels over a row of L tokens have L + T - 1
steps, as the clock passes L places and T levels. Skipping takes fewer steps, evenly spread, each by
the posterior of the longer step. The published steps clamp to the nearest vector and end with an
argmax; those of "the law" draw a token in the last step. The control is a network that knows the
frequencies of tokens and nothing of their neighbours.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.evaluate.text_metrics import token_entropy
from diffusion_text.process.embedding import Embedding
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.gaussian import SquareRoot
from diffusion_text.studies.measures import neighbours, total_variation
from diffusion_text.timing import Converging, Shared, Slanted

COLUMNS = ("times", "steps of", "calls", "NLL, nats/token", "TV of pairs", "entropy, nats")


@member
class Settings:
  """How the study is run."""

  vocab_size: int = option(6, "V of the chain", ge=2, le=100)
  length: int = option(8, "tokens of a row", ge=2, le=100)
  width: int = option(8, "numbers of a vector", ge=1, le=1000)
  levels: int = option(2000, "T; 2000 is published", ge=2)
  steps: tuple[int, ...] = option((2, 5, 10, 20, 50, 100, 400), "steps with skipping")
  rows: int = option(512, "texts of each line", ge=8)
  seed: int = option(0, "of everything", ge=0)


class World(NamedTuple):
  """The exact language and network, which the main passes in: studies must not import `testing`.

  Attributes:
    chain: (initial [V], transition [V, V], length) -> a Markov chain
      (`testing.languages.MarkovChain`).
    model: (process, chain, timing=) -> (model, params) of a network that knows the chain
      (`testing.exact_model.exact_model`).
  """

  chain: Callable[..., Any]
  model: Callable[..., Any]


class Line(NamedTuple):
  """A line of the table: times, sampler ("steps of"), calls, and the quality of the texts.

  nll, with its standard error, is by the chain itself; exact texts have the chain's entropy on
  average. tv is the total variation between the pairs of neighbours of the texts and of the chain;
  chance is the same for as many exact texts.
  """

  times: str
  law: str
  calls: int
  nll: float
  nll_error: float
  tv: float
  chance: float
  entropy: float


def chain_of(settings: Settings, world: World, neighbours: bool = True) -> Any:
  """The chain; without neighbours, tokens of the same frequencies and nothing else."""
  rng = np.random.default_rng(settings.seed)
  transition = rng.dirichlet(np.full(settings.vocab_size, 0.3), size=settings.vocab_size)
  often = np.linalg.matrix_power(transition, 1000)[0]
  if not neighbours:
    transition = np.tile(often, (settings.vocab_size, 1))
  return world.chain(often, transition, settings.length)


def measured(chain: Any, ids: Int[np.ndarray, "B L"], seed: int, **named: Any) -> Line:
  """The line of the texts `ids`."""
  nll = -chain.log_likelihood(ids) / chain.length
  law = chain.initial[:, None] * chain.transition
  exact = [chain.sample(np.random.default_rng((seed, number)), len(ids)) for number in range(16)]
  distances = [total_variation(neighbours(each, len(law)), law) for each in (*exact, ids)]
  return Line(
    nll=float(nll.mean()),
    nll_error=float(nll.std(ddof=1) / len(nll) ** 0.5),
    tv=distances[-1],
    chance=float(np.mean(distances[:-1])),
    entropy=token_entropy(list(ids)),
    **named,
  )


SAMPLERS = {
  "the law": {"projection": "sample"},
  "as published": {"projection": "nearest", "greedy_tail": True},
}


def lines(settings: Settings, world: World) -> Iterator[Line]:
  """All lines, those of one choice of times and steps after the other."""
  chain = chain_of(settings, world)
  path = SquareRoot(log_snr_max=4.209, log_snr_min=-15.41)
  process = Embedding(vocab_size=settings.vocab_size, width=settings.width, schedule=path)
  whole = settings.length + settings.levels - 1
  steps = (*(each for each in settings.steps if each < whole), whole)
  named = {
    "converging": Converging(levels=settings.levels),
    "slanted": Slanted(),
    "shared": Shared(),
  }
  keys = row_keys(settings.seed, settings.rows)

  def drawn(language: Any, timing: Any, calls: int, options: Any) -> np.ndarray:
    model, params = world.model(process, language, timing=timing)
    sampler = GaussianGrid(steps=calls, **options)
    made = sample(model, params, sampler, keys, rows=settings.rows, length=settings.length)
    return np.asarray(made.ids)

  for name, timing in named.items():
    for law, options in SAMPLERS.items():
      for calls in steps:
        ids = drawn(chain, timing, calls, options)
        yield measured(chain, ids, settings.seed, times=name, law=law, calls=calls)
  apart = chain_of(settings, world, neighbours=False)
  blind = drawn(apart, named["converging"], 20, SAMPLERS["the law"])
  yield measured(chain, blind, settings.seed, times="blind network", law="the law", calls=20)
  truth = chain.sample(np.random.default_rng(settings.seed + 1), settings.rows)
  yield measured(chain, truth, settings.seed, times="exact draws", law="-", calls=0)


def fewest(found: Sequence[Line], slack: float = 0.01) -> dict[tuple[str, str], int | None]:
  """(times, steps of) -> the least number of calls from which on the TV of pairs stays within
  `slack` of chance; None if even all steps do not reach it.
  """
  fewest: dict[tuple[str, str], int | None] = {}
  for line in found:
    if not line.calls or line.times == "blind network":
      continue
    choice, fine = (line.times, line.law), line.tv <= line.chance + slack
    before = fewest.get(choice)
    fewest[choice] = (before if before is not None else line.calls) if fine else None
  return fewest


def table(found: Sequence[Line], settings: Settings, entropy: float) -> str:
  """The lines in Markdown, and the calls that are enough. entropy: of the chain, per token."""
  rows = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
  rows += [
    f"| {line.times} | {line.law} | {line.calls} | {line.nll:.3f} ± {line.nll_error:.3f} |"
    f" {line.tv:.3f} (chance {line.chance:.3f}) | {line.entropy:.2f} |"
    for line in found
  ]
  whole = settings.length + settings.levels - 1
  rows += ["", f"Entropy of the chain: {entropy:.3f} nats/token."]
  for (times, law), calls in fewest(found).items():
    fewer = "" if calls is None else f"{calls} calls, {whole / calls:.0f} times fewer than {whole}"
    rows.append(f"Within 0.01 of chance, {times}, {law}: {fewer or 'not reached'}.")
  return "\n".join(rows)


def run(settings: Settings, world: World, workdir: pathlib.Path) -> str:
  """The table, written as skipping.md and, with the numbers, skipping.json."""
  found = list(lines(settings, world))
  text = table(found, settings, chain_of(settings, world).entropy / settings.length)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "skipping.md").write_text(text + "\n")
  values = {
    "settings": dataclasses.asdict(settings),
    "lines": [line._asdict() for line in found],
  }
  (workdir / "skipping.json").write_text(json.dumps(values, indent=1))
  return text

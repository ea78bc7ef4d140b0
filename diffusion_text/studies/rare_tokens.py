"""What rare tokens cost: the bound of trained runs by how often a token occurs in the training
text, and how often a run prefers the token of a text to another one of the same class.

Masking rarer tokens more is said to teach them better (arXiv 2509.05056). Runs that share their
data and tokenizer are read on the same rows with the same times and noise, so that differences
between runs are taken row by row; whatever times a run was trained at, it is scored with those of
its reported bound.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key
from diffusion_text.evaluate.likelihood import by_row, estimate
from diffusion_text.evaluate.minimal_pairs import minimal_pairs
from diffusion_text.experiment.run import Trained, held_out
from diffusion_text.objective import engine
from diffusion_text.studies.measures import check_rising, markdown, write
from diffusion_text.types import Batch, Key, Params, Progress

HEADER = ("run", "in training", "tokens", "nats/token", "more than the first run")
HEADER = (*HEADER, "right of two tokens")


@member
class Settings:
  """How the study is run."""

  edges: tuple[int, ...] = option(
    (1, 10, 100, 1000, 10_000), "occurrences in the training text at which a class begins"
  )
  split: str = option("test", "which text is scored")
  rows: int = option(256, "rows, at most", ge=2)
  draws: int = option(4, "of time and noise for each row", ge=1)
  pairs: int = option(64, "rows of which a token of each class is exchanged; 0: none", ge=0)
  seed: int = option(0, "of times, noise and exchanged tokens", ge=0)


class Classes(NamedTuple):
  """Tokens by how often they occur.

  Attributes:
    names: of the K classes, the rarest first.
    numbers: of each token of the vocabulary, its class.
  """

  names: tuple[str, ...]
  numbers: Int[np.ndarray, " V"]

  @staticmethod
  def of(counts: Int[np.ndarray, " V"], edges: tuple[int, ...]) -> Classes:
    """The classes of tokens with these counts; a class begins at each edge. Raises ValueError for
    edges that do not rise from 1 or more.
    """
    check_rising("edges", edges, "1,10,100,1000,10000")
    names = [f"{low:,} to {high - 1:,}" for low, high in zip((0, *edges), edges)]
    if edges[0] == 1:
      names[0] = "never"
    numbers = np.searchsorted(edges, counts, side="right")
    return Classes((*names, f"{edges[-1]:,} or more"), numbers)


class Costs(NamedTuple):
  """Nats and scored tokens of each row, by class; the last column is of all tokens."""

  nats: Float[np.ndarray, "R K+1"]
  weight: Float[np.ndarray, "R K+1"]


def costs(trained: Trained, classes: Classes, settings: Settings) -> Costs:
  """What the tokens of each class cost a run, row by row, the mean over draws."""
  experiment, number = trained.experiment, len(classes.names)

  @jax.jit
  def nats_fn(params: Params, key: Key, batch: Batch, progress: Progress):
    own = jax.nn.one_hot(jnp.asarray(classes.numbers)[batch.ids], number)
    values = engine.nats(
      experiment.scoring, params, key, batch, progress, decode_at=experiment.evaluate.decode_at
    )
    both = (values, engine.scored_weights(batch))
    return tuple(jnp.einsum("bn,bnk->bk", each, own) for each in both)

  with jax.set_mesh(experiment.mesh):
    batches = held_out(experiment, settings.split, settings.rows)
    key = make_key(settings.seed)
    found = by_row(nats_fn, trained.params, batches, key, settings.draws)
  by_class = (found.nats, found.weight)
  return Costs(*(np.hstack([each, each.sum(1, keepdims=True)]) for each in by_class))


def exchanged(
  rng: np.random.Generator, batch: Batch, classes: Classes, number: int
) -> tuple[Batch, Bool[np.ndarray, " B"]]:
  """(the batch with one scored token of a class in each row exchanged for another of that class,
  True at the rows that have one).
  """
  ids, weights = np.array(batch.ids), np.asarray(engine.scored_weights(batch))
  tokens = np.flatnonzero(classes.numbers == number)
  changed = np.zeros(len(ids), bool)
  for row, counted in zip(range(len(ids)), weights > 0):
    places = np.flatnonzero(counted & (classes.numbers[ids[row]] == number))
    if len(places) and len(tokens) > 1:
      place = rng.choice(places)
      ids[row, place] = rng.choice(tokens[tokens != ids[row, place]])
      changed[row] = True
  return dataclasses.replace(batch, ids=jnp.asarray(ids)), changed


def right_of_two(
  trained: Trained, classes: Classes, number: int, settings: Settings
) -> tuple[float, float] | None:
  """(the share of rows whose bound is lower than with one token of a class exchanged, its standard
  error); None if fewer than two rows have such a token.
  """
  experiment, rng = trained.experiment, np.random.default_rng((settings.seed, number))
  pairs, changed = [], []
  for batch, _ in held_out(experiment, settings.split, settings.pairs):
    other, where = exchanged(rng, batch, classes, number)
    pairs.append((batch, other))
    changed.append(where)
  kept = np.concatenate(changed)
  if kept.sum() < 2:
    return None
  with jax.set_mesh(experiment.mesh):
    key = make_key(settings.seed)
    found = minimal_pairs(experiment.nats_fn, trained.params, pairs, key, settings.draws)
  found = dataclasses.replace(
    found, differences=found.differences[kept], spreads=found.spreads[kept]
  )
  return found.accuracy, found.standard_error


def shown(values: tuple[float, float] | None, form: str) -> str:
  """The cell of a value with its error."""
  return "–" if values is None else f"{values[0]:{form}} ± {values[1]:{form.lstrip('+')}}"


def lines(
  name: str, own: Costs, first: Costs, right: list[tuple[float, float] | None], classes: Classes
) -> list[tuple[str, ...]]:
  """The lines of a run, of all tokens and of each class of which two rows have a scored token.

  Args:
    name: of the run.
    own: its costs.
    first: those of the first run.
    right: what `right_of_two` says of each class.
    classes: of the tokens.
  """
  found = []
  for column, label in enumerate((*classes.names, "all")):
    weight = own.weight[:, column]
    if (weight > 0).sum() < 2:  # there is no error over rows
      continue
    cost = estimate(own.nats[:, column], weight)
    more = None if own is first else estimate(own.nats[:, column] - first.nats[:, column], weight)
    pair = right[column] if column < len(right) else None
    cells = (shown(cost, ".4f"), shown(more, "+.4f"), shown(pair, ".3f"))
    found.append((name, label, f"{weight.sum():,.0f}", *cells))
  return found


def check_alike(runs: Mapping[str, Trained]) -> None:
  """Raises ValueError for runs that differ in tokenizer, data or the length of rows."""
  (name, first), *others = runs.items()
  for other, trained in others:
    one, two = first.experiment, trained.experiment
    same = one.tokenizer.to_bytes() == two.tokenizer.to_bytes()
    same = same and one.data.length == two.data.length and one.data.packing == two.data.packing
    if not same or not np.array_equal(one.facts.token_counts(), two.facts.token_counts()):
      raise ValueError(
        f"{name} and {other} differ in tokenizer, data.length, data.packing or training text;"
        " compare runs whose rows are the same"
      )


def run(settings: Settings, runs: Mapping[str, Trained], workdir: pathlib.Path) -> str:
  """The table of runs by name, the first of which the others are held against; it is also written
  to the workdir after every run.

  Raises:
    ValueError: For edges that do not rise, and runs of other rows.
  """
  check_alike(runs)
  counts = next(iter(runs.values())).experiment.facts.token_counts()
  classes = Classes.of(counts, settings.edges)
  found, first, text = [], None, ""
  for name, trained in runs.items():
    own, right = costs(trained, classes, settings), []
    if settings.pairs:
      right = [right_of_two(trained, classes, each, settings) for each in range(len(classes.names))]
    first = first or own
    found += lines(name, own, first, right, classes)
    text = markdown(HEADER, found, left=(0, 1))
    write(workdir, "rare_tokens", text, settings=dataclasses.asdict(settings), lines=found)
  return text

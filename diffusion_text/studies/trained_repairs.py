"""Error injection with trained networks: wrong tokens are planted in held-out text, and two things
are asked. Does the network see them? And what do samplers repair and damage when they go on from
there, by how sure the network was and by the place in the text?

A wrong token is one of another place of the held-out text, so that how frequent it is tells
nothing. Prompts, and what follows the end of a text, are observed and stay as they are.

How the network is asked about a token: where visible tokens may be wrong, it reads the whole text
at the time of the samplers, and its leave-one-out answer is taken; where they are always right, as
under masks, it reads the text once for each place, with that place masked. Controls are the
frequencies of tokens, which must be at chance, the text as planted, and masks that are never taken
back.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import at_ids
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.run import Trained, held_out_rows
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.adaptive_correction import AdaptiveCorrection
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import Loop
from diffusion_text.sampler.lost_tokens import visible_may_be_wrong
from diffusion_text.sampler.remasking import Remasking
from diffusion_text.sampler.renoising import Renoising
from diffusion_text.studies.measures import joined, markdown, mean_and_error, pooled_entropy, write
from diffusion_text.studies.repairs import (
  CORRECTION_TIME,
  NOBODY,
  Late,
  Settings,
  Start,
  corrected,
  self_correction,
)
from diffusion_text.types import Batch, Model, Params, Query

DETECTED = ("run", "wrong token less likely than a right one", "right token likelier than wrong")
REPAIRED = ("run", "sampler", "from t", "repaired", "damaged", "token entropy, nats", "calls")
PARTS = ("run", "sampler", "repaired, by place", "repaired, by chance")
PARTS = (*PARTS, "damaged, by place", "damaged, by chance")
THIRDS = 3


class Rows(NamedTuple):
  """Held-out text.

  Attributes:
    ids: its tokens, with what is given before them and padding after them.
    text: True at the tokens of the text, where errors may be.
  """

  ids: Int[np.ndarray, "B L"]
  text: Bool[np.ndarray, "B L"]

  def third(self) -> Int[np.ndarray, "B L"]:
    """0, 1 or 2: in which third of its text each token stands."""
    place, size = np.cumsum(self.text, axis=1) - 1, self.text.sum(axis=1, keepdims=True)
    return np.clip(place * THIRDS // np.maximum(size, 1), 0, THIRDS - 1)


def held_out_text(trained: Trained, settings: Settings) -> Rows:
  """The first test rows with at least twice as many tokens of text as the most errors.

  Raises:
    ValueError: if there are fewer than two.
  """
  least, ids, text = 2 * max(settings.errors), [], []
  for batch in held_out_rows(trained.experiment, "test"):
    own = np.asarray(trained.experiment.text_weights(batch)) > 0
    long = own.sum(axis=1) >= least
    ids.append(np.asarray(batch.ids)[long])
    text.append(own[long])
    if sum(map(len, ids)) >= settings.rows:
      break
  found = Rows(*(np.concatenate(each)[: settings.rows] for each in (ids, text)))
  if len(found.ids) < 2:
    raise ValueError(
      f"errors={settings.errors} asks for held-out rows with {least} tokens of text, and there are"
      f" {len(found.ids)}; use fewer errors"
    )
  return found


def planted(
  rows: Rows, count: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
  """(the rows with `count` wrong tokens each, where these stand): any places of the text, and
  tokens of any other place of all texts, as far as they differ.

  Raises:
    ValueError: for texts of one token only.
  """
  pool = rows.ids[rows.text]
  if (pool == pool[0]).all():
    raise ValueError(f"all tokens of the held-out text are {pool[0]}; no other can be planted")
  order = np.where(rows.text, rng.random(rows.ids.shape), 2.0)
  where = np.argsort(np.argsort(order, axis=1), axis=1) < count
  other = rng.choice(pool, rows.ids.shape)
  while (same := where & (other == rows.ids)).any():
    other[same] = rng.choice(pool, int(same.sum()))
  return np.where(where, other, rows.ids).astype(np.int32), where


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chances(
  model: Model, one_by_one: bool, params: Params, batch: Batch, time: Float[Array, ""]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
  process, own = model.process, params["process"]
  rows, length = batch.ids.shape
  clean, active = process.clean(own, batch.ids), ~batch.observed
  noise = process.prior(own, row_keys_of(rows, length))
  right = batch.extras["right"]

  def read(state, t, where):
    query = Query(state, t, 0, where, Batch(batch.ids, batch.observed), noise)
    prediction, _ = WholeRow().read(model, params, None, query)

    def said(of_process, output, state, t, ids, right):
      law = process.leave_one_out(of_process, state, t, output)
      return at_ids(law, ids), at_ids(law, right)

    return on_tokens(model, params, prediction, where, said, state, t, batch.ids, right)

  if not one_by_one:
    return read(clean, jnp.where(active, time, 0.0), active)

  def at(place):
    here = active & (jnp.arange(length) == place)
    return read(jnp.where(here, process.mask_id, clean), jnp.where(here, time, 0.0), here)

  found = jax.lax.map(at, jnp.arange(length))
  return jax.tree.map(lambda each: each.sum(axis=0), found)


def row_keys_of(rows: int, length: int) -> Any:
  """Keys [rows, length] of noise that nothing reads: the window is the whole row."""
  return jax.vmap(lambda key: jax.random.split(key, length))(row_keys(0, rows))


def chances(
  trained: Trained, ids: Int[np.ndarray, "B L"], rows: Rows, time: float
) -> tuple[Float[np.ndarray, "B L"], Float[np.ndarray, "B L"]]:
  """float64 [B, L] twice: log p of each token at its place, and of the right one, given the other
  tokens; 0 outside of the text.

  Args:
    trained: the run.
    ids: the rows with errors.
    rows: the right ones.
    time: at which the network reads them.

  Raises:
    ValueError: for a process whose states are vectors, or whose visible tokens are right but for
      masks that it does not have.
  """
  process = trained.experiment.model.process
  if process.input_sizes.vectors:
    raise ValueError(f"{type(process).__name__} has vectors in place of tokens; use other runs")
  one_by_one = not visible_may_be_wrong(process, time)
  if one_by_one and process.mask_id is None:
    raise ValueError(f"{process} says nothing about visible tokens, and has no masks; use others")
  batch = Batch(ids, ~rows.text, extras={"right": rows.ids})
  found = _chances(trained.experiment.model, one_by_one, trained.params, batch, jnp.float32(time))
  return tuple(np.asarray(each, np.float64) for each in found)


def less_likely(
  said: Float[np.ndarray, "B L"], where: Bool[np.ndarray, "B L"], rows: Rows
) -> Float[np.ndarray, " B"]:
  """float64 [B]: of a wrong and a right token of one row, how often the wrong one has the lower
  chance (the area under the curve of a detector); equal ones count half.
  """
  found = []
  for values, wrong, text in zip(said, where, rows.text):
    low, high = values[wrong][:, None], values[text & ~wrong][None, :]
    found.append(np.mean((low < high) + 0.5 * (low == high)))
  return np.array(found)


def frequencies(ids: Int[np.ndarray, "B L"], rows: Rows) -> Float[np.ndarray, "B L"]:
  """log of how often each token of `ids` is in the held-out text: the control of a network."""
  counts = np.bincount(rows.ids[rows.text], minlength=int(max(ids.max(), rows.ids.max())) + 1)
  return np.log(np.maximum(counts[ids], 0.5))


def share(hits: Bool[np.ndarray, "B L"], of: Bool[np.ndarray, "B L"]) -> tuple[float, float]:
  """(the share of `of` where `hits` holds, its standard error): rows are drawn, not tokens."""
  number, total = of.sum(axis=1), max(int(of.sum()), 1)
  ratio = (hits & of).sum() / total
  rest = (hits & of).sum(axis=1) - ratio * number
  return float(ratio), float(np.sqrt(len(of) * rest.var(ddof=1)) / total)


class Planted(NamedTuple):
  """Rows with errors, and what a network thinks of them.

  Attributes:
    ids: the rows with `count` wrong tokens each.
    where: where these stand.
    said: log p of each token, see `chances`.
    right: log p of the right ones.
  """

  ids: Int[np.ndarray, "B L"]
  where: Bool[np.ndarray, "B L"]
  said: Float[np.ndarray, "B L"]
  right: Float[np.ndarray, "B L"]

  def third(self, of: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B L"]:
    """0, 1 or 2: to which third of the tokens `of` each belongs, the least likely first."""
    edges = np.quantile(self.said[of], [1 / THIRDS, 2 / THIRDS])
    return np.searchsorted(edges, self.said)


class Found(NamedTuple):
  """What a sampler made of planted errors: (share, standard error) each, in all and by thirds."""

  repaired: tuple[float, float]
  damaged: tuple[float, float]
  entropy: float
  calls: float
  parts: tuple[tuple[tuple[float, float], ...], ...]

  @staticmethod
  def of(rows: Rows, errors: Planted, made: Int[np.ndarray, "B L"], calls: float) -> Found:
    """Of rows that were made of rows with errors."""
    same, wrong, right = made == rows.ids, errors.where, rows.text & ~errors.where
    by_place, parts = rows.third(), []
    for hits, those in ((same, wrong), (~same, right)):
      for third in (by_place, errors.third(those)):
        parts.append(tuple(share(hits, those & (third == number)) for number in range(THIRDS)))
    entropy = pooled_entropy(made[rows.text])
    return Found(share(same, wrong), share(~same, right), entropy, calls, tuple(parts))


def samplers(settings: Settings) -> Iterator[tuple[str, Any, Start]]:
  """(name, sampler, how it begins) of all samplers, whether they fit a process or not."""
  calls, start = settings.calls, Start(settings.time)
  yield "grid", Grid(steps=calls), start
  yield "grid, noised first (blind)", Grid(steps=calls), start._replace(noised=True)
  for strategy in ("rescale", "conf"):
    yield f"remasking, {strategy} 1", Remasking(steps=calls, strategy=strategy, eta=1.0), start
  renoising = Renoising(steps=calls, strategy="rescale", eta=0.1)
  yield "renoising, rescale 0.1", renoising, start
  yield "adaptive correction, 0.1", AdaptiveCorrection(steps=calls, eta=0.1), start
  yield "self-correction", self_correction(calls), Start(CORRECTION_TIME)


def fits(sampler: Any, model: Model) -> bool:
  """Whether a sampler takes a model."""
  try:
    sampler.check(model)
  except ValueError:
    return False
  return True


def gone_on(
  trained: Trained, sampler: Any, start: Start, rows: Rows, ids: Int[np.ndarray, "B L"], seed: int
) -> tuple[Int[np.ndarray, "B L"], float]:
  """(the rows after a sampler has gone on from `ids`, its calls, a mean over rows)."""
  model = trained.experiment.model._replace(timing=Late(start=start.time))
  loop = Loop(model, sampler, WholeRow())
  params = {**trained.params, "timing": {}}
  made, calls = corrected(loop, start, params, row_keys(seed, len(ids)), ids, ~rows.text)
  return np.asarray(made), float(np.mean(calls))


def cells(found: Sequence[Found]) -> tuple[str, ...]:
  """Repaired, damaged, entropy and calls, for each number of errors."""
  entropies = " / ".join(f"{each.entropy:.3f}" for each in found)
  calls = f"{np.mean([each.calls for each in found]):.1f}"
  pairs = (joined([each[number] for each in found]) for number in (0, 1))
  return (*pairs, entropies, calls)


@dataclasses.dataclass
class Tables:
  """The lines of the three tables, as far as they are there."""

  detected: list[tuple[str, ...]]
  repaired: list[tuple[str, ...]]
  parts: list[tuple[str, ...]]

  def text(self, settings: Settings, rows: Rows) -> str:
    """All three, with what they are of."""
    counts = " / ".join(map(str, settings.errors))
    said = (
      f"{counts} wrong tokens in each of {len(rows.ids)} held-out texts of"
      f" {rows.text.sum(axis=1).mean():.1f} tokens; entropy of the right tokens"
      f" {pooled_entropy(rows.ids[rows.text]):.3f} nats."
    )
    thirds = (
      f"The same by thirds, with {settings.errors[-1]} wrong tokens: of the text from its"
      " beginning, and of the tokens from those that the network thinks least likely."
    )
    tables = (
      markdown(header, lines, left=(0, 1) if header is not DETECTED else (0,))
      for header, lines in zip(
        (DETECTED, REPAIRED, PARTS), (self.detected, self.repaired, self.parts)
      )
    )
    first, second, third = tables
    return "\n\n".join((said, first, second, thirds, third))


def measured(
  name: str, trained: Trained, rows: Rows, settings: Settings, tables: Tables
) -> list[dict[str, Any]]:
  """Adds the lines of a run to the tables; the numbers that they are made of."""
  rng, errors, numbers = np.random.default_rng(settings.seed), [], []
  for count in settings.errors:
    ids, where = planted(rows, count, rng)
    errors.append(Planted(ids, where, *chances(trained, ids, rows, settings.time)))
  seen = [mean_and_error(less_likely(each.said, each.where, rows)) for each in errors]
  told = [share(each.right > each.said, each.where) for each in errors]
  tables.detected.append((name, joined(seen), joined(told)))
  numbers.append({"run": name, "seen": seen, "told": told})
  for label, sampler, start in samplers(settings):
    if not fits(sampler, trained.experiment.model):
      continue
    found = [
      Found.of(rows, each, *gone_on(trained, sampler, start, rows, each.ids, settings.seed))
      for each in errors
    ]
    tables.repaired.append((name, label, f"{start.time:.2f}", *cells(found)))
    tables.parts.append((name, label, *map(joined, found[-1].parts)))
    numbers.append({"run": name, "sampler": label, "found": [each._asdict() for each in found]})
  return numbers


def run(settings: Settings, runs: Mapping[str, Trained], workdir: pathlib.Path) -> str:
  """The tables, written as trained_repairs.md and trained_repairs.json.

  Args:
    settings: the study's, but for `chain`, which the command refuses beside runs.
    runs: name -> run, all of the same text and tokens.
    workdir: where to.

  Raises:
    ValueError: for runs of different texts, and as `held_out_text` and `chances` do.
  """
  names = list(runs)
  rows = held_out_text(runs[names[0]], settings)
  for name in names[1:]:
    other = held_out_text(runs[name], settings)
    if other.ids.shape != rows.ids.shape or (other.ids != rows.ids).any():
      raise ValueError(f"{name} and {names[0]} have other held-out rows; use runs of one text")
  tables, numbers, rng = Tables([], [], []), [], np.random.default_rng(settings.seed)
  nobody, often = [], []
  for count in settings.errors:
    ids, where = planted(rows, count, rng)
    said = frequencies(ids, rows)
    errors = Planted(ids, where, said, frequencies(rows.ids, rows))
    nobody.append(Found.of(rows, errors, ids, 0.0))
    often.append((less_likely(said, where, rows), share(errors.right > said, where)))
  seen = joined([mean_and_error(each) for each, _ in often])
  tables.detected.append(("frequencies (control)", seen, joined([told for _, told in often])))
  tables.repaired.append(("–", NOBODY, "–", *cells(nobody)))
  text = ""
  for name, trained in runs.items():
    numbers += measured(name, trained, rows, settings, tables)
    text = tables.text(settings, rows)
    write(workdir, "trained_repairs", text, settings=dataclasses.asdict(settings), lines=numbers)
  return text

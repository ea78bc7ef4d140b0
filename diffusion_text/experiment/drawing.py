"""Samples in bounded batches, handed over as they are finished, as texts and as lines of JSON."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffusion_text.core.prng import numbered_keys
from diffusion_text.evaluate.lengths import LengthLaw, of_rows
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.memory import check_sampling_memory
from diffusion_text.experiment.run import Trained, held_out_rows
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.sampler.accounting import CostReport, cost_report
from diffusion_text.sampler.padding import check_block, check_observed_are_seen
from diffusion_text.sampler.records import Sample
from diffusion_text.train.sharding import global_batch, replicated, row_places, row_shards
from diffusion_text.train.storage import as_path
from diffusion_text.types import Batch, Model, Params, Reader, Sampler

ROWS_OF_LENGTHS = 1024  # held-out rows whose lengths are counted, at most


class Costs:
  """What many batches cost, for one report of all."""

  def __init__(self):
    self._samples: list[Sample] = []
    self._batches: list[Batch] = []

  def add(self, made: Sample, batch: Batch, rows: int) -> None:
    """Takes the first `rows` rows of a batch; the others only fill it up."""
    of_rows = ("ids", "row_calls", "token_layers", "attention")
    cut = {name: np.asarray(getattr(made, name))[:rows] for name in of_rows}
    self._samples.append(made._replace(**cut, committed=None, log_prob=None, features=None))
    observed = np.zeros(batch.ids.shape, bool) if batch.observed is None else batch.observed
    weights = np.ones(batch.ids.shape) if batch.weights is None else batch.weights
    self._batches.append(Batch(cut["ids"], observed=observed[:rows], weights=weights[:rows]))

  def report(self, model: Model, end_id: int | None = None) -> CostReport:
    """Of all that was taken. end_id: the token that ends a text."""
    batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *self._batches)
    first, *_ = self._samples
    joined = {
      name: np.concatenate([getattr(each, name) for each in self._samples])
      for name in ("ids", "row_calls", "token_layers", "attention")
    }
    fills = sum(int(each.fills) for each in self._samples)
    return cost_report(first._replace(**joined, fills=fills), model, batch=batch, end_id=end_id)

  def repeated(self) -> str | None:
    """A line that says how many different texts there are, where rows are the same; else None."""
    ids = np.concatenate([each.ids for each in self._samples])
    different = len(np.unique(ids, axis=0))
    if different == len(ids):
      return None
    texts = f"{different} different text{'s' * (different > 1)} in {len(ids)} rows"
    return f"--- {texts}; at temperature 0 a prompt has one text, --temperature=1 draws"

  def lengths(self, end_id: int) -> LengthLaw:
    """How long the generated texts are, up to their first end."""
    ids = np.concatenate([each.ids for each in self._samples])
    text = np.concatenate([~each.observed & (each.weights > 0) for each in self._batches])
    return of_rows(ids, end_id, text)


def closing(costs: Costs, experiment: Experiment, *, lengths: bool) -> str:
  """What decoding has cost, in a line; how many texts are different, where some are the same; with
  `lengths` how long the texts are, and how long rows of the validation split are, packed as in
  training.

  Raises:
    ValueError: with `lengths`, for a tokenizer without an end of text.
  """
  end_id = experiment.tokenizer.special["end"]
  lines = [f"--- cost: {costs.report(experiment.model, end_id).line()}", costs.repeated()]
  lines = [line for line in lines if line is not None]
  if not lengths:
    return "\n".join(lines)
  if end_id is None:
    raise ValueError(
      f"--lengths counts tokens up to the end of text, and no token of {experiment.tokenizer.name}"
      " has that role"
    )
  batches = list(held_out_rows(experiment, "validation", ROWS_OF_LENGTHS))
  ids = np.concatenate([np.asarray(batch.ids) for batch in batches])
  weights = [np.asarray(experiment.text_weights(batch)) > 0 for batch in batches]
  data = of_rows(ids, end_id, np.concatenate(weights))
  return "\n".join([*lines, f"--- lengths: {costs.lengths(end_id)}", f"--- held-out rows: {data}"])


class Drawn(NamedTuple):
  """One sample.

  Attributes:
    row: its number in the whole set: sample s of text i is row i · num + s.
    text: the text, padding left out.
    ids: its tokens.
    calls: network calls that the row needed.
    seed: of the set.
  """

  row: int
  text: str
  ids: list[int]
  calls: int
  seed: int

  def json(self) -> str:
    """One line of ASCII, whatever the text holds."""
    return json.dumps(self._asdict())


def check(
  experiment: Experiment,
  texts: Batch,
  *,
  num: int,
  seed: int,
  batch_size: int = 32,
  sampler: Sampler | None = None,
  reader: Reader | None = None,
  block: int | None = None,
  end_id: int | None = None,
  output: str | None = None,
  beside: Mapping[str, Params] | None = None,
) -> str:
  """What `draw` would draw, in one line; one batch is traced in the abstract.

  beside: groups of abstract parameters of other models that the sampler asks.

  Raises:
    ValueError: for a seed beyond 32 bits, a batch that does not fit in memory, choices that do not
      fit, text after a hole that cannot see it, and an output that is there already.
  """
  check_observed_are_seen(experiment.model, texts)
  check_block(experiment.model, block)
  reader = reader_for(experiment.reader if reader is None else reader, texts)
  total = texts.ids.shape[0] * num
  size = _rows_at_a_time(experiment, batch_size, total)
  check_sampling_memory(experiment, size, texts.ids.shape[1], sampler=sampler, reader=reader)
  state = experiment.abstract_state().eval_params
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
  params = {**params, **(beside or {})}
  row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), texts)
  keys = jax.eval_shape(lambda: numbered_keys(seed, jnp.arange(size)))
  how = {"sampler": sampler, "reader": reader, "block": block, "end_id": end_id}
  jax.eval_shape(functools.partial(experiment.sample, **how), params, keys, row)
  if output is not None and as_path(output).exists():
    raise ValueError(f"--output={output} is there already; delete it, or write another file")
  batches = math.ceil(total / size)
  return (
    f"would draw   {total} rows of {texts.ids.shape[1]} tokens,"
    f" {int((~texts.observed).sum()) * num} active, in {batches} batch{'es' * (batches > 1)}"
  )


def draw(
  trained: Trained,
  texts: Batch,
  *,
  num: int,
  seed: int,
  batch_size: int = 32,
  sampler: Sampler | None = None,
  reader: Reader | None = None,
  block: int | None = None,
  end_id: int | None = None,
  costs: Costs | None = None,
) -> Iterator[Drawn]:
  """`num` samples of each text, in order, at most `batch_size` rows at a time.

  A row's text depends on the seed, the number of the sample and its own observed tokens: sample s
  of any text has key s, whatever the batch size, the other rows and the number of devices. Rows are
  split over the devices of all processes, each of which is handed all of them.

  Args:
    trained: a workdir, loaded.
    texts: one row per text, on the host, as `run.open_rows` makes them.
    num: samples of each text.
    seed: of the set.
    batch_size: rows in memory at a time.
    sampler, reader: in place of the config's.
    block: positions that are sampled together; None: the whole row, or the context's unit.
    end_id: the token that ends a row; those at the end of a row are left out of its text.
    costs: takes what each batch cost.
  """
  experiment = trained.experiment
  reader = reader_for(experiment.reader if reader is None else reader, texts)
  total = texts.ids.shape[0] * num
  size = _rows_at_a_time(experiment, batch_size, total)
  how = {"sampler": sampler, "reader": reader, "block": block, "end_id": end_id}
  sample = _over_devices(experiment, seed, **how)
  for number in range(math.ceil(total / size)):
    # The last batch is filled up with its last row: all batches are one compiled program.
    rows = np.minimum(np.arange(number * size, (number + 1) * size), total - 1)
    batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows // num], texts)
    made = sample(trained.params, rows % num, batch)
    if costs is not None:
      costs.add(made, batch, min(size, total - number * size))
    ids, calls = np.asarray(made.ids), np.asarray(made.row_calls)
    weights = np.ones(ids.shape) if batch.weights is None else batch.weights
    for place in range(min(size, total - number * size)):
      kept = _without_ends(ids[place][weights[place] > 0], end_id)
      text = experiment.tokenizer.decode(kept)
      yield Drawn(int(rows[place]), text, kept.tolist(), int(calls[place]), seed)


def rows_for_devices() -> list[tuple[str, int]]:
  """[(option, value)]: the override with which a config is loaded to draw text on all devices. The
  batch that is scored must divide over the devices, also where nothing is scored.
  """
  return [("evaluate.batch_size", jax.device_count())]


def _rows_at_a_time(experiment: Experiment, batch_size: int, total: int) -> int:
  """Rows of a batch: as many as there are or as were asked for, and a multiple of the devices."""
  shards = row_shards(experiment.mesh)
  return math.ceil(min(batch_size, total) / shards) * shards


def _over_devices(
  experiment: Experiment, seed: int, **how: Any
) -> Callable[[Params, np.ndarray, Batch], Sample]:
  """A function (params, numbers of the samples [B], batch on the host) -> Sample.

  With several devices each has its share of the rows while they are drawn, and then the whole.
  """
  mesh = experiment.mesh
  if mesh.devices.size == 1:

    def alone(params, numbers, batch):
      return experiment.sample(params, numbered_keys(seed, jnp.asarray(numbers)), batch, **how)

    return alone

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def compiled(params, numbers, batch):
    return experiment.sample(params, numbered_keys(seed, numbers), batch, **how)

  def spread(params, numbers, batch):
    places = row_places(mesh, len(numbers))
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[places], batch)
    with jax.set_mesh(mesh):
      return compiled(params, numbers, global_batch(own, mesh, len(numbers)))

  return spread


def _without_ends(ids: Int[np.ndarray, " L"], end_id: int | None) -> Int[np.ndarray, " n"]:
  """The ids without the ends of text behind the last other token."""
  others = np.flatnonzero(ids != end_id)
  if end_id is None or not len(others):
    return ids if end_id is None else ids[:0]
  return ids[: others[-1] + 1]


def write(rows: Iterator[Drawn], output: str) -> Iterator[Drawn]:
  """The same rows, each after its line is in the file `output`: what is drawn is never lost.

  Raises:
    ValueError: for a file that is there already, or cannot be written; before the first row is
      drawn.
  """
  path = as_path(output)
  if path.exists():
    raise ValueError(f"--output={output} is there already; delete it, or write another file")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
  except OSError as error:
    raise ValueError(f"--output={output} cannot be written: {error}") from error
  return _written(rows, file)


def _written(rows: Iterator[Drawn], file: Any) -> Iterator[Drawn]:
  with file:
    for row in rows:
      file.write(row.json() + "\n")
      file.flush()
      yield row

"""Targets that a model writes for sources: prompts and their answers, sentences and their
translations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import row_keys, wrap_keys
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained
from diffusion_text.types import Batch, Sampler

ROWS = 64  # sampled at a time


class Written(NamedTuple):
  """texts: [sources][n] targets; calls: network calls of a sample, on average; endless: share of
  samples that were still going on at the end of their row; altered: source tokens that are not what
  they were, which must be none.
  """

  texts: list[list[str]]
  calls: float
  endless: float
  altered: int


def source_ids(experiment: Experiment, source: str) -> np.ndarray:
  """int32: a source and the end that follows it, which a row is given."""
  return np.append(experiment.tokenizer.encode(source), np.int32(experiment.tokenizer.separator))


def write_targets(
  trained: Trained, sources: Sequence[str], num: int, seed: int, sampler: Sampler | None = None
) -> Written:
  """`num` samples for each source. Sample s of source r has the key (seed, r, s), whatever else is
  asked for.

  sampler: in place of the config's.
  """
  experiment, length = trained.experiment, trained.experiment.data.length
  starts = [source_ids(experiment, source) for source in sources]
  ids = np.zeros((len(sources), length), np.int32)
  for row, start in zip(ids, starts):
    row[: len(start)] = start
  observed = np.arange(length) < np.array([[len(start)] for start in starts])
  # Keys [sources, num].
  fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
  keys = fold(row_keys(seed, len(sources)), jnp.arange(num))
  key_data = np.asarray(jax.random.key_data(keys)).reshape(len(sources) * num, -1)
  place = np.repeat(np.arange(len(sources)), num)
  rows, calls = [], []
  for first in range(0, len(place), ROWS):
    # All calls have one shape: the last rows are drawn again and dropped.
    picked = np.minimum(first + np.arange(ROWS), len(place) - 1)
    batch = Batch(ids[place[picked]], observed[place[picked]])
    keys = wrap_keys(jnp.asarray(key_data[picked]))
    result = experiment.sample(trained.params, keys, batch, sampler=sampler)
    keep = min(ROWS, len(place) - first)
    rows.extend(np.asarray(result.ids)[:keep])
    calls.extend(np.asarray(result.row_calls)[:keep])
  altered = sum(int((row[: len(starts[r])] != starts[r]).sum()) for row, r in zip(rows, place))
  cut = [_target(experiment, row[len(starts[r]) :]) for row, r in zip(rows, place)]
  texts = [[text for text, _ in cut[r * num : (r + 1) * num]] for r in range(len(sources))]
  return Written(
    texts, float(np.mean(calls)), float(np.mean([not ended for _, ended in cut])), altered
  )


def _target(experiment: Experiment, ids: np.ndarray) -> tuple[str, bool]:
  """(text up to the first end, whether there is one)."""
  ends = np.flatnonzero(ids == experiment.tokenizer.separator)
  return experiment.tokenizer.decode(ids[: ends[0]] if ends.size else ids), bool(ends.size)

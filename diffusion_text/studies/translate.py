"""Sequence to sequence: targets for the sources of a held-out split, their scores, the bound of the
true targets, and one table of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import row_keys, wrap_keys
from diffusion_text.experiment import run
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained
from diffusion_text.studies.bound_variance import chosen_decoding
from diffusion_text.studies.translation import bleu, consensus, exact_match
from diffusion_text.types import Batch, Sampler

HEADER = (
  "system",
  "bound, nats/target token ± s.e.",
  "BLEU",
  "exact match",
  "network calls",
  "without an end",
  "parameters",
)
ROWS = 64  # sampled at a time


class Task(NamedTuple):
  """sources: each once, those of a split in its order; references: all targets that each has there;
  left_out: sources that are too long.
  """

  sources: list[str]
  references: list[list[str]]
  left_out: int


class Written(NamedTuple):
  """texts: [sources][n] targets; calls: network calls of a sample, on average; endless: share of
  samples that were still going on at the end of their row; altered: source tokens that are not what
  they were, which must be none.
  """

  texts: list[list[str]]
  calls: float
  endless: float
  altered: int


def held_out_task(experiment: Experiment, split: str, num: int | None = None) -> Task:
  """The first `num` sources of a split that leave room for a target in a row (None: all)."""
  if experiment.data.packing != "pairs":
    raise ValueError(
      f"data.corpus={experiment.data.corpus!r} has no sources; train on pairs or a task to"
      f" translate"
    )
  targets: dict[str, list[str]] = {}
  for source, target in experiment.data.make_corpus().pairs(split):
    targets.setdefault(source, []).append(target)
  fitting = [
    source
    for source in targets
    if len(source_ids(experiment, source)) + 2 <= experiment.data.length
  ]
  chosen = fitting[:num]
  return Task(chosen, [targets[source] for source in chosen], len(targets) - len(fitting))


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


def measure(
  name: str,
  trained: Trained,
  *,
  split: str,
  num: int | None,
  samples: Sequence[int],
  scorer: str,
  seed: int,
  num_draws: int,
  sampler: Sampler | None = None,
) -> dict[str, Any]:
  """Everything that the table says of one system, and its samples.

  samples: the numbers n of samples that a text is chosen from. sampler: in place of the config's.
  """
  experiment = trained.experiment
  task = held_out_task(experiment, split, num)
  written = write_targets(trained, task.sources, max(samples), seed, sampler)
  scores = {}
  for n in samples:
    texts = [each[consensus(each[:n], scorer)] for each in written.texts]
    value, signature = bleu(texts, task.references)
    scores[n] = {
      "bleu": value,
      "exact_match": exact_match(texts, task.references),
      "signature": signature,
    }
  scored, decode_at = chosen_decoding(trained, num_draws=num_draws)
  likelihood = run.score(scored.experiment, trained.params, split=split, num_draws=num_draws)
  return {
    "name": name,
    "step": trained.step,
    "sources": len(task.sources),
    "left_out": task.left_out,
    "scores": scores,
    "calls": written.calls,
    "endless": written.endless,
    "altered": written.altered,
    "nats_per_token": likelihood.nats_per_token,
    "standard_error": likelihood.standard_error,
    "tokens": likelihood.tokens,
    "decode_at": decode_at,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
    "examples": list(
      zip(task.sources, (each[0] for each in written.texts), (each[0] for each in task.references))
    ),
  }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A markdown table, the highest BLEU (of the most samples) first; several numbers of samples are
  separated by /.
  """

  def best(row):
    return list(row["scores"].values())[-1]["bleu"]

  lines = [_cells(row) for row in sorted(rows, key=best, reverse=True)]
  ruler = ("---", *["---:"] * (len(HEADER) - 1))
  return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, ruler, *lines))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  def several(what, form):
    return " / ".join(format(score[what], form) for score in row["scores"].values())

  return (
    row["name"],
    f"{row['nats_per_token']:.3f} ± {row['standard_error']:.3f}",
    several("bleu", ".2f"),
    several("exact_match", ".1%"),
    " / ".join(f"{n * row['calls']:.0f}" for n in row["scores"]),
    f"{row['endless']:.1%}",
    f"{row['parameters']:,}",
  )


def caption(
  rows: Sequence[Mapping[str, Any]], *, split: str, samples: Sequence[int], scorer: str, seed: int
) -> str:
  """What the table means."""
  first = rows[0]
  signature = " ".join(
    sorted({score["signature"] for row in rows for score in row["scores"].values()})
  )
  ends = ", ".join(
    f"{row['name']} {row['decode_at']:g}" for row in rows if row.get("decode_at") is not None
  )
  between = {"bleu": "BLEU", "chrf": "chrF"}[scorer]
  return (
    f"{first['sources']} sources of the {split} split ({first['left_out']} more are too long for a"
    f" row), seed {seed}; the bound is of"
    " all its pairs, in nats over the tokens of the target and its end, which pay for the padding"
    " too. BLEU is sacrebleu"
    f" {signature}. Each text is one sample, or the consensus of n"
    f" (n = {' / '.join(map(str, samples))}; by sentence {between} between samples, no reference is"
    " seen)."
    + (f" Log-SNRs at which bounds decode, chosen on validation text: {ends}." if ends else "")
  )

"""Samples judged by an autoregressive model: a frontier of quality against entropy over
temperatures, with MAUVE, diversity and copying beside it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_text.core.prng import make_key
from diffusion_text.data.packing import PADDING_SEGMENT
from diffusion_text.evaluate.diversity import rep_n, self_bleu
from diffusion_text.evaluate.frontier import Point, nats_at
from diffusion_text.evaluate.likelihood import estimate
from diffusion_text.evaluate.mauve import mauve
from diffusion_text.evaluate.memorisation import copies
from diffusion_text.evaluate.text_metrics import distinct_n, token_entropy
from diffusion_text.experiment.decoding import sampler_of
from diffusion_text.experiment.run import Trained, arrays, generate, open_rows
from diffusion_text.objective import engine
from diffusion_text.studies.measures import markdown
from diffusion_text.types import Batch, Progress

ROWS = 32  # judged at a time
PAIRED = 24  # texts of self-BLEU, at most: it looks at all pairs
HEADER = (
  *("system", "temperature", "judge, nats/token ± s.e.", "token entropy, nats", "distinct-2"),
  *("rep-4", "self-BLEU", "longest copy, tokens", "MAUVE"),
)


@dataclasses.dataclass(frozen=True)
class Judge:
  """An autoregressive run that scores text of any origin, in its own tokens.

  Attributes:
    trained: The run.
  """

  trained: Trained

  def __post_init__(self):
    model = self.trained.experiment.model
    if model.context.unit != 1 or model.timing.path != "jumps":
      raise ValueError(
        "the judge must be autoregressive, so that its nats are -log p and no bound; train one with"
        " --config=configs/autoregressive.py"
      )

  def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each text, cut to the length that the judge was trained on."""
    experiment = self.trained.experiment
    return [experiment.tokenizer.encode(text)[: experiment.data.length] for text in texts]

  def nats(self, texts: Sequence[str]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(-log p of each text in nats, its tokens); 0 and 0 for an empty text.

    A text stands at the beginning of a row, and what follows it is padding.
    """
    sums = self._by_rows(texts, lambda batch: self._nats(self.trained.params, batch))
    return sums, np.array([len(ids) for ids in self.ids(texts)], np.float64)

  def features(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
    """What the judge's head reads to predict the last token of each text, which has seen the text
    before it."""
    return self._by_rows(texts, lambda batch: self._features(self.trained.params, batch))

  def _by_rows(self, texts: Sequence[str], function: Callable[[Batch], Array]) -> np.ndarray:
    rows = self.ids(texts)
    found = []
    for first in range(0, len(rows), ROWS):
      some = rows[first : first + ROWS]
      values = function(padded(some, ROWS, self.trained.experiment.data.length))
      found.append(np.asarray(values, np.float64)[: len(some)])
    return np.concatenate(found)

  @functools.cached_property
  def _nats(self) -> Any:
    model = self.trained.experiment.model

    def nats(params, batch):
      return jnp.sum(engine.nats(model, params, make_key(0), batch, Progress()), axis=1)

    return jax.jit(nats)

  @functools.cached_property
  def _features(self) -> Any:
    model = self.trained.experiment.model

    def features(params, batch):
      key, progress = make_key(0), Progress()
      times = engine.draw_times(model, params, key, batch, progress)
      read = engine.read(model, params, key, batch, times, progress, dropout=False)
      last = jnp.maximum(jnp.sum(batch.weights, axis=1).astype(jnp.int32) - 1, 0)
      return jnp.take_along_axis(read.prediction.features, last[:, None, None], axis=1)[:, 0]

    return jax.jit(features)


def padded(rows: Sequence[np.ndarray], count: int, length: int) -> Batch:
  """A batch of `count` rows of `length` tokens with these at their beginnings; padding has weight
  0 and a segment of its own."""
  ids = np.zeros((count, length), np.int32)
  weights = np.zeros((count, length), np.float32)
  for place, row in enumerate(rows):
    ids[place, : len(row)] = row
    weights[place, : len(row)] = 1
  segment = np.where(weights > 0, 1, PADDING_SEGMENT).astype(np.int32)
  return Batch(ids=ids, weights=weights, segment=segment)


@dataclasses.dataclass(frozen=True)
class Judged:
  """Texts of one system at one temperature.

  Attributes:
    system: Its name.
    point: Temperature, nats of the judge and entropy.
    numbers: What stands beside them, in the order of HEADER.
  """

  system: str
  point: Point
  numbers: tuple[float, ...]

  def cells(self) -> list[str]:
    """A row of the table."""
    point = self.point
    temperature = "" if np.isnan(point.temperature) else f"{point.temperature:g}"
    distinct, rep, bleu, copied, closeness = self.numbers
    return [
      self.system,
      temperature,
      f"{point.nats:.3f} ± {point.nats_error:.3f}",
      f"{point.entropy:.3f}",
      f"{distinct:.3f}",
      f"{rep:.3f}",
      f"{bleu:.3f}",
      f"{copied:.1f}",
      f"{closeness:.3f}",
    ]


def judged(
  judge: Judge, system: str, temperature: float, texts: Sequence[str], reference: Sequence[str]
) -> Judged:
  """The numbers of some texts, in the judge's tokens.

  reference: as many held-out texts, for MAUVE.

  Raises:
    ValueError: If a text is empty, or has no four tokens.
  """
  if not all(texts):
    raise ValueError(f"{sum(not text for text in texts)} texts of {system} are empty: no nats")
  ids = judge.ids(texts)
  nats, tokens = judge.nats(texts)
  value, error = estimate(nats, tokens)
  corpus = arrays(judge.trained.experiment, "train").tokens
  numbers = (
    distinct_n(ids, 2),
    rep_n(ids, 4),
    self_bleu([row.tolist() for row in ids[:PAIRED]]),
    copies(ids, corpus).mean,
    mauve(judge.features(reference), judge.features(texts)),
  )
  return Judged(system, Point(temperature, value, error, token_entropy(ids)), numbers)


def held_out_texts(judge: Judge, num: int) -> tuple[list[str], list[str]]:
  """Twice `num` passages of the test text, of the judge's row length: to be judged, and reference.

  Raises:
    ValueError: If the test split is too short.
  """
  experiment = judge.trained.experiment
  tokens = np.asarray(arrays(experiment, "test").tokens)
  length = experiment.data.length
  if len(tokens) < 2 * num * length:
    raise ValueError(
      f"num={num}: the test split has {len(tokens)} tokens, which is less than 2 · {num} passages"
      f" of {length}; use num <= {len(tokens) // (2 * length)}"
    )
  rows = tokens[: 2 * num * length].reshape(2 * num, length)
  texts = [experiment.tokenizer.decode(row) for row in rows]
  return texts[::2], texts[1::2]


def sampled(
  trained: Trained, temperature: float, *, num: int, seed: int, steps: int | None
) -> list[str]:
  """`num` texts of a system at a temperature. Raises ValueError for a sampler without one."""
  experiment = trained.experiment
  sampler = sampler_of(experiment, temperature=temperature, steps=steps)
  batch = open_rows(experiment.tokenizer, num, experiment.data.length)
  return generate(trained, batch, num=num, seed=seed, sampler=sampler)[0]


def report(rows: Sequence[Judged], text: Judged) -> str:
  """The table, held-out text last, and the nats of every system at the entropy of that text."""
  table = markdown(HEADER, [row.cells() for row in (*rows, text)])
  where = f"at the entropy of held-out text ({text.point.entropy:.3f})"
  lines = []
  for system in dict.fromkeys(row.system for row in rows):
    found = nats_at([row.point for row in rows if row.system == system], text.point.entropy)
    reached = "not reached at these temperatures"
    if found is not None:
      reached = f"{found[0]:.3f} ± {found[1]:.3f} nats/token"
    lines.append(f"- {system} {where}: {reached}")
  return "\n".join([table, "", *lines])

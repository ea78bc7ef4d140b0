"""What masks behind a row do to its answers: the same questions to trained runs, followed by no
masks, and by as many as one, two and four rows have.

A masked token means "unknown", so masks behind a row say nothing about it, and an exact model would
answer as before. Trained networks are distracted, published as 23 to 27 points of accuracy; the
mask-agnostic loss is said to halve that, and cross-entropy of the longer rows alone to do nothing
(arXiv 2511.21338). The control is as many ends of text, which are no masks.

Every question is the prompt of a test example, its answer masked, and every answer the likeliest
token at each place by one call. Places behind the answer's end are not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.contrib.mask_agnostic import append
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key
from diffusion_text.experiment.run import Trained
from diffusion_text.objective import engine
from diffusion_text.studies import tasks
from diffusion_text.studies.measures import (
  check_rising,
  markdown,
  mean_and_error,
  pooled_entropy,
  write,
)
from diffusion_text.studies.targets import source_ids
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, Model, Params, Progress, Rows

TOGETHER = 64  # rows that are read at a time
HEADER = ("run", "behind the row", "tokens right", "lost", "nats/token", "answers right")
HEADER = (*HEADER, "token entropy, nats")


@member
class Settings:
  """How the study is run."""

  times: tuple[int, ...] = option((1, 2, 4), "masks behind a row, as multiples of its length")
  rows: int = option(256, "questions, at most", ge=2)


class Questions(NamedTuple):
  """Rows that ask.

  Attributes:
    ids: the tokens, with the answers.
    observed: True at the prompts.
    counted: True at the answers and their ends.
  """

  ids: Int[np.ndarray, "R N"]
  observed: Bool[np.ndarray, "R N"]
  counted: Bool[np.ndarray, "R N"]


def questions(trained: Trained, rows: int) -> Questions:
  """The first test examples of the run's task whose answers fit in a row.

  Raises:
    ValueError: For a run without a task or pairs, and if fewer than two examples fit.
  """
  experiment = trained.experiment
  length = experiment.data.length
  asked, answers = [], []
  for example in tasks.task_of(trained).examples("test"):
    prompt, answer = (source_ids(experiment, text) for text in (example.prompt, example.answers[0]))
    if len(prompt) + len(answer) <= length and len(asked) < rows:
      asked.append(prompt)
      answers.append(answer)
  if len(asked) < 2:
    raise ValueError(f"{len(asked)} test examples fit in data.length={length}; two are needed")
  place, start = np.arange(length), np.array([[len(each)] for each in asked])
  end = start + np.array([[len(each)] for each in answers])
  ids = np.full((len(asked), length), experiment.tokenizer.separator, np.int32)
  for row, prompt, answer in zip(ids, asked, answers):
    row[: len(prompt) + len(answer)] = np.concatenate([prompt, answer])
  return Questions(ids, place < start, (place >= start) & (place < end))


@functools.partial(jax.jit, static_argnums=0)
def log_laws(
  model: Model,
  params: Params,
  batch: Batch,
  tail: Int[Array, "B A"] | None,
  seen: Bool[Array, "B A"],
) -> Float[Array, "B N V"]:
  """The log-probabilities of every token of rows in which all that is not observed is noise.

  Args:
    model: of masks and bidirectional rows.
    params: the model's.
    batch: the rows.
    tail: clean tokens behind each row; None: noise.
    seen: which of the places behind the row it sees.

  Raises:
    ValueError: when traced, for a model of other rows.
  """
  process, own, progress = model.process, params["process"], Progress()
  model, key = model._replace(timing=AtNoise()), make_key(0)

  def lengthen(rows: Rows) -> Rows:
    noise = jnp.full(seen.shape, process.mask_id, jnp.int32)
    state = noise if tail is None else process.clean(own, tail)
    t = jnp.full(seen.shape, 1.0 if tail is None else 0.0)
    longer = append(rows, process.inputs(own, state, t), seen, None)
    return dataclasses.replace(longer, t=longer.t.at[:, rows.t.shape[1] :].set(t))

  times = engine.draw_times(model, params, key, batch, progress)
  ask = (model, params, key, batch, times, progress)
  prediction = engine.read(*ask, change_rows=lengthen, dropout=False).prediction
  return jax.nn.log_softmax(prediction.head(prediction.features), axis=-1)


def answers(
  trained: Trained, asked: Questions, count: int, room: int, masks: bool
) -> Float[np.ndarray, "R N V"]:
  """The log-probabilities at all places with `count` masks, or ends of text, behind each row.

  room: places that all counts of one table share, so that they share a program.

  Raises:
    ValueError: For a process without masks, and for rows that are no bidirectional block.
  """
  model = trained.experiment.model
  if model.process.mask_id is None:
    raise ValueError(f"{model.process} has no masks to stand behind a row; use a masked run")
  found = []
  for first in range(0, len(asked.ids), TOGETHER):
    # All calls have one shape: the last rows are read again and dropped.
    some = np.minimum(first + np.arange(TOGETHER), len(asked.ids) - 1)
    seen = np.broadcast_to(np.arange(room) < count, (TOGETHER, room))
    end = np.full(seen.shape, trained.experiment.tokenizer.separator, np.int32)
    batch = Batch(asked.ids[some], asked.observed[some])
    tail = None if masks else end
    found.append(jax.device_get(log_laws(model, trained.params, batch, tail, seen)))
  return np.concatenate(found)[: len(asked.ids)]


class Answered(NamedTuple):
  """Of each row: the share of tokens that are right, and their mean cost in nats; and the tokens
  that were said, of all rows.
  """

  right: Float[np.ndarray, " R"]
  nats: Float[np.ndarray, " R"]
  said: Int[np.ndarray, " n"]

  @staticmethod
  def of(asked: Questions, laws: Float[np.ndarray, "R N V"]) -> Answered:
    """What laws of all places are worth."""
    best, number = laws.argmax(-1), asked.counted.sum(1)
    cost = -np.take_along_axis(laws, asked.ids[..., None], -1)[..., 0]
    right = ((best == asked.ids) & asked.counted).sum(1) / number
    return Answered(right, (cost * asked.counted).sum(1) / number, best[asked.counted])

  def cells(self, without: Answered) -> tuple[str, ...]:
    """The cells of a table, beside the answers without anything behind the row; differences are
    row by row."""
    pairs = [self.right, without.right - self.right, self.nats, self.right == 1]
    said = ["{:.4f} ± {:.4f}".format(*mean_and_error(values)) for values in pairs]
    return (*said, f"{pooled_entropy(self.said):.3f}")


def lines(name: str, trained: Trained, settings: Settings) -> list[tuple[str, ...]]:
  """The lines of a run."""
  asked = questions(trained, settings.rows)
  length = asked.ids.shape[1]
  room = max(settings.times) * length

  def answered(times: int, masks: bool = True) -> Answered:
    return Answered.of(asked, answers(trained, asked, times * length, room, masks))

  without = answered(0)
  found = [(name, "nothing", *without.cells(without))]
  for times in settings.times:
    found.append((name, f"{times * length} masks", *answered(times).cells(without)))
  ends = answered(max(settings.times), masks=False)
  return [*found, (name, f"{room} ends (control)", *ends.cells(without))]


def run(settings: Settings, runs: Mapping[str, Trained], workdir: pathlib.Path) -> str:
  """The table of runs by name, which is also written to the workdir.

  Raises:
    ValueError: For times that do not rise from 1, and what `answers` and `questions` refuse.
  """
  check_rising("times", settings.times, "1,2,4")
  found = [line for name, trained in runs.items() for line in lines(name, trained, settings)]
  text = markdown(HEADER, found, left=(0, 1))
  write(workdir, "extra_masks", text, settings=dataclasses.asdict(settings), lines=found)
  return text

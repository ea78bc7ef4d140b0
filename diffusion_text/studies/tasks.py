"""Answers of a trained model to the prompts of a task, and of baselines that need no training."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion_text.data.tasks import TASKS, Example, Task
from diffusion_text.evaluate.task_metrics import METRICS, Answers, Score
from diffusion_text.evaluate.text_metrics import NGramModel
from diffusion_text.experiment import registry
from diffusion_text.experiment.run import Trained
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.studies.translate import Written, write_targets
from diffusion_text.types import Sampler

BESIDE = ("entropy", "distinct")  # beside every quality: how varied the answers are
NGRAM_ORDER = 7
NGRAM_DOCUMENTS = 20_000  # training documents that the n-gram model counts, at most


@dataclasses.dataclass(frozen=True)
class Answered:
  """Answers to the prompts of a split, with their scores.

  Attributes:
    examples: The examples.
    texts: One answer to each.
    reasons: What is wrong with each, "" for a right one.
    scores: name -> score, of the task's metrics and of BESIDE.
  """

  examples: tuple[Example, ...]
  texts: list[str]
  reasons: list[str]
  scores: dict[str, Score]


def score(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> Answered:
  """The scores of one text for each example."""
  verdicts = [task.verify(example, text) for example, text in zip(examples, texts, strict=True)]
  answers = Answers(
    prompts=[example.prompt for example in examples],
    texts=list(texts),
    references=[example.answers for example in examples],
    rewards=[verdict.reward for verdict in verdicts],
    forms=[verdict.form for verdict in verdicts],
  )
  scores = {name: METRICS[name](answers) for name in (*task.metrics, *BESIDE)}
  reasons = [verdict.reason for verdict in verdicts]
  return Answered(tuple(examples), list(texts), reasons, scores)


def made(name: str, options: Mapping[str, Any]) -> Task:
  """The task of a name with these options. Raises ValueError as a config would."""
  data = {"corpus": "task", "packing": "pairs", "task": {"name": name, **options}}
  return registry.settings(DataSettings, data, "data").task


def task_of(trained: Trained) -> Task:
  """The task that a run was trained on.

  Raises:
    ValueError: For a run on something else.
  """
  task = trained.experiment.data.task
  if task is None:
    raise ValueError(
      f"the run was trained on data.corpus={trained.experiment.data.corpus!r}, which is no task;"
      " train with --config.data.corpus=task --config.data.packing=pairs --config.data.task=NAME"
    )
  return task


def answered(
  trained: Trained, *, split: str, num: int, seed: int, sampler: Sampler | None = None
) -> tuple[Answered, Written]:
  """(the model's answers to the first `num` prompts of a split, how they were written).

  A prompt is observed; the answer ends at the first end of line, or at the end of the row.
  """
  task = task_of(trained)
  examples = task.examples(split)[:num]
  written = write_targets(trained, [each.prompt for each in examples], 1, seed, sampler)
  return score(task, examples, [texts[0] for texts in written.texts]), written


def majority(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
  """The most frequent training answer, the first of equals, for every prompt."""
  counts = collections.Counter(answer for example in train for answer in example.answers)
  return [counts.most_common(1)[0][0]] * len(test)


def copy(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
  """Every prompt itself."""
  del train
  return [example.prompt for example in test]


def another(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
  """The answers of training examples that have nothing to do with the prompts, spread over all."""
  return [train[i * len(train) // len(test)].answers[0] for i in range(len(test))]


def n_gram(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
  """The likeliest characters of an interpolated n-gram model of training documents, up to the first
  end of line, and at most as many as the longest training answer has.
  """
  documents = [f"{example.prompt}\n{answer}\n" for example in train for answer in example.answers][
    :NGRAM_DOCUMENTS
  ]
  model = NGramModel.train("".join(documents), NGRAM_ORDER)
  limit = max(len(answer) for example in train for answer in example.answers)
  return [model.continued(f"{example.prompt}\n", "\n", limit) for example in test]


BASELINES: dict[str, Callable[[Sequence[Example], Sequence[Example]], list[str]]] = {
  "majority answer": majority,
  "copy of the prompt": copy,
  "answer of another prompt": another,
  f"{NGRAM_ORDER}-gram": n_gram,
}


def baselines(task: Task, *, split: str, num: int) -> dict[str, Answered]:
  """name -> answers of each of BASELINES to the first `num` prompts of a split, and the known
  answers, as "known answer".
  """
  train, test = task.examples("train"), task.examples(split)[:num]
  found = {name: score(task, test, write(train, test)) for name, write in BASELINES.items()}
  return {"known answer": score(task, test, [each.answers[0] for each in test]), **found}


def listing() -> str:
  """The names of all tasks, with one line each."""
  return "\n".join(f"{name:<20}{_first_line(cls)}" for name, cls in TASKS.items())


def _first_line(cls: Any) -> str:
  return " ".join((cls.__doc__ or "").split()).split(". ")[0].rstrip(".")


def shown(one: Answered, number: int) -> str:
  """The first answers, with what is wrong with them."""
  lines = []
  for example, text, reason in list(zip(one.examples, one.texts, one.reasons))[:number]:
    verdict = f"  [{reason}]" if reason else "  [right]"
    lines.append(f"{example.prompt} => {text}{verdict}")
  return "\n".join(lines)


def line(scores: dict[str, Score]) -> str:
  """Scores in one line, with standard errors where there are any."""
  return ", ".join(f"{name} {cell(value)}" for name, value in scores.items())


def cell(value: Score) -> str:
  """A score as text: "0.123 ± 0.010", or without an error if it has none."""
  return f"{value.value:.3f}" + ("" if value.error is None else f" ± {value.error:.3f}")

"""Answers of a trained model to the prompts of a task, and of baselines that need no training."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_text.data.splits import SPLITS
from diffusion_text.data.tasks import TASKS, Example, Task, Verdict
from diffusion_text.data.tasks.contract import verdict_by_match
from diffusion_text.evaluate.task_metrics import METRICS, Answers, Score
from diffusion_text.evaluate.text_metrics import NGramModel
from diffusion_text.experiment import registry
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.studies.exam_contract import How, Line, Scores, Taken
from diffusion_text.studies.targets import Written, source_ids, write_targets
from diffusion_text.studies.translation import consensus
from diffusion_text.types import Sampler

BESIDE = ("entropy", "distinct")  # beside every quality: how varied the answers are
NGRAM_ORDER = 7
NGRAM_DOCUMENTS = 20_000  # training documents that the n-gram model counts, at most
ROUNDED = 16  # rows are as long as the longest example, rounded up to a multiple of this


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


@dataclasses.dataclass(frozen=True)
class PairsOfRun:
  """The pairs that a run was trained on, as a task: all targets of a source are its answers.

  Attributes:
    corpus: Any corpus with the method `pairs`.
  """

  corpus: Any
  metrics = ("bleu", "chrf", "exact_match", "copied")

  def examples(self, split: str) -> tuple[Example, ...]:
    """Sources in the order of their first pairs."""
    targets: dict[str, list[str]] = {}
    for source, target in self.corpus.pairs(split):
      targets.setdefault(source, []).append(target)
    return tuple(Example(source, tuple(found)) for source, found in targets.items())

  def verify(self, example: Example, text: str) -> Verdict:
    """1 for one of the known targets, less for another."""
    return verdict_by_match(example, text)

  def identity(self, memo: Path | None = None) -> str:
    """That of the corpus."""
    return self.corpus.identity(memo)

  def origin(self, split: str) -> str:
    """That of the corpus."""
    return self.corpus.origin(split)


def task_of(trained: Trained) -> Task:
  """The task that a run was trained on, or its pairs.

  Raises:
    ValueError: For a run on something else.
  """
  data = trained.experiment.data
  if data.task is not None:
    return data.task
  if data.packing == "pairs":
    return PairsOfRun(data.make_corpus())
  raise ValueError(
    f"the run was trained on data.corpus={data.corpus!r}, which has neither tasks nor pairs; train"
    " with --config.data.corpus=task --config.data.packing=pairs --config.data.task=NAME"
  )


def fitting(trained: Trained, examples: Sequence[Example]) -> list[Example]:
  """The examples whose prompts leave room for an answer in a row."""
  experiment = trained.experiment
  limit = experiment.data.length - 2
  return [each for each in examples if len(source_ids(experiment, each.prompt)) <= limit]


def answered(
  trained: Trained, *, split: str, num: int | None, seed: int, sampler: Sampler | None = None
) -> tuple[Answered, Written]:
  """(the model's answers to the first `num` prompts of a split, how they were written).

  A prompt is observed; the answer ends at the first end of line, or at the end of the row.
  """
  how = How(num=num, split=split)
  by_number, written = answered_by_consensus(trained, task_of(trained), how, seed, sampler)
  return by_number[1], written


def answered_by_consensus(
  trained: Trained, task: Task, how: How, seed: int, sampler: Sampler | None
) -> tuple[dict[int, Answered], Written]:
  """(n -> answers that are the consensus of n samples, for each n of `how.mbr`, how they were
  written). No known answer is seen in choosing.
  """
  examples = fitting(trained, task.examples(how.split))[: how.num]
  written = write_targets(trained, [each.prompt for each in examples], max(how.mbr), seed, sampler)
  chosen = {
    n: [texts[consensus(texts[:n], how.scorer)] for texts in written.texts]
    for n in sorted(set(how.mbr))
  }
  return {n: score(task, examples, texts) for n, texts in chosen.items()}, written


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


def baselines(task: Task, *, split: str, num: int | None) -> dict[str, Answered]:
  """name -> answers of each of BASELINES to the first `num` prompts of a split, and the known
  answers, as "known answer".
  """
  train, test = task.examples("train"), task.examples(split)[:num]
  found = {name: score(task, test, write(train, test)) for name, write in BASELINES.items()}
  return {"known answer": score(task, test, [each.answers[0] for each in test]), **found}


@dataclasses.dataclass(frozen=True)
class TaskExam:
  """Prompts of a task, with its metrics.

  Attributes:
    task: The task.
    section: config.data.task, which makes it; of a run that is there, nothing.
    tokenizer: The name of one, as in config.data.tokenizer.
  """

  task: Task
  section: Mapping[str, Any]
  tokenizer: str = "characters"

  @property
  def columns(self) -> tuple[str, ...]:
    """The task's metrics, with BESIDE."""
    return (*self.task.metrics, *BESIDE)

  def data(self, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The task, in rows that hold its longest example if no token is less than a character."""
    examples = [each for split in SPLITS for each in self.task.examples(split)]
    longest = max(len(each.prompt) + max(map(len, each.answers)) + 2 for each in examples)
    return {
      "corpus": "task",
      "packing": "pairs",
      "task": dict(self.section),
      "tokenizer": self.tokenizer,
      "length": -(-longest // ROUNDED) * ROUNDED,
      **{key: shared[key] for key in ("cache_dir",) if key in shared},
    }

  def check(self, experiment: Experiment) -> None:
    """Every system that can be trained on a task can be asked."""

  def taken(self, trained: Trained, how: How, seed: int, sampler: Sampler) -> Taken:
    """The answers to test prompts: a line for each of `how.mbr`."""
    found, written = answered_by_consensus(trained, self.task, how, seed, sampler)
    lines = [
      Line("" if n == 1 else f"consensus of {n}", one.scores, n * written.calls, written.endless)
      for n, one in found.items()
    ]
    first = next(iter(found.values()))
    left_out = len(self.task.examples(how.split)) - len(
      fitting(trained, self.task.examples(how.split))
    )
    numbers = {"prompts": len(first.texts), "altered": written.altered, "left_out": left_out}
    return Taken(lines, shown(first, len(first.texts)), numbers)

  def baselines(self, how: How, experiment: Callable[[], Experiment]) -> dict[str, Scores]:
    """See the function `baselines`."""
    found = baselines(self.task, split=how.split, num=how.num)
    return {name: one.scores for name, one in found.items()}

  def legend(self, how: How) -> str:
    """What the columns mean."""
    prompts = "all" if how.num is None else f"the first {how.num}"
    consensus_of = (
      f" Consensus of n: the sample that the others are nearest to, by sentence {how.scorer}."
      if max(how.mbr) > 1
      else ""
    )
    return (
      f"Answers are to {prompts} {how.split} prompts, one sample each.{consensus_of} The bound is"
      f" per token ({self.tokenizer}) of the answers and their ends, which pay for the padding too."
      " right: a right"
      " answer by the task's verifier; valid: the form of one; entropy: nats of the characters of"
      " all answers; distinct: share of different answers. In italics: what needs no training, the"
      f" n-gram with at most {NGRAM_DOCUMENTS:,} training documents."
    )


def exam_of(trained: Trained) -> TaskExam:
  """The exam of the task or the pairs that a run was trained on. Raises ValueError as `task_of`."""
  return TaskExam(task_of(trained), {}, trained.experiment.data.tokenizer)


def exam_of_both(first: TaskExam, other: TaskExam) -> TaskExam:
  """One exam for two runs, whose tokens may differ.

  Raises:
    ValueError: For runs of tasks with other metrics.
  """
  if other.columns != first.columns:
    raise ValueError(
      f"one run has the metrics {', '.join(first.columns)}, another {', '.join(other.columns)};"
      " one table is of one task"
    )
  if other.tokenizer in first.tokenizer.split(" or "):
    return first
  return dataclasses.replace(first, tokenizer=f"{first.tokenizer} or {other.tokenizer}")


def listing() -> str:
  """The names of all tasks, with one line each."""
  return "\n".join(described(name, cls) for name, cls in TASKS.items())


def described(name: str, cls: Any) -> str:
  """A name with the first sentence of its class, in one line."""
  said = " ".join((cls.__doc__ or "").split()).split(". ")[0].rstrip(".")
  return f"{name:<20}{said}"


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
  """A score as text: "0.123 ± 0.010", or without an error if it has none; "" for NaN."""
  if math.isnan(value.value):
    return ""
  return f"{value.value:.3f}" + ("" if value.error is None else f" ± {value.error:.3f}")

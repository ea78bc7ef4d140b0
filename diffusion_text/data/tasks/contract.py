"""What a task is: prompts with right answers, and a verifier of any other answer.

A task is a frozen `@member` with these methods; `diffusion_text.data.tasks.TASKS` has its name. A
prompt and an answer are one line of text each. As training data a pair of them is a document of two
lines (`TaskText`), which packing "pairs" makes a row of: the prompt is observed, the answer and the
padding after it are learned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from diffusion_text.core.options import member
from diffusion_text.data.corpora import check_split

FORM_REWARD = 0.1  # of an answer that has the form of one and is wrong


class Example(NamedTuple):
  """A prompt with its answers.

  Attributes:
    prompt: One line of text.
    answers: The right answers that are known, at least one.
    place: Where the example comes from, for messages: "folder/train.csv:17" or "test example 3".
  """

  prompt: str
  answers: tuple[str, ...]
  place: str = ""


class Verdict(NamedTuple):
  """What a verifier says of an answer.

  Attributes:
    reward: In [0, 1]; 1 for a right answer and for no other.
    form: True if the text has the form of an answer, right or wrong.
    reason: What is wrong, in words; "" for a right answer.
  """

  reward: float
  form: bool
  reason: str = ""

  @property
  def right(self) -> bool:
    """True for a right answer."""
    return self.reward == 1.0


RIGHT = Verdict(1.0, True)


def wrong(reason: str) -> Verdict:
  """The verdict on a wrong answer of the right form, with reward `FORM_REWARD`."""
  return Verdict(FORM_REWARD, True, reason)


def malformed(reason: str) -> Verdict:
  """The verdict on a text that has not the form of an answer, with reward 0."""
  return Verdict(0.0, False, reason)


@runtime_checkable
class Task(Protocol):
  """Examples by split, and a verifier.

  Attributes:
    metrics: Names of `diffusion_text.evaluate.task_metrics.METRICS`, the first is the one that
      answers are ranked by.
  """

  metrics: ClassVar[tuple[str, ...]]

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of "train", "validation" or "test", or "all", in a fixed order.

    No prompt is in two splits, unless two files that name their splits both hold it.

    Raises:
      ValueError, FileNotFoundError: For files that cannot be read, with file, line and fix.
    """

  def verify(self, example: Example, text: str) -> Verdict:
    """The verdict on a text as an answer to the prompt of an example.

    Tasks that are checked by rules read the prompt alone; others compare with the known answers.
    """

  def identity(self, memo: Path | None = None) -> str:
    """A string that changes when the examples do, as of `corpora.Corpus`."""

  def origin(self, split: str) -> str:
    """Where the examples of a split come from, in one line."""


@member
class TaskText:
  """A task as a corpus: a document is a prompt and an answer, with a newline between them.

  An example with several answers gives as many documents.

  Attributes:
    task: The task.
  """

  task: Task

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split. Raises the errors of the task."""
    return (f"{prompt}\n{answer}" for prompt, answer in self.pairs(split))

  def pairs(self, split: str) -> list[tuple[str, str]]:
    """(prompt, answer) of every document of a split."""
    check_split(split)
    return [
      (example.prompt, answer) for example in self.task.examples(split)
      for answer in example.answers
    ]  # fmt: skip

  def identity(self, memo: Path | None = None) -> str:
    """That of the task."""
    return f"task:{self.task.identity(memo)}"

  def origin(self, split: str) -> str:
    """That of the task."""
    return self.task.origin(split)


def check_rows(task: Task, split: str, sizes: Int[np.ndarray, " documents"], length: int) -> None:
  """Raises ValueError, with the place of the example, if a document has no room in a row.

  Args:
    task: The task.
    split: The split.
    sizes: The tokens of each document of `TaskText`, both ends of line included.
    length: Tokens of a row.
  """
  too_long = np.flatnonzero(sizes > length)
  if not too_long.size:
    return
  pairs = [
    (example.place, answer) for example in task.examples(split) for answer in example.answers
  ]
  place, answer = pairs[too_long[0]]
  shown = answer if len(answer) <= 40 else f"{answer[:37]}…"
  raise ValueError(
    f"{place}: prompt and answer {shown!r} are {sizes[too_long[0]]} tokens, more than a row of"
    f" data.length={length}; use data.length >= {max(sizes)}, or shorter examples"
  )


def token_f1(text: str, references: tuple[str, ...]) -> float:
  """The largest F1 of words over the references, in [0, 1] (SQuAD, arXiv 1606.05250; recalled).

  Words are what stands between spaces, in lower case, without other normalisation. Two texts
  without words agree.
  """
  return max(_f1(_words(text), _words(reference)) for reference in references)


def _words(text: str) -> list[str]:
  return re.findall(r"\S+", text.lower())


def _f1(ours: list[str], theirs: list[str]) -> float:
  if not ours or not theirs:
    return float(ours == theirs)
  shared = (Counter(ours) & Counter(theirs)).total()
  return 2 * shared / (len(ours) + len(theirs))


def verdict_by_match(example: Example, text: str) -> Verdict:
  """1 for a text that is one of the answers; of any other, 0.9 times its `token_f1`."""
  if text in example.answers:
    return RIGHT
  score = 0.9 * token_f1(text, example.answers)
  return Verdict(score, bool(text.strip()), f"is none of {len(example.answers)} known answer(s)")

"""What an exam is: training text for a system, and what is asked of it once it is trained.

A column of numbers of the table of tasks is made by an exam. Prompts with right answers are one
kind (`tasks.TaskExam`); any other object with these methods is one, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from diffusion_text.evaluate.task_metrics import Score
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained
from diffusion_text.studies.translation import SCORERS
from diffusion_text.types import Sampler

Scores = Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class How:
  """How much is asked.

  Attributes:
    num: Prompts, at most; None: all.
    mbr: Numbers of samples that an answer is chosen from, by the consensus of the samples.
    scorer: What samples are compared by.
    split: Whose prompts.
  """

  num: int | None = 100
  mbr: tuple[int, ...] = (1,)
  scorer: str = "bleu"
  split: str = "test"

  def __post_init__(self):
    if not self.mbr or min(self.mbr) < 1:
      raise ValueError(f"--mbr={','.join(map(str, self.mbr))}: give numbers of samples such as 1,4")
    if self.scorer not in SCORERS:
      raise ValueError(f"--scorer={self.scorer} is unknown; use one of {', '.join(SCORERS)}")


class Line(NamedTuple):
  """A line of the table.

  Attributes:
    label: What it has that the system's other lines have not; "" if there is nothing to say.
    scores: One for each column of the exam.
    calls: Network calls of an answer.
    without_an_end: The share of samples that were still going on at the end of their row; None
      where text has no end.
  """

  label: str
  scores: Scores
  calls: float
  without_an_end: float | None = None


class Taken(NamedTuple):
  """What a trained system did.

  Attributes:
    lines: At least one.
    text: What it wrote, for people to read.
    numbers: More that is kept with the results.
  """

  lines: list[Line]
  text: str
  numbers: Mapping[str, Any]


class Exam(Protocol):
  """One part of the table: what systems are trained on, and the columns.

  Attributes:
    columns: Names of scores; systems are ranked by the first, the largest first.
  """

  @property
  def columns(self) -> tuple[str, ...]:
    """See the class."""

  def data(self, shared: Mapping[str, Any]) -> dict[str, Any]:
    """config.data of every system. shared: config.data of the base of the table."""

  def check(self, experiment: Experiment) -> None:
    """Raises ValueError, with the fix, for what would only be refused after training."""

  def taken(self, trained: Trained, how: How, seed: int, sampler: Sampler) -> Taken:
    """What a trained system does when it is asked."""

  def baselines(self, how: How, experiment: Callable[[], Experiment]) -> dict[str, Scores]:
    """Name -> scores of what needs no training. experiment: Makes that of a system, untrained."""

  def legend(self, how: How) -> str:
    """What the columns mean, in whole sentences."""

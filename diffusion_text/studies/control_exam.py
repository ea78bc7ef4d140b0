"""Control as a part of the table of tasks: how often the attribute is found by a classifier that is
not the guide, what the text costs under an autoregressive judge, and how varied it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from diffusion_text.core.options import member, option
from diffusion_text.evaluate.likelihood import estimate
from diffusion_text.evaluate.task_metrics import Score, mean_score
from diffusion_text.evaluate.text_metrics import distinct_n, token_entropy
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained, load
from diffusion_text.studies import control
from diffusion_text.studies.exam_contract import How, Line, Scores, Taken
from diffusion_text.studies.judge import Judge
from diffusion_text.types import Sampler


@member
class ControlExam(control.Settings):
  """Text of one source of a corpus, sought by a classifier that steers a sampler (arXiv 2210.17432,
  2205.14217). The text that systems learn from is that of --base.
  """

  judge: str = option(..., "the directory of an autoregressive run, which prices the text")

  @property
  def columns(self) -> tuple[str, ...]:
    """Success first."""
    quality = ("judge_nats", "token_entropy", "distinct_2")
    return ("success", "success_of_guide", "guide_right", *quality)

  def data(self, shared: Mapping[str, Any]) -> dict[str, Any]:
    """That of the base."""
    return dict(shared)

  def check(self, experiment: Experiment) -> None:
    """Raises ValueError for a judge that is none, and a source that the corpus has not."""
    control.sources_of(experiment, self.target)
    Judge(load(self.judge))

  def taken(self, trained: Trained, how: How, seed: int, sampler: Sampler) -> Taken:
    """A line without control, one for each strength, and one with a guide of shuffled labels; the
    first alone if the system cannot be steered.
    """
    experiment = dataclasses.replace(trained.experiment, sampler=sampler)
    generator = dataclasses.replace(trained, experiment=experiment)
    settings, why_not = dataclasses.replace(self, seed=seed), self.refusal(experiment)
    steered = (control.unsteered if why_not else control.steer)(generator, settings)
    judge = Judge(load(self.judge))
    lines, texts = [], []
    for each in steered.samples:
      scores = self._scores(steered, judge, each.ids)
      scores["guide_right"] = Score(each.guide_right, None)
      lines.append(Line(each.label, scores, each.calls))
      texts.append(f"--- {each.label or 'unguided'}")
      texts += [experiment.tokenizer.decode(row) for row in each.ids]
    held_out = steered.held_out
    right = np.mean(steered.evaluator.answers(held_out.ids) == held_out.label)
    numbers = {"evaluator_right": float(right), "not_steered": why_not}
    return Taken(lines, "\n".join(texts), numbers)

  def baselines(self, how: How, experiment: Callable[[], Experiment]) -> dict[str, Scores]:
    """Held-out text of the source, as many rows as are drawn."""
    made = experiment()
    found = control.evaluated(made, self)
    own = found.held_out.ids[found.held_out.label == found.target]
    own = own[np.linspace(0, len(own) - 1, self.num).astype(int)]
    scores = self._scores(found, Judge(load(self.judge)), own)
    return {f"held-out text of {self.target}": scores}

  def legend(self, how: How) -> str:
    """What the columns mean."""
    return (
      f"{self.num} rows for each strength of control by {self.guidance}; a system with one line"
      f" cannot be steered so. success: rows that a classifier takes for the source {self.target};"
      " it has another architecture, seed and text than the guide, whose own opinion is"
      " success_of_guide, and which is right about guide_right of held-out rows: a mean over"
      " sources, of rows as it reads them when it steers. judge_nats: per token of the run"
      f" {self.judge}, lower is better; token_entropy and distinct_2 are of the tokens."
    )

  def _scores(
    self, found: control.Study, judge: Judge, ids: Int[np.ndarray, "N L"]
  ) -> dict[str, Score]:
    texts = [found.tokenizer.decode(row) for row in ids]
    return {
      "success": mean_score(found.evaluator.answers(ids) == found.target),
      "success_of_guide": found.by_guide(ids),
      "guide_right": Score(math.nan, None),
      "judge_nats": Score(*estimate(*judge.nats(texts))),
      "token_entropy": Score(token_entropy(ids), None),
      "distinct_2": Score(distinct_n(ids, 2), None),
    }

"""Metrics of the answers to a task, by the names that tasks list in `metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_text.evaluate import overlap
from diffusion_text.evaluate.diversity import distinct_share, grams


class Answers(NamedTuple):
  """One text for each of n prompts, with what the task's verifier says.

  Attributes:
    prompts: The prompts.
    texts: The answers of a system.
    references: All right answers that are known of each prompt.
    rewards: The reward of each text, 1 for a right one.
    forms: Whether each text has the form of an answer.
  """

  prompts: Sequence[str]
  texts: Sequence[str]
  references: Sequence[Sequence[str]]
  rewards: Sequence[float]
  forms: Sequence[bool]


class Score(NamedTuple):
  """A metric.

  Attributes:
    value: The metric.
    error: Its standard error over prompts; None where a corpus has one value.
  """

  value: float
  error: float | None


def mean_score(values: Sequence[float]) -> Score:
  """The mean with its standard error, 0 for one value.

  Raises:
    ValueError: For no value.
  """
  values = np.asarray(values, np.float64)
  if not values.size:
    raise ValueError("the mean of no answers; give at least one prompt")
  spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
  return Score(float(values.mean()), float(spread))


def positions(text: str, reference: str) -> float:
  """The share of the reference's characters that the text has in the same place."""
  return sum(a == b for a, b in zip(text, reference)) / max(len(reference), 1)


def answer_entropy(texts: Sequence[str]) -> float:
  """The entropy in nats of the characters of all texts together; 0 for no character."""
  counts = np.array(list(grams("".join(texts), 1).values()), np.float64)
  shares = counts / max(counts.sum(), 1)
  return abs(float((shares * np.log(shares)).sum()))  # a sum of -0.0 is 0


def _each(score: Callable[[str, Sequence[str]], float]) -> Callable[[Answers], Score]:
  return lambda a: mean_score([score(text, refs) for text, refs in zip(a.texts, a.references)])


METRICS: dict[str, Callable[[Answers], Score]] = {
  "right": lambda a: mean_score([reward == 1.0 for reward in a.rewards]),
  "reward": lambda a: mean_score(a.rewards),
  "valid": lambda a: mean_score(a.forms),
  "exact_match": _each(lambda text, references: float(text in references)),
  "positions": _each(lambda text, references: positions(text, references[0])),
  "rouge_1": _each(lambda text, references: overlap.rouge_n(text, references, 1)),
  "rouge_2": _each(lambda text, references: overlap.rouge_n(text, references, 2)),
  "rouge_l": _each(overlap.rouge_l),
  "bleu": lambda a: Score(overlap.bleu(a.texts, a.references)[0], None),
  "chrf": lambda a: Score(overlap.chrf(a.texts, a.references)[0], None),
  "copied": lambda a: mean_score([text == prompt for text, prompt in zip(a.texts, a.prompts)]),
  "distinct": lambda a: Score(distinct_share(a.texts), None),
  "entropy": lambda a: Score(answer_entropy(a.texts), None),
}

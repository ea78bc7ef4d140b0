"""How good generated targets are: BLEU and exact match against references, and the consensus of
samples, which sees none.

Two halves that do not meet: `consensus` picks one of several samples and takes samples alone, so
that no candidate can be picked by looking at a reference ("best of n"); `bleu` and `exact_match`
see references and are given one text for each source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

SCORERS = ("bleu", "chrf")


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
  """(corpus BLEU from 0 to 100, sacrebleu's signature) of one text for each source; a source may
  have any number of references.

  Raises ValueError for no texts, or numbers that differ.
  """
  _check(texts, references)
  metric = _sacrebleu().BLEU()
  streams = [
    [each[number] if number < len(each) else None for each in references]
    for number in range(max(map(len, references)))
  ]
  score = metric.corpus_score(list(texts), streams).score
  return score, str(metric.get_signature())


def exact_match(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """The share of texts that are one of their references, letter by letter. Raises ValueError as
  `bleu`.
  """
  _check(texts, references)
  return sum(text in each for text, each in zip(texts, references)) / len(texts)


def consensus(samples: Sequence[str], scorer: str = "bleu") -> int:
  """Which of n samples the others agree with most: minimum Bayes risk decoding (Kumar & Byrne
  2004), the first of equals.

  The sample of the highest mean score against each of the other samples as if that were the truth;
  "bleu" is sentence BLEU of effective order, "chrf" is chrF2, both of sacrebleu. Raises ValueError
  for no samples and an unknown scorer.
  """
  if scorer not in SCORERS:
    raise ValueError(f"scorer={scorer!r} is unknown; use one of {', '.join(SCORERS)}")
  if not samples:
    raise ValueError("consensus of no samples; draw at least one")
  if len(set(samples)) == 1:
    return 0
  score = functools.cache(_sentence_scorer(scorer))

  def gain(i):
    return sum(score(samples[i], other) for j, other in enumerate(samples) if j != i)

  return max(range(len(samples)), key=gain)  # max gives the first


def _sentence_scorer(name: str) -> Callable[[str, str], float]:
  metrics = _sacrebleu()
  metric = metrics.BLEU(effective_order=True) if name == "bleu" else metrics.CHRF()
  return lambda text, other: metric.sentence_score(text, [other]).score


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
  if not texts or len(texts) != len(references) or not all(references):
    raise ValueError(
      f"{len(texts)} texts for {len(references)} lists of references; give one text and at least"
      f" one reference for each source"
    )


def _sacrebleu():
  try:
    import sacrebleu.metrics  # an extra, and slow to import
  except ModuleNotFoundError as error:
    raise ValueError(
      "BLEU needs sacrebleu, which is not installed; pip install 'diffusion_text[metrics]'"
    ) from error
  return sacrebleu.metrics

"""How good generated targets are: BLEU and exact match against references, and the consensus of
samples, which sees none.

Two halves that do not meet: `consensus` picks one of several samples and takes samples alone, so
that no candidate can be picked by looking at a reference ("best of n"); `bleu` and `exact_match`
see references and are given one text for each source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from diffusion_text.evaluate.overlap import bleu, exact_match, sacrebleu_metrics

__all__ = ["SCORERS", "bleu", "consensus", "exact_match"]

SCORERS = ("bleu", "chrf")


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
  metrics = sacrebleu_metrics()
  metric = metrics.BLEU(effective_order=True) if name == "bleu" else metrics.CHRF()
  return lambda text, other: metric.sentence_score(text, [other]).score

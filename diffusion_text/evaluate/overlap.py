"""How much of a text is in its references: BLEU and chrF by sacrebleu, ROUGE, exact match."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

from diffusion_text.evaluate.diversity import grams


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
  """(corpus BLEU from 0 to 100, sacrebleu's signature) of one text for each source.

  A source may have any number of references.

  Raises:
    ValueError: For no texts, numbers that differ, and without sacrebleu.
  """
  return _corpus(sacrebleu_metrics().BLEU(), texts, references)


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
  """(corpus chrF2 from 0 to 100, sacrebleu's signature), as `bleu`."""
  return _corpus(sacrebleu_metrics().CHRF(), texts, references)


def exact_match(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """The share of texts that are one of their references, letter by letter.

  Raises:
    ValueError: As `bleu`.
  """
  _check(texts, references)
  return sum(text in each for text, each in zip(texts, references)) / len(texts)


def rouge_n(text: str, references: Sequence[str], n: int) -> float:
  """ROUGE-n, the F1 of word n-grams, of the best reference, from 0 to 1 (Lin 2004).

  Words are runs of letters a-z and digits in lower case, as in the package rouge-score without its
  stemmer. A text or a reference without n-grams scores 0.
  """
  ours = grams(_words(text), n)
  return max(_f1(ours, grams(_words(reference), n)) for reference in references)


def rouge_l(text: str, references: Sequence[str]) -> float:
  """ROUGE-L, the F1 of the longest common subsequence of words, of the best reference, from 0 to 1.

  Words as of `rouge_n`. The text is one sequence, not cut into sentences.
  """
  ours = _words(text)
  return max(_lcs_f1(ours, _words(reference)) for reference in references)


def _words(text: str) -> list[str]:
  return re.findall(r"[a-z0-9]+", text.lower())


def _f1(ours: collections.Counter, theirs: collections.Counter) -> float:
  total = ours.total() + theirs.total()
  return 2 * (ours & theirs).total() / total if ours and theirs else 0.0


def _lcs_f1(ours: list[str], theirs: list[str]) -> float:
  if not ours or not theirs:
    return 0.0
  row = [0] * (len(theirs) + 1)
  for word in ours:
    before = row
    row = [0]
    for place, other in enumerate(theirs):
      row.append(before[place] + 1 if word == other else max(row[place], before[place + 1]))
  return 2 * row[-1] / (len(ours) + len(theirs))


def _corpus(
  metric: Any, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, str]:
  _check(texts, references)
  streams = [
    [each[number] if number < len(each) else None for each in references]
    for number in range(max(map(len, references)))
  ]
  return metric.corpus_score(list(texts), streams).score, str(metric.get_signature())


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
  if not texts or len(texts) != len(references) or not all(references):
    raise ValueError(
      f"{len(texts)} texts for {len(references)} lists of references; give one text and at least"
      " one reference for each source"
    )


def sacrebleu_metrics() -> Any:
  """The module `sacrebleu.metrics`. Raises ValueError, with the extra, if it is not there."""
  try:
    import sacrebleu.metrics  # an extra, and slow to import
  except ModuleNotFoundError as error:
    raise ValueError(
      "BLEU and chrF need sacrebleu, which is not installed; pip install -e '.[metrics]'"
    ) from error
  return sacrebleu.metrics

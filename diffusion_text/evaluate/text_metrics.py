"""What a text costs under simple models, and statistics of samples: numbers that give the bound a meaning.

Everything counts characters of the original text, in bits.
"""

from __future__ import annotations

import collections
import dataclasses
import lzma
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class NGramModel:
  """Character n-gram model, interpolated down to uniform with Witten-Bell weights (one count per new continuation).

  p_n(c | h) = (count(h c) + T(h) · p_{n-1}(c | h')) / (count(h) + T(h)), T(h) = distinct continuations of h.
  """

  order: int  # characters of the n-gram: 1 = unigram, 5 = 5-gram
  counts: Sequence[
    dict[str, collections.Counter]
  ]  # [n - 1][history of n - 1 characters][next character]
  alphabet: int

  @staticmethod
  def train(text: str, order: int) -> NGramModel:
    if not text:
      raise ValueError("an n-gram model needs text, got an empty string; check the training split")
    counts = []
    for n in range(1, order + 1):
      table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
      for gram, count in collections.Counter(
        text[i : i + n] for i in range(len(text) - n + 1)
      ).items():
        table[gram[:-1]][gram[-1]] += count
      counts.append(dict(table))
    return NGramModel(order, counts, len(counts[0][""]) + 1)  # one more for a character never seen

  def _probability(
    self, history: str, char: str, n: int, totals: Sequence[dict[str, tuple[int, int]]]
  ) -> float:
    if n == 0:
      return 1 / self.alphabet
    context = history[len(history) - n + 1 :]
    lower = self._probability(history, char, n - 1, totals)
    if context not in totals[n - 1]:
      return lower
    total, kinds = totals[n - 1][context]
    return (self.counts[n - 1][context][char] + kinds * lower) / (total + kinds)

  def bits_per_char(self, text: str) -> float:
    """Cost of `text` in bits per character, each predicted from the `order - 1` characters before it."""
    totals = [{h: (sum(c.values()), len(c)) for h, c in table.items()} for table in self.counts]
    seen: dict[str, float] = {}
    bits = 0.0
    for end in range(len(text)):
      history = text[max(0, end - self.order + 1) : end]
      gram = history + text[end]
      if gram not in seen or len(history) < self.order - 1:
        seen[gram] = -math.log2(self._probability(history, text[end], len(history) + 1, totals))
      bits += seen[gram]
    return bits / len(text)


def xz_bits_per_char(text: str) -> float:
  """Size of `xz -9` of the text alone (no training text), in bits per character."""
  return 8 * len(lzma.compress(text.encode("utf-8"), preset=9)) / len(text)


def token_entropy(rows: Sequence[np.ndarray]) -> float:
  """Mean over rows of the entropy of the row's own token frequencies, nats (the companion of any sample-quality score)."""

  def one(row: np.ndarray) -> float:
    p = np.unique(row, return_counts=True)[1] / len(row)
    return float(-(p * np.log(p)).sum())

  return float(np.mean([one(np.asarray(row)) for row in rows]))


def ngram_js_divergence(texts: Sequence[str], reference: str, n: int) -> float:
  """Jensen-Shannon divergence, nats, between the character n-gram frequencies of samples and of a reference text."""
  grams = lambda text: collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))
  ours, theirs = sum((grams(text) for text in texts), collections.Counter()), grams(reference)
  p_total, q_total, divergence = sum(ours.values()), sum(theirs.values()), 0.0
  if not p_total or not q_total:
    raise ValueError(
      f"no {n}-gram to compare: {p_total} in the samples, {q_total} in the reference; use longer "
      "texts"
    )
  for gram in ours.keys() | theirs.keys():
    p, q = ours[gram] / p_total, theirs[gram] / q_total
    middle = (p + q) / 2
    divergence += 0.5 * (p * math.log(p / middle) if p else 0) + 0.5 * (
      q * math.log(q / middle) if q else 0
    )
  return divergence


def distinct_n(rows: Sequence[np.ndarray], n: int) -> float:
  """Distinct token n-grams over all token n-grams in the rows (arXiv 1510.03055)."""
  grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
  return len(set(grams)) / max(len(grams), 1)

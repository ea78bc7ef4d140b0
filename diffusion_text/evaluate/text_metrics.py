"""The cost of a text under simple models, and statistics of samples, to compare the bound with.

Costs are in bits per character of the original text.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import lzma
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class NGramModel:
  """A character n-gram model, interpolated down to uniform with Witten-Bell weights.

  p_n(c | h) = (count(h c) + T(h) · p_{n-1}(c | h')) / (count(h) + T(h)), where T(h) is the number
  of distinct continuations of h, and h' is h without its first character.

  Attributes:
    order: Characters of the n-gram: 1 = unigram, 5 = 5-gram.
    counts: counts[n - 1][history of n - 1 characters][next character].
    alphabet: Number of characters.
  """

  order: int
  counts: Sequence[dict[str, collections.Counter]]
  alphabet: int

  @staticmethod
  def train(text: str, order: int) -> NGramModel:
    """The model with the counts of a text."""
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

  def continued(self, text: str, stop: str, limit: int) -> str:
    """What follows `text` up to `stop`, the likeliest character each time; at most `limit`."""
    totals, characters = self._totals, sorted(self.counts[0][""])
    written = ""
    while len(written) < limit:
      history = (text + written)[max(0, len(text) + len(written) - self.order + 1) :]
      n = len(history) + 1
      best = max(characters, key=lambda char: self._probability(history, char, n, totals))
      if best == stop:
        break
      written += best
    return written

  @functools.cached_property
  def _totals(self) -> list[dict[str, tuple[int, int]]]:
    """(occurrences, distinct continuations) of every history."""
    return [{h: (sum(c.values()), len(c)) for h, c in table.items()} for table in self.counts]

  def bits_per_char(self, text: str) -> float:
    """The cost of `text` in bits per character.

    Each character is predicted from the `order - 1` characters before it.
    """
    totals = self._totals
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
  """The size of `xz -9` of the text alone, without training text, in bits per character."""
  return 8 * len(lzma.compress(text.encode("utf-8"), preset=9)) / len(text)


def token_entropy(rows: Sequence[np.ndarray]) -> float:
  """The entropy in nats of the token frequencies of a row, averaged over rows.

  Report it beside any score of sample quality.
  """

  def one(row: np.ndarray) -> float:
    p = np.unique(row, return_counts=True)[1] / len(row)
    return float(-(p * np.log(p)).sum())

  return float(np.mean([one(np.asarray(row)) for row in rows]))


def ngram_js_divergence(texts: Sequence[str], reference: str, n: int) -> float:
  """The Jensen-Shannon divergence in nats of character n-grams in samples and in a reference."""

  def grams(text: str) -> collections.Counter:
    return collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))

  ours = sum((grams(text) for text in texts), collections.Counter())
  theirs = grams(reference)
  p_total = sum(ours.values())
  q_total = sum(theirs.values())
  divergence = 0.0
  if not p_total or not q_total:
    raise ValueError(
      f"no {n}-gram to compare: {p_total} in the samples, {q_total} in the reference; "
      "use longer texts"
    )
  for gram in ours.keys() | theirs.keys():
    p = ours[gram] / p_total
    q = theirs[gram] / q_total
    middle = (p + q) / 2
    divergence += 0.5 * sum(share * math.log(share / middle) for share in (p, q) if share)
  return divergence


def distinct_n(rows: Sequence[np.ndarray], n: int) -> float:
  """The number of distinct token n-grams over the number of all in the rows (arXiv 1510.03055)."""
  grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
  return len(set(grams)) / max(len(grams), 1)

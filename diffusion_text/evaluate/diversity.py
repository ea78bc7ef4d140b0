"""How different texts are, from one another and within themselves, in tokens of any kind.

Report one of these beside every score of quality: a model that writes one good text again and again
is no model of a language.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

ORDERS = 4  # of BLEU


def sentence_bleu(text: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
  """BLEU of order 4 of one text with one reference, from 0 to 1 (Papineni et al. 2002).

  Precisions of zero are smoothed by halves (1/2, 1/4 … of one n-gram, Chen & Cherry 2014, method
  3), and a text shorter than 4 tokens has as many orders: the sentence BLEU of sacrebleu, for
  tokens of any kind. Without a common token it is 0.
  """
  logs, smooth = [], 1.0
  for n in range(1, ORDERS + 1):
    ours, theirs = grams(text, n), grams(reference, n)
    total = ours.total()
    if not total:
      break
    common = (ours & theirs).total()
    if not common and n == 1:
      return 0.0
    if not common:
      smooth *= 2
    logs.append(math.log((common or 1 / smooth) / total))
  if not logs:
    return 0.0
  brevity = min(0.0, 1 - len(reference) / len(text))
  return math.exp(brevity + sum(logs) / len(logs))


def self_bleu(texts: Sequence[Sequence[Hashable]]) -> float:
  """The mean `sentence_bleu` over all ordered pairs of two different texts: 1 for equal texts.

  Raises:
    ValueError: For fewer than two texts.
  """
  if len(texts) < 2:
    raise ValueError(f"self-BLEU of {len(texts)} text(s); give at least two")
  pairs = [
    sentence_bleu(one, other)
    for i, one in enumerate(texts) for j, other in enumerate(texts) if i != j
  ]  # fmt: skip
  return sum(pairs) / len(pairs)


def rep_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
  """1 - distinct n-grams / n-grams of a text, averaged over texts (arXiv 1908.04319): 0 for a text
  without repetition. Texts shorter than n are left out.

  Raises:
    ValueError: If no text has n tokens.
  """
  counts = [grams(text, n) for text in texts]
  shares = [1 - len(each) / each.total() for each in counts if each]
  if not shares:
    raise ValueError(f"rep-{n} of texts that are all shorter than {n} tokens; use a smaller n")
  return sum(shares) / len(shares)


def distinct_share(texts: Sequence[Any]) -> float:
  """The number of different texts over the number of texts.

  Raises:
    ValueError: For no text.
  """
  if not texts:
    raise ValueError("the share of different texts of no text; give at least one")
  return len({_key(text) for text in texts}) / len(texts)


def grams(text: Sequence[Hashable], n: int) -> collections.Counter:
  """How often each n-gram occurs in a text."""
  tokens = text.tolist() if isinstance(text, np.ndarray) else text
  return collections.Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _key(text: Any) -> Any:
  return text if isinstance(text, str) else tuple(np.asarray(text).tolist())

"""What samples copy from the training text: the longest run of tokens that stands there, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers never vanish modulo 2**64


@dataclasses.dataclass(frozen=True)
class Copies:
  """Longest copied runs of some rows.

  Compare with `of` held-out rows of the same length: common phrases are no memory.

  Attributes:
    longest: int64 [rows], the tokens of the longest run of each row that occurs in the corpus.
    sizes: int64 [rows], the tokens of each row.
  """

  longest: Int[np.ndarray, " R"]
  sizes: Int[np.ndarray, " R"]

  @property
  def mean(self) -> float:
    """Of the longest runs, in tokens."""
    return float(self.longest.mean())

  @property
  def standard_error(self) -> float:
    """Of the mean, over rows; 0 for one row."""
    rows = len(self.longest)
    return float(self.longest.std(ddof=1) / rows**0.5) if rows > 1 else 0.0

  @property
  def whole(self) -> float:
    """The share of rows that are copies from beginning to end."""
    return float((self.longest == self.sizes).mean())

  def __str__(self) -> str:
    return (
      f"longest copied run {self.mean:.1f} ± {self.standard_error:.1f} tokens (at most"
      f" {self.longest.max()}), {100 * self.whole:.1f} % of {len(self.longest)} rows copied whole"
    )


def copies(rows: Sequence[Integer[np.ndarray, " L"]], corpus: Integer[np.ndarray, " T"]) -> Copies:
  """The longest run of each row that occurs in the corpus, exactly.

  If a run of n tokens occurs there, so do all shorter ones, so n is found by bisection, for all
  rows together. Runs are compared by a hash modulo 2**64, and those whose hashes agree token by
  token, so that no collision counts. It takes time T for each length that is tried.

  Args:
    rows: Tokens of samples; lengths may differ.
    corpus: Tokens of the training text, `TokenArrays.tokens`.

  Raises:
    ValueError: For no rows.
  """
  if not len(rows):
    raise ValueError("copies of no rows; give at least one")
  rows = [np.asarray(row, np.int64) for row in rows]
  sizes = np.array([len(row) for row in rows])
  corpus = np.asarray(corpus).astype(np.int64)
  prefix = _prefix_hashes(corpus)
  longest = np.zeros(len(rows), np.int64)
  groups = [(0, min(int(sizes.max()), len(corpus)), np.arange(len(rows)))]
  while groups:
    low, high, which = groups.pop()  # every row of `which` has a run of `low`, and none of high + 1
    if low == high or not len(which):
      longest[which] = low
      continue
    middle = (low + high + 1) // 2
    found = _have_run([rows[i] for i in which], corpus, prefix, middle)
    groups += [(middle, high, which[found]), (low, middle - 1, which[~found])]
  return Copies(longest, sizes)


def _have_run(rows: list[np.ndarray], corpus: np.ndarray, prefix: np.ndarray, n: int) -> np.ndarray:
  """bool [rows]: whether a run of n tokens of the row is in the corpus."""
  hashes = [_run_hashes(_prefix_hashes(row), n) for row in rows]
  wanted = np.unique(np.concatenate(hashes))
  theirs = _run_hashes(prefix, n)
  places = np.flatnonzero(np.isin(theirs, wanted))
  order = np.argsort(theirs[places], kind="stable")
  places = places[order]
  sorted_hashes = theirs[places]
  return np.array(
    [_any_equal(row, own, corpus, places, sorted_hashes, n) for row, own in zip(rows, hashes)], bool
  )


def _any_equal(
  row: np.ndarray,
  hashes: np.ndarray,
  corpus: np.ndarray,
  places: np.ndarray,
  sorted_hashes: np.ndarray,
  n: int,
) -> bool:
  begins = np.searchsorted(sorted_hashes, hashes, side="left")
  ends = np.searchsorted(sorted_hashes, hashes, side="right")
  for start in np.flatnonzero(begins < ends):
    run = row[start : start + n]
    for place in places[begins[start] : ends[start]]:
      if np.array_equal(corpus[place : place + n], run):
        return True
  return False


def _prefix_hashes(tokens: np.ndarray) -> np.ndarray:
  """uint64 [T + 1]: h[i] = Σ_{j<i} (token_j + 1) · base^j, modulo 2**64."""
  values = (tokens.astype(np.uint64) + np.uint64(1)) * _powers(len(tokens))
  return np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])


def _powers(size: int) -> np.ndarray:
  factors = np.full(size, _BASE, np.uint64)
  factors[:1] = 1
  return np.cumprod(factors, dtype=np.uint64)


def _run_hashes(prefix: np.ndarray, n: int) -> np.ndarray:
  """uint64 [T - n + 1]: the hash of each run of n tokens, wherever it begins.

  A run that begins at i is base^i times its hash at 0; multiplied by the inverse of base^i, which
  an odd number has, it does not depend on i.
  """
  size = len(prefix) - n
  if size <= 0:
    return np.zeros(0, np.uint64)
  inverse = np.uint64(pow(int(_BASE), -1, 2**64))
  factors = np.full(size, inverse, np.uint64)
  factors[:1] = 1
  return (prefix[n:] - prefix[:size]) * np.cumprod(factors, dtype=np.uint64)

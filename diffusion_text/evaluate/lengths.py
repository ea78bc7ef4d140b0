"""The lengths of texts, samples or held-out ones, in tokens up to the first end of text.

Compare samples with held-out rows of the packing that the model was trained on (`of_rows`). A row
of packing "documents" or "pairs" begins with a text, so its first end gives the length of a text.
A row of packing "stream" begins anywhere, mostly within a long text, and its first end gives the
length of the rest: such rows must not be compared with documents (`of_documents`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Integer

QUANTILES = (0.1, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class LengthLaw:
  """Mean and quantiles of the lengths of some texts, in tokens before the end.

  A text without an end counts with all of its tokens, a lower bound of its length. Mean and
  quantiles are too low by what is cut off.

  Attributes:
    texts: How many.
    mean: Of the lengths.
    standard_error: Of the mean, over texts; 0 for one text.
    quantiles: The lengths that a tenth, half and nine tenths of the texts do not exceed.
    without_end: The share of texts without an end.
  """

  texts: int
  mean: float
  standard_error: float
  quantiles: tuple[float, ...]
  without_end: float

  def __str__(self) -> str:
    low, middle, high = (f"{value:g}" for value in self.quantiles)
    return (
      f"{self.mean:.1f} ± {self.standard_error:.1f} tokens up to the end (10 %: {low},"
      f" 50 %: {middle}, 90 %: {high}), {100 * self.without_end:.1f} % without an end,"
      f" {self.texts} texts"
    )


def law(lengths: Sequence[int] | np.ndarray, ended: Sequence[bool] | np.ndarray) -> LengthLaw:
  """The law of texts of these lengths, of which some have an end.

  Raises:
    ValueError: If there is no text, or another number of `ended` than of lengths.
  """
  lengths, ended = np.asarray(lengths, np.float64), np.asarray(ended, bool)
  if not lengths.size or lengths.shape != ended.shape:
    raise ValueError(
      f"{lengths.size} lengths and {ended.size} ends; pass one of each for every text, of at least"
      " one"
    )
  spread = lengths.std(ddof=1) / len(lengths) ** 0.5 if len(lengths) > 1 else 0.0
  quantiles = np.quantile(lengths, QUANTILES, method="inverted_cdf")
  return LengthLaw(
    texts=len(lengths),
    mean=float(lengths.mean()),
    standard_error=float(spread),
    quantiles=tuple(map(float, quantiles)),
    without_end=float(1 - ended.mean()),
  )


def up_to_end(
  ids: Integer[np.ndarray, "B L"], end: int, text: Bool[np.ndarray, "B L"] | None = None
) -> tuple[Int[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
  """(the number of text tokens before the first end of each row, whether there is one).

  Args:
    ids: Tokens.
    end: The id of the end, `tokenizer.special["end"]`.
    text: True at the tokens that count, neither observed nor padding; an end elsewhere is none.
      None: all.
  """
  ids = np.asarray(ids)
  text = np.ones(ids.shape, bool) if text is None else np.asarray(text)
  ends = (ids == end) & text
  before = np.cumsum(ends, axis=1) == 0
  return (before & text).sum(axis=1), ends.any(axis=1)


def of_rows(
  ids: Integer[np.ndarray, "B L"], end: int, text: Bool[np.ndarray, "B L"] | None = None
) -> LengthLaw:
  """The law of rows: samples, or held-out rows of the packing that the model was trained on. The
  arguments are those of `up_to_end`.
  """
  return law(*up_to_end(ids, end, text))


def of_documents(
  tokens: Integer[np.ndarray, " T"],
  offsets: Int[np.ndarray, " D1"],
  end: int,
  limit: int | None = None,
) -> LengthLaw:
  """The law of the documents of a token array (`TokenArrays.tokens` and `offsets`).

  Args:
    tokens: Of all documents.
    offsets: Where each document begins, and the end of the last one.
    end: The id of the end. A document that holds it itself, such as one of several lines, ends
      there, as a sample does.
    limit: Tokens that a sample has room for; longer documents are cut there, and have no end. None:
      no limit.
  """
  begins, stops = np.asarray(offsets[:-1]), np.asarray(offsets[1:])
  if limit is not None:
    stops = np.minimum(stops, begins + limit)
  places = np.append(np.flatnonzero(np.asarray(tokens) == end), len(tokens))
  first = places[np.searchsorted(places, begins)]
  return law(np.minimum(first, stops) - begins, first < stops)

"""Rows with a label: the source of each document of a corpus, for a classifier to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_text.data.token_arrays import TokenArrays

# Neighbouring rows that stay together, so that a paragraph is seldom in two parts.
RUN = 8


class LabelledRows(NamedTuple):
  """Rows with their labels, in disjoint parts.

  Attributes:
    ids: int32 [N, length], the tokens.
    label: int32 [N], the source of each row.
    part: int32 [N], the part of each row, 0 … parts - 1. Every part has rows of every source.
  """

  ids: np.ndarray
  label: np.ndarray
  part: np.ndarray

  def of_part(self, *parts: int) -> LabelledRows:
    """The rows of these parts."""
    chosen = np.isin(self.part, parts)
    return LabelledRows(*(field[chosen] for field in self))


def labelled_rows(
  arrays: TokenArrays, labels: Sequence[int], length: int, parts: int
) -> LabelledRows:
  """Labelled rows [N, length], cut every `length` tokens from the documents of each label.

  The parts take turns: each gets RUN rows at a time. The tokens after a label's last full row are
  dropped.

  Args:
    arrays: The tokens of a split.
    labels: One label per document.
    length: Tokens of a row.
    parts: Number of disjoint parts.

  Raises:
    ValueError: If the number of labels is not the number of documents, or if some part of some
      label gets no row.
  """
  if len(labels) != len(arrays.offsets) - 1:
    raise ValueError(
      f"{len(labels)} labels for {len(arrays.offsets) - 1} documents; give one for each"
    )
  of_token = np.repeat(np.asarray(labels, np.int32), np.diff(arrays.offsets))
  pieces = []
  for label in np.unique(of_token):
    stream = np.asarray(arrays.tokens[of_token == label], np.int32)
    own = stream[: len(stream) // length * length].reshape(-1, length)
    part = np.arange(len(own)) // RUN % parts
    if len(np.unique(part)) < parts:
      raise ValueError(
        f"label {label} has {len(own)} rows of {length} tokens, too few for {parts} parts; "
        "use shorter rows"
      )
    pieces.append((own, np.full(len(own), label, np.int32), part.astype(np.int32)))
  return LabelledRows(*map(np.concatenate, zip(*pieces)))

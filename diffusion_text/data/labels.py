"""Rows with a label: where the documents of a corpus come from, as something that a classifier can learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_text.data.token_arrays import TokenArrays

RUN = 8  # neighbouring rows that stay together, so that a paragraph is seldom in two parts


class LabelledRows(NamedTuple):
  """ids: int32 [N, length]. label: int32 [N], the source. part: int32 [N], 0 … parts - 1, disjoint pieces of every source."""

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
  """The documents of each label as one stream, cut every `length` tokens, the rest dropped; RUN rows in turn to each part.

  labels: one per document. Raises ValueError if they are not as many as the documents, or if some part of some label gets no row.
  """
  if len(labels) != len(arrays.offsets) - 1:
    raise ValueError(
      f"{len(labels)} labels for {len(arrays.offsets) - 1} documents; give one for each"
    )
  of_token = np.repeat(np.asarray(labels, np.int32), np.diff(arrays.offsets))
  rows, kinds, places = [], [], []
  for label in np.unique(of_token):
    stream = np.asarray(arrays.tokens[of_token == label], np.int32)
    own = stream[: len(stream) // length * length].reshape(-1, length)
    part = np.arange(len(own)) // RUN % parts
    if len(np.unique(part)) < parts:
      raise ValueError(
        f"label {label} has {len(own)} rows of {length} tokens, too few for {parts} parts; use "
        "shorter rows"
      )
    rows, kinds, places = (
      [*rows, own],
      [*kinds, np.full(len(own), label, np.int32)],
      [*places, part.astype(np.int32)],
    )
  return LabelledRows(*map(np.concatenate, (rows, kinds, places)))

"""Rows of a fixed length from a token array, as pure functions of row numbers.

  stream      The documents as one stream, cut every `length` tokens. A row is one segment and may
              hold many documents.
  documents   As many whole documents as fit, one segment each. A document longer than a row is cut.
  pairs       One source and one target per row. The source is observed, and the model decides where
              the target ends.

A packing is a frozen object that knows how many rows there are and cuts any of them:
`packed.rows(numbers)` returns ids [n, length] and, unless they are trivial in every row of the
split, weights and segments.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np
from jaxtyping import Int, Integer

from diffusion_text import types

PADDING_SEGMENT = 0  # text has segments 1, 2, …


class Packed(Protocol):
  """Rows by number."""

  count: int  # rows of one epoch
  length: int

  def rows(self, numbers: Int[np.ndarray, " n"]) -> types.Batch:
    """A batch of rows, from an endless sequence of epochs.

    Number n >= 0 is row n % count of epoch n // count.
    """


@dataclasses.dataclass(frozen=True)
class Stream:
  """The stream as a circle, cut every `length` tokens, without padding.

  Every token is in a row of every epoch. The last row is completed from the beginning of the
  stream, so fewer than `length` tokens come twice.

  Attributes:
    tokens: Integers [T].
    length: Tokens of a row.
    random_offset: True if each epoch begins at another token, drawn from (seed, epoch), so that
      rows are cut in other places each time.
    seed: Seed of the offsets.
  """

  tokens: np.ndarray
  length: int
  random_offset: bool = False
  seed: int = 0

  def __post_init__(self):
    check_length(self.length, self.tokens)

  @property
  def count(self) -> int:
    """Rows of one epoch."""
    return -(-len(self.tokens) // self.length)

  def rows(self, numbers: Int[np.ndarray, " n"]) -> types.Batch:
    """A batch with ids int32 [n, length] only: every token counts and no row has padding."""
    begins = numbers % self.count * self.length
    if self.random_offset:
      begins = begins + np.array(
        [_offset(self.seed, epoch, self.length) for epoch in (numbers // self.count).tolist()]
      )
    places = (begins[:, None] + np.arange(self.length)) % len(self.tokens)
    return types.Batch(ids=self.tokens[places].astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Ranges:
  """Rows that are ranges of the token array, padded on the right.

  These are the rows of stream packing without a circle, and of whole documents.

  Attributes:
    tokens: Integers [T].
    length: Tokens of a row.
    begins: int64 [R], where each range begins.
    ends: int64 [R], where each range ends, at most `length` after its beginning.
    starts: int64, sorted: where each segment begins. None if every row is one segment.
  """

  tokens: np.ndarray
  length: int
  begins: np.ndarray
  ends: np.ndarray
  starts: np.ndarray | None = None

  @property
  def count(self) -> int:
    """Rows of one epoch."""
    return len(self.begins)

  @functools.cached_property
  def ragged(self) -> bool:
    """True if some row is shorter than `length`."""
    return bool((self.ends - self.begins < self.length).any())

  @functools.cached_property
  def several(self) -> bool:
    """True if some row holds more than one segment."""
    if self.starts is None:
      return False
    return bool((_segment(self.starts, self.begins) != _segment(self.starts, self.ends - 1)).any())

  def rows(self, numbers: Int[np.ndarray, " n"]) -> types.Batch:
    """A batch with ids int32, weights float32 and segment int32, [n, length].

    Weights and segment are None if they are trivial in every row of the split. A number < 0 gives a
    row of padding, with ids 0 and weights 0; weights are then present even if every row is full.
    """
    absent = numbers < 0
    numbers = np.where(absent, 0, numbers % self.count)
    begins, ends = self.begins[numbers], np.where(absent, self.begins[numbers], self.ends[numbers])
    places = begins[:, None] + np.arange(self.length)
    real = places < ends[:, None]
    ids = np.where(real, self.tokens[np.minimum(places, len(self.tokens) - 1)], 0).astype(np.int32)
    weights = real.astype(np.float32) if self.ragged or absent.any() else None
    segment = None
    if self.ragged or self.several:
      inner = (
        0
        if self.starts is None
        else _segment(self.starts, places) - _segment(self.starts, begins)[:, None]
      )
      segment = np.where(real, 1 + inner, PADDING_SEGMENT).astype(np.int32)
    return types.Batch(ids=ids, weights=weights, segment=segment)


@dataclasses.dataclass(frozen=True)
class Shortened:
  """Other rows, some of which are cut to a random length, so that a model meets texts that end.

  A row is cut with probability `share`, to 1 … length tokens, all equally likely (LLaDA, arXiv
  2502.09992, where the share is 0.01). Which rows are cut, and where, follows from the seed and the
  number of the row, so that every epoch cuts others.

  Attributes:
    whole: The rows.
    share: The probability that a row is cut.
    seed: Seed of the cuts.
  """

  whole: Packed
  share: float
  seed: int = 0

  @property
  def count(self) -> int:
    """Rows of one epoch."""
    return self.whole.count

  @property
  def length(self) -> int:
    """Tokens of a row, the cut ones with their padding."""
    return self.whole.length

  def rows(self, numbers: Int[np.ndarray, " n"]) -> types.Batch:
    """A batch with all fields of text: ids, weights and segment, [n, length]. What is cut off has
    id 0, weight 0 and the segment of padding.
    """
    batch = self.whole.rows(numbers)
    lengths = np.array([self._length(number) for number in numbers.tolist()])
    kept = np.arange(self.length) < lengths[:, None]
    weights = np.ones(kept.shape, np.float32) if batch.weights is None else batch.weights
    segment = np.ones(kept.shape, np.int32) if batch.segment is None else batch.segment
    return dataclasses.replace(
      batch,
      ids=np.where(kept, batch.ids, 0),
      weights=np.where(kept, weights, np.float32(0)),
      segment=np.where(kept, segment, np.int32(PADDING_SEGMENT)),
    )

  def _length(self, number: int) -> int:
    """Tokens that are kept of a row."""
    generator = np.random.default_rng((self.seed, number))
    if generator.random() >= self.share:
      return self.length
    return int(generator.integers(1, self.length + 1))


@dataclasses.dataclass(frozen=True)
class PairRows:
  """Rows of one pair each: source ‖ end ‖ target ‖ end end end …

  "End" is the tokenizer's separator, the newline. The source and the first end are observed. All
  tokens after them are to be generated and have weight 1, padding included: a model that fills a
  row of fixed length has to learn where the text stops, and that nothing follows (as DiffuSeq does,
  arXiv 2210.08933, and LLaDA in fine-tuning). So a row costs at least as much as the target with
  its end: -log p(row | source) >= -log p(target | source). `without_padding` gives the number of
  tokens to divide this cost by. A row is one segment, because the padding depends on the text.

  Attributes:
    tokens: Integers [T].
    length: Tokens of a row; no pair is longer.
    end: The id of the separator.
    begins: int64 [R], where each pair begins.
    turns: int64 [R], the place of the end between source and target.
    ends: int64 [R], where each pair ends, its last end included if the array has one.
  """

  tokens: np.ndarray
  length: int
  end: int
  begins: np.ndarray
  turns: np.ndarray
  ends: np.ndarray

  @property
  def count(self) -> int:
    """Rows of one epoch."""
    return len(self.begins)

  def rows(self, numbers: Int[np.ndarray, " n"]) -> types.Batch:
    """A batch with ids int32 and observed bool, [n, length].

    A number < 0 gives a row of padding. Only then does the batch have weights, 0 in such a row.
    """
    absent = numbers < 0
    numbers = np.where(absent, 0, numbers % self.count)
    places = self.begins[numbers][:, None] + np.arange(self.length)
    real = (places < self.ends[numbers][:, None]) & ~absent[:, None]
    ids = np.where(real, self.tokens[np.minimum(places, len(self.tokens) - 1)], self.end).astype(
      np.int32
    )
    observed = (places <= self.turns[numbers][:, None]) | absent[:, None]
    weights = (
      np.broadcast_to(~absent[:, None], ids.shape).astype(np.float32) if absent.any() else None
    )
    return types.Batch(ids=ids, observed=observed, weights=weights)


def pair_rows(
  tokens: Integer[np.ndarray, " T"], offsets: Int[np.ndarray, " D"], length: int, end: int | None
) -> PairRows:
  """The rows of all pairs that fit in `length` tokens, both ends included.

  Longer pairs are left out, never cut.

  Args:
    tokens: Integers [T].
    offsets: int64 [documents + 1], where each document begins.
    length: Tokens of a row.
    end: The id of the separator, None if the tokenizer has none.

  Raises:
    ValueError: If the tokenizer has no separator, if a document is not a pair, or if no pair fits.
  """
  if end is None:
    raise ValueError(
      "packing 'pairs' needs a tokenizer with a newline, to write between source and target; "
      "use bytes or sentencepiece"
    )
  begins, ends = np.asarray(offsets[:-1]), np.asarray(offsets[1:])
  newlines = np.append(np.flatnonzero(np.asarray(tokens) == end), len(tokens))
  turns = newlines[np.searchsorted(newlines, begins)]
  if (wrong := np.flatnonzero((turns <= begins) | (turns + 1 >= ends))).size:
    raise ValueError(
      f"document {wrong[0]} is no source and target with a newline between; "
      "packing 'pairs' goes with data.corpus='pairs'"
    )
  # The document of a split with one document has no separator at its end.
  sizes = ends - begins + (tokens[ends - 1] != end)
  if not (fits := sizes <= length).any():
    raise ValueError(
      f"length={length}, but the shortest of {len(sizes)} pairs has {sizes.min()} tokens; "
      "use a larger length"
    )
  return PairRows(tokens, length, end, begins[fits], turns[fits], ends[fits])


def without_padding(weights: types.Array, ids: types.Array, end: int) -> types.Array:
  """The weights [B, L] of `PairRows`, set to 0 at the padding after a target's end.

  Padding is every end that follows an end. Works on numpy and jax arrays.
  """
  before = ids[:, np.maximum(np.arange(ids.shape[1]) - 1, 0)]
  return weights * ~((ids == end) & (before == end))


def straight_stream(tokens: Integer[np.ndarray, " T"], length: int) -> Ranges:
  """The rows of the stream, cut every `length` tokens, each token exactly once.

  The last row may be padded, even if it is the only row.
  """
  begins = np.arange(0, len(tokens), length, dtype=np.int64)
  return Ranges(tokens, length, begins, np.minimum(begins + length, len(tokens)))


def whole_documents(
  tokens: Integer[np.ndarray, " T"], offsets: Int[np.ndarray, " D"], length: int
) -> Ranges:
  """The rows of documents packed in order, every token in exactly one row.

  A document goes into the current row if the whole document fits there, otherwise it opens the next
  row. A document longer than `length` is cut every `length` tokens, and the rest is packed like a
  document.

  Args:
    tokens: Integers [T].
    offsets: int64 [documents + 1], where each document begins.
    length: Tokens of a row.
  """
  starts = segment_starts(offsets, length)
  ends = np.append(starts[1:], len(tokens))
  # following[i]: the first segment that no longer fits in a row that begins with segment i.
  following = np.searchsorted(ends, starts + length, side="right").tolist()
  first = 0
  firsts = []
  while first < len(starts):
    firsts.append(first)
    first = following[first]
  begins = starts[np.array(firsts, np.int64)]
  return Ranges(tokens, length, begins, np.append(begins[1:], len(tokens)), starts)


def segment_starts(offsets: Int[np.ndarray, " D"], length: int) -> Int[np.ndarray, " R"]:
  """int64, sorted: where each document begins, and every `length` tokens within the document.

  Empty documents are left out.
  """
  sizes = np.diff(offsets)
  cuts = -(-sizes // length)
  within = np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts)
  return np.repeat(np.asarray(offsets[:-1]), cuts) + within * length


def check_length(length: int, tokens: Integer[np.ndarray, " T"]) -> None:
  """Raises ValueError unless 1 <= length <= tokens."""
  if not 1 <= length <= len(tokens):
    raise ValueError(
      f"length={length} for a split of {len(tokens)} tokens; "
      f"use 1 <= length <= {len(tokens)}, or more text"
    )


def _segment(starts: np.ndarray, places: np.ndarray) -> np.ndarray:
  return np.searchsorted(starts, places, side="right")


@functools.lru_cache(maxsize=16)
def _offset(seed: int, epoch: int, length: int) -> int:
  return int(np.random.default_rng((seed, epoch)).integers(length))

"""Packing: every token once and in its place, whole documents in different segments."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from diffusion_text.data import packing

_QUICK = hypothesis.settings(max_examples=100, deadline=None, database=None)
_SIZES = strategies.lists(strategies.integers(0, 30), min_size=1, max_size=20).filter(sum)


def _all_rows(packed):
  return packed.rows(np.arange(packed.count))


def _real(batch):
  return np.ones(batch.ids.shape, bool) if batch.weights is None else batch.weights > 0


@_QUICK
@hypothesis.given(size=strategies.integers(1, 200), length=strategies.integers(1, 40))
def test_straight_stream_has_every_token_once_in_order(size, length):
  tokens = np.arange(1, size + 1, dtype=np.uint16)
  batch = _all_rows(packing.straight_stream(tokens, length))
  np.testing.assert_array_equal(batch.ids[_real(batch)], tokens)
  assert batch.ids.shape[1] == length and batch.ids.dtype == np.int32
  assert (batch.weights is None) == (batch.segment is None) == (size % length == 0)
  if batch.weights is not None:
    np.testing.assert_array_equal(
      batch.segment, np.where(batch.weights > 0, 1, packing.PADDING_SEGMENT)
    )
    assert batch.weights.dtype == np.float32 and batch.segment.dtype == np.int32
    assert not batch.ids[~_real(batch)].any()


@_QUICK
@hypothesis.given(
  size=strategies.integers(1, 200), length=strategies.integers(1, 40), offset=strategies.booleans()
)
def test_a_stream_epoch_has_every_token_and_less_than_a_row_twice(size, length, offset):
  length = min(size, length)
  tokens = np.arange(size)
  packed = packing.Stream(tokens, length, random_offset=offset, seed=3)
  for epoch in range(3):
    batch = packed.rows(np.arange(epoch * packed.count, (epoch + 1) * packed.count))
    counts = np.bincount(batch.ids.reshape(-1), minlength=size)
    assert set(counts) <= {1, 2} and (counts == 2).sum() == -size % length
    assert batch.weights is None and batch.segment is None
    # Rows are contiguous, except at the one place where the circle closes.
    assert (np.diff(batch.ids, axis=1) % size == 1 % size).all()


@pytest.mark.parametrize("documents", [False, True])
def test_some_rows_are_cut_to_a_length_that_is_as_likely_as_any_other(documents):
  """A quarter of the rows; 1 … 10 tokens are left; each epoch cuts others; the seed decides."""
  tokens = np.arange(1, 10 * 4000 + 1)
  whole = packing.Stream(tokens, 10)
  if documents:
    whole = packing.whole_documents(tokens, np.arange(0, len(tokens) + 1, 5), 10)
  packed = packing.Shortened(whole, 0.25, seed=3)
  assert (packed.count, packed.length) == (4000, 10)
  numbers = np.arange(8000)  # two epochs
  batch, full = packed.rows(numbers), whole.rows(numbers)
  lengths = batch.weights.sum(1)
  kept = np.arange(10) < lengths[:, None]
  np.testing.assert_array_equal(batch.weights, kept)
  np.testing.assert_array_equal(batch.ids, np.where(kept, full.ids, 0))
  assert ((batch.segment == packing.PADDING_SEGMENT) == ~kept).all()
  if documents:
    np.testing.assert_array_equal(batch.segment[kept], full.segment[kept])
  # A tenth of the cuts leave the row whole.
  assert abs((lengths < 10).sum() - 1800) < 5 * (1800 * 0.775) ** 0.5
  all_cut = packing.Shortened(whole, 1.0).rows(numbers).weights.sum(1)
  counts = np.bincount(all_cut.astype(int), minlength=11)
  assert counts[0] == 0 and np.abs(counts[1:] - 800).max() < 5 * 720**0.5
  assert (lengths[:4000] != lengths[4000:]).any()
  np.testing.assert_array_equal(packed.rows(numbers[::-1]).weights[::-1], batch.weights)
  other = packing.Shortened(whole, 0.25, seed=4).rows(numbers)
  assert (other.weights != batch.weights).any()


def test_without_a_random_offset_all_epochs_are_cut_alike():
  packed = packing.Stream(np.arange(100), 8)
  np.testing.assert_array_equal(packed.rows(np.arange(13)).ids, packed.rows(np.arange(13, 26)).ids)
  np.testing.assert_array_equal(packed.rows(np.array([0])).ids, [np.arange(8)])


def test_random_offsets_differ_between_epochs_and_follow_the_seed():
  first = [
    packing.Stream(np.arange(10_000), 100, True, seed=1).rows(np.array([e * 100])).ids[0, 0]
    for e in range(6)
  ]
  again = [
    packing.Stream(np.arange(10_000), 100, True, seed=1).rows(np.array([e * 100])).ids[0, 0]
    for e in range(6)
  ]
  other = [
    packing.Stream(np.arange(10_000), 100, True, seed=2).rows(np.array([e * 100])).ids[0, 0]
    for e in range(6)
  ]
  assert (
    first == again
    and first != other
    and len(set(first)) > 3
    and all(begin < 100 for begin in first)
  )


@_QUICK
@hypothesis.given(sizes=_SIZES, length=strategies.integers(1, 40))
def test_whole_documents(sizes, length):
  offsets = np.cumsum([0] + sizes)
  tokens = np.arange(1, offsets[-1] + 1)
  packed = packing.whole_documents(tokens, offsets, length)
  batch = _all_rows(packed)
  real = _real(batch)
  np.testing.assert_array_equal(batch.ids[real], tokens)  # each token once, in order
  owner = np.repeat(np.arange(len(sizes)), sizes)
  segment = np.ones(batch.ids.shape, int) if batch.segment is None else batch.segment
  assert (segment[~real] == packing.PADDING_SEGMENT).all() and (
    segment[real] != packing.PADDING_SEGMENT
  ).all()
  rows_of = [set() for _ in sizes]
  for row, (ids, own, kept) in enumerate(zip(batch.ids, segment, real)):
    assert kept[: kept.sum()].all()  # padding on the right
    # Same segment if and only if same document.
    documents = owner[ids[kept] - 1]
    np.testing.assert_array_equal(own[kept][:, None] == own[kept], documents[:, None] == documents)
    assert own[0] == 1 and (np.diff(own[kept]) >= 0).all() and (np.diff(own[kept]) <= 1).all()
    for document in set(documents):
      rows_of[document].add(row)
  for size, rows in zip(sizes, rows_of):
    assert len(rows) == -(-size // length)  # a document that fits in a row is whole


@_QUICK
@hypothesis.given(sizes=_SIZES, length=strategies.integers(1, 40))
def test_documents_are_packed_greedily(sizes, length):
  offsets = np.cumsum([0] + sizes)
  packed = packing.whole_documents(np.arange(offsets[-1]), offsets, length)
  used = packed.ends - packed.begins
  first = np.diff(np.append(packed.starts, offsets[-1]))[np.isin(packed.starts, packed.begins)]
  # No row is too long, and the first segment of the next row would not have fitted.
  assert (used <= length).all() and (used[:-1] + first[1:] > length).all()


def test_documents_of_the_length_of_a_row_need_no_weights_and_no_segments():
  batch = _all_rows(packing.whole_documents(np.arange(12), np.array([0, 4, 8, 12]), 4))
  assert batch.ids.shape == (3, 4) and batch.weights is None and batch.segment is None
  batch = _all_rows(packing.whole_documents(np.arange(12), np.array([0, 2, 4, 8, 12]), 4))
  assert batch.weights is None
  np.testing.assert_array_equal(batch.segment, [[1, 1, 2, 2], [1] * 4, [1] * 4])


def test_a_negative_number_is_a_row_of_padding():
  packed = packing.whole_documents(np.arange(1, 13), np.array([0, 5, 12]), 8)
  batch = packed.rows(np.array([1, -1]))
  np.testing.assert_array_equal(batch.weights, [[1] * 7 + [0], [0] * 8])
  np.testing.assert_array_equal(batch.ids[1], 0)
  np.testing.assert_array_equal(batch.segment[1], packing.PADDING_SEGMENT)


@pytest.mark.parametrize("length", [0, 11])
def test_length_must_suit_the_stream(length):
  with pytest.raises(
    ValueError, match=rf"length={length} for a split of 10 tokens; use 1 <= length <= 10"
  ):
    packing.Stream(np.arange(10), length)

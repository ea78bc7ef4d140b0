"""Lengths up to the first end: rows by hand, documents against rows that hold them, and what a cut
stream does to lengths.
"""

import itertools

import numpy as np
import pytest

from diffusion_text.data import packing
from diffusion_text.evaluate import lengths

END = 9
ROWS = np.array([[1, 2, 9, 3, 9, 9], [9, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], [1, 9, 9, 9, 9, 9]])


def test_rows_by_hand():
  found, ended = lengths.up_to_end(ROWS, END)
  np.testing.assert_array_equal(found, [2, 0, 6, 1])
  np.testing.assert_array_equal(ended, [True, True, False, True])
  law = lengths.of_rows(ROWS, END)
  assert (law.texts, law.mean, law.without_end) == (4, 2.25, 0.25)
  assert law.standard_error == pytest.approx(np.std([2, 0, 6, 1], ddof=1) / 2)
  assert law.quantiles == (0, 1, 6)
  assert str(law) == (
    "2.2 ± 1.3 tokens up to the end (10 %: 0, 50 %: 1, 90 %: 6), 25.0 % without an end, 4 texts"
  )


def test_a_prompt_and_padding_are_no_text():
  """The first end of row 0 is observed, and row 1 has two tokens of padding behind."""
  text = np.ones(ROWS.shape, bool)
  text[0, :3] = False
  text[1:3, 4:] = False
  found, ended = lengths.up_to_end(ROWS, END, text)
  np.testing.assert_array_equal(found, [1, 0, 4, 1])
  np.testing.assert_array_equal(ended, [True, True, False, True])


def documents(rng, count):
  """(tokens, offsets) of documents of 1 to 30 tokens, each with its end."""
  sizes = rng.integers(1, 31, count)
  parts = [np.append(rng.integers(0, 9, size), END) for size in sizes]
  offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
  return np.concatenate(parts), offsets, sizes


def test_documents_are_as_long_as_rows_that_begin_with_them():
  tokens, offsets, sizes = documents(np.random.default_rng(0), 200)
  law = lengths.of_documents(tokens, offsets, END)
  assert law.mean == pytest.approx(sizes.mean()) and law.without_end == 0
  for limit in (1, 8, 31):
    rows = np.full((200, limit), 0)
    text = np.zeros((200, limit), bool)
    for i, (begin, stop) in enumerate(itertools.pairwise(offsets)):
      kept = tokens[begin : min(stop, begin + limit)]
      rows[i, : len(kept)], text[i, : len(kept)] = kept, True
    assert lengths.of_documents(tokens, offsets, END, limit) == lengths.of_rows(rows, END, text)


def test_a_document_of_several_lines_ends_with_its_first():
  tokens = np.array([1, 2, END, 3, END, 4, 5, 6])  # the last one has no end of its own
  law = lengths.of_documents(tokens, np.array([0, 5, 8]), END)
  assert (law.mean, law.without_end) == (2.5, 0.5)
  law = lengths.of_documents(np.array([END, 1, END]), np.array([0, 1, 3]), END)
  assert (law.mean, law.without_end) == (0.5, 0)  # one that is nothing but its end


def test_a_row_of_a_stream_begins_within_a_text():
  """Its first end is nearer than a text is long, although long texts are hit more often: of lengths
  1 … 30 that is (mean of n (n + 1) / 2) / (mean of n + 1), and 15.5 of documents.
  """
  tokens, _, sizes = documents(np.random.default_rng(1), 4000)
  stream = packing.Stream(tokens, length=37)
  rows = lengths.of_rows(stream.rows(np.arange(stream.count)).ids, END)
  want = (sizes * (sizes + 1) / 2).mean() / (sizes + 1).mean()
  assert abs(rows.mean - want) < 4 * rows.standard_error
  assert abs(rows.mean - sizes.mean()) > 8 * rows.standard_error


def test_nothing_has_no_law():
  with pytest.raises(ValueError, match="0 lengths and 0 ends"):
    lengths.law([], [])
  with pytest.raises(ValueError, match="2 lengths and 1 ends"):
    lengths.law([1, 2], [True])

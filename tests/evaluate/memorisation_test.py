"""Longest copied runs are those that a search of all runs finds, whatever the hash does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.evaluate import memorisation

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14)


def by_search(row, corpus):
  """The longest n for which some run of n tokens of the row is a run of the corpus."""
  runs = {tuple(corpus[i:j]) for i in range(len(corpus)) for j in range(i, len(corpus) + 1)}
  sizes = [j - i for i in range(len(row)) for j in range(i, len(row) + 1)]
  return max((n for n in sizes if any(tuple(row[i : i + n]) in runs
              for i in range(len(row) - n + 1))), default=0)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=4), TOKENS)
def test_runs_are_those_of_a_search(rows, corpus):
  found = memorisation.copies([np.array(row) for row in rows], np.array(corpus, np.uint16))
  assert found.longest.tolist() == [by_search(row, corpus) for row in rows]
  assert found.sizes.tolist() == list(map(len, rows))


def test_collisions_do_not_count(monkeypatch):
  """With a hash that is the same for all runs, the answer is the same; without the comparison of
  tokens (the mutant) every run would be a copy."""
  rng = np.random.default_rng(0)
  rows, corpus = rng.integers(0, 3, (5, 12)), rng.integers(0, 3, 60)
  expected = [by_search(row.tolist(), corpus.tolist()) for row in rows]
  assert max(expected) < 12
  real = memorisation._run_hashes
  monkeypatch.setattr(memorisation, "_run_hashes", lambda prefix, n: real(prefix, n) * np.uint64(0))
  assert memorisation.copies(list(rows), corpus).longest.tolist() == expected
  monkeypatch.setattr(memorisation, "_any_equal", lambda *_: True)
  assert memorisation.copies(list(rows), corpus).longest.tolist() == [12] * 5


def test_a_copy_is_found_in_a_long_text_and_a_line_says_so():
  rng = np.random.default_rng(1)
  corpus = rng.integers(0, 50_000, 200_000).astype(np.uint16)
  row = rng.integers(0, 50_000, 64)
  row[10:51] = corpus[199_900:199_941]
  result = memorisation.copies([row, corpus[5:69]], corpus)
  assert result.longest.tolist() == [41, 64] and result.whole == 0.5
  assert result.mean == 52.5 and result.standard_error == pytest.approx(11.5)
  assert "52.5 ± 11.5 tokens (at most 64), 50.0 % of 2 rows copied whole" in str(result)
  with pytest.raises(ValueError, match="no rows"):
    memorisation.copies([], corpus)

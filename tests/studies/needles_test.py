"""The study of look-ups in long rows: rows ask for what they show, and lines are counted."""

import numpy as np
import pytest

from diffusion_text.model.long_context import ntk_factor
from diffusion_text.studies import needles


def test_each_question_has_one_answer_at_its_distance():
  made = needles.questions(np.random.default_rng(0), 50, 64, 4)
  assert made.asked.sum(1).tolist() == [4] * 50
  row, place = np.nonzero(made.asked)
  keys, values = made.ids[row, place - 1], made.ids[row, place]
  back = place - 1 - made.distance.reshape(-1)
  np.testing.assert_array_equal(made.ids[row, back], keys)
  np.testing.assert_array_equal(made.ids[row, back + 1], values)
  assert (keys < needles.KEYS).all() and (values >= needles.KEYS).all()
  # A key stands twice in its row: in its pair, and in its question.
  assert ((made.ids[row] == keys[:, None]).sum(1) == 2).all()
  with pytest.raises(ValueError, match="length=12 has no room for pairs=4; use at least 16"):
    needles.questions(np.random.default_rng(0), 1, 12, 4)


def test_shares_are_over_what_is_counted():
  right, counted = (
    np.array([[1, 0], [1, 1], [1, 1]], bool),
    np.array([[1, 1], [1, 0], [0, 0]], bool),
  )
  assert needles.share(right, counted) == (0.75, 0.25)
  assert needles.share(right, counted & [[True], [False], [False]]) is None


def test_near_questions_are_those_whose_distance_was_seen_in_training():
  """Two rows of two questions; rows of training have 16 tokens, so a distance of 16 is far."""
  ids = np.array([[0, 20, 1, 21], [2, 22, 3, 23]])
  made = needles.Questions(ids, ids >= 20, np.array([[3, 16], [30, 15]]))
  got = np.array([[20, 23], [22, 23]])
  line = needles.cells(needles.Settings(length=16), made, "plain", 1.0, got)
  assert line[4:7] == ("0.750 ± 0.250", "1.000 ± 0.000", "0.500 ± 0.500")


def test_a_table_is_written(tmp_path):
  """Of a model after one update. At the length of training nothing but the control is scaled."""
  settings = needles.Settings(model="masked", width=32, layers=1, steps=1, rows=4, times=(2,))
  assert list(needles.factors(settings, 64)) == ["plain", "wrong factor"]
  text = needles.run(settings, tmp_path)
  assert (tmp_path / "needles.md").read_text() == text + "\n"
  lines = [line.split(" | ") for line in text.splitlines()[4:]]
  assert [line[2] for line in lines] == ["plain", "scaled", "wrong factor"]
  assert lines[1][3] == f"{ntk_factor(needles.BASE, 64, 128, needles.HEAD_WIDTH):.3g}"

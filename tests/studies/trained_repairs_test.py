"""Errors in held-out text: where they are planted, who sees them, and by which parts they count.
A network that knows a cycle sees each of them; the frequencies of tokens see none.
"""

import types

import jax
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import Loop
from diffusion_text.studies import repairs, trained_repairs
from diffusion_text.studies.chains import Chain
from diffusion_text.studies.trained_repairs import Found, Planted, Rows
from diffusion_text.testing.chain_network import chain_model
from diffusion_text.types import Batch

STEP = 0.999 * np.eye(4)[[1, 2, 3, 0]] + 0.00025
CYCLE = Chain("cycle", np.full(4, 0.25), STEP, 6)
SETTINGS = repairs.Settings(errors=(1, 2), calls=2, rows=8)


def cycle_rows(rows=8):
  """Rows of the cycle whose first token is given."""
  ids = (np.arange(6) + np.arange(rows)[:, None]).astype(np.int32) % 4
  return Rows(ids, np.broadcast_to(np.arange(6) > 0, ids.shape))


def exact(process):
  """A run whose network knows the cycle."""
  model, params = chain_model(process, CYCLE)
  return types.SimpleNamespace(experiment=types.SimpleNamespace(model=model), params=params)


def test_wrong_tokens_are_of_the_text_and_nowhere_else():
  """As many in each row as asked, none in what is given, and none that is right."""
  ids = np.array([[7, 1, 1, 1, 9]] * 40 + [[7, 2, 2, 9, 9]] * 40, np.int32)
  rows = Rows(ids, np.isin(ids, (1, 2)))
  wrong, where = trained_repairs.planted(rows, 2, np.random.default_rng(0))
  assert (where.sum(1) == 2).all() and not (where & ~rows.text).any()
  np.testing.assert_array_equal(wrong != ids, where)
  assert set(wrong[where]) == {1, 2}
  assert rows.third()[0, 1:4].tolist() == [0, 1, 2]
  with pytest.raises(ValueError, match="all tokens of the held-out text are 1"):
    trained_repairs.planted(Rows(ids[:40], ids[:40] == 1), 1, np.random.default_rng(0))


def test_a_detector_is_judged_by_pairs_of_a_wrong_and_a_right_token():
  """Equal chances count half; what stands outside of the text does not count."""
  rows = Rows(np.zeros((3, 4), np.int32), np.array([[True, True, True, False]] * 3))
  where = np.array([[True, False, False, False]] * 3)
  said = np.array([[-5.0, -1, -1, -9], [0, -1, -1, -9], [-1, -1, -2, -9]])
  assert trained_repairs.less_likely(said, where, rows).tolist() == [1.0, 0.0, 0.25]


def test_a_share_of_tokens_has_the_error_of_its_rows():
  """Two rows that agree within themselves are two draws, not eight."""
  hits = np.array([[True] * 4, [False] * 4])
  ratio, error = trained_repairs.share(hits, np.ones((2, 4), bool))
  assert ratio == 0.5 and abs(error - 0.5) < 1e-9
  of = np.array([[True, False, False, False], [False, True, True, True]])
  assert trained_repairs.share(hits, of) == (0.25, 0.375)  # rows of one and three
  assert trained_repairs.share(hits, np.zeros((2, 4), bool)) == (0.0, 0.0)


@pytest.mark.parametrize("process", [Masked(vocab_size=4), Uniform(vocab_size=4)], ids=str)
def test_a_network_that_knows_the_neighbours_sees_every_error(process):
  """Under masks by one place at a time. The control, frequencies, sees none."""
  rows = cycle_rows()
  ids, where = trained_repairs.planted(rows, 1, np.random.default_rng(0))
  said, right = trained_repairs.chances(exact(process), ids, rows, 0.1)
  assert (right > said)[where].all() and (said[~rows.text] == 0).all()
  assert trained_repairs.less_likely(said, where, rows).mean() > 0.9
  often = trained_repairs.less_likely(trained_repairs.frequencies(ids, rows), where, rows)
  assert abs(often.mean() - 0.5) < 0.25


def test_what_is_given_is_not_noised():
  """Also where a sampler begins with the text noised (mutant: at one time for all tokens)."""
  model, params = chain_model(Uniform(vocab_size=4), CYCLE)
  loop, rows = Loop(model, Grid(steps=2), WholeRow()), cycle_rows(64)

  @jax.jit
  def state(params, keys):
    fixed = loop.fixed(params, keys, Batch(rows.ids, ~rows.text))
    return repairs.begun(loop, repairs.Start(0.9, noised=True), params, fixed, rows.ids).state

  changed = np.asarray(state(params, row_keys(0, 64))) != rows.ids
  assert not changed[~rows.text].any() and changed[rows.text].mean() > 0.5


def test_repairs_and_damage_count_where_they_are():
  """By thirds of the place and of the chance, the least likely first."""
  ids = np.array([[0, 1, 2, 3, 4, 5]] * 2)
  rows = Rows(ids, np.ones((2, 6), bool))
  where = np.array([[True, False, False, True, False, True]] * 2)
  said = np.array([[-9.0, 0, 0, -5, 0, -1]] * 2) + 1e-3 * np.arange(12).reshape(2, 6)
  made = np.array([[0, 1, 2, 9, 4, 9], [0, 9, 2, 9, 4, 9]])  # the first is repaired, 1 is damaged
  found = Found.of(rows, Planted(ids, where, said, said), made, 3.0)
  assert [mean for mean, _ in found.parts[0]] == [1.0, 0.0, 0.0]
  assert [mean for mean, _ in found.parts[1]] == [1.0, 0.0, 0.0]
  assert [mean for mean, _ in found.parts[2]] == [0.5, 0.0, 0.0]
  assert abs(found.repaired[0] - 1 / 3) < 1e-9 and abs(found.damaged[0] - 1 / 6) < 1e-9


def test_tables_have_the_samplers_that_fit(tmp_path, monkeypatch):
  """And runs of other texts are refused."""
  runs = {"masked": exact(Masked(vocab_size=4)), "uniform": exact(Uniform(vocab_size=4))}
  rows, asked = cycle_rows(), []
  monkeypatch.setattr(trained_repairs, "held_out_text", lambda *_: rows)
  zeros = (np.zeros(rows.ids.shape), np.ones(rows.ids.shape))
  monkeypatch.setattr(trained_repairs, "chances", lambda *_: zeros)

  def gone_on(trained, sampler, start, rows, ids, seed):
    asked.append(sampler)
    return ids, 2.0

  monkeypatch.setattr(trained_repairs, "gone_on", gone_on)
  text = trained_repairs.run(SETTINGS, runs, tmp_path)
  assert (tmp_path / "trained_repairs.md").read_text() == text + "\n"
  assert "| masked | remasking, conf 1 |" in text and "| masked | self-correction |" not in text
  assert "| uniform | self-correction |" in text and "| uniform | remasking, conf 1 |" not in text
  assert "| masked | 0.500 / 0.500 (± 0.000) | 1.000 / 1.000 (± 0.000) |" in text
  assert len(asked) == text.count("| masked |") + text.count("| uniform |") - 2
  others = iter([rows, Rows(rows.ids + 1, rows.text)])
  monkeypatch.setattr(trained_repairs, "held_out_text", lambda *_: next(others))
  with pytest.raises(ValueError, match="uniform and masked have other held-out rows"):
    trained_repairs.run(SETTINGS, runs, tmp_path)

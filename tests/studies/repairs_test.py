"""Planted errors are counted as they are named; masks that are never taken back repair none, and
noise that may be any token is repaired by what the network knows of neighbours.
"""

import jax
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.loop import Loop
from diffusion_text.studies import repairs
from diffusion_text.studies.chains import Chain, chain_of
from diffusion_text.testing.chain_network import chain_model
from diffusion_text.types import Batch

SETTINGS = repairs.Settings(errors=(1, 2), calls=2, time=0.3, rows=64)
CYCLE = Chain("cycle", np.full(4, 0.25), np.eye(4)[[1, 2, 3, 0]], 6)
LINES = {line[:2]: line for line in repairs.lines(SETTINGS, CYCLE)}


def test_errors_are_planted_and_counted():
  """Each row has as many as asked; a repair is the token that was there, and no other one."""
  ids = np.zeros((500, 4), np.int32)
  wrong, where = repairs.planted(ids, 3, 3, np.random.default_rng(0))
  assert (where.sum(1) == 3).all() and ((wrong != ids) == where).all()
  assert abs((wrong == 1).sum() - 750) < 100 and where.sum(0).min() > 300
  right = np.array([[0, 1, 2, 3], [1, 2, 3, 0]])
  where = np.array([[True, False, False, False], [False, True, False, False]])
  made = np.array([[0, 1, 2, 2], [1, 0, 3, 0]])  # repaired and one damaged; as bad as before
  found = repairs.judged(CYCLE, right, made, where, 5.0)
  assert (found.errors, found.calls, found.possible[0]) == (1, 5.0, 0.0)
  assert found.repaired[0] == 0.5 and abs(found.damaged[0] - 1 / 6) < 1e-9


def test_masks_that_are_not_taken_back_repair_nothing():
  """And damage nothing."""
  control = LINES["masked", "grid (control)"]
  for found in repairs.repairs(control, CYCLE, chain_model, SETTINGS):
    assert found.repaired[0] == found.damaged[0] == found.possible[0] == 0 and found.calls == 2


def test_neighbours_tell_which_token_is_wrong():
  """Mutant: a network that knows frequencies only."""
  knows, control = (LINES["uniform", f"grid{end}"] for end in ("", ", frequencies only (control)"))
  for right, blind in zip(
    repairs.repairs(knows, CYCLE, chain_model, SETTINGS),
    repairs.repairs(control, CYCLE, chain_model, SETTINGS),
    strict=True,
  ):
    assert right.repaired[0] > blind.repaired[0] + 0.3
    assert right.damaged[0] < blind.damaged[0] < 0.4


def test_a_sampler_goes_on_from_where_it_would_have_come():
  """Running confidence has no more steps than tokens, and begins among its last ones."""
  line = LINES["masked", "running confidence"]
  assert line.members[1].revise.steps == 6 and line.start == (1 / 3, True, 4)
  late = repairs.Late(start=0.3)
  grid = late.grid({}, np.array([1.0, 0.5, 0.0]), np.array([6, 6]), 6)
  np.testing.assert_allclose(grid[1, :, 2], [0.3, 0.15, 0], rtol=1e-6)
  with pytest.raises(ValueError, match="calls=6 must be fewer than the 6 tokens"):
    repairs.running_confidence(Masked(vocab_size=4), repairs.Settings(calls=6), 6)
  with pytest.raises(ValueError, match=r"errors=\(64,\) must be between 1 and the 48 tokens"):
    repairs.check(repairs.Settings(errors=(64,)), chain_of("phrase"))


def test_running_confidence_begins_with_masks_and_doubts_the_rest():
  """As that sampler would stand: masks wait, and no visible token has been drawn by a call."""
  line = LINES["masked", "running confidence"]
  process, sampler = line.members
  model, params = chain_model(process, CYCLE, repairs.Late(start=line.start.time))
  loop, text = Loop(model, sampler, WholeRow()), np.zeros((64, 6), np.int32)

  @jax.jit
  def begun(params, keys):
    fixed = loop.fixed(params, keys, Batch(text))
    return repairs.begun(loop, line.start, params, fixed, text)

  carry = begun(params, row_keys(0, 64))
  masked, own = np.asarray(carry.state) == process.mask_id, carry.sampler
  assert abs(masked.mean() - line.start.time) < 0.1 and (carry.state[~masked] == 0).all()
  np.testing.assert_array_equal(own.waiting, masked)
  np.testing.assert_array_equal(own.level, masked)
  assert (np.asarray(own.step) == 4).all()
  assert (own.recorded[~masked] <= repairs.UNKNOWN).all() and (own.recorded[masked] == 0).all()


def test_a_table_has_every_line(tmp_path, monkeypatch):
  """Its first lines are of the planted rows themselves."""
  monkeypatch.setattr(repairs, "corrected", lambda loop, start, params, keys, text: (text, [3, 4]))
  text = repairs.run(SETTINGS, chain_model, tmp_path)
  assert (tmp_path / "repairs.md").read_text() == text + "\n"
  assert text.startswith("Shares for 1 / 2 wrong tokens of 48") and text.count("| 3.5 |") == len(
    LINES
  )
  assert text.count("\n") == 2 + 2 + len(LINES)
  assert "| – | nobody: as planted | – | 0.000 / 0.000 (± 0.000) | 0.000 / 0.000" in text
  assert "| masked | running confidence | 0.29 | 0.000 / 0.000 (± 0.000) |" in text

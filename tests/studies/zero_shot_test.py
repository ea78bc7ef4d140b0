"""Classes by bounds: what draws must show, what counts cannot see, and when a class is given up."""

import numpy as np
import pytest

from diffusion_text.process.masked import Masked
from diffusion_text.studies import zero_shot
from diffusion_text.testing.chain_network import chain_model

SETTINGS = zero_shot.Settings(classes=2, tokens=4, length=8, rows=64, draws=(16,), apart=1.0)
MADE = zero_shot.texts(SETTINGS)


@pytest.fixture(scope="module")
def drawn():
  """paired -> draws [16, 2, 64] of the bounds under both classes."""
  models = [chain_model(Masked(vocab_size=4), chain) for chain in MADE.chains]
  params = [each for _, each in models]
  rows = [MADE.ids] * 2
  return {
    paired: zero_shot.bounds(models[0][0], params, rows, 16, 0, paired=paired)
    for paired in (True, False)
  }


def test_differences_of_bounds_are_those_of_the_laws(drawn):
  """The mean over texts and draws, for networks that are exact. Mutant: the classes exchanged."""
  first, second = (zero_shot.exact_nats(chain, MADE.ids) for chain in MADE.chains)
  for costs in drawn.values():
    difference = (costs[:, 0] - costs[:, 1]).mean(0) - (first - second)
    error = difference.std(ddof=1) / len(difference) ** 0.5
    assert abs(difference.mean()) < 4 * error
  exchanged = (drawn[True][:, 1] - drawn[True][:, 0]).mean(0)[MADE.label == 0]
  assert abs((exchanged - (first - second)[MADE.label == 0]).mean()) > 1


def test_noise_that_is_shared_leaves_less_of_itself_in_the_difference(drawn):
  spreads = [(costs[:, 0] - costs[:, 1]).std(0).mean() for costs in drawn.values()]
  assert spreads[0] < 0.7 * spreads[1]
  right = [(costs.mean(0).argmin(0) == MADE.label).mean() for costs in drawn.values()]
  exact = np.stack([zero_shot.exact_nats(chain, MADE.ids) for chain in MADE.chains])
  assert right[0] > right[1] and (exact.argmin(0) == MADE.label).mean() > 0.8


def test_counts_of_tokens_do_not_see_the_direction():
  lines = {name: cells for name, *cells in zero_shot.known(MADE)}
  assert lines["counts of tokens (control)"][-1] == "0.500 ± 0.000"
  assert float(lines["the law itself"][-1].split()[0]) > 0.7


def test_a_class_is_given_up_once_it_is_clearly_behind():
  """Text 0: the second class is 10 nats behind from the first draw on. Text 1: nobody is ahead.
  Text 2: as text 0, but for draws that are too noisy to say so."""
  noise = np.random.default_rng(0).normal(size=(16, 3))
  behind = np.stack([10 + 0.1 * noise[:, 0], 0.1 * noise[:, 1], 10 + 100 * noise[:, 2]], axis=1)
  found = zero_shot.pruned(np.stack([np.zeros_like(behind), behind], axis=1), 3.0)
  assert found.choice[0] == 0 and found.draws.tolist() == [2 * zero_shot.FEWEST, 32, 32]
  eager = zero_shot.pruned(np.stack([np.zeros_like(behind), behind], axis=1), 0.0)
  assert eager.draws[1] < 32


def test_tables_have_a_line_for_each_number_of_draws(tmp_path, monkeypatch):
  small = zero_shot.Settings(classes=2, tokens=4, length=8, rows=64, draws=(1, 2), apart=1.0)
  monkeypatch.setattr(zero_shot, "processes", lambda size: {"masked": Masked(vocab_size=size)})
  text = zero_shot.run(small, chain_model, tmp_path)
  assert text.count("| masked | the same |") == text.count("| masked | each its own |") == 2
  right = [line.split("|")[4:6] for line in text.splitlines() if line.startswith("| masked | the")]
  assert min(float(cell.split("±")[0]) for cells in right for cell in cells) > 0.55
  assert "of 2 |" in text and (tmp_path / "zero_shot.md").read_text().strip() == text
  for wrong in ((), (4, 1), (0, 4)):
    with pytest.raises(ValueError, match=r"draws=\(.*\) must be positive and rise; 1,4,16,64"):
      zero_shot.run(zero_shot.Settings(draws=wrong), chain_model, tmp_path)

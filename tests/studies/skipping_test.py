"""The measures of experiments.skipping: exact draws are at chance, others are not, and the calls
that are enough are the last of which all that follow are.
"""

import numpy as np
import pytest

from diffusion_text.studies import skipping
from diffusion_text.studies.skipping import Line, Settings, World
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import MarkovChain

WORLD = World(MarkovChain, exact_model)
SETTINGS = Settings(rows=2000, levels=50)


def test_exact_texts_cost_the_entropy_and_are_at_chance():
  chain, blind = (skipping.chain_of(SETTINGS, WORLD, neighbours) for neighbours in (True, False))
  rng = np.random.default_rng(5)
  exact = skipping.measured(chain, chain.sample(rng, 2000), 0, times="", law="", calls=0)
  assert abs(exact.nll - chain.entropy / chain.length) < 4 * exact.nll_error
  assert exact.tv < exact.chance + 0.01
  other = skipping.measured(chain, blind.sample(rng, 2000), 0, times="", law="", calls=0)
  assert other.nll > exact.nll + 0.5 and other.tv > exact.chance + 0.1
  assert abs(other.entropy - exact.entropy) < 0.1  # what the entropy alone does not tell


def line(calls, tv, times="converging"):
  return Line(times, "the law", calls, 1.0, 0.1, tv, 0.02, 1.0)


def test_enough_calls_stay_enough():
  found = [line(5, 0.1), line(10, 0.025), line(20, 0.05), line(50, 0.03), line(57, 0.02)]
  assert skipping.fewest([*found, line(0, 0.02)]) == {("converging", "the law"): 50}
  assert skipping.fewest([line(5, 0.02), line(57, 0.2)]) == {("converging", "the law"): None}
  text = skipping.table(found, SETTINGS, 1.0)
  assert "converging, the law: 50 calls, 1 times fewer than 57." in text
  never = skipping.table([line(5, 0.2)], SETTINGS, 1.0)
  assert never.splitlines()[-1] == "Within 0.01 of chance, converging, the law: not reached."


def test_settings_are_checked():
  with pytest.raises(ValueError, match="rows"):
    Settings(rows=2)

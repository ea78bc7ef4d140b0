"""Languages and tasks of small studies are what their docstrings say."""

import itertools

import numpy as np
import pytest

from diffusion_text.studies import chains, recurrent_depth

ROWS = 4000


@pytest.mark.parametrize("name", chains.CHAINS)
def test_chains_have_their_bigrams_and_make_no_step_that_never_happens(name):
  chain = chains.CHAINS[name]()
  ids = chain.sample(np.random.default_rng(0), ROWS)
  assert ids.shape == (ROWS, chain.length) and not chain.invalid(ids).any()
  found = chains.quality(chain, ids)
  assert found.distance < 0.02 and found.invalid == 0
  ids[0, :2] = np.argwhere(chain.transition == 0)[0]
  assert chain.invalid(ids)[0] and not chain.invalid(ids)[1:].any()
  shuffled = np.random.default_rng(1).permuted(ids, axis=1)
  assert chains.quality(chain, shuffled).distance > 0.2


def test_phrases_are_of_six_tokens():
  chain = chains.phrase()
  assert (np.sort(chain.transition.max(1)) == np.repeat([0.25, 1.0], [4, 20])).all()
  np.testing.assert_allclose(chain.transition.sum(1), 1)
  np.testing.assert_allclose(chain.initial @ chain.transition, chain.initial, err_msg="stationary")


def test_iterates_follow_the_permutation_of_their_row():
  ids = recurrent_depth.iterate_rows(np.random.default_rng(0), 50)
  size = recurrent_depth.SYMBOLS
  for row in ids:
    image = dict(row[: 2 * size].reshape(-1, 2))
    assert sorted(image) == sorted(image.values()) == list(range(size))
    chain = row[2 * size :]
    assert all(image[one] == other for one, other in itertools.pairwise(chain))

"""Languages, tasks and measures of small studies are what their docstrings say."""

import itertools

import numpy as np
import pytest

from diffusion_text.studies import chains, measures, recurrent_depth

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


def test_measures():
  mean, error = measures.mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
  assert mean == 3 and error == pytest.approx((14 / 3 / 4) ** 0.5)
  ids = np.array([[0, 0], [2, 3]])
  assert measures.pooled_entropy(ids) == pytest.approx(1.5 * np.log(2))
  text = measures.markdown(("a", "b", "c"), [("x", "1", "y")], left=(0, 2))
  assert text == "| a | b | c |\n| --- | ---: | --- |\n| x | 1 | y |"


def test_quality_of_rows_that_can_be_counted():
  """Two rows of a chain of two tokens that never repeat; the second row repeats once."""
  chain = chains.Chain("swap", np.array([0.5, 0.5]), np.array([[0.0, 1.0], [1.0, 0.0]]), 3)
  found = chains.quality(chain, np.array([[0, 1, 0], [1, 1, 0]]))
  np.testing.assert_allclose(chain.bigrams(), [[0.0, 0.5], [0.5, 0.0]])
  begins = chain._replace(initial=np.array([1.0, 0.0]))  # 0 1 0: of two of its pairs 0 is half
  np.testing.assert_allclose(begins.frequencies(), [2 / 3, 1 / 3])
  assert (found.invalid, found.invalid_error) == (0.5, 0.5)
  assert found.distance == pytest.approx(0.25)  # pairs 01, 10, 11, 10 against a half of each
  assert found.entropy == pytest.approx(np.log(2))
  common, rare = 1 - chains.SMOOTHING / 2, chains.SMOOTHING / 2
  costs = -np.log([0.5 * common**2, 0.5 * common * rare])
  assert found.nll == pytest.approx(costs.mean())
  assert found.nll_error == pytest.approx((costs[1] - costs[0]) / 2)

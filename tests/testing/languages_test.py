"""Languages: what they say of themselves is what counting over all sequences says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.numerics import NEVER
from diffusion_text.testing.languages import Enumerable, MarkovChain, every_sequence

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)
CHAIN = MarkovChain.branchy(1, vocab_size=3, length=6, successors=2)


def counted_posterior(language, clues):
  """p(x_i = v | clues) of one row, by summing over all sequences in double precision."""
  places = np.arange(language.length)
  weight = language.probabilities * np.exp(clues[places, language.sequences].sum(1))
  law = [
    [(weight * (language.sequences[:, i] == v)).sum() for v in range(language.vocab_size)]
    for i in places
  ]
  return np.array(law) / weight.sum()


def test_entropies_are_those_of_the_golden_numbers():
  assert LANGUAGE.entropy == pytest.approx(3.7085873970, abs=1e-9)
  assert Enumerable.dirichlet(1, 0.7, 4, 2).entropy == pytest.approx(2.1112697, abs=1e-7)
  assert Enumerable.independent(3, 4).entropy == pytest.approx(4 * np.log(3))


@pytest.mark.parametrize("language", [LANGUAGE, CHAIN], ids=["list", "chain"])
def test_posterior_is_the_sum_over_all_sequences(language):
  listed = language if language is LANGUAGE else CHAIN.enumerated()
  assert listed.probabilities.sum() == pytest.approx(1)
  clues = np.random.default_rng(0).normal(size=(2, language.length, 3)).astype(np.float32)
  clues[0, 1] = NEVER
  clues[0, 1, listed.sequences[np.argmax(listed.probabilities), 1]] = 0  # a token that is known
  got = np.exp(jax.jit(language.posterior)(jnp.asarray(clues)))
  want = [counted_posterior(listed, row) for row in clues]
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_a_chain_is_its_list():
  listed = CHAIN.enumerated()
  assert listed.entropy == pytest.approx(CHAIN.entropy)
  ids = CHAIN.sample(np.random.default_rng(0), 4000)
  assert listed.total_variation(listed.histogram(ids)) < 1.5 * listed.chance_distance(4000)


def test_draws_have_the_law():
  ids = LANGUAGE.sample(np.random.default_rng(0), 4000)
  distance = LANGUAGE.total_variation(LANGUAGE.histogram(ids))
  assert distance == pytest.approx(LANGUAGE.chance_distance(4000), rel=0.3)
  ids = LANGUAGE.systematic(4000)
  assert np.abs(LANGUAGE.histogram(ids) - LANGUAGE.probabilities).max() <= 1 / 4000
  assert (LANGUAGE.systematic(4000, seed=1) != ids).any()


def test_numbers_need_the_whole_list():
  half = Enumerable(every_sequence(3, 4)[:40], np.full(40, 1 / 40), 3)
  with pytest.raises(ValueError, match="lists 40 of 3\\^4 sequences"):
    half.numbers(half.sequences)

"""What parallel calls lose is what enumeration finds: all correlation in one call of any process,
and the cost gap of masks in more; the tables name their numbers.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import position_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.studies import discreteness
from diffusion_text.studies.chains import Chain, chain_of
from diffusion_text.studies.discreteness import Level, Measured, Settings
from diffusion_text.studies.opened_chains import costs_by_distance, entropy, uniform_calls
from diffusion_text.testing.chain_network import chain_model

STEP = np.array([[0.0, 0.3, 0.7], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]])
CHAIN = Chain("short", np.array([0.2, 0.3, 0.5]), STEP, 4)


IDS = CHAIN.sample(np.random.default_rng(1), 2048)


def correlation(ids):
  """log p(x) - Σ_i log p(x_i) of rows."""
  law, alone = CHAIN.initial, 0.0
  for place in range(CHAIN.length):
    alone, law = alone + np.log(law[ids[:, place]]), law @ STEP
  return np.log(CHAIN.initial[ids[:, 0]] * STEP[ids[:, :-1], ids[:, 1:]].prod(1)) - alone


@pytest.mark.parametrize("process", (Masked(vocab_size=3), Uniform(vocab_size=3)))
def test_one_call_loses_all_correlation_of_each_text(process):
  """Mutant: two calls."""
  model, params = chain_model(process, CHAIN)
  lost = discreteness.lost(model, params, IDS, 1, seed=0)
  np.testing.assert_allclose(lost, correlation(IDS), atol=1e-4)
  fewer = discreteness.lost(model, params, IDS, 2, seed=0)
  assert fewer.mean() < 0.8 * lost.mean()


def test_masks_lose_the_cost_gap():
  """The mean over texts and paths is that of uniformly drawn calls. Mutant: one call more."""
  model, params = chain_model(Masked(vocab_size=3), CHAIN)
  lost = discreteness.lost(model, params, IDS, 2, seed=0)
  costs = costs_by_distance(CHAIN)
  gap, other = (uniform_calls(costs, calls).sum() - entropy(costs) for calls in (2, 3))
  error = lost.std() / len(IDS) ** 0.5
  assert abs(lost.mean() - gap) < 4 * error < abs(gap - other)


def test_vectors_begin_with_no_information():
  """So that one call of Gaussian noise, too, loses all correlation; at a log-SNR of -10 nearly."""
  model, params = chain_model(Embedding(vocab_size=3, width=4), CHAIN)
  lost = discreteness.lost(model, params, IDS[:64], 1, seed=0)
  np.testing.assert_allclose(lost, correlation(IDS[:64]), atol=0.2)
  assert abs((lost - correlation(IDS[:64])).mean()) < 0.02 < correlation(IDS).mean()


def test_at_the_end_of_the_path_a_token_has_its_own_law():
  """What is undecided there is the entropy of each place, and masks pay -log of its law. Mutant: a
  little before the end, where neighbours tell some.
  """
  model, params = chain_model(Masked(vocab_size=3), CHAIN)
  keys = position_keys(jax.random.key(0), 512, 4)
  laws, ids = CHAIN.laws(), IDS[:512]
  entropies = -(laws * np.log(np.maximum(laws, 1e-30))).sum(axis=1)
  undecided, rate = discreteness.at_level(model, params, keys, ids, jnp.float32(1))
  np.testing.assert_allclose(undecided, np.tile(entropies, (512, 1)), atol=1e-5)
  np.testing.assert_allclose(rate, -np.log(laws[np.arange(4), ids]), atol=1e-3)
  before, _ = discreteness.at_level(model, params, keys, ids, jnp.float32(0.9))
  assert before.mean() < undecided.mean() - 0.05


def test_the_sum_over_texts_is_that_of_all_texts():
  """Mutant: the evidence of the last place is left out."""
  texts = np.array(list(itertools.product(range(3), repeat=4)))
  evidence = np.random.default_rng(2).normal(size=(1, 4, 3)).astype(np.float32)
  p = CHAIN.initial[texts[:, 0]] * STEP[texts[:, :-1], texts[:, 1:]].prod(1)
  each = evidence[0, np.arange(4), texts]
  logs = [jnp.asarray(np.log(np.maximum(law, 1e-30)), jnp.float32) for law in (CHAIN.initial, STEP)]
  found = jax.jit(discreteness.log_sum)(*logs, evidence)
  np.testing.assert_allclose(found, [np.log((p * np.exp(each.sum(1))).sum())], rtol=1e-5)
  assert abs(found[0] - np.log((p * np.exp(each[:, :-1].sum(1))).sum())) > 0.01


def test_tables_name_their_numbers():
  """And a token of which only the place is known has the entropy of its marginal law."""
  pair, level = (1.5, 0.25), Level(0.5, 0.75, (2.0, 0.5), (3.0, 0.125))
  line = Measured("masked", pair, pair, (0.5, 0.125), (level,), ((4.0, 0.5), (2.0, 0.25)))
  text = discreteness.tables(Settings(calls=(1, 2), times=(0.5,)), [line])
  assert "| middle token | lost, T = 1 | lost, T = 2 |" in text
  assert "| masked | 1.50 ± 0.25 | 1.500 ± 0.250 | 0.500 ± 0.125 | 4.00 ± 0.50 | 2.00" in text
  assert "| masked | rate, middle | 3.00 ± 0.12 |" in text
  ids = chain_of("branchy").sample(np.random.default_rng(0), 20_000)
  found = discreteness.unigram_entropy(chain_of("branchy"))
  shares = np.stack([np.bincount(column, minlength=8) for column in ids.T]) / len(ids)
  assert abs(found + (shares * np.log(np.maximum(shares, 1e-9))).sum(1).mean()) < 0.003


def test_times_and_calls_that_are_none_are_refused():
  with pytest.raises(ValueError, match=r"times=\(0.0, 0.5\) must be above 0"):
    discreteness.check(Settings(times=(0.0, 0.5)))
  with pytest.raises(ValueError, match=r"calls=\(0,\) must be numbers from 1 on"):
    discreteness.check(Settings(calls=(0,)))

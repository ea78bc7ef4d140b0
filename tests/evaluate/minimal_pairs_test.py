"""Pairs of sentences of a known language: the likelier one has the lower bound, and shared noise is
worth most of the draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.evaluate.minimal_pairs import MinimalPairs, minimal_pairs
from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import MarkovChain
from diffusion_text.types import Batch


@functools.cache
def language():
  """(model, parameters, right rows, wrong rows, log p of both)."""
  chain = MarkovChain.branchy(0, vocab_size=4, length=8, successors=2)
  # Softened, so that a wrong sentence has a finite cost.
  soft = MarkovChain(chain.initial, 0.9 * chain.transition + 0.1 / 4, chain.length)
  model, params = exact_model(Masked(vocab_size=4), soft)
  rng = np.random.default_rng(0)
  right = soft.sample(rng, 64)
  wrong = right.copy()
  places = rng.integers(1, 8, 64)
  wrong[np.arange(64), places] = (right[np.arange(64), places] + rng.integers(1, 4, 64)) % 4
  return model, params, right, wrong, soft.log_likelihood(right), soft.log_likelihood(wrong)


def nats_fn(params, key, batch, progress):
  """One draw of the bound of each row."""
  values = _nats(params, key, batch, progress)
  return values, jnp.ones(len(values))


@jax.jit
def _nats(params, key, batch, progress):
  return jnp.sum(engine.nats(language()[0], params, key, batch, progress), axis=1)


def test_the_likelier_sentence_wins_and_shared_noise_spreads_less():
  _, params, right, wrong, log_right, log_wrong = language()
  pairs = [(Batch(jnp.asarray(right)), Batch(jnp.asarray(wrong)))]
  key = jax.random.key(0)
  shared = minimal_pairs(nats_fn, params, pairs, key, 64)
  apart = minimal_pairs(nats_fn, params, pairs, key, 64, shared=False)
  truth = log_right - log_wrong
  error = shared.spreads / 8
  # The exact network's bound is tight, so the difference is that of the log-probabilities.
  assert np.mean(np.abs(shared.differences - truth) < 3.5 * error + 1e-3) > 0.95
  sure = np.abs(truth) > 1
  assert np.mean((shared.differences > 0)[sure] == (truth > 0)[sure]) > 0.97
  # Mutant: noise of its own for each sentence.
  assert shared.spreads.mean() < 0.8 * apart.spreads.mean()
  assert np.mean(apart.differences - truth) == pytest.approx(0, abs=0.5)


def test_numbers_of_pairs_by_hand():
  pairs = MinimalPairs(np.array([1.0, -1.0, 0.0, 2.0]), np.zeros(4), 1)
  assert pairs.accuracy == 0.625
  assert pairs.standard_error == pytest.approx((0.625 * 0.375 / 4) ** 0.5)
  assert "accuracy 0.625 ± 0.242, difference 0.500 nats" in str(pairs)


def test_what_cannot_be_compared_is_refused():
  two = [(Batch(np.zeros((2, 4), np.int32)), Batch(np.zeros((2, 5), np.int32)))]
  for kwargs, message in (
    ({"pairs": []}, "no pairs"),
    ({"pairs": two}, r"\(2, 4\) and wrong ones \(2, 5\)"),
    ({"pairs": two, "num_draws": 0}, "num_draws=0"),
  ):
    with pytest.raises(ValueError, match=message):
      minimal_pairs(nats_fn, {}, key=jax.random.key(0), **kwargs)

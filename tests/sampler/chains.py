"""Markov chains as a test bed of samplers: texts by an exact network, and measures of texts."""

import jax
import numpy as np

from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.loop import sample
from diffusion_text.testing import MarkovChain
from diffusion_text.testing.chain_network import chain_model

BRANCHY = MarkovChain.branchy(0)
PHRASE = MarkovChain.phrases(0)


def model_of(chain):
  """A model of the chain by masks."""
  return chain_model(Masked(vocab_size=chain.vocab_size), chain)[0]


def draw(sampler, chain, rows, seed=0, **options):
  """Texts of the chain, as numpy arrays."""
  shape = {} if "batch" in options else {"rows": rows, "length": chain.length}
  model, params = chain_model(Masked(vocab_size=chain.vocab_size), chain)
  sampler.check(model)
  keys = row_keys(seed, rows)
  result = sample(model, params, sampler, keys, **shape, **options)
  return jax.tree.map(np.asarray, result)


def invalid(ids, chain):
  """The share of texts that the chain cannot produce."""
  return float(np.mean(~np.isfinite(chain.log_likelihood(ids))))


def nats(ids, chain):
  """(mean of -log p over the texts that are possible, its standard error)."""
  cost = -chain.log_likelihood(ids)
  cost = cost[np.isfinite(cost)]
  return float(cost.mean()), float(cost.std() / np.sqrt(len(cost)))


def bigram_distance(ids, chain):
  """The total variation of the table of neighbouring pairs to that of the chain."""
  size, law, want = chain.vocab_size, chain.initial, 0.0
  for _ in range(chain.length - 1):
    want = want + law[:, None] * chain.transition
    law = law @ chain.transition
  pairs = ids[:, :-1].reshape(-1) * size + ids[:, 1:].reshape(-1)
  found = np.bincount(pairs, minlength=size * size).reshape(size, size) / len(pairs)
  return float(0.5 * np.abs(found - want / (chain.length - 1)).sum())

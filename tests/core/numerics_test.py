"""Log-probabilities of tokens against float64."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.numerics import cross_entropy, expm1, likeliest, steep_cross_entropy
from diffusion_text.core.prng import draw_categorical, position_keys
from diffusion_text.process.embedding import Embedding

IDS = np.arange(64, dtype=np.int32) % 8


def in_float64(logits):
  """-log softmax(logits)[IDS]."""
  logits = np.asarray(logits, np.float64)
  return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(64), IDS]


def test_steep_and_plain_logits():
  """Equal for plain logits, with their gradients; of steep ones only one keeps its digits."""
  plain = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
  both = jax.jit(lambda x: (cross_entropy(x, IDS), steep_cross_entropy(x, IDS)))
  for found in both(plain):
    np.testing.assert_allclose(found, in_float64(plain), rtol=2e-6)
  slopes = jax.jit(jax.jacrev(lambda x: [jnp.sum(x) for x in both(x)]))(plain)
  np.testing.assert_allclose(*slopes, atol=1e-6)
  # The true token is about 7 nats ahead, of logits near 50,000.
  steep = np.float32(5e4 + plain)
  steep[np.arange(64), IDS] += 7
  np.testing.assert_allclose(both(steep)[1], in_float64(steep), rtol=1e-5)
  assert np.abs(both(steep)[0] - in_float64(steep)).max() > 1e-4


def test_no_token_costs_less_than_nothing():
  """A token that is read out of its own vector at the end of the path, where logits are 1e5."""
  process = Embedding(vocab_size=8, width=4)
  params = {"embedding": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
  ids = IDS.reshape(8, 8)
  cost = jax.jit(lambda keys: process.reconstruction(params, keys, ids))
  found = np.asarray(cost(position_keys(jax.random.key(0), 8, 8)))
  assert (found >= 0).all() and found.max() < 1e-6


def test_the_slope_of_expm1_keeps_its_digits():
  """Where e^x is small, too; and its own slope."""
  x = np.float32([-20, -14, -5, -1e-4, 0, 1e-4, 3])
  slope = jax.grad(expm1)
  for found in (jax.vmap(slope)(x), jax.vmap(jax.grad(slope))(x)):
    np.testing.assert_allclose(found, np.exp(np.float64(x)), rtol=2e-6)
  np.testing.assert_allclose(expm1(jnp.asarray(x)), np.expm1(np.float64(x)), rtol=2e-6)


def test_the_likeliest_is_the_first_of_the_largest():
  values = np.random.default_rng(0).integers(0, 4, (64, 8)).astype(np.float32)
  values[0] = -np.inf
  values[1, 3:] = -np.inf
  np.testing.assert_array_equal(jax.jit(likeliest)(values), values.argmax(1))


def test_draws_are_those_of_jax_random_categorical():
  keys = jax.random.split(jax.random.key(0), 64)
  logits = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
  logits[:, 5] = -np.inf
  one = jax.vmap(lambda key, row: jax.random.categorical(key, row, mode="high"))
  np.testing.assert_array_equal(draw_categorical(keys, logits), jax.jit(one)(keys, logits))

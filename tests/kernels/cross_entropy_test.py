"""Cross-entropy of the rows that count equals the dense one, in value and gradient.

Memory, work and sharding are those of `map_rows` (tests/core/chunked_test.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.kernels.cross_entropy import cut_cross_entropy

N, D, V = 48, 8, 50


def make(share=0.5):
  random = np.random.default_rng(0)
  shapes = ((N, D), (D, V), (V,))
  features, kernel, bias = (random.normal(size=shape).astype(np.float32) for shape in shapes)
  labels = random.integers(0, V, N).astype(np.int32)
  return features, kernel, bias, labels, random.uniform(size=N) < share


def dense(features, kernel, bias, labels, count, soft_cap=None):
  logits = features.astype(jnp.float32) @ kernel + bias
  logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
  return jnp.where(count, -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels], 0)


@pytest.mark.parametrize("chunk,soft_cap", [(1, None), (7, 3.0), (1000, 3.0), (16, None)])
def test_equals_dense(chunk, soft_cap):
  g = np.random.default_rng(9).normal(size=N).astype(np.float32)

  @jax.jit
  def both(features, kernel, bias, labels, count):
    def cut(*args):
      features, kernel, bias = args
      how = {"bias": bias, "chunk": chunk, "soft_cap": soft_cap}
      return cut_cross_entropy(features, kernel, labels, count, **how)

    def whole(*args):
      return dense(*args, labels, count, soft_cap)

    def value_and_pull(fn):
      value, pull = jax.vjp(fn, features, kernel, bias)
      return value, pull(g)

    return value_and_pull(cut), value_and_pull(whole)

  for share in (0.0, 0.5, 1.1):
    got, want = both(*make(share))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_bfloat16_features_are_scored_in_float32():
  features, kernel, bias, labels, count = make()
  features = jnp.asarray(features, jnp.bfloat16)
  value, pull = jax.vjp(lambda f: cut_cross_entropy(f, kernel, labels, count, bias=bias), features)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, dense(features, kernel, bias, labels, count), atol=2e-4)
  assert pull(value)[0].dtype == jnp.bfloat16

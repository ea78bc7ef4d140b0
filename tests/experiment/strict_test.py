"""One training step under JAX's own strictness: no implicit rank promotion, no NaN, and no key used
twice."""

import jax
import numpy as np
import pytest

import diffusion_text as dt

PROCESS = dt.Masked(vocab_size=5)
NETWORK = dt.Transformer(
  layers=1, width=16, heads=1, input_sizes=PROCESS.input_sizes, output_size=PROCESS.output_size
)


@pytest.fixture
def gradient():
  """(the gradient of the whole loss as a function of params and key, params)."""
  model = dt.Model(NETWORK, PROCESS, dt.Shared(), dt.Blocks(size=4), chunk=8)
  facts = dt.DataFacts(length=8, vocab_size=5)
  params = dt.init(model, jax.random.key(0), facts)
  batch = dt.Batch(np.arange(16, dtype=np.int32).reshape(2, 8) % 5)

  def total(params, key):
    return dt.loss(model, dt.Bound(), params, {}, key, batch).total

  return jax.jit(jax.value_and_grad(total)), params


@pytest.mark.parametrize(
  "strict",
  [
    pytest.param(lambda: jax.numpy_rank_promotion("raise"), id="rank promotion"),
    pytest.param(lambda: jax.debug_nans(True), id="NaN"),
    pytest.param(lambda: jax.debug_key_reuse(True), id="key reuse"),
  ],
)
def test_a_step_under_strictness(gradient, strict):
  run, params = gradient
  with strict():
    value, slopes = run(params, jax.random.key(1))
  assert np.isfinite(value) and np.isfinite(jax.tree.leaves(slopes)[0]).all()


def test_the_strictness_is_real():
  with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank"):
    jax.numpy.ones((2, 3)) + jax.numpy.ones(3)
  with jax.debug_nans(True), pytest.raises(FloatingPointError):
    jax.numpy.log(jax.numpy.float32(-1)).block_until_ready()
  with jax.debug_key_reuse(True), pytest.raises(Exception, match=r"reuse|consumed"):
    key = jax.random.key(0)
    jax.random.uniform(key), jax.random.uniform(key)

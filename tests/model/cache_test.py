"""The clean cache on the real network: cached equals uncached, tokens and logits, at any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.build import build, make_policy
from diffusion_text.model.cache import CachedBlocks
from diffusion_text.sampler.block import WholeRow
from diffusion_text.types import Batch, Inputs
from tests.experiment.build_test import AnyTokenizer
from tests.model.transformer_test import noisy_params

LENGTH, VOCAB = 24, 17


def experiment(timing, **model):
  config = __import__("configs.base", fromlist=["config"]).config("micro")
  config.timing.update(timing)
  config.model.update(model)
  config.update_from_flattened_dict({"data.length": LENGTH, "sampler.steps": 3})
  return build(config, tokenizer=AnyTokenizer(VOCAB), devices=jax.devices()[:1])


TIMINGS = {
  "blocks of 4": dict(name="per_block", block_size=4),
  "blocks of 1": dict(name="per_block", block_size=1),
  "one block": dict(name="per_block", block_size=LENGTH),
  "left to right": dict(name="left_to_right"),
}
MODELS = [
  {},
  dict(kv_heads=1, qk_norm=True, scan_layers=True),
  dict(time_conditioning="adaln", anchor_layers=1),
  dict(time_conditioning="layerwise"),
]


def params_of(exp):
  return {"network": noisy_params(exp.network, 0.2), "process": {}}


# Every timing, and every model in blocks or left to right, which reads other rows: how long blocks are is no concern of a model's.
CACHED = [(timing, MODELS[0]) for timing in TIMINGS]
CACHED += [
  ("left to right", MODELS[1]),
  ("blocks of 4", MODELS[2]),
  ("left to right", MODELS[2]),
  ("blocks of 4", MODELS[3]),
]


@pytest.mark.parametrize("timing,model", CACHED, ids=str)
def test_cached_tokens_equal_uncached_tokens(timing, model):
  exp = experiment(TIMINGS[timing], **model)
  params, keys = params_of(exp), row_keys(0, 3)
  given = jnp.arange(LENGTH)[None] < jnp.array([0, 3, 10])[:, None]  # ragged prompts
  batch = Batch(jax.random.randint(jax.random.key(1), (3, LENGTH), 0, VOCAB), given=given)
  policy = make_policy(exp.config.sampler.to_dict(), exp.timing)
  fast, slow = (
    exp.sample_fn(policy, cached=cached)(params, keys, batch) for cached in (True, False)
  )
  jax.tree.map(np.testing.assert_array_equal, fast, slow)
  assert len(np.unique(fast.ids)) > 4
  np.testing.assert_array_equal(np.asarray(fast.ids)[given], np.asarray(batch.ids)[given])


@pytest.mark.parametrize("timing", ["blocks of 4", "left to right"])
def test_cached_logits_equal_uncached_logits(timing):
  exp = experiment(TIMINGS[timing])
  params, size = params_of(exp), exp.timing.sampled_in_blocks
  ids = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, VOCAB)
  noise = Inputs(jnp.full((1, LENGTH), VOCAB))
  predict = lambda inputs, t, layout: exp.network.apply(params["network"], inputs, t, layout, None)
  cached = CachedBlocks(exp.network, params["network"], noise, exp.timing.shifted)
  whole = WholeRow(exp.timing.denoiser(predict, None, noise), noise)
  memories = [reader.start(2, LENGTH) for reader in (cached, whole)]
  reads = [
    jax.jit(lambda *given, reader=reader: reader.read(*given).logits) for reader in (cached, whole)
  ]
  finishes = [jax.jit(reader.finish) for reader in (cached, whole)]
  padding = jnp.zeros((2, size), bool)
  for start in range(0, LENGTH, size):
    block = ids[:, start : start + size]
    noisy = Inputs(
      jnp.where(jax.random.bernoulli(jax.random.key(start), 0.5, block.shape), VOCAB, block).astype(
        jnp.int32
      )
    )
    ones = jnp.ones((2, size))
    logits = [read(m, start, noisy, ones, padding) for read, m in zip(reads, memories)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    memories = [finish(m, start, Inputs(block), padding) for finish, m in zip(finishes, memories)]


@pytest.mark.parametrize("timing", ["blocks of 4", "left to right"])
def test_text_longer_than_the_training_length_and_of_odd_length(timing):
  exp = experiment(TIMINGS[timing])
  policy = make_policy(exp.config.sampler.to_dict(), exp.timing)
  result = exp.sample_fn(policy)(
    params_of(exp), row_keys(0, 2), Batch(jnp.zeros((2, 4 * LENGTH + 3), jnp.int32))
  )
  assert result.ids.shape == (2, 4 * LENGTH + 3) and int(result.ids.max()) < VOCAB
  short = exp.sample_fn(policy)(
    params_of(exp), row_keys(0, 2), Batch(jnp.zeros((2, LENGTH), jnp.int32))
  )
  np.testing.assert_array_equal(short.ids, result.ids[:, :LENGTH])  # what comes later cannot matter


def test_padding_is_not_seen():
  """A row that ends within a block gives the same text whatever stands in the padding, and as alone without it."""
  exp = experiment(TIMINGS["blocks of 4"])
  params, policy = params_of(exp), make_policy(exp.config.sampler.to_dict(), exp.timing)
  real = jnp.arange(LENGTH)[None] < jnp.array([10, LENGTH])[:, None]
  texts = []
  for filler in (0, 9):
    ids = jnp.where(real, 0, filler)
    batch = Batch(
      ids, given=~real, weights=real.astype(jnp.float32), segment=real.astype(jnp.int32)
    )
    texts.append(np.asarray(exp.sample_fn(policy)(params, row_keys(0, 2), batch).ids))
  np.testing.assert_array_equal(texts[0][0, :10], texts[1][0, :10])
  alone = exp.sample_fn(policy)(params, row_keys(0, 1), Batch(jnp.zeros((1, 10), jnp.int32))).ids
  np.testing.assert_array_equal(texts[0][:1, :10], alone)

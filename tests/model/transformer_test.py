"""The transformer: what it may see, what must not matter, and what every option does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_text.kernels import layout as layouts
from diffusion_text.model.partition import TABLE, partition_spec
from diffusion_text.model.transformer import Network, TransformerConfig, flops_per_token
from diffusion_text.train.sharding import path_names
from diffusion_text.types import Inputs, Layout

SMALL = TransformerConfig(
  vocab_size=11,
  input_size=12,
  layers=2,
  width=32,
  heads=4,
  kv_heads=4,
  mlp_width=64,
  norm="rmsnorm",
  activation="gelu",
  rope_base=10_000.0,
  qk_norm=False,
  tie_embeddings=False,
  time_conditioning=False,
  time_width=16,
  dropout=0.0,
  dtype="float32",
  scan_layers=False,
  remat="none",
  attention=("xla",),
)
VARIANTS = {
  "plain": {},
  "grouped": dict(kv_heads=2),
  "qk_norm": dict(qk_norm=True),
  "swiglu": dict(activation="swiglu"),
  "layernorm": dict(norm="layernorm"),
  "tied": dict(tie_embeddings=True),
  "time": dict(time_conditioning=True),
  "bfloat16": dict(dtype="bfloat16"),
}
IDS = jax.random.randint(jax.random.key(5), (3, 10), 0, 12)
T = jnp.full((3, 1), 0.4)
BIDIRECTIONAL = Layout()


def noisy_params(network, scale=0.1):
  """Initial parameters with noise on all of them: zeros (head, adaLN) would hide mistakes."""
  params = network.init(jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return jax.tree.unflatten(tree, [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)])


def logits_of(config, ids=IDS, t=T, layout=BIDIRECTIONAL, key=None, params=None):
  network = Network.create(config)
  params = noisy_params(network) if params is None else params
  return network.apply(params, Inputs(ids), t, layout, key).logits


@pytest.mark.parametrize("variant", VARIANTS)
class TestEveryVariant:
  def config(self, variant):
    return dataclasses.replace(SMALL, **VARIANTS[variant])

  def test_shapes_and_dtypes(self, variant):
    network = Network.create(self.config(variant))
    params = network.init(jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    logits = network.apply(params, Inputs(IDS), T, Layout(), None).logits
    assert logits.shape == (3, 10, 11) and logits.dtype == jnp.float32

  def test_scanned_and_unrolled_layers_agree(self, variant):
    config = self.config(variant)
    tolerance = 0.05 if variant == "bfloat16" else 2e-5
    unrolled = logits_of(config)
    for change in (dict(scan_layers=True), dict(remat="full"), dict(remat="dots", scan_layers=True)):
      np.testing.assert_allclose(logits_of(dataclasses.replace(config, **change)), unrolled, atol=tolerance)

  def test_causal_layout_has_no_gradient_to_the_right(self, variant):
    config = self.config(variant)
    network = Network.create(config)
    params = noisy_params(network)
    sees = []
    for other in range(10):
      ids = IDS.at[:, other].set((IDS[:, other] + 1) % 12)
      run = lambda ids: network.apply(params, Inputs(ids), T, layouts.causal(10), None).logits
      sees.append(np.abs(np.asarray(run(ids) - run(IDS))).max(axis=(0, 2)) > 1e-6)
    sees = np.array(sees)  # [changed, read]
    assert not sees[np.tril_indices(10, -1)].any(), "a token is seen by one on its left"
    assert sees[np.triu_indices(10)].all(), "a token is not seen by one on its right"

  def test_padding_and_neighbouring_documents_do_not_matter(self, variant):
    segment = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0]] * 3)
    other = IDS.at[:, 4:].set(3)
    first = logits_of(self.config(variant), layout=Layout(segment=segment))
    second = logits_of(self.config(variant), ids=other, layout=Layout(segment=segment))
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert np.abs(np.asarray(first - second))[:, 4:].max() > 1e-3

  def test_logits_of_some_rows_are_those_rows(self, variant):
    network = Network.create(self.config(variant))
    prediction = network.apply(noisy_params(network), Inputs(IDS), T, Layout(), None)
    some = prediction.unembed(prediction.features[1, 2:5])
    np.testing.assert_allclose(some, prediction.logits[1, 2:5], atol=1e-5)


def test_untrained_prediction_is_uniform():
  network = Network.create(SMALL)
  logits = network.apply(network.init(jax.random.key(0)), Inputs(IDS), T, Layout(), None).logits
  np.testing.assert_array_equal(logits, 0.0)


def test_time_is_per_token():
  """The same time for all, given as [B, 1] or [B, L], is the same; one token's own time changes that token most of all."""
  config = dataclasses.replace(SMALL, time_conditioning=True)
  same = logits_of(config, t=jnp.full((3, 10), 0.4))
  np.testing.assert_allclose(same, logits_of(config), atol=1e-5)
  one = logits_of(config, t=jnp.full((3, 10), 0.4).at[:, 4].set(0.9), layout=layouts.causal(10))
  base_line = logits_of(config, layout=layouts.causal(10))
  change = np.abs(np.asarray(one - base_line)).max(axis=(0, 2))
  assert (change[:4] < 1e-5).all() and change[4] > 1e-2


def test_no_time_input_means_no_influence():
  np.testing.assert_array_equal(logits_of(SMALL, t=T), logits_of(SMALL, t=T + 0.5))


def test_dropout_needs_a_key():
  config = dataclasses.replace(SMALL, dropout=0.5)
  np.testing.assert_array_equal(logits_of(config), logits_of(SMALL))
  dropped = [logits_of(config, key=jax.random.key(seed)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(dropped[0], dropped[1])
  assert np.abs(np.asarray(dropped[0] - dropped[2])).max() > 1e-3


def test_positions_are_relative():
  """Rotary attention sees differences of positions only: shifting all of them changes nothing."""
  network = Network.create(SMALL)
  params = noisy_params(network)
  at = lambda shift: network.apply(params, Inputs(IDS, jnp.arange(10)[None] + shift), T, Layout(), None).logits
  np.testing.assert_allclose(at(0), at(1000), atol=2e-3)
  scattered = network.apply(params, Inputs(IDS, 3 * jnp.arange(10)[None]), T, Layout(), None).logits
  assert np.abs(np.asarray(at(0) - scattered)).max() > 1e-2


@pytest.mark.parametrize(
  "change,match",
  [
    (dict(heads=5), "heads=5"),
    (dict(kv_heads=3), "kv_heads=3"),
    (dict(norm="batchnorm"), "batchnorm"),
    (dict(dropout=1.0), r"dropout=1\.0"),
    (dict(dtype="float16"), "float16"),
    (dict(remat="some"), "some"),
  ],
)
def test_bad_sizes_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("size", base.SIZES)
def test_partition_table_places_every_matrix(size):
  """Every matrix of every size is named by the table, and splits over a tensor × fsdp mesh where it divides."""
  model = {**base.config(size).model.to_dict(), "time_conditioning": True, "scan_layers": True}
  network = Network.create(TransformerConfig(**model, vocab_size=1024, input_size=1024))
  abstract = jax.eval_shape(network.init, jax.random.key(0))
  endings = {ending for ending, _ in TABLE}
  for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
    names = path_names(path)
    matrix = names[-1] in ("kernel", "embedding") and "time" not in names
    assert matrix <= any(names[-len(ending) :] == ending for ending in endings), names
    spec = partition_spec(names, leaf.shape, {"fsdp": 2, "tensor": 2})
    assert not matrix or any(axis is not None for axis in spec), (names, spec)
    assert partition_spec(names, leaf.shape, {"fsdp": 1}) == partition_spec(names, leaf.shape, {})


def test_flops_agree_with_the_compiler():
  """Our count of one forward pass against XLA's own, on an unrolled network (a scanned body would be counted once)."""
  config = dataclasses.replace(SMALL, width=128, heads=4, kv_heads=2, mlp_width=512, vocab_size=512, input_size=513)
  network = Network.create(config)
  params = network.init(jax.random.key(0))
  ids = jnp.zeros((2, 64), jnp.int32)
  run = jax.jit(lambda params, ids: network.apply(params, Inputs(ids), T[:2], Layout(), None).logits)
  counted = run.lower(params, ids).compile().cost_analysis()["flops"]
  assert flops_per_token(config, 64) * ids.size == pytest.approx(counted, rel=0.05)

"""The transformer: what it may see, what must not matter, and what every option does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_text.kernels import layout as layouts
from diffusion_text.model.anchor import Anchor
from diffusion_text.model.flops import flops_per_token
from diffusion_text.model.partition import TABLE, partition_spec
from diffusion_text.model.transformer import Network, TransformerConfig
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
  time_conditioning="none",
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
  "adaln": dict(time_conditioning="adaln"),
  "layerwise": dict(time_conditioning="layerwise"),
  "two stages": dict(anchor_layers=1),
  "experts": dict(experts=4, experts_per_token=2, expert_width=32, shared_width=16),
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
  return jax.tree.unflatten(
    tree, [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
  )


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
    for change in (
      dict(scan_layers=True),
      dict(remat="full"),
      dict(remat="dots", scan_layers=True),
    ):
      np.testing.assert_allclose(
        logits_of(dataclasses.replace(config, **change)), unrolled, atol=tolerance
      )

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_soft_tokens_of_one_token_are_that_token(dtype):
  """All weight on one of three tokens, whatever the others are: bitwise the hard token."""
  config = dataclasses.replace(SMALL, dtype=dtype)
  network = Network.create(config)
  ids = jnp.stack([(IDS + 3) % 12, IDS, (IDS + 5) % 12], axis=-1)
  weights = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), ids.shape)
  soft = network.apply(
    noisy_params(network), Inputs(ids, weights=weights), T, BIDIRECTIONAL, None
  ).logits
  np.testing.assert_array_equal(soft, logits_of(config))


def test_soft_tokens_over_the_whole_vocabulary_are_the_dense_product():
  """Softmax weights over all 12 ids equal the product with the table, here through a table that holds those products as its rows."""
  network = Network.create(dataclasses.replace(SMALL, input_size=30))
  params = noisy_params(network)
  weights = jax.nn.softmax(3 * jax.random.normal(jax.random.key(2), (3, 10, 30)))
  ids = jnp.broadcast_to(jnp.arange(30), weights.shape)
  soft = lambda params: (
    network.apply(params, Inputs(ids, weights=weights), T, BIDIRECTIONAL, None).logits
  )
  rows = params | {"embedding": weights.reshape(30, 30) @ params["embedding"]}
  hard = network.apply(rows, Inputs(jnp.arange(30).reshape(3, 10)), T, BIDIRECTIONAL, None).logits
  np.testing.assert_allclose(soft(params), hard, atol=1e-5)
  gradient = jax.grad(lambda params: jnp.sum(soft(params) ** 2))(params)["embedding"]
  assert (jnp.abs(gradient).max(axis=1) > 1e-6).all(), "an id with weight gets no gradient"


@pytest.mark.parametrize(
  "inputs",
  [Inputs(IDS[..., None]), Inputs(IDS, weights=jnp.ones((3, 10, 1)))],
  ids=["no weights", "hard"],
)
def test_ids_and_weights_that_do_not_fit_are_refused(inputs):
  network = Network.create(SMALL)
  with pytest.raises(ValueError, match=r"do not fit; give ids \[B, L\]"):
    network.apply(noisy_params(network), inputs, T, BIDIRECTIONAL, None)


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
  at = lambda shift: (
    network.apply(params, Inputs(IDS, jnp.arange(10)[None] + shift), T, Layout(), None).logits
  )
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
    (dict(time_conditioning="film"), "film"),
    (dict(anchor_layers=2), "anchor_layers=2 must be at least 0 and below model.layers=2"),
    (dict(anchor_layers=-1), "anchor_layers=-1"),
  ],
)
def test_bad_sizes_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
  "size,time",
  [(size, "adaln") for size in base.SIZES] + [("tiny", "layerwise"), ("tiny", "prefix")],
)
def test_partition_table_places_every_matrix(size, time):
  """Every matrix of every size is named by the table, and splits over a tensor × fsdp mesh where it divides."""
  model = {
    key: value for key, value in base.config(size).model.to_dict().items() if value is not None
  }
  model |= {"time_conditioning": time, "anchor_layers": 1, "scan_layers": True}
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


@pytest.mark.parametrize("anchor_layers", [0, 1])
def test_flops_agree_with_the_compiler(anchor_layers, monkeypatch):
  """Our count of one forward pass against XLA's own, on an unrolled network (a scanned body would be counted once)."""
  monkeypatch.setattr(
    Anchor, "read", Anchor._expected
  )  # all positions at once, for the same reason
  config = dataclasses.replace(
    SMALL,
    anchor_layers=anchor_layers,
    width=128,
    heads=4,
    kv_heads=2,
    mlp_width=512,
    vocab_size=512,
    input_size=513,
  )
  network = Network.create(config)
  params = network.init(jax.random.key(0))
  ids = jnp.zeros((2, 64), jnp.int32)
  run = jax.jit(
    lambda params, ids: network.apply(params, Inputs(ids), T[:2], Layout(), None).logits
  )
  counted = run.lower(params, ids).compile().cost_analysis()["flops"]
  assert flops_per_token(config, 64) * ids.size == pytest.approx(counted, rel=0.05)

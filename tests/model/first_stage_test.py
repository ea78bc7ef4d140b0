"""The two-stage network: its first stage, what the second reads of it, chunks, and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_text.core.mesh_axes import AXES, ROWS
from diffusion_text.model.first_stage import FirstStage, expected_embedding
from diffusion_text.model.partition import partition_spec
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, InputSizes

ONE = small_transformer()
TWO = small_transformer(layers=3, first_stage_layers=2)
SHORT = small_transformer(layers=2, first_stage_layers=1)  # for what takes long to compile
IDS = np.random.default_rng(5).integers(0, 12, (3, 10)).astype(np.int32)
KEY = jax.random.key(3)


@functools.partial(jax.jit, static_argnums=0)
def predict(network, params, ids=IDS, key=None):
  prediction = network.apply(params, rows_of(Inputs(ids)), key=key)
  return prediction.logits, [stage.logits for stage in prediction.stages]


def first(params, count):
  """The parameters of the first `count` layers as a network of their own, which answers through
  the norm and the head of the first stage."""
  blocks = jax.tree.map(lambda leaf: leaf[:count], params["blocks"])
  own = params["anchor"]
  same = {"embedding": params["embedding"], "blocks": blocks}
  return same | {"final_norm": own["norm"], "head": own["head"]}


def at_once(self, answer):
  """What `FirstStage.read` gives, for all positions together."""
  return expected_embedding((answer.head, self.embedding[...]), answer.features)


def test_the_first_stage_is_the_answer_of_the_first_layers():
  """With dropout too: layers keep their numbers, so its draws are those of its layers alone."""
  params = noisy_parameters(TWO)
  for rate, key in ((0.0, None), (0.5, KEY)):
    alone = predict(ONE.like(dropout=rate), first(params, 2), key=key)
    stage = predict(TWO.like(dropout=rate), params, key=key)[1][0]
    assert not alone[1]
    np.testing.assert_allclose(stage, alone[0], atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_the_others_read_its_expected_embedding(scan):
  """First layers that add nothing: then the last layer reads embedding + softmax(logits of the
  first stage) · table, written out here."""
  params = noisy_parameters(TWO, 0.3)
  for branch, out in (("attention", "out"), ("mlp", "down")):
    params["blocks"][branch][out]["kernel"][:2] = 0.0
  logits, (stage,) = predict(TWO.like(scan_layers=scan), params)
  shares = np.exp(stage - np.max(stage, axis=-1, keepdims=True))
  shares = shares / shares.sum(-1, keepdims=True)
  stream = params["embedding"][IDS] + shares @ params["anchor"]["embedding"]
  blocks = jax.tree.map(lambda leaf: leaf[2:], params["blocks"])
  last = {"embedding": stream.reshape(30, 32), "blocks": blocks}
  last |= {"final_norm": params["final_norm"], "head": params["head"]}
  one = small_transformer(layers=1, input_sizes=InputSizes(30))
  ids = np.arange(30, dtype=np.int32).reshape(3, 10)
  np.testing.assert_allclose(logits, predict(one, last, ids)[0], atol=3e-4)


def test_chunks_do_not_matter_and_gradients_reach_every_parameter(monkeypatch):
  """Values and gradients with any chunk are those with all positions at once, and the final answer
  alone teaches all of the first stage, its head and table included."""
  params = noisy_parameters(SHORT)

  def run(params):
    def loss(params):
      return jnp.sum(SHORT.apply(params, rows_of(Inputs(IDS))).logits ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)

  read = FirstStage.read
  monkeypatch.setattr(FirstStage, "read", at_once)
  expected = run(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(expected[1]):
    assert float(np.abs(leaf).max()) > 0, jax.tree_util.keystr(path)
  monkeypatch.setattr(FirstStage, "read", functools.partialmethod(read, chunk=7))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max()),
    run(params),
    expected,
  )


def test_sharded_rows_give_the_same():
  """Over a mesh that splits rows and vocabulary, the same values and gradients as on one device."""
  network = SHORT.like(output_size=12)
  params = noisy_parameters(network)
  ids = np.tile(IDS[:2], (4, 1))

  def loss(params, ids):
    return jnp.sum(network.apply(params, rows_of(Inputs(ids))).logits[:, :9] ** 2)

  alone = jax.jit(jax.value_and_grad(loss))(params, ids)
  mesh = jax.make_mesh((1, 4, 2, 1, 1), AXES, axis_types=(AxisType.Auto,) * 5)

  def place(path, leaf):
    names = [part.key for part in path]
    return NamedSharding(mesh, partition_spec(names, leaf.shape, dict(mesh.shape)))

  with jax.set_mesh(mesh):
    sharded = jax.device_put(params, jax.tree_util.tree_map_with_path(place, params))
    rows = jax.device_put(ids, NamedSharding(mesh, PartitionSpec(ROWS)))
    split = jax.jit(jax.value_and_grad(loss))(sharded, rows)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()),
    split,
    alone,
  )


def test_memory_is_that_of_a_chunk(monkeypatch):
  """Temporaries of the compiled gradient at V = 8192: a part of [B, L, V], where all logits at once
  take more than that."""
  network = SHORT.like(output_size=8192)
  abstract = jax.eval_shape(network.init, jax.random.key(0))
  ids = jax.ShapeDtypeStruct((64, 32), jnp.int32)

  def temporaries(read):
    monkeypatch.setattr(FirstStage, "read", read)

    def loss(params, ids):
      return jnp.sum(network.apply(params, rows_of(Inputs(ids))).features ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(abstract, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  all_logits = 64 * 32 * 8192 * 4
  chunked = temporaries(functools.partialmethod(FirstStage.read, chunk=64))
  whole = temporaries(at_once)
  print(f"{chunked / 2**20:.1f} MiB in chunks of 64 of 2048 positions, {whole / 2**20:.1f} at once")
  assert chunked < 0.5 * all_logits and whole > 1.5 * all_logits

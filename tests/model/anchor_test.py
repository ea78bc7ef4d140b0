"""The two-stage network: its first stage, what the second reads of it, chunks, and memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_text.model.anchor import Anchor
from diffusion_text.model.partition import ROWS, partition_spec
from diffusion_text.model.transformer import Network
from diffusion_text.train.sharding import make_mesh, path_names
from diffusion_text.types import Inputs, Layout
from tests.model.transformer_test import IDS, SMALL, T, noisy_params

TWO = dataclasses.replace(SMALL, layers=3, anchor_layers=2)


def predict(config, params, ids=IDS):
  return Network.create(config).apply(params, Inputs(ids), T, Layout(), None)


def first(params, count):
  """The parameters of the first `count` layers as a network of their own, answering through the anchor's norm and head."""
  blocks = jax.tree.map(lambda leaf: leaf[:count], params["blocks"])
  return {
    "embedding": params["embedding"],
    "blocks": blocks,
    "final_norm": params["anchor"]["norm"],
    "head": params["anchor"]["head"],
  }


def test_one_stage_has_no_anchor():
  assert predict(SMALL, noisy_params(Network.create(SMALL))).anchor is None


def test_the_anchor_is_the_answer_of_the_first_layers():
  params = noisy_params(Network.create(TWO))
  alone = predict(dataclasses.replace(SMALL, layers=2), first(params, 2))
  np.testing.assert_allclose(predict(TWO, params).anchor.logits, alone.logits, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_the_others_read_its_expected_embedding(scan):
  """First layers that add nothing: then the last layer reads embedding + softmax(anchor logits) · table, written out here."""
  config = dataclasses.replace(TWO, scan_layers=scan)
  params = noisy_params(Network.create(config), 0.3)
  for branch, out in (("attention", "out"), ("mlp", "down")):
    kernel = params["blocks"][branch][out]["kernel"]
    params["blocks"][branch][out]["kernel"] = kernel.at[:2].set(0.0)
  prediction = predict(config, params)
  stream = (
    params["embedding"][IDS]
    + jax.nn.softmax(prediction.anchor.logits) @ params["anchor"]["embedding"]
  )
  last = {
    "embedding": stream.reshape(30, 32),
    "blocks": jax.tree.map(lambda leaf: leaf[2:], params["blocks"]),
  }
  last |= {"final_norm": params["final_norm"], "head": params["head"]}
  one = dataclasses.replace(SMALL, layers=1, input_size=30)
  np.testing.assert_allclose(
    prediction.logits, predict(one, last, jnp.arange(30).reshape(3, 10)).logits, atol=1e-4
  )


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_chunks_do_not_matter(chunk, monkeypatch):
  """Values and gradients with any chunk are those with all positions at once."""
  params = noisy_params(Network.create(TWO))
  run = lambda: jax.jit(
    jax.value_and_grad(lambda params: jnp.sum(predict(TWO, params).logits ** 2))
  )(params)
  read = Anchor.read
  monkeypatch.setattr(Anchor, "read", Anchor._expected)
  at_once = run()
  monkeypatch.setattr(Anchor, "read", lambda self, features: read(self, features, chunk))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(), at_once)


def test_gradients_reach_every_parameter():
  """The final answer alone teaches all of the first stage, its head and table included."""
  loss = lambda params: jnp.sum(predict(TWO, params).logits ** 2)
  gradient = jax.jit(jax.grad(loss))(noisy_params(Network.create(TWO)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


def test_dropout_draws_are_those_of_one_stage():
  """Layers keep their numbers, so the anchor's answer under dropout is that of its layers alone."""
  config = dataclasses.replace(TWO, dropout=0.5)
  params, key = noisy_params(Network.create(config)), jax.random.key(3)
  run = lambda config, params: Network.create(config).apply(params, Inputs(IDS), T, Layout(), key)
  alone = run(dataclasses.replace(SMALL, layers=2, dropout=0.5), first(params, 2))
  np.testing.assert_allclose(run(config, params).anchor.logits, alone.logits, atol=1e-5)


def test_sharded_rows_give_the_same():
  """Over a mesh that splits rows and vocabulary, the same values and gradients as on one device."""
  config = dataclasses.replace(TWO, vocab_size=12)
  params = noisy_params(Network.create(config))
  ids = jnp.tile(IDS[:2], (4, 1))
  loss = jax.value_and_grad(
    lambda params, ids: jnp.sum(predict(config, params, ids).logits[:, :9] ** 2)
  )
  alone = jax.jit(loss)(params, ids)
  mesh = make_mesh(fsdp=4, tensor=2)
  place = lambda path, leaf: NamedSharding(
    mesh, partition_spec(path_names(path), leaf.shape, dict(mesh.shape))
  )
  with jax.set_mesh(mesh):
    sharded = jax.device_put(params, jax.tree_util.tree_map_with_path(place, params))
    rows = jax.device_put(jnp.asarray(ids), NamedSharding(mesh, PartitionSpec(ROWS)))
    compiled = jax.jit(loss).lower(sharded, rows).compile()
    split = compiled(sharded, rows)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), split, alone)


def test_memory_is_that_of_a_chunk():
  """Temporaries of the compiled gradient at V = 8192: a part of [B, L, V], where all logits at once take more than it."""
  config = dataclasses.replace(TWO, vocab_size=8192)
  abstract = jax.eval_shape(Network.create(config).init, jax.random.key(0))
  ids = jax.ShapeDtypeStruct((64, 32), jnp.int32)

  def temporaries(read):
    loss = lambda params, ids: jnp.sum(predict(config, params, ids).features ** 2)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(Anchor, "read", read)
      return (
        jax.jit(jax.grad(loss)).lower(abstract, ids).compile().memory_analysis().temp_size_in_bytes
      )

  read, all_logits = Anchor.read, 64 * 32 * 8192 * 4
  chunked, at_once = (
    temporaries(lambda self, features: read(self, features, 64)),
    temporaries(Anchor._expected),
  )
  print(
    f"{chunked / 2**20:.1f} MiB in chunks of 64 of 2048 positions, {at_once / 2**20:.1f} MiB at once"
  )
  assert chunked < 0.5 * all_logits and at_once > 1.5 * all_logits

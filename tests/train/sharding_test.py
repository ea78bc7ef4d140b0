"""Many devices compute the same as one, hold the parts of the table, and move no rows."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffusion_text import train as tr
from diffusion_text.train import sharding
from diffusion_text.types import Batch

from . import toy

MESHES = {
  "fsdp": {"replica": 1, "fsdp": 8},
  "replica": {"replica": 8, "fsdp": 1},
  "both": {"replica": 2, "fsdp": 4},
  "tensor": {"replica": 1, "fsdp": 4, "tensor": 2},
}


@functools.cache
def _run(name, accumulation):
  mesh = None if name == "one device" else tr.make_mesh(**MESHES[name])
  fresh, _, step, mesh = toy.build(accumulation=accumulation, mesh=mesh)
  state, data, losses = fresh(), toy.Rows(), []
  for _ in range(3):
    state, metrics = step(state, tr.global_batch(next(data), mesh))
    losses.append(float(metrics["loss"]))
  return state, losses


@pytest.mark.parametrize(
  ("name", "accumulation"), [("fsdp", 1), ("replica", 2), ("both", 2), ("tensor", 1)]
)
def test_every_mesh_trains_alike(name, accumulation):
  alone, alone_losses = _run("one device", accumulation)
  state, losses = _run(name, accumulation)
  np.testing.assert_allclose(losses, alone_losses, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(state)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_moments_and_average_are_placed_like_their_parameter():
  state, _ = _run("tensor", 1)
  kernel = state.params["layers"]["mlp"]["kernel"].sharding
  assert kernel.spec == P(None, "fsdp", "tensor")
  moments = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if sharding.path_names(path)[-3:] == ("layers", "mlp", "kernel")
  ]
  assert len(moments) == 2
  for leaf in [*moments, state.ema["layers"]["mlp"]["kernel"]]:
    assert leaf.sharding.is_equivalent_to(kernel, 3)
    assert leaf.addressable_shards[0].data.size == leaf.size // 8
  counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
  assert counts and all(leaf.sharding.is_fully_replicated for leaf in [*counts, state.step])


def test_a_moment_is_not_mistaken_for_a_parameter_with_the_same_last_name():
  """Two leaves end in "kernel" with one shape; the longest path decides."""
  params = {"a": {"kernel": jnp.zeros((8, 8))}, "b": {"a": {"kernel": jnp.zeros((8, 8))}}}
  abstract = jax.eval_shape(lambda: tr.create_state(lambda: (params, {}), toy.optimizer()))
  mesh = tr.make_mesh()
  placed = tr.state_shardings(
    abstract, lambda path, _: P("fsdp") if path[0] == "b" else P(None, "fsdp"), mesh
  )
  moments = placed.opt_state[1].mu
  assert moments["a"]["kernel"].spec == P(None, "fsdp") and moments["b"]["a"]["kernel"].spec == P(
    "fsdp"
  )


def test_accumulation_moves_no_rows():
  """A sharded batch is split into microbatches without communication.

  Contiguous microbatches would communicate.
  """
  mesh = tr.make_mesh()
  batch = tr.global_batch(Batch(ids=np.zeros((32, 4), np.int32)), mesh)
  moves = re.compile("all-to-all|collective-permute|all-gather|all-reduce")

  def text(fn):
    return jax.jit(fn).lower(batch).compile().as_text()

  assert not moves.search(text(lambda b: tr.step.split_rows(b, 4, mesh).ids + 1))
  spread = jax.NamedSharding(mesh, P(None, sharding.ROWS))
  assert moves.search(
    text(lambda b: jax.lax.with_sharding_constraint(b.ids.reshape(4, 8, 4), spread) + 1)
  )


def test_mesh_fills_and_complains():
  assert dict(tr.make_mesh(tensor=2).shape) == {
    "replica": 1,
    "fsdp": 4,
    "tensor": 2,
    "sequence": 1,
    "expert": 1,
  }
  assert dict(tr.make_mesh(replica=-1, fsdp=2).shape)["replica"] == 4
  for sizes, says in [
    ({"tensor": 3}, "needs a multiple of 3 devices but there are 8; make the fixed axes divide 8"),
    (
      {"fsdp": 4},
      "needs a multiple of 4 devices but there are 8; set one axis, usually fsdp, to -1",
    ),
    ({"tensor": -1}, "at most one of them -1"),
    ({"tensor": 0}, "tensor=0"),
  ]:
    with pytest.raises(ValueError, match=says):
      tr.make_mesh(**sizes)


def test_errors_name_the_parameter_and_the_batch():
  mesh = tr.make_mesh()
  abstract = jax.eval_shape(lambda: tr.create_state(toy.init, toy.optimizer()))
  with pytest.raises(
    ValueError,
    match=r"head/bias of shape \(11,\): 11 does not divide over fsdp = 8 devices; use a mesh",
  ):
    tr.state_shardings(abstract, lambda path, shape: P("fsdp") if path[-1] == "bias" else P(), mesh)
  with pytest.raises(ValueError, match=r"head/bias has shape \(11,\) but its spec .* names 2 axes"):
    tr.state_shardings(
      abstract, lambda path, shape: P(None, "fsdp") if path[-1] == "bias" else P(), mesh
    )
  with pytest.raises(ValueError, match=r"12 rows does not divide over 8 devices .*; use 16"):
    tr.global_batch(Batch(ids=np.zeros((12, 4), np.int32)), mesh)


def test_rows_are_shared_out_by_process():
  def share(owners, process):
    return sharding.places_of_process(np.array(owners), process, 8).tolist()

  own = [[0], [0], [1], [1]]  # [row shards, devices of each]
  assert share(own, 0) == [0, 1, 2, 3] and share(own, 1) == [4, 5, 6, 7]
  # Tensor parallel over two processes, which read the same rows.
  across = [[0, 1], [0, 1], [2, 3], [2, 3]]
  first, second = [0, 1, 2, 3], [4, 5, 6, 7]
  assert [share(across, p) for p in range(4)] == [first, first, second, second]
  assert share([[0], [1], [1], [0]], 0) == [0, 1, 6, 7]  # a mesh that follows the wires of a TPU
  assert share([[0, 1], [1, 1]], 0) == [0, 1, 2, 3] and share([[0, 1], [1, 1]], 1) == list(range(8))
  assert tr.row_places(tr.make_mesh(), 16).tolist() == list(range(16))


def test_global_batch_keeps_rows_in_order_and_none():
  mesh = tr.make_mesh(replica=2)
  ids = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
  batch = tr.global_batch(Batch(ids=ids), mesh)
  np.testing.assert_array_equal(batch.ids, ids)
  assert batch.weights is None and batch.ids.sharding.spec == P(sharding.ROWS)
  with pytest.raises(ValueError, match="has read 16 rows, but holds 32 of 32"):
    tr.global_batch(Batch(ids=ids), mesh, 32)


def test_slices_and_nodes_share_rows_only():
  """An axis of rows is split between two slices, and each slice keeps its devices together."""

  class Device:  # a GPU of a node, whose slice_index is the number of the node
    platform, device_kind = "gpu", "stand-in"

    def __init__(self, number):
      self.id, self.slice_index, self.process_index = number, number // 4, number // 4

  devices = [Device(number) for number in range(8)]
  slices = np.vectorize(lambda device: device.slice_index)
  fsdp = slices(sharding.make_mesh(fsdp=4, tensor=2, devices=devices).devices).reshape(4, 2)
  assert (fsdp == [[0, 0], [0, 0], [1, 1], [1, 1]]).all()
  replica = slices(sharding.make_mesh(replica=2, fsdp=-1, devices=devices).devices).reshape(2, 4)
  assert (replica == [[0] * 4, [1] * 4]).all()
  with pytest.raises(ValueError, match=r"over 2 slices.*multiple of 2"):
    sharding.make_mesh(fsdp=1, tensor=8, devices=devices)

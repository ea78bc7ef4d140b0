"""The kernels compile for TPUs and lower for CUDA on this machine, which has neither; tile sizes
are checked before that.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels import pallas_gpu, pallas_tpu
from diffusion_text.kernels.attention import attention
from diffusion_text.kernels.block_sizes import BlockSizes, compile_for, default_block_sizes

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "7x": "tpu7x:2x2x1"}


@functools.cache
def chips(name):
  """Four devices of a described TPU, or a skip with the reason."""
  pytest.importorskip("libtpu", reason="pip install libtpu to compile for TPU without one")
  os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
  return topologies.get_topology_desc(CHIPS[name], "tpu").devices[:4]


def value_and_grads(fn, L):
  """(q, k, v) -> loss and gradients, through the noisy-clean layout of L / 2 tokens in blocks of
  32, and both outputs.
  """
  layout = layouts.noisy_clean(L // 2, 32)

  def loss(q, k, v):
    out, lse = fn(q, k, v, layout, layout)
    return (out.astype(jnp.float32) ** 2).sum() + lse.sum()

  return jax.value_and_grad(loss, (0, 1, 2))


@pytest.mark.parametrize("chip,L", [*((chip, 1024) for chip in CHIPS), (next(iter(CHIPS)), 8192)])
def test_compiles_for_tpu_inside_shard_map(chip, L):
  devices = chips(chip)
  mesh = Mesh(np.array(devices), ("data",))

  def shape(heads):
    sharding = NamedSharding(mesh, P("data"))
    return jax.ShapeDtypeStruct((4, L, heads, 128), jnp.bfloat16, sharding=sharding)

  def step(q, k, v):
    value, grads = value_and_grads(
      functools.partial(attention, implementation="pallas_tpu", return_lse=True), L
    )(q, k, v)
    return jax.lax.psum(value, "data"), grads

  step = jax.shard_map(
    step, mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data")), check_vma=False
  )
  with compile_for("tpu", devices[0].device_kind):
    compiled = jax.jit(step).lower(shape(8), shape(4), shape(4)).compile()
  memory = compiled.memory_analysis()
  arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  print(
    f"{chip} L={L}, one row per chip, 8 heads over 4, K=128 bf16: arguments {arguments},"
    f" temporary {temporary} bytes"
  )
  assert compiled.as_text().count("tpu_custom_call") == 3  # forward, dq, dk and dv
  # A few copies of q: linear in L, and far below 8 * L * L.
  assert temporary < 4 * L * 8 * 128 * 2 * 2


def test_too_large_a_tile_is_our_error_not_the_compilers():
  x = jnp.zeros((1, 2048, 1, 128), jnp.float32)
  call = functools.partial(
    pallas_tpu.attention, x, x, x, layouts.bidirectional(), layouts.bidirectional()
  )
  with compile_for("tpu", "TPU v5 lite"):
    with pytest.raises(
      ValueError,
      match=r"2048 queries and 2048 keys, K=128, need \d+ bytes of VMEM; the limit"
      r" is 67108864.*1024",
    ):
      call(block_sizes=BlockSizes(2048, 2048, 128, 128))
    with pytest.raises(ValueError, match="tile k=64 must be a multiple of 128 on TPU; use 128"):
      call(block_sizes=BlockSizes(128, 64, 128, 128))


@pytest.mark.parametrize("forward,backward", [(1024, 128), (128, 1024), (128, 128)])
def test_a_kernel_asks_for_what_its_tiles_need(forward, backward):
  """No more, as the compiler keeps arrays in the rest, and no less than it gives by itself."""
  x = jax.ShapeDtypeStruct((1, 1024, 1, 128), jnp.bfloat16)
  sizes = BlockSizes(forward, forward, backward, backward)
  fn = functools.partial(pallas_tpu.attention, block_sizes=sizes)
  every = layouts.bidirectional()
  with compile_for("tpu", "TPU v5 lite"):
    traced = str(jax.make_jaxpr(lambda q, k, v: fn(q, k, v, every, every)[0])(x, x, x))
  need = pallas_tpu._vmem_bytes(*[max(forward, backward)] * 2, 128, 2)
  assert f"vmem_limit_bytes={max(need, pallas_tpu.SMALLEST_VMEM)}" in traced
  assert (need > pallas_tpu.SMALLEST_VMEM) == (max(forward, backward) == 1024)


def test_tiles_just_under_the_limit_fit_the_chip(monkeypatch):
  """The estimate behind our error is not below the memory that the compiler needs."""
  device, tiles, limit = chips("v5e")[0], (512, 1024), pallas_tpu.SMALLEST_VMEM
  # The compiler takes minutes for tiles of the real limit.
  monkeypatch.setitem(pallas_tpu.VMEM, "tpu v5 lite", limit)
  assert 0.6 * limit < pallas_tpu._vmem_bytes(*tiles, 128, 2) <= limit
  x = jax.ShapeDtypeStruct(
    (1, 2048, 1, 128), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device)
  )
  fn = functools.partial(pallas_tpu.attention, block_sizes=BlockSizes(*tiles, *tiles), soft_cap=5.0)
  with compile_for("tpu", device.device_kind):
    jax.jit(value_and_grads(fn, 2048)).lower(x, x, x).compile()


@pytest.mark.parametrize("dtype,width", [("bfloat16", 128), ("float32", 64)])
def test_lowers_for_cuda(dtype, width):
  def shape(heads):
    return jax.ShapeDtypeStruct((2, 1024, heads, width), dtype)

  step = value_and_grads(
    functools.partial(attention, implementation="pallas_gpu", return_lse=True, soft_cap=5.0), 1024
  )
  # From 0.12 on, Pallas also asks jax for the device that it lowers for.
  h200 = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
  here = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=h200)
  with compile_for("gpu", "NVIDIA H200"), jax.sharding.use_abstract_mesh(here):
    text = (
      jax.jit(step)
      .trace(shape(4), shape(2), shape(2))
      .lower(lowering_platforms=("cuda",))
      .as_text()
    )
  assert text.count("custom_call @__gpu$xla.gpu.triton") == 3


def test_gpu_refuses_what_triton_cannot_hold():
  x = jnp.zeros((1, 64, 1, 320))
  with compile_for("gpu"):
    with pytest.raises(NotImplementedError, match="K=320 is over 256"):
      pallas_gpu.attention(x, x, x, layouts.bidirectional(), layouts.bidirectional())
    with pytest.raises(
      ValueError, match="q=48 must be a power of two of at least 16 on GPU; use 32"
    ):
      x = x[..., :64]
      pallas_gpu.attention(
        x,
        x,
        x,
        layouts.bidirectional(),
        layouts.bidirectional(),
        block_sizes=BlockSizes(48, 64, 64, 64),
      )


def test_block_sizes():
  with pytest.raises(ValueError, match="k=100 must be a positive multiple of 8; use 128"):
    BlockSizes(128, 100)
  with compile_for("tpu", "TPU v6 lite"):
    assert default_block_sizes(8192, 300) == BlockSizes(512, 512, 512, 512)
    assert default_block_sizes(4, 200) == BlockSizes(128, 256, 128, 256)
  with compile_for("tpu", "TPU v99"):
    assert default_block_sizes(8192, 8192) == BlockSizes(128, 128, 128, 128)
  with compile_for("gpu", "Radeon"):
    assert default_block_sizes(8, 8192) == BlockSizes(16, 64, 16, 32)

"""The whole train step, Pallas kernels inside, compiled by the real TPU compiler with no TPU present."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from configs import base
from diffusion_text.build import build
from diffusion_text.kernels.block_sizes import compile_for
from diffusion_text.train.sharding import batch_sharding
from diffusion_text.types import Batch
from tests.build_test import AnyTokenizer

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)


def topology(name):
  """Devices of a TPU topology, described, not present."""
  from jax.experimental import topologies

  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  return topologies.get_topology_desc(name, "tpu").devices


@pytest.mark.parametrize("timing", [{}, {"name": "per_block", "block_size": 32}], ids=["masked", "blocks"])
def test_train_step_compiles_for_v5e(timing):
  """`small` (12 x 768) at L = 1024, batch over fsdp × tensor on v5e 4x4: compiles, with the kernels in it, and fits in 16 GiB."""
  config = base.config("small")
  config.timing.update(timing)
  config.mesh.update({"fsdp": 8, "tensor": 2})
  config.update_from_flattened_dict(
    {"data.length": 1024, "train.batch_size": 64, "evaluate.batch_size": 64, "model.remat": "full"}
  )
  config.model.scan_layers = True
  experiment = build(config, tokenizer=AnyTokenizer(32_000), devices=topology("v5e:4x4"))
  batch = Batch(jax.ShapeDtypeStruct((64, 1024), jnp.int32, sharding=batch_sharding(experiment.mesh)))
  with jax.set_mesh(experiment.mesh), compile_for("tpu", "TPU v5 lite"):
    compiled = experiment.jitted_step(experiment.loss_fn(1.0)).lower(experiment.abstract_state(), batch).compile()
  memory = compiled.memory_analysis()
  gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
  print(f"{timing or 'masked'}: {gib:.2f} GiB per chip, {memory.temp_size_in_bytes / 2**30:.2f} of them temporaries")
  assert "tpu_custom_call" in compiled.as_text(), "the Pallas kernels are not in the compiled step"
  assert gib < 16

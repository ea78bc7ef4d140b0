"""The whole train step, Pallas kernels inside, compiled by the real TPU compiler with no TPU
present, and what is read off it.
"""

import contextlib
import importlib.util

import jax
import pytest

from configs import base
from diffusion_text.compiler.hlo import Program
from diffusion_text.compiler.topology import (
  compile_step,
  report,
  roofline,
  topology_devices,
  verdict,
)
from diffusion_text.experiment.build import build
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.train.sharding import make_mesh

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed: pip install -e '.[tpu]'",
)

# (size, topology, V, what differs). The second is little but long: 2 · 8192 positions, noisy ‖
# clean, in blocks, over the sequence axis. Compiling does not get dearer with layers, which are
# scanned, or rows, but with the width of matrices, which only have to be split.
CASES = {
  "narrow": (
    *("small", "v5e:2x4", 4096),
    {
      **{"data.length": 512, "train.batch_size": 64, "model.remat": "full"},
      **{"model.width": 256, "model.mlp_width": 1024, "model.heads": 4, "model.kv_heads": 4},
    },
  ),
  "long": (
    *("micro", "v5e:2x4", 256),
    {
      **{
        "data.length": 8192,
        "train.batch_size": 4,
        "context.name": "blocks",
        "context.size": 32,
      },
      **{"model.width": 128, "model.dtype": "bfloat16", "model.remat": "full"},
      **{"mesh.fsdp": 2, "mesh.sequence": 2, "mesh.tensor": 2},
    },
  ),
}


def test_an_axis_of_the_mesh_may_be_part_of_an_axis_of_the_slice():
  """8 devices in a line are no axis of 4 × 4 chips, and no product of its axes."""
  mesh = make_mesh(replica=2, fsdp=8, devices=topology_devices("v5e:4x4"))
  assert mesh.shape["fsdp"] == 8 and len({device.id for device in mesh.devices.flat}) == 16
  whole = make_mesh(replica=4, fsdp=4, devices=topology_devices("v5e:4x4"))
  neighbours = [device.coords for device in whole.devices[0].flat]
  assert len({x for x, *_ in neighbours}) == 1 or len({y for _, y, *_ in neighbours}) == 1


@contextlib.contextmanager
def hasty(case):
  """The compiler takes half the time, and more memory, where memory is not what is asked."""
  before = jax.config.jax_optimization_level
  jax.config.update("jax_optimization_level", "O0" if case == "narrow" else before)
  try:
    yield
  finally:
    jax.config.update("jax_optimization_level", before)


@pytest.mark.parametrize("case", CASES)
def test_train_step_compiles_for_v5e(case):
  """Compiles with the kernels in it and fits; the FLOPs read off the program are those of the
  formula; memory is linear in the length.
  """
  size, topology, vocab_size, overrides = CASES[case]
  config = base.config(size)
  for name, value in overrides.items():
    section, option = name.split(".")
    config[section][option] = value
  config.evaluate.batch_size = config.train.batch_size
  experiment = build(
    config, tokenizer=AnyVocabulary(vocab_size), devices=topology_devices(topology)
  )
  with hasty(case):
    compiled = compile_step(experiment, topology)
  print(report(case, compiled))
  assert "tpu_custom_call" in compiled.text, "the Pallas kernels are not in the compiled step"
  assert verdict(compiled).startswith("fits: ") and verdict(compiled).endswith(" of 16 GiB")
  kinds = {c.kind for c in Program(compiled.text).collectives()}
  assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}
  if case == "narrow":
    # Full rematerialisation makes 4 forwards of 3, attention 5.5, and logits are counted for all
    # tokens, where the formula has half.
    line = roofline(compiled)
    assert 1.2 < line.compute / line.model_seconds < 2.2
  else:
    positions = 4 / 2 * 2 * 8192 / 2  # on one chip
    assert compiled.temporaries < positions * 128 * 2 * 10, (
      "memory that grows faster than the length"
    )

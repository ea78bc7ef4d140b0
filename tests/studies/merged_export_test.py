"""A run with a low rank, or with integers, in the files of other libraries: plain matrices."""

import runpy

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")
pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

from diffusion_text.core.trees import merge
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.experiment.checks import checkpoints
from diffusion_text.model import linear_maps
from diffusion_text.model.pretrained import read
from diffusion_text.studies.convert import convert
from diffusion_text.studies.export import export
from diffusion_text.studies.workdirs import save
from diffusion_text.train.initialize import newest_shapes, shapes_by_path
from tests.studies.convert_test import checkpoint, small, words  # noqa: F401  (fixtures)


def test_export_adds_the_change_to_the_matrix(checkpoint, tmp_path):  # noqa: F811
  """Weights converted, changed by low rank over integers, exported and read again: W + s A B, and
  everything else to the last bit."""
  source = checkpoint("llama")[0]
  workdir = str(tmp_path / "base")
  convert(str(source), workdir, small(tmp_path), keep_system=False, frozen=True)
  base = runs.load(workdir)
  changes = [("model.low_rank.rank", 2), ("model.quantized", {"bits": 8, "group": 0})]
  experiment = runs.load_experiment(workdir, changes)
  made = jax.tree.map(np.asarray, merge(*jax.jit(experiment.init)(jax.random.key(0))))
  random = np.random.default_rng(0)
  network = made["network"]
  floats = base.params["network"]
  for name in linear_maps.names_of(floats):
    group = linear_maps.get(network, name)
    b = np.float32(random.normal(size=group["low_rank"]["b"].shape))
    network = linear_maps.put(network, name, {**group, "low_rank": {**group["low_rank"], "b": b}})
  network = {
    **floats,
    "blocks": {**floats["blocks"], **{k: network["blocks"][k] for k in ("attention", "mlp")}},
  }
  record = (tmp_path / "base" / "pretrained.json").read_bytes()
  save(
    experiment, {**base.params, "network": network}, tmp_path / "run", {"pretrained.json": record}
  )
  export(str(tmp_path / "run"), str(tmp_path / "out"))
  again = read(str(tmp_path / "out"), noise_id=0).params
  bare, plain = linear_maps.plain(experiment.model.network, network)
  assert bare == base.experiment.model.network
  rows = base.experiment.model.process.input_sizes.ids
  again["embedding"] = again["embedding"][:rows]
  jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, plain))
  query = linear_maps.get(network, "blocks/attention/query")
  change = 8 * query["low_rank"]["a"] @ query["low_rank"]["b"]
  kernel = linear_maps.get(plain, "blocks/attention/query")["kernel"]
  codes = query["quantized"]["codes"].astype(np.float32) - query["quantized"]["zero"].astype(
    np.float32
  )
  np.testing.assert_allclose(kernel, codes * query["quantized"]["scale"] + change, atol=1e-5)
  assert np.abs(change).max() > 0.1


def test_converted_weights_begin_with_a_low_rank(checkpoint, tmp_path):  # noqa: F811
  """The config of a masked system over autoregressive weights: A and B alone move, the network is
  the weights' own, and the run can go on."""
  config = small(tmp_path)
  config.context.answer_shift = 1
  runs.override(config, [("model.low_rank.rank", 2)])
  workdir = str(tmp_path / "run")
  convert(str(checkpoint("llama")[0]), workdir, config, keep_system=True)
  loaded = runs.load(workdir)
  network, params = loaded.experiment.model.network, loaded.params["network"]
  plain = linear_maps.plain(network, params)[1]
  source = read(str(tmp_path / "llama"), noise_id=0).params
  jax.tree.map(np.testing.assert_array_equal, plain["blocks"], source["blocks"])
  shapes = newest_shapes(checkpoints(workdir))[1]
  names = {path.split("/")[-1] for path in shapes_by_path(shapes["params"]["network"])}
  assert names == {"a", "b"} and "kernel" in str(shapes_by_path(shapes["frozen"]))
  experiment = build(runpy.run_path(f"{workdir}/config.py")["get_config"]())
  assert "go on from step 0" in runs.prepare(experiment, workdir)[2]

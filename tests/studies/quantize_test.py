"""From a workdir of floats to one of integers: what is printed is what the other commands find."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mdlm
from diffusion_text.core.trees import merge
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained
from diffusion_text.model import linear_maps
from diffusion_text.model.quantized import methods
from diffusion_text.model.quantized.stored import kernel_of
from diffusion_text.studies import quantize as study
from diffusion_text.studies.export import export
from diffusion_text.studies.inputs_of_matrices import How, outliers, quantized
from diffusion_text.studies.workdirs import save

SETTINGS = study.Settings(rows=8, max_rows=8, num_draws=1, samples=2, split="validation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run with a low rank, whose matrices are not those of an untrained network."""
  folder = tmp_path_factory.mktemp("quantize")
  config = mdlm.get_config("micro")
  config.data.update({"length": 32, "cache_dir": str(folder / "cache")})
  config.train.update({"batch_size": 8, "ema_decay": 0.0})
  config.evaluate.batch_size, config.sampler.steps = 8, 4
  runs.override(config, [("model.low_rank.rank", 2)])
  experiment = build(config, devices=jax.devices()[:1])
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))

  def draw(path, leaf):
    size = 0.3 if path[-1].key in ("embedding", "b") else max(leaf.shape[-2:]) ** -0.5
    made = random.normal(size=leaf.shape).astype(np.float32)
    return 1 + 0 * made if path[-1].key == "scale" else size * made

  params, frozen = jax.tree_util.tree_map_with_path(draw, shapes)
  save(experiment, merge(params, frozen), folder / "run", {"pretrained.json": b"{}"})
  return folder


@pytest.fixture(scope="module")
def bench(folder):
  return study.Bench(str(folder / "run"), SETTINGS)


def test_the_workdir_of_integers_is_scored_and_sampled_as_printed(folder, bench, monkeypatch):
  """One bound by three ways: printed, scored from the saved workdir, and of the floats that codes
  stand for. The low rank has been merged before."""
  monkeypatch.setattr(study, "Bench", lambda *_: bench)
  output = folder / "integers"
  text = study.quantize(str(folder / "run"), str(output), How("gptq", 4, 32), SETTINGS)
  assert "gptq, 4 bits, groups of 32 | all times | 5.25 |" in text, text
  assert "random, 4 bits, groups of 32 | — |" in text and "float32 | — | 32.00" in text
  lines = json.loads((output / "quantized.json").read_text())["lines"]
  floats, integers, control = lines
  assert floats["more"] == 0 and floats["same"] == 1
  assert 0 < integers["more_error"] < 0.3 * integers["bound_error"], "of the difference of each row"
  assert abs(integers["more"]) < abs(control["more"])
  trained = runs.load(str(output))
  network = trained.params["network"]
  codes = linear_maps.get(network, "blocks/mlp/up")["quantized"]["codes"]
  assert codes.dtype == jnp.uint8 and codes.shape == (2, 32, 256)
  assert "low_rank" not in json.dumps(jax.tree.map(str, network))
  found = runs.score(
    trained.experiment, trained.params, split="validation", num_draws=1, max_rows=8
  )
  assert found.nats_per_token == pytest.approx(integers["bound"], abs=1e-5)
  assert found.standard_error == pytest.approx(integers["bound_error"], abs=1e-5)
  rows = runs.open_rows(trained.experiment.tokenizer, 2, 32)
  ids = np.asarray(runs.generate(trained, rows, num=2, seed=0)[1].ids)
  assert np.mean(ids == bench.reference.ids) == pytest.approx(integers["same"], abs=0.05)
  assert (output / "pretrained.json").read_bytes() == b"{}"
  monkeypatch.undo()
  with pytest.raises(ValueError, match="holds integers already"):
    study.Bench(str(output), SETTINGS)
  with pytest.raises(ValueError, match="holds a run already"):
    study.quantize(str(folder / "run"), str(output), How("nearest", 4, 32), SETTINGS)
  half = runs.load(str(output), dtype="bfloat16").params["network"]
  group = linear_maps.get(half, "blocks/mlp/up")["quantized"]
  assert group["codes"].dtype == jnp.uint8 and group["scale"].dtype == jnp.bfloat16


def test_tables_have_a_line_per_method(bench, monkeypatch, tmp_path):
  monkeypatch.setattr(study, "Bench", lambda *_: bench)
  monkeypatch.setattr(study, "TABLE", (("nearest", 3, 0), ("awq", 4, 32)))
  monkeypatch.setattr(study, "LEVELS", (0.5,))
  text = study.tables("", str(tmp_path), ["methods", "inputs"], SETTINGS)
  assert "nearest, 3 bits, one scale per output | — |" in text
  assert "awq, 4 bits, groups of 32 | all times |" in text and "| t = 0.5, by layer |" in text
  assert len(json.loads((tmp_path / "methods_inputs.json").read_text())["lines"]) == 3
  with pytest.raises(ValueError, match="--tables=method must be some of methods, calibration"):
    study.tables("", str(tmp_path), ["method"], SETTINGS)


def test_a_low_rank_becomes_a_workdir_of_plain_matrices(folder, bench):
  said = export(str(folder / "run"), str(folder / "plain"), "workdir")
  assert "as a workdir with plain matrices" in said
  merged = runs.load(str(folder / "plain"))
  assert merged.experiment.model == bench.experiment.model
  jax.tree.map(np.testing.assert_array_equal, merged.params, bench.params)


def test_a_layer_is_calibrated_behind_the_integers_before_it(bench):
  """GPTQ layer by layer; a mutant that observes the float network once gives other codes."""
  how, watcher = How("gptq", 3, 32), bench.watcher(None)
  made = quantized(bench.params, how, watcher)["network"]
  name, floats = "blocks/attention/query", bench.params["network"]
  kernel = linear_maps.get(floats, name)["kernel"]
  found = linear_maps.get(made, name)["quantized"]
  network = floats
  for each in watcher.names:
    arrays = jax.tree.map(lambda x: x[0], linear_maps.get(made, each)["quantized"])
    rounded = jnp.asarray(linear_maps.get(floats, each)["kernel"]).at[0]
    rounded = rounded.set(kernel_of(arrays, how.options))
    network = linear_maps.put(network, each, {"kernel": rounded})

  def codes(params):
    seen = watcher.statistics(params)[name]
    seen = {key: np.asarray(each[1]) for key, each in seen.items()}
    return methods.quantize_matrix(kernel[1], seen, how.options, "gptq")["codes"]

  np.testing.assert_array_equal(codes({**bench.params, "network": network}), found["codes"][1])
  assert (np.asarray(codes(bench.params)) != found["codes"][1]).any()


def test_inputs_are_watched_at_one_level_or_at_all(bench):
  """Noisier text has fewer kinds of inputs: at t = 1 every token of the first layer is the mask."""
  everything, noise = (bench.watcher(level).statistics(bench.params) for level in (None, 1.0))
  table, norm = bench.params["network"]["embedding"], 1e-6
  mask = np.asarray(table[-1]) / np.sqrt(np.mean(np.asarray(table[-1]) ** 2) + norm)
  first = {key: each[0] for key, each in noise["blocks/attention/query"].items()}
  assert first["count"] == 8 * 32
  np.testing.assert_allclose(first["peak"], np.abs(mask), rtol=1e-5)
  np.testing.assert_allclose(first["moment"], 256 * np.outer(mask, mask), rtol=1e-3, atol=1e-2)
  mixed = {key: each[0] for key, each in everything["blocks/attention/query"].items()}
  assert (mixed["peak"] >= first["peak"] - 1e-5).all()
  assert (
    np.linalg.matrix_rank(first["moment"], tol=1)
    == 1
    < np.linalg.matrix_rank(mixed["moment"], tol=1)
  )
  ratio = outliers(everything)["blocks/mlp/down"]
  assert ratio.shape == (2,) and (ratio >= 1).all()


def test_activations_of_eight_bits_are_scored_with_their_own_program(bench):
  how = How("smoothquant", 8, 64)
  made = bench.quantized(how, None)
  short = dataclasses.replace(SETTINGS, samples=0)
  got = study.scores(made, short)
  size = bench.sizes(made.params["network"])
  found = study.line("", "", size, got, bench.reference)
  assert found.same is None and "—" in found.cells()
  assert 0 < abs(found.more) < 0.02 and 8.5 < found.bits < 9.5, found


def test_right_answers_are_compared_prompt_by_prompt(folder, bench, monkeypatch):
  """Of four prompts the float network answers three rightly, and the integers one of them less."""
  reasons = iter([["", "", "", "wrong"], ["", "", "wrong", "wrong"]])
  asked = []

  def answered(trained, **how):
    asked.append(how)
    spread = {"entropy": study.tasks.Score(2.0, None)}
    return study.tasks.Answered((), [], next(reasons), spread), None

  monkeypatch.setattr(study.tasks, "answered", answered)
  short = dataclasses.replace(SETTINGS, samples=0, prompts=4)
  trained = Trained(bench.experiment, bench.params, 0)
  floats, integers = study.scores(trained, short), study.scores(trained, short)
  assert asked[0] == {"split": "validation", "num": 4, "seed": 0}
  found = study.line("a", "b", (4, 1), integers, floats)
  assert (found.right, found.right_more) == (0.5, -0.25)
  assert found.right_more_error == pytest.approx(0.25), "of the difference, not of the two shares"
  assert found.cells()[-3:] == ("0.500 ± 0.289", "-0.250 ± 0.250", "2.000")
  header = study._shown([found]).splitlines()[0]
  assert header.endswith("| right answers | more than float | entropy of answers |")
  with pytest.raises(ValueError, match="which has neither tasks nor pairs; train with"):
    study.Bench(str(folder / "run"), short)

"""The variance of the bound's estimators: the formula by known numbers, and the table of a trained network."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.studies import bound_variance as scoring
from diffusion_text.studies.variance import NoiseVariance, measure, noise_variance, table
from diffusion_text.timing import Counted, Hyperschedule, Independent, PerBlock, Shared
from diffusion_text.types import Batch
from tests.conftest import environment


def test_known_numbers():
  """Two batches of two rows, two draws; the sums of the first cancel, those of the second add up."""
  nats = [np.array([[1.0, 4.0], [3.0, 2.0]]), np.array([[0.0, 1.0], [2.0, 3.0]])]
  weights = [np.array([2.0, 3.0]), np.array([1.0, 4.0])]
  result = noise_variance("x", nats, weights)
  assert result.mean == pytest.approx((2 + 3 + 1 + 2) / 10)
  assert result.alone == pytest.approx((2 + 2 + 2 + 2) / 4)
  assert result.together == pytest.approx((0 + 8) / 4)
  assert result.standard_error == pytest.approx((8 / 2) ** 0.5 / 10)
  assert result.together_error == pytest.approx(2**0.5)
  assert (result.rows, result.num_draws) == (4, 2)
  alone = result.of_independent_rows("y")
  assert alone.together == result.alone == 2.0 and alone.standard_error == pytest.approx(
    result.standard_error
  )


def test_text_is_left_aside_and_padding_does_not_count():
  nats = [np.array([[1.0, 100.0, 0.0]] * 3)]
  result = noise_variance("x", nats, [np.array([1.0, 1.0, 0.0])])
  assert (result.rows, result.alone, result.together, result.standard_error) == (2, 0.0, 0.0, 0.0)
  assert "-" in table([result])


def drawing(spread_over_batch: bool):
  """A made-up estimator of rows of 4 tokens at 2 nats, whose draws have variance 1; spread evenly, a batch's sum has far less."""

  def nats_fn(params, key, batch, progress):
    rows = batch.ids.shape[0]
    u = jax.random.uniform(key, (rows,))
    if spread_over_batch:
      u = (jnp.arange(rows) + jax.random.uniform(key)) / rows
      u = jax.random.permutation(jax.random.fold_in(key, 1), u)
    return 8 + 12**0.5 * (u - 0.5), jnp.full(rows, 4.0)

  return jax.jit(nats_fn)


@pytest.mark.parametrize("spread", [False, True])
def test_errors_are_those_of_repeated_experiments(spread):
  batches = [(Batch(jnp.zeros((8, 4), jnp.int32)), 0)] * 3
  results = [
    measure("x", drawing(spread), {}, batches, jax.random.key(seed), 6) for seed in range(40)
  ]
  means = np.array([result.mean for result in results])
  together = (
    1 / 8 if spread else 1.0
  )  # evenly spread rows share one offset: their sum varies as one row alone does
  assert np.mean([result.together for result in results]) == pytest.approx(together, rel=0.15)
  assert np.mean([result.alone for result in results]) == pytest.approx(1.0, rel=0.1)
  assert np.mean([result.standard_error for result in results]) == pytest.approx(
    means.std(), rel=0.25
  )
  assert abs(means.mean() - 2) < 4 * means.std() / 40**0.5
  spread_of = np.std([result.together for result in results]) / np.mean(
    [result.together for result in results]
  )
  assert spread_of == pytest.approx(np.mean([result.together_error for result in results]), rel=0.5)


def test_what_cannot_be_measured_is_refused():
  batch = (Batch(jnp.zeros((2, 4), jnp.int32)), 0)
  for call in (
    lambda: measure("x", drawing(True), {}, [batch], jax.random.key(0), 1),
    lambda: noise_variance("x", [np.ones((1, 2))], [np.ones(2)]),
  ):
    with pytest.raises(ValueError, match="num_draws=1"):
      call()
  with pytest.raises(ValueError, match="held-out batch"):
    measure("x", drawing(True), {}, [], jax.random.key(0), 2)
  with pytest.raises(ValueError, match="no token was scored"):
    noise_variance("x", [np.zeros((2, 2))], [np.zeros(2)])


def small(home, **changes):
  config = base.config("micro")
  sizes = {
    "data.length": 32,
    "train.batch_size": 8,
    "train.steps": 20,
    "evaluate.batch_size": 8,
    "evaluate.max_rows": 8,
  }
  config.update_from_flattened_dict(
    {**sizes, "data.cache_dir": str(home / "cache"), "mesh.fsdp": 1, **changes}
  )
  return build(config, devices=jax.devices()[:1])


def test_estimators_that_fit(tmp_path):
  experiment = small(tmp_path)
  names = lambda **changes: [
    row[0] for row in scoring.estimators(dataclasses.replace(experiment, **changes))
  ]
  shared = ["shared", "shared, power 2", "shared, power 3"]
  assert names() == names(timing=Counted()) == [*shared, "counted"]
  assert names(timing=Independent()) == [*shared, "counted", "as trained"]
  assert names(timing=PerBlock(4)) == names(timing=Hyperschedule("wave", 4)) == ["as reported"]
  assert names(timing=PerBlock(4, 0.3, 0.8)) == ["as reported", "as trained"]
  assert [row[0] for row in scoring.estimators(small(tmp_path, **{"process.grid": 10}))] == shared
  assert (
    small(tmp_path, **{"model.time_conditioning": "adaln"}).network.config.time_conditioning
    != "none"
  )
  assert [
    row[0] for row in scoring.estimators(small(tmp_path, **{"model.time_conditioning": "adaln"}))
  ] == shared
  assert [
    row[0] for row in scoring.estimators(small(tmp_path, **{"schedule.name": "cosine"}))
  ] == shared
  assert scoring.estimators(experiment)[0][1] == Shared()


def test_where_to_decode(tmp_path):
  """The least of the levels is chosen and is what is scored then, with the same noise; a config's own choice stays."""
  gaussian = {
    "process.name": "embedding",
    "process.width": 8,
    "schedule.name": "log_snr",
    "model.layers": 1,
  }
  experiment = small(tmp_path, **gaussian)
  trained = runs.Trained(experiment, experiment.init_params(jax.random.key(0)), 0)
  how = {"num_draws": 1, "max_rows": 8}
  tried = dict(scoring.decodings(trained, **how, count=4))
  assert list(tried) == [10.0, 5.0, 0.0, -5.0]
  chosen, level = scoring.chosen_decoding(trained, **how)
  assert level < 5 and chosen.experiment.bound.process.decode_at == level
  again = runs.score(chosen.experiment, chosen.params, split="validation", **how)
  assert again.nats_per_token == pytest.approx(
    dict(scoring.decodings(trained, **how))[level].nats_per_token, rel=1e-5
  )
  assert again.nats_per_token <= min(bound.nats_per_token for bound in tried.values()) + 1e-3
  own = small(tmp_path, **gaussian, **{"evaluate.decode_at": -1.0})
  assert scoring.chosen_decoding(runs.Trained(own, trained.params, 0), **how)[1] == -1.0
  with pytest.raises(ValueError, match="which Masked has none of"):
    scoring.decodings(runs.Trained(small(tmp_path), {}, 0), **how)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A workdir trained for 20 steps with independent times, whose own objective is a surrogate."""
  home = tmp_path_factory.mktemp("variance")
  runs.train_workdir(
    small(home, **{"timing.name": "independent"}), str(home / "run"), terminal=False
  )
  return home / "run"


def test_the_table_by_command(root, workdir, tmp_path):
  """As a user would: estimators of one bound agree, counting varies less, and the surrogate is named."""
  flags = (f"--workdir={workdir}", "--variance", "--max_rows=64", "--num_draws=6", "--json")
  done = subprocess.run(
    [sys.executable, "-m", "experiments.evaluate", *flags],
    cwd=root,
    env=environment(tmp_path),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  rows = [NoiseVariance(**json.loads(line)) for line in done.stdout.splitlines()]
  print(table(rows))
  named = {row.name: row for row in rows}
  shared = named["shared"]
  for name in ("shared, power 2", "shared, power 3", "counted"):
    error = (shared.standard_error**2 + named[name].standard_error ** 2) ** 0.5
    assert abs(named[name].mean - shared.mean) < 4 * error
  assert named["counted"].alone < 0.5 * shared.alone
  assert named["shared, each row for itself"].together == shared.alone
  assert "surrogate" in named["as trained"].note and not shared.note
  lines = table(rows).splitlines()
  assert (
    len(lines) == 1 + 6 + 1
    and lines[1].startswith("shared ")
    and " 1.000" in lines[1]
    and lines[6].endswith("no bound")
  )

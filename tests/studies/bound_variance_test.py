"""The variance of the bound's estimators: the formula by known numbers, and the table of a trained
network.
"""

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
from diffusion_text.experiment.validation import scoring_model
from diffusion_text.studies import bound_variance as scoring_study
from diffusion_text.studies.variance import NoiseVariance, measure, noise_variance, table
from diffusion_text.timing import ExactCount, Hyperschedule, Independent, Shared
from diffusion_text.types import Batch
from tests.conftest import environment


def test_known_numbers():
  """Two batches of two rows, two draws; the sums of the first cancel, those of the second add
  up.
  """
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
  """A made-up estimator of rows of 4 tokens at 2 nats, whose draws have variance 1; spread evenly,
  a batch's sum has far less.
  """

  def nats_fn(params, key, batch, progress):
    seed = [*np.asarray(jax.random.key_data(key)).tolist(), int(progress.part)]
    random, rows = np.random.default_rng(seed), batch.ids.shape[0]
    u = random.random(rows)
    if spread_over_batch:
      u = random.permutation((np.arange(rows) + random.random()) / rows)
    return 8 + 12**0.5 * (u - 0.5), np.full(rows, 4.0)

  return nats_fn


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


def small(home, devices=1, **changes):
  """An experiment of a small network. changes: dotted keys and their values."""
  config = base.config("micro")
  sizes = {
    "data.length": 32,
    "train.batch_size": 8,
    "train.steps": 20,
    "evaluate.batch_size": 8,
    "evaluate.max_rows": 8,
    "data.cache_dir": str(home / "cache"),
    "mesh.fsdp": devices,
  }
  runs.override(config, {**sizes, **changes}.items())
  return build(config, devices=jax.devices()[:devices])


def test_estimators_that_fit(tmp_path):
  experiment = small(tmp_path)

  def names(experiment, timing=None):
    if timing is not None:
      model = experiment.model._replace(timing=timing)
      scoring = scoring_model(model, experiment.evaluate)
      experiment = dataclasses.replace(experiment, model=model, scoring=scoring)
    return [row[0] for row in scoring_study.estimators(experiment)]

  shared = ["shared", "shared, power 2", "shared, power 3"]
  assert names(experiment) == names(experiment, ExactCount()) == [*shared, "exact_count"]
  assert names(experiment, Independent()) == [*shared, "exact_count", "as trained"]
  assert names(experiment, Hyperschedule("wave", 4)) == ["as reported"]
  assert names(experiment, Shared(low=0.3, high=0.8)) == [*shared, "exact_count", "as trained"]
  # Where noise at t = 1 costs something else than -log p, whole tokens cannot be counted.
  assert names(small(tmp_path, **{"process.time_steps": 10})) == shared
  assert names(small(tmp_path, **{"process.schedule": {"name": "cosine"}})) == shared
  # Gaussian noise is reported at times of its own, which stand beside the others.
  gaussian = small(tmp_path, **{"process": {"name": "embedding", "width": 8}})
  assert names(gaussian) == [*shared, "shared, as the process asks"]
  assert scoring_study.estimators(experiment)[0][1] == Shared()


def test_where_to_decode(tmp_path):
  """The least of the levels is chosen and is what is scored then, with the same noise; a config's
  own choice stays.
  """
  process = {"name": "embedding", "width": 8, "schedule": {"name": "log_snr"}}
  gaussian = {"process": process, "model.layers": 1}
  experiment = small(tmp_path, **gaussian)
  params, _ = jax.jit(experiment.init)(jax.random.key(0))
  trained = runs.Trained(experiment, params, 0)
  how = {"num_draws": 1, "max_rows": 8}
  tried = dict(scoring_study.decodings(trained, **how, count=4))
  assert list(tried) == [10.0, 5.0, 0.0, -5.0]
  chosen, level = scoring_study.chosen_decoding(trained, **how)
  assert level < 5 and chosen.experiment.evaluate.decode_at == level
  again = runs.score(chosen.experiment, chosen.params, split="validation", **how)
  every = dict(scoring_study.decodings(trained, **how))
  assert again.nats_per_token == pytest.approx(every[level].nats_per_token, rel=1e-5)
  assert again.nats_per_token <= min(bound.nats_per_token for bound in tried.values()) + 1e-3
  own = small(tmp_path, **gaussian, **{"evaluate.decode_at": -1.0})
  assert scoring_study.chosen_decoding(runs.Trained(own, params, 0), **how)[1] == -1.0
  with pytest.raises(ValueError, match="which Masked does not offer; only Gaussian"):
    scoring_study.decodings(runs.Trained(small(tmp_path), {}, 0), **how)


def test_each_of_several_processes_sees_the_bounds_of_all_rows(tmp_path, monkeypatch):
  """As it must, to take their mean: two devices share the rows out, and each has all bounds."""
  process = {"name": "embedding", "width": 8, "schedule": {"name": "log_snr"}}
  experiment = small(tmp_path, devices=2, **{"process": process, "model.layers": 1})
  params = experiment.fresh_state().params
  whole = []

  def scored(*args, nats_fn=None, **how):
    def watched(params, key, batch, progress):
      assert len(batch.ids.sharding.device_set) == 2 and not batch.ids.is_fully_replicated
      said = nats_fn(params, key, batch, progress)
      whole.append([each.is_fully_replicated for each in said])
      return said

    return runs.score(*args, nats_fn=watched, **how)

  monkeypatch.setattr(scoring_study, "score", scored)
  trained = runs.Trained(experiment, params, 0)
  scoring_study.decodings(trained, num_draws=1, max_rows=8, count=1)
  assert whole == [[True, True]]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A workdir trained for 20 steps with independent times, whose own objective is a surrogate."""
  home = tmp_path_factory.mktemp("variance")
  runs.train_workdir(
    small(home, **{"timing.name": "independent"}), str(home / "run"), terminal=False
  )
  return home / "run"


def test_the_table_by_command(root, workdir, tmp_path):
  """As a user would: estimators of one bound agree, exact counts vary less, and the surrogate is
  named.
  """
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
  for name in ("shared, power 2", "shared, power 3", "exact_count"):
    error = (shared.standard_error**2 + named[name].standard_error ** 2) ** 0.5
    assert abs(named[name].mean - shared.mean) < 4 * error
  assert named["exact_count"].alone < 0.5 * shared.alone
  assert named["shared, each row for itself"].together == shared.alone
  assert "surrogate" in named["as trained"].note and not shared.note
  lines = table(rows).splitlines()
  assert (
    len(lines) == 1 + 6 + 1
    and lines[1].startswith("shared ")
    and " 1.000" in lines[1]
    and lines[6].endswith("no bound")
  )

"""The comparison: what is shared and what is not, and the command as real processes: a table, a
plot, resuming, failing.
"""

import dataclasses
import json
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion_text import train
from diffusion_text.experiment.build import build, config_json
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.studies import compare, jobs
from diffusion_text.studies.comparison import QUALITY, caption, notes, quality, table
from diffusion_text.train.workdir import flatten
from tests.commands import Forked
from tests.conftest import ROOT, environment

CONFIGS = ROOT / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "base"))

# A base so small that compiling is all that takes time.
BASE = """
from configs import base

def get_config(size="micro"):
  c = base.config(size)
  c.model.update({"width": 32, "mlp_width": 64, "layers": 1})
  c.data.length = 16
  c.train.batch_size = 4
  c.evaluate.batch_size = 8
  c.evaluate.max_rows = 8
  c.train.log_every = 1
  return c
"""
FAILS = """
from configs import base

def get_config(size="micro"):
  c = base.config(size)
  c.context = {"name": "blocks", "size": 7}  # does not divide the 16 tokens of a row
  return c
"""


def base_config():
  return runpy.run_path(str(CONFIGS / "comparison.py"))["get_config"]()


def flat(config):
  return flatten(json.loads(config_json(config)))


def differing(configs):
  """Dotted keys at which the configs are not all equal."""
  flats = [flat(config) for config in configs]
  keys = set().union(*flats)
  return {
    key for key in keys if any(f.get(key, "absent") != flats[0].get(key, "absent") for f in flats)
  }


def comparison(tmp_path, names=tuple(NAMES), **options):
  files = compare.config_files(names, CONFIGS)
  return compare.Comparison(tmp_path, base_config(), files, **({"steps": 3} | options))


def test_systems_differ_in_nothing_but_what_they_are(tmp_path):
  merged = [comparison(tmp_path).system(name)[0] for name in NAMES]
  taken = set().union(*(differing([base_config(), one]) for one in merged))
  some = {"timing.name", "context.size", "sampler.steps", "model.time_conditioning"}
  assert some <= taken, "nothing was taken from the systems"

  def slipped(config):
    found = differing([base_config(), config])
    return sorted(key for key in found if not compare.is_own(key, config.owns))

  assert [slipped(one) for one in merged] == [[]] * len(merged)
  # The same rule must notice a key that slipped through.
  merged[0].optimizer.learning_rate *= 2
  assert slipped(merged[0]) == ["optimizer.learning_rate"]


def test_what_several_processes_cannot_do_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(compare, "is_alone", lambda: False)
  with pytest.raises(ValueError, match="--budget=30 counts the CPU time of one process"):
    comparison(tmp_path, ("mdlm",), budget=30.0, steps=None).run_all([], 1, "")


def test_own_parts_are_the_systems_own_and_what_is_set_aside_is_said(tmp_path):
  merged, aside = comparison(tmp_path, ("md4",)).system("md4")
  system = runpy.run_path(str(CONFIGS / "md4.py"))["get_config"]()
  theirs = {key: value for key, value in flat(system).items() if compare.is_own(key, system.owns)}
  assert theirs.items() <= flat(merged).items()
  assert (
    merged.model.time_conditioning
    == system.model.time_conditioning
    != base_config().model.get("time_conditioning")
  )
  assert merged.model.activation == "gelu" and aside == {"model.activation": "swiglu"}
  assert comparison(tmp_path, ("mdlm",)).system("mdlm")[1] == {}


@pytest.mark.parametrize(
  "name", [name for name in NAMES if name not in ("comparison", "control", "quickstart")]
)
def test_every_system_fits_the_size_of_the_base(name, tmp_path):
  """What a system owns may depend on the number of layers, of which the base has 2."""
  merged, _ = comparison(tmp_path, (name,)).system(name)
  assert merged.model.layers == base_config().model.layers == 2
  build(merged, tokenizer=AnyVocabulary(64), devices=jax.devices()[:1])


def test_a_name_may_have_values_which_make_a_system_of_its_own(tmp_path):
  other = "mdm@objective.focusing=0.5@model.dropout=0.1"
  made = comparison(tmp_path, ("mdm", other))
  plain, changed = (made.system(name)[0] for name in made.files)
  assert list(made.files) == ["mdm", other]
  assert differing([plain, changed]) == {"objective.focusing", "model.dropout", "owns"}
  assert (changed.objective.focusing, changed.model.dropout) == (0.5, 0.1)
  assert all(compare.is_own(key, changed.owns) for key in ("model.dropout", "objective.name"))
  with pytest.raises(ValueError, match="has no modle; its sections are"):
    comparison(tmp_path, ("mdm@modle.dropout=0.1",)).claim()


def test_the_base_is_left_alone(tmp_path):
  made = comparison(tmp_path)
  before = config_json(made.base)
  made.system("bd3lm")[0].train.steps = 7
  assert config_json(made.base) == before


@pytest.mark.parametrize(
  "options,match",
  [
    ({"budget": 5.0}, "give one"),
    ({"steps": None}, "give one"),
    ({"steps": 0}, "steps=0"),
    ({"calls": (8, 0)}, "calls"),
    ({"num_samples": -1}, "num_samples=-1"),
  ],
)
def test_bad_choices_are_refused(tmp_path, options, match):
  with pytest.raises(ValueError, match=match):
    comparison(tmp_path, **options)


@pytest.mark.parametrize("key,value", [("max_seconds", 60.0), ("restore_from", "runs/other")])
def test_a_base_that_would_train_the_systems_unequally_is_refused(tmp_path, key, value):
  base = base_config()
  base.train[key] = value
  with pytest.raises(ValueError, match=rf"base.train.{key}={value!r}.*leave it None"):
    compare.Comparison(tmp_path, base, compare.config_files(["mdlm"], CONFIGS), steps=3)


def test_the_caption_says_what_the_figures_do_not_tell(tmp_path):
  amount = comparison(tmp_path, ("mdlm",), steps=None, budget=600.0).amount
  assert amount == "about 600 CPU-seconds of training each"
  text = caption(
    amount, "a laptop", "a command", base=base_config(), vocab_size=9, num_draws=2, num_samples=16
  )
  for said in (
    amount,
    "in the background",
    "the text, which all share",
    "reads one block",
    "not counted",
    "about 0.01 are noise",
  ):
    assert said in text


def test_unknown_double_and_missing_configs_are_refused_with_the_names_there_are(tmp_path):
  with pytest.raises(ValueError, match=r"'nope' is unknown.*autoregressive.*mdlm"):
    compare.config_files(["mdlm", "nope"], CONFIGS)
  (tmp_path / "broken.py").write_text("def get_config():\n  return 1 / 0\n")
  with pytest.raises(ValueError, match=r"broken.py gives no config \(ZeroDivisionError"):
    comparison(tmp_path / "run", ["mdlm", str(tmp_path / "broken.py")]).claim()
  assert not (tmp_path / "run").exists()
  with pytest.raises(ValueError, match="empty"):
    compare.config_files([], CONFIGS)
  (tmp_path / "mdlm.py").write_text(FAILS)
  with pytest.raises(ValueError, match="twice"):
    compare.config_files(["mdlm", str(tmp_path / "mdlm.py")], CONFIGS)


def test_cores_are_shared_out():
  cores = [core for group in jobs.core_groups(1) for core in group]
  assert len(cores) >= 1
  with pytest.raises(ValueError, match=f"jobs={len(cores) + 1}"):
    jobs.core_groups(len(cores) + 1)


def test_metered_step_counts_its_own_time_and_nothing_else(monkeypatch):
  now = {"process_time": 0.0, "monotonic": 0.0}

  def pass_time(cpu, wall):
    now["process_time"] += cpu
    now["monotonic"] += wall

  for name in now:
    monkeypatch.setattr(compare.time, name, lambda name=name: now[name])

  class Step:  # stands in for a jitted step
    def lower(self, *_):
      pass_time(64, 64)
      return self

    def compile(self):
      pass_time(32, 32)
      return self.run

    def run(self, state, batch):
      pass_time(1, 2)
      return state + batch, {"loss": np.float32(1)}

  step, state = compare.metered(Step(), cpu=10.0, wall=20.0), 0
  for _ in range(2):
    state, metrics = step(state, 1)
    pass_time(128, 128)  # evaluation, say
  assert state == 2 and metrics == {"loss": 1, "cpu_seconds": 12, "wall_seconds": 24}


def test_seconds_go_on_from_the_checkpoint():
  """Steps after the last timed row are counted at its rate."""
  rows = [{"step": step, "cpu_seconds": step / 2, "wall_seconds": step} for step in (10, 20, 30)]
  rows.append({"step": 30, "bound": 1.0})
  assert compare.used(rows, 20) == (10.0, 20.0)
  assert compare.used(rows, 22) == (11.0, 22.0)
  assert compare.used(rows, 5) == (0.0, 0.0)


def test_a_budget_is_turned_into_steps_or_refused(tmp_path):
  class Tokens:
    vocab_size, name = 16, "none"

  (tmp_path / "base.py").write_text(BASE)
  config = runpy.run_path(str(tmp_path / "base.py"))["get_config"]()
  experiment = build(config, tokenizer=Tokens(), devices=jax.devices()[:1])
  some, more = (compare.steps_within(experiment, budget, trial=8) for budget in (100.0, 1000.0))
  assert 3 < more / some < 30  # CPU time of a busy machine is rough
  with pytest.raises(ValueError, match=r"budget=1e-06 is 0 steps.*use at least"):
    compare.steps_within(experiment, 1e-6, trial=2)


def test_quality_of_text_against_itself_and_of_a_stutter():
  text = "it is a truth universally acknowledged, " * 20
  same = quality([np.arange(10), np.arange(10, 20)], [text], text)
  assert (
    same["js_divergence"] == 0
    and same["distinct_2"] == 1
    and same["token_entropy"] == pytest.approx(np.log(10))
  )
  stutter = quality([np.zeros(10, int)] * 2, ["aaaaaaaaa"], text)
  assert stutter["js_divergence"] == pytest.approx(np.log(2)) and stutter[
    "distinct_2"
  ] == pytest.approx(1 / 18)
  assert stutter["token_entropy"] == 0


def row(name, bits):
  samples = [{"steps": 1, "calls": calls, **dict.fromkeys(QUALITY, 0.5)} for calls in (8, 32)]
  speed = {
    "train_tokens": 1000,
    "train_tokens_per_cpu_second": 10.0,
    "train_cpu_seconds": 100.0,
    "parameters": 5,
  }
  return {
    "name": name,
    "bits_per_char": bits,
    "bits_per_char_error": 0.01,
    "samples": samples,
    "set_aside": {},
    **speed,
  }


def test_table_ranks_as_it_comes_and_keeps_failures_below():
  lines = table(
    [row("b", 2.0), row("a", 3.0)], dict.fromkeys(QUALITY, 0.1), {"c": "Error: a | b\nc"}
  ).splitlines()
  assert [line.split("|")[1].strip() for line in lines[2:]] == [
    "b",
    "a",
    "corpus (held-out text)",
    "c",
  ]
  assert (
    "2.000 ± 0.010" in lines[2] and "8 / 32" in lines[2] and "failed: Error: a \\| b c" in lines[5]
  )
  assert notes([row("b", 2.0)]) == "" and "a: x=1" in notes(
    [row("a", 1.0) | {"set_aside": {"x": 1}}]
  )


def test_the_command_makes_a_table_a_plot_skips_what_is_done_and_survives_a_failure(
  tmp_path, request
):
  (tmp_path / "base.py").write_text(BASE)
  (tmp_path / "fails.py").write_text(FAILS)
  workdir = tmp_path / "run"

  forked = Forked(environment(tmp_path), tmp_path)
  request.addfinalizer(forked.close)

  def call(configs, *more, **variables):
    flags = (
      f"--base={tmp_path / 'base.py'}",
      f"--workdir={workdir}",
      "--num_samples=2",
      "--calls=2,4",
      "--max_rows=8",
      *more,
    )
    if variables:
      command = [sys.executable, "-m", "experiments.compare", f"--configs={configs}", *flags]
      env = environment(tmp_path) | variables
      how = {"capture_output": True, "text": True, "timeout": 300}
      done = subprocess.run(command, cwd=ROOT, env=env, check=False, **how)
    else:
      done = forked.run("compare", f"--configs={configs}", *flags)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr

  code, text = call(f"{tmp_path / 'fails.py'},mdlm,autoregressive", "--steps=3")
  assert code == 1 and "| fails | failed: ValueError: context.size=7 must divide length=16" in text
  summary = json.loads((workdir / "comparison.json").read_text())
  assert [row["name"] for row in summary["results"]] == ["mdlm", "autoregressive"] and list(
    summary["failed"]
  ) == ["fails"]
  for found in summary["results"]:
    assert (
      found["steps"] == 3 and found["train_tokens"] == 3 * 4 * 16 and found["train_cpu_seconds"] > 0
    )
    assert 1 < found["bits_per_char"] < 20 and found["hardware"]["jax"] in text
    calls = [sample["calls"] for sample in found["samples"]]
    assert calls == (
      [2, 4] if found["name"] == "mdlm" else [16]
    )  # one call for each token, however many were asked for
    for number in calls:
      assert (workdir / found["name"] / f"samples_{number}_calls.txt").read_text().count(
        "--- sample "
      ) == 2
  assert (
    workdir / "comparison.md"
  ).read_text().strip() in text and "corpus (held-out text)" in text
  assert (workdir / "comparison.png").read_bytes().startswith(b"\x89PNG")

  # The parent touches no accelerator, which belongs to the systems' processes: on a platform that
  # is not there only they fail.
  code, text = call("mdlm,md4", "--steps=3", JAX_PLATFORMS="absent")
  assert code == 1 and "| mdlm | " in text and "| md4 | failed: RuntimeError" in text
  code, text = call("mdlm", "--steps=3", "--base.data.lenght=64")
  assert code == 2 and text.startswith("error: ") and "lenght" in text

  # Again, in this process: nothing is trained a second time, and another question is refused.
  base = runpy.run_path(str(tmp_path / "base.py"))["get_config"]()
  options = {"num_samples": 2, "calls": (2, 4), "max_rows": 8}
  again = compare.Comparison(
    workdir, base, compare.config_files(["mdlm"], CONFIGS), steps=3, **options
  )
  again.claim()
  assert jobs.run_all(["mdlm"], workdir, lambda name: pytest.fail(f"{name} runs again"), 1) == {}
  assert "| mdlm | " in compare.report(again, {}, summary["corpus"], "again")
  with pytest.raises(ValueError, match="steps: 3 → 4"):
    dataclasses.replace(again, steps=4).claim()
  base.optimizer.learning_rate *= 2
  with pytest.raises(ValueError, match=r"optimizer.learning_rate"):
    dataclasses.replace(again, base=base).claim()

  # Stopped between training and its results: no step is done a second time.
  (workdir / "mdlm" / "results.json").unlink()
  code, text = call("mdlm", "--steps=3", "--only=mdlm")
  rows = train.read_metrics(workdir / "mdlm")
  assert code == 0 and [row["step"] for row in rows if "loss" in row] == [1, 2, 3], text

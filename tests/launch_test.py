"""The launch scripts: what they would run, and `local` with real processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = {
  "data.length": 16,
  "train.batch_size": 8,
  "train.log_every": 1,
  "train.save_every": 4,
  "train.evaluate_every": 4,
  "evaluate.batch_size": 8,
  "evaluate.max_rows": 8,
  "sampler.steps": 4,
  "optimizer.schedule": "constant",
}


def launch(name, *arguments, code=0, env=(), cwd=ROOT):
  """What a launch script prints."""
  command = [sys.executable, str(ROOT / "launch" / name), *map(str, arguments)]
  done = subprocess.run(
    command, cwd=cwd, env={**os.environ, **dict(env)}, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
  return done.stdout


def test_local_prints_what_it_would_run():
  lines = launch("local", "-n", 2, "--dry_run", "--", "python", "-m", "experiments.train", "--workdir=a b").splitlines()
  meeting = "'--workdir=a b' --coordinator=localhost:PORT --num_processes=2"
  assert lines == [f"python -m experiments.train {meeting} --process_id={number}" for number in (0, 1)]


SCRIPT = """
import pathlib, sys, time
number, place = int(sys.argv[-1].split("=")[1]), pathlib.Path(sys.argv[1])
starts = len(list(place.glob(f"{number}-*")))
(place / f"{number}-{starts}").touch()
print("start", starts, flush=True)
"""


def run_local(tmp_path, body, *options, code=0):
  """`local` with two processes of a small script: no jax, so that it is quick."""
  script = tmp_path / "script.py"
  script.write_text(SCRIPT + body)
  return launch("local", "-n", 2, *options, "--", sys.executable, script, tmp_path, code=code)


def test_local_starts_again_after_42_only(tmp_path):
  out = run_local(tmp_path, "sys.exit(42 if starts < 2 else 0)")
  assert out.count("starting again") == 2 and out.count("start 2") == 2 and "[1] start 0" in out
  assert "starting again" not in run_local(tmp_path, "sys.exit(5)", code=5)


def test_local_ends_all_when_one_dies(tmp_path):
  began = time.monotonic()
  out = run_local(tmp_path, "sys.exit(7) if number else time.sleep(100)", "--grace=0.3", code=7)
  assert "process 0 is still there 0.3 s after another ended; killed" in out and time.monotonic() - began < 20


def test_local_passes_signals_on(tmp_path):
  """SIGTERM reaches both, and the run is started again, as after a preemption."""
  body = """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
(place / f"ready{number}{starts}").touch()
time.sleep(100 if starts == 0 else 0)
"""
  script = tmp_path / "script.py"
  script.write_text(SCRIPT + body)
  command = [sys.executable, str(ROOT / "launch" / "local"), "-n", "2", "--", sys.executable, str(script), str(tmp_path)]
  running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 60
  while not all((tmp_path / f"ready{number}0").exists() for number in (0, 1)):
    assert time.monotonic() < deadline and running.poll() is None
    time.sleep(0.02)
  running.send_signal(signal.SIGTERM)
  out, _ = running.communicate(timeout=60)
  assert running.returncode == 0 and out.count("start 1") == 2


def environment(home):
  cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
  return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HOME": str(home), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **cache}


def curve(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {(row["step"], name): row[name] for row in rows for name in ("loss", "grad_norm", "validation_bound") if name in row}


def alone(workdir, cache, steps):
  """The same run as one process, and on one device."""
  from configs import base
  from diffusion_text import run
  from diffusion_text.build import build

  config = base.config("micro")
  run.override(config, {**SMALL, "train.steps": steps, "data.cache_dir": str(cache)}.items())
  run.train_workdir(build(config, devices=jax.devices()[:1]), str(workdir))


def test_two_processes_train_as_one(tmp_path):
  """The same losses at every step, the same evaluation, one set of logs; and one process goes on where two have stopped."""
  settings = [f"--config.{key}={value}" for key, value in SMALL.items()]
  train = (sys.executable, "-m", "experiments.train", "--config=configs/mdlm.py:micro", *settings, "--config.train.steps=6")
  out = launch("local", "-n", 2, "--", *train, f"--workdir={tmp_path / 'two'}", env=environment(tmp_path))
  assert "[0] finished at step 6" in out
  assert all(line.startswith(("[0]", "[1] [Gloo]")) for line in out.splitlines())  # process 1 says nothing itself
  parts = {path.name for path in (tmp_path / "two" / "checkpoints" / "6" / "params").glob("ocdbt.process_*")}
  assert parts == {"ocdbt.process_0", "ocdbt.process_1"}  # each writes its own share
  cache = tmp_path / ".cache" / "diffusion_text"
  alone(tmp_path / "one", cache, 8)
  alone(tmp_path / "two", cache, 8)
  one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
  assert {key for key in two if key[1] == "loss"} == {(step, "loss") for step in range(1, 9)}
  assert {key: value for key, value in two.items() if key in one} == pytest.approx(one, rel=1e-6)

"""The launch scripts: what they would run, and `local` with real processes."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import pytest
import yaml

from tests.conftest import environment

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
  "model.layers": 1,
}


def launch(name, *arguments, code=0, env=(), cwd=ROOT):
  """What a launch script prints."""
  command = [sys.executable, str(ROOT / "launch" / name), *map(str, arguments)]
  done = subprocess.run(
    command,
    cwd=cwd,
    env={**os.environ, **dict(env)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
  return done.stdout


def test_local_prints_what_it_would_run():
  lines = launch(
    "local", "-n", 2, "--dry_run", "--", "python", "-m", "experiments.train", "--workdir=a b"
  ).splitlines()
  meeting = "'--workdir=a b' --coordinator=localhost:PORT --num_processes=2"
  assert lines == [
    f"python -m experiments.train {meeting} --process_id={number}" for number in (0, 1)
  ]


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
  assert (
    "process 0 is still there 0.3 s after another ended; killed" in out
    and time.monotonic() - began < 20
  )


def test_local_passes_signals_on(tmp_path):
  """SIGTERM reaches both, and the run is started again, as after a preemption."""
  body = """
import shlex
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
(place / f"ready{number}{starts}").touch()
time.sleep(100 if starts == 0 else 0)
"""
  script = tmp_path / "script.py"
  script.write_text(SCRIPT + body)
  command = [
    sys.executable,
    str(ROOT / "launch" / "local"),
    "-n",
    "2",
    "--",
    sys.executable,
    str(script),
    str(tmp_path),
  ]
  running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 60
  while not all((tmp_path / f"ready{number}0").exists() for number in (0, 1)):
    assert time.monotonic() < deadline and running.poll() is None
    time.sleep(0.02)
  running.send_signal(signal.SIGTERM)
  out, _ = running.communicate(timeout=60)
  assert running.returncode == 0 and out.count("start 1") == 2


def curve(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {
    (row["step"], name): row[name]
    for row in rows
    for name in ("loss", "grad_norm", "validation_bound")
    if name in row
  }


def alone(workdir, cache, steps):
  """The same run as one process, and on one device."""
  from configs import base
  from diffusion_text.experiment import run
  from diffusion_text.experiment.build import build

  config = base.config("micro")
  run.override(config, {**SMALL, "train.steps": steps, "data.cache_dir": str(cache)}.items())
  run.train_workdir(build(config, devices=jax.devices()[:1]), str(workdir))


def test_two_processes_train_as_one_and_sample(tmp_path):
  """The same losses at every step, the same evaluation, one set of logs and of samples; and one
  process goes on where two have stopped. That samples do not depend on the devices is held by
  `tests/experiment/drawing_test.py`.
  """
  settings = [f"--config.{key}={value}" for key, value in SMALL.items()]
  train = (
    sys.executable,
    "-m",
    "experiments.train",
    "--config=configs/mdlm.py:micro",
    *settings,
    "--config.train.steps=6",
  )
  out = launch(
    "local", "-n", 2, "--", *train, f"--workdir={tmp_path / 'two'}", env=environment(tmp_path)
  )
  assert "[0] finished at step 6" in out
  assert not (tmp_path / "two" / "lock").exists(), (
    "both processes shared one lock, and gave it back"
  )
  assert all(
    line.startswith(("[0]", "[1] [Gloo]")) for line in out.splitlines()
  )  # process 1 says nothing itself
  parts = list((tmp_path / "two" / "checkpoints" / "6" / "params").glob("ocdbt.process_*"))
  sizes = [sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) for part in parts]
  assert len(sizes) == 2 and max(sizes) < 0.6 * sum(
    sizes
  )  # each writes its own share: no parameter is gathered on one host
  output = tmp_path / "texts.jsonl"
  drawn = ("--num=3", "--batch_size=2", f"--output={output}", f"--workdir={tmp_path / 'two'}")
  sample = (sys.executable, "-m", "experiments.sample", *drawn)
  out = launch("local", "-n", 2, "--", *sample, env=environment(tmp_path))
  assert out.count("--- sample") == out.count("[0] --- sample") == 3
  assert len(output.read_text().splitlines()) == 3
  cache = tmp_path / ".cache" / "diffusion_text"
  alone(tmp_path / "one", cache, 8)
  alone(tmp_path / "two", cache, 8)
  one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
  assert {key for key in two if key[1] == "loss"} == {(step, "loss") for step in range(1, 9)}
  assert {key: value for key, value in two.items() if key in one} == pytest.approx(one, rel=1e-6)


def test_two_processes_compare_as_one(tmp_path):
  """One table, with the bound and the texts of one process."""
  sizes = {"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 16}
  base = [f"--base.model.{key}={value}" for key, value in sizes.items()]
  base += ["--base.data.length=16", "--base.data.tokenizer=bytes", "--base.data.vocab_size=256"]
  base += ["--base.train.batch_size=8", "--base.evaluate.batch_size=8"]
  base += ["--base.evaluate.max_rows=8"]
  how = ("--configs=mdlm", "--calls=2", "--num_samples=2", "--max_rows=8", "--num_draws=1", *base)
  command = (sys.executable, "-m", "experiments.compare", *how)
  found = {}
  for processes in (1, 2):
    workdir = tmp_path / str(processes)
    run = ("local", "-n", processes, "--", *command, "--steps=2", f"--workdir={workdir}")
    out = launch(*run, env=environment(tmp_path))
    assert out.count("| mdlm |") == 1
    found[processes] = json.loads((workdir / "mdlm" / "results.json").read_text())
    found[processes]["texts"] = (workdir / "mdlm" / "samples_2_calls.txt").read_text()
  assert found[1]["bits_per_char"] == pytest.approx(found[2]["bits_per_char"], rel=1e-6)
  assert found[1]["texts"] == found[2]["texts"]


TRAIN = (
  "python",
  "-m",
  "experiments.train",
  "--config=configs/mdlm.py:1b",
  "--workdir=gs://bucket/a run",
)


def test_gke_writes_a_jobset(tmp_path):
  """Structure and types of the fields that the JobSet and Job APIs define; what is fed to kubectl
  is what a dry run prints.
  """
  options = (
    "--name=mdlm",
    "--image=registry/x:1",
    "--accelerator=tpu-v5p-slice",
    "--topology=8x8x8",
    "--slices=2",
  )
  text = launch("gke", *options, "--dry_run", "--", *TRAIN)
  assert text.splitlines()[-1] == "# | kubectl apply -f -"
  jobset = yaml.safe_load(text)
  assert (jobset["apiVersion"], jobset["kind"], jobset["metadata"]["name"]) == (
    "jobset.x-k8s.io/v1alpha2",
    "JobSet",
    "mdlm",
  )
  assert jobset["spec"].keys() == {"failurePolicy", "replicatedJobs"}
  assert jobset["spec"]["failurePolicy"]["rules"] == [
    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  ]
  (slices,) = jobset["spec"]["replicatedJobs"]
  assert slices.keys() == {"name", "replicas", "template"} and slices["replicas"] == 2
  job = slices["template"]["spec"]
  assert {
    name: job[name] for name in ("parallelism", "completions", "completionMode", "backoffLimit")
  } == {
    **dict.fromkeys(("parallelism", "completions"), 8 * 8 * 8 // 4),
    **{"completionMode": "Indexed", "backoffLimit": 0},
  }
  (rule,) = job["podFailurePolicy"]["rules"]
  assert (
    rule["action"] == "FailJob"
    and rule["onExitCodes"]["operator"] == "In"
    and 42 not in rule["onExitCodes"]["values"]
  )
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8x8"
  (container,) = pod["containers"]
  assert container["name"] == rule["onExitCodes"]["containerName"] and container["command"] == list(
    TRAIN
  )
  assert (
    container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
  )
  assert all(
    set(entry) == {"name", "value"} and isinstance(entry["value"], str)
    for entry in container["env"]
  )
  flags = {entry["name"]: entry["value"] for entry in container["env"]}["LIBTPU_INIT_ARGS"].split()
  assert len(flags) > 3 and all(f"# {flag}: " in text for flag in flags)  # each is explained


def stand_in(folder, name, body):
  """A program of this name in a folder for PATH, that writes down how it was called."""
  path = folder / name
  path.write_text(f'#!/bin/bash\necho "{name} $*" >>{folder}/calls\n{body}\n')
  path.chmod(0o755)


def with_path(folder):
  return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_slurm_writes_a_batch_file_that_goes_on_after_42(tmp_path):
  options = ("--name=mdlm", "--nodes=2", "--gpus_per_node=8", "--sbatch=--partition=a100")
  text = launch("slurm", *options, "--dry_run", "--", *TRAIN)
  assert text.splitlines()[-1] == "# | sbatch"
  wanted = (
    "--nodes=2",
    "--ntasks-per-node=8",
    "--gpus-per-node=8",
    "--requeue",
    "--signal=TERM@120",
    "--partition=a100",
  )
  assert all(f"#SBATCH {option}\n" in text for option in wanted)
  cpu = launch("slurm", "--name=m", "--nodes=4", "--cpu", "--dry_run", "--", *TRAIN)
  assert "--ntasks-per-node=1\n" in cpu and "gpu" not in cpu
  stand_in(tmp_path, "scontrol", "")
  for code, requeued in ((42, True), (0, False), (1, False)):
    stand_in(tmp_path, "srun", f"exit {code}")
    (tmp_path / "calls").unlink(missing_ok=True)
    env = {**os.environ, **with_path(tmp_path), "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash"], input=text, text=True, env=env, check=False).returncode == code
    calls = (tmp_path / "calls").read_text()
    assert "experiments.train --config=configs/mdlm.py:1b --workdir=gs://bucket/a run" in calls
    assert ("scontrol requeue 7" in calls) == requeued


POD = (
  "--name=mdlm",
  "--zone=z",
  "--type=v5litepod-16",
  "--version=v",
  "--queue",
  "--spot",
  "--poll=0",
)
GCLOUD = """
here=$(dirname "$0")
case "$*" in
  *"queued-resources describe"*) echo ACTIVE ;;
  *"tpu-vm describe"*) head -1 "$here/states"; sed -i 1d "$here/states" ;;
  *"cat diffusion_text/code"*) head -1 "$here/codes"; sed -i 1d "$here/codes" ;;
esac
"""


@pytest.mark.parametrize(
  "codes, states, created, code",
  [
    ("exit=42 exit=42\nexit=0 exit=0", "READY", 1, 0),  # saved: once more on the same slice
    ("exit=42 exit=1\nexit=0 exit=0", "PREEMPTED", 2, 0),  # the slice went away: a new one
    ("\nexit=0 exit=0", "", 2, 0),  # no host answers
    ("exit=2 exit=134", "READY", 1, 2),  # a mistake: stops
  ],
)
def test_tpu_pod_starts_again_where_that_helps(tmp_path, codes, states, created, code):
  stand_in(tmp_path, "gcloud", GCLOUD)
  (tmp_path / "codes").write_text(codes + "\n")
  (tmp_path / "states").write_text(states + "\n")
  launch("tpu_pod", *POD, "--", *TRAIN, env=with_path(tmp_path), code=code)
  calls = (tmp_path / "calls").read_text().splitlines()

  def count(words):
    return sum(words in call for call in calls)

  assert (
    count("queued-resources create mdlm")
    == count("queued-resources delete mdlm --force --quiet")
    == created
  )
  assert count("tpu-vm scp") == created and count("experiments.train") == max(
    2 if code == 0 else 1, created
  )
  assert "delete" in calls[-1] and count("--zone=z") == len(calls)


def test_tpu_pod_dry_run_prints_the_commands_it_would_run(tmp_path):
  printed = launch("tpu_pod", *POD, "--dry_run", "--", *TRAIN)
  stand_in(tmp_path, "gcloud", GCLOUD)
  (tmp_path / "codes").write_text("exit=0\n")
  launch("tpu_pod", *POD, "--", *TRAIN, env=with_path(tmp_path))
  shown = [
    " ".join(shlex.split(line)) for line in printed.splitlines() if line.startswith("gcloud")
  ]
  assert shown == (tmp_path / "calls").read_text().splitlines()
  flags = [line for line in printed.splitlines() if line.startswith("# --xla")]
  assert len(flags) > 3 and all(": " in line for line in flags)


BAD = [
  ("local", ("-n", 0, "--", "x"), "must be at least 1"),
  ("local", ("-n", 2), "put it after --"),
  (
    "gke",
    ("--name=A b", "--image=i", "--accelerator=a", "--topology=2x2", "--", "x"),
    "must begin with a letter",
  ),
  (
    "gke",
    ("--name=a", "--image=i", "--accelerator=a", "--topology=2y2", "--", "x"),
    "--topology=2y2 must be sizes",
  ),
  ("slurm", ("--name=a", "--nodes=1", "--", "x"), "--gpus_per_node --cpu is required"),
]


@pytest.mark.parametrize("name, arguments, message", BAD)
def test_mistakes_are_told(name, arguments, message):
  command = [sys.executable, str(ROOT / "launch" / name), *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and message in done.stderr

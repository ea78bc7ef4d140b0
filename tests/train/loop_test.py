"""The loop: its order, its ends, and runs that a kill does not change."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text import train as tr
from diffusion_text.train import checkpoint
from diffusion_text.types import Loss
from tests.conftest import environment

from . import toy

ROOT = pathlib.Path(tr.__file__).parents[2]


def _start(workdir, *options):
  env = environment(workdir.parent) | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(pathlib.Path(toy.__file__)), str(workdir), *map(str, options)]
  return subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def _finish(process):
  output, _ = process.communicate(timeout=240)
  return process.returncode, output


def _curve(workdir):
  unmoved = ("step", "loss", "grad_norm", "param_norm", "learning_rate", "masked_fraction", "norm")
  return [{k: v for k, v in row.items() if k in unmoved} for row in tr.read_metrics(workdir)]


def test_ten_steps_equal_five_then_a_kill_then_five(tmp_path):
  straight = _start(tmp_path / "straight")
  killed = _start(tmp_path / "killed", "--kill_at_draw", 7)
  assert _finish(killed)[0] == -signal.SIGKILL
  code, output = _finish(_start(tmp_path / "killed"))
  assert code == 0, output
  assert "continuing from" in output
  code, output = _finish(straight)
  assert code == 0, output
  with (
    np.load(tmp_path / "straight" / "final.npz") as a,
    np.load(tmp_path / "killed" / "final.npz") as b,
  ):
    assert len(a.files) > 10 and a.files == b.files
    for name in a.files:
      np.testing.assert_array_equal(a[name], b[name])
  drawn = [int(line) for line in (tmp_path / "killed" / "drawn0.txt").read_text().split()]
  assert drawn == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9]
  assert _curve(tmp_path / "killed") == _curve(tmp_path / "straight")
  assert [row["step"] for row in _curve(tmp_path / "killed")] == [
    0,
    1,
    2,
    3,
    4,
    5,
    5,
    6,
    7,
    8,
    9,
    10,
    10,
  ]


def _start_several(workdir, processes, *options, last=()):
  """The processes of one run. `last` are further options of the last process."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  options = ("--processes", processes, "--port", port, *options)
  return [
    _start(workdir, *options, "--process", i, *(last if i == processes - 1 else ()))
    for i in range(processes)
  ]


def _started(running, workdir):
  """Waits until a few steps are done."""
  deadline = time.monotonic() + 240
  while not (workdir / "metrics.jsonl").exists() or len(tr.read_metrics(workdir)) < 3:
    if time.monotonic() > deadline or any(process.poll() is not None for process in running):
      for process in running:
        process.kill()
      pytest.fail("did not start:\n" + "\n".join(_finish(process)[1] for process in running))
    time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_exits_with_42(tmp_path, processes):
  """With several processes only one gets the signal, and all end at one step."""
  running = _start_several(
    tmp_path / "run", processes, "--steps", 100000, "--seconds_per_step", 0.05
  )
  _started(running, tmp_path / "run")
  running[-1].send_signal(signal.SIGTERM)
  for code, output in map(_finish, running):
    assert code == tr.EXIT_PREEMPTED == 42, output
  for i in range(processes):  # every batch drawn is in the checkpoint
    assert tr.latest_step(tmp_path / "run" / "checkpoints") == len(
      (tmp_path / "run" / f"drawn{i}.txt").read_text().split()
    )


def test_a_process_that_dies_ends_the_others(tmp_path):
  """After kill -9 of one of two processes, the other reports it and ends with another code."""
  running = _start_several(tmp_path / "run", 2, "--steps", 100000, "--seconds_per_step", 0.05)
  _started(running, tmp_path / "run")
  running[1].kill()
  began = time.monotonic()
  code, output = _finish(running[0])
  assert code in (tr.multihost.EXIT_LOST, -signal.SIGABRT), output
  assert time.monotonic() - began < 60
  assert re.search("error: process 0 of 2: .*one of them has ended|another task died", output), (
    output
  )
  assert _finish(running[1])[0] == -signal.SIGKILL


def test_a_mistake_on_one_host_is_told_by_all(tmp_path):
  for code, output in map(_finish, _start_several(tmp_path / "run", 2, last=("--no_data", 1))):
    assert code == 2 and "process 1 of 2: there is no data on this host" in output, output


@pytest.mark.parametrize(
  ("error", "refused", "code"),
  [
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True, 43),
    (jax.errors.JaxRuntimeError("INTERNAL: Gloo failed"), False, 43),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False, 1),
    (ValueError("steps=0 is not valid: use 1"), True, 2),
    (RuntimeError("UNKNOWN: not of jax"), False, 1),
  ],
)
def test_the_end_of_another_process_is_told_from_a_mistake(monkeypatch, error, refused, code):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for found in (error, OSError("not saved")):
    found.__cause__ = None if found is error else error
    message, given = tr.multihost.verdict(found, refused)
    assert given == code and message.startswith("process 0 of 2: ")
    assert ("one of them has ended" in message) == (code == 43)


def test_processes_that_differ_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(tr.multihost, "gather", lambda content: [content, content, b"5"])
  with pytest.raises(
    ValueError,
    match="the number of steps is '10' on process 0 and '5' on process 2; start all with the same",
  ):
    tr.multihost.check_same({"the number of steps": "10"})
  with pytest.raises(ValueError, match="process 2 of 3: 5"):
    monkeypatch.setattr(tr.multihost, "gather", lambda content: [b"", b"", b"5"])
    tr.multihost.together(lambda: None)


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ({"num_processes": 2}, "--coordinator, --process_id missing"),
    (
      {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
      "--process_id=2 must be 0 … 1",
    ),
    (
      {"coordinator": "host", "num_processes": 2, "process_id": 1},
      "--coordinator=host has no port",
    ),
  ],
)
def test_how_processes_meet_is_checked(given, says):
  with pytest.raises(ValueError, match=says):
    tr.multihost.connect(**given)


def test_a_command_of_one_process_refuses_several(monkeypatch):
  tr.multihost.check_alone()
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
  with pytest.raises(ValueError, match="is one process, but SLURM_STEP_NUM_TASKS=4"):
    tr.multihost.check_alone()


def test_a_stuck_process_ends_itself(capfd):
  ended = threading.Event()
  codes = []

  def give_up(code):
    codes.append(code)
    ended.set()

  with tr.multihost.Watchdog(0.2, give_up=give_up) as watch:
    watch.alive(7)
    assert ended.wait(20)
  told = capfd.readouterr().err
  assert (
    codes == [1] and "no progress for 0.2 s after step 7" in told and "test_a_stuck_process" in told
  )
  with tr.multihost.Watchdog(None, give_up=give_up) as watch:
    watch.alive(8)
  with pytest.raises(ValueError, match="stall_seconds=0 must be above 0"):
    tr.multihost.Watchdog(0)


class Recorder:
  """A run of the toy in this process that records all events in order."""

  def __init__(
    self, directory=None, *, loss_fn=toy.noisy_loss, settings=None, every=2, call=None, **options
  ):
    self.events, self.rows = [], []
    fresh, _, step, _ = toy.build(loss_fn)
    outer = self

    class Watched(toy.Rows):
      def __next__(self):
        outer.events.append(f"draw {self.n}")
        return super().__next__()

      def get_state(self):
        outer.events.append(f"save at draw {self.n}")
        return super().get_state()

    def watched(state, batch):
      self.events.append("step")
      return step(state, batch)

    def hook(at, params):
      self.events.append(f"evaluate {at}")
      return call(at, params) if call else {"score": float(at)}

    def write(at, row):
      self.events.append(f"{'scores' if 'score' in row else 'log'} {at}")
      self.rows.append((at, dict(row)))

    self.data = Watched()
    self.args = (
      fresh(),
      self.data,
      watched,
      settings or tr.LoopSettings(steps=4, log_every=1, save_every=2),
    )
    self.options = {"hooks": [tr.Hook(every, hook)], "write": write} | options
    self.directory = directory

  def run(self):
    if self.directory is None:
      return tr.train(*self.args, **self.options)
    with tr.Checkpointer(self.directory) as checkpointer:
      return tr.train(*self.args, checkpointer=checkpointer, **self.options)


def test_order_of_the_loop(tmp_path):
  recorder = Recorder(tmp_path)
  result = recorder.run()
  assert (result.status, result.step, int(result.state.step), result.exit_code) == (
    "finished",
    4,
    4,
    0,
  )
  assert recorder.events == [
    *("evaluate 0", "scores 0"),
    # The metrics of the first step are read after the second is dispatched.
    *("draw 0", "step", "draw 1", "step", "log 1"),
    *("log 2", "evaluate 2", "scores 2", "save at draw 2"),
    *("draw 2", "step", "draw 3", "step", "log 3"),
    *("log 4", "evaluate 4", "scores 4", "save at draw 4"),
  ]
  assert checkpoint.steps_in(tmp_path) == [2, 4]


def test_a_resumed_run_repeats_neither_evaluation_nor_save(tmp_path):
  Recorder(tmp_path).run()
  again = Recorder(tmp_path)
  restored = tr.restore(
    tmp_path, jax.eval_shape(lambda: again.args[0]), data=again.data, clock=tr.Clock(), fresh=None
  )
  again.args = (restored.state, *again.args[1:])
  again.options["evaluated"] = restored.evaluated
  assert again.run().status == "finished"
  assert again.events == []


def _poison_at(step):
  def loss_fn(params, frozen, key, batch, progress):
    loss = toy.noisy_loss(params, frozen, key, batch, progress)
    return Loss(jnp.where(progress.step == step, jnp.nan, loss.total), loss.count, loss.sums)

  return loss_fn


@pytest.mark.parametrize("step", [2, 3])
def test_nan_stops_before_anything_is_saved(tmp_path, step):
  """The poisoned state of step 3 would be saved at step 4; it must be checked before."""
  recorder = Recorder(tmp_path, loss_fn=_poison_at(step))
  with pytest.raises(
    tr.TrainingDiverged, match=rf"diverged at update {step + 1}: loss=nan"
  ) as error:
    recorder.run()
  assert f"The last good checkpoint is {tmp_path}/2" in str(
    error.value
  ) and "lower learning_rate" in str(error.value)
  assert checkpoint.steps_in(tmp_path) == [2]
  assert "evaluate 4" not in recorder.events
  params = tr.restore_params(tmp_path, jax.eval_shape(toy.init_params))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_gradient_that_is_not_finite_stops_too():
  def loss_fn(params, frozen, key, batch, progress):
    loss = toy.plain_loss(params, frozen, key, batch, progress)
    # The value of the added term is 0, and its derivative is NaN.
    return loss._replace(total=loss.total + jnp.sqrt(0 * params["head"]["bias"][0]))

  with pytest.raises(
    tr.TrainingDiverged, match=r"update 1: grad_norm=nan, param_norm=nan .*There is no checkpoint"
  ):
    Recorder(loss_fn=loss_fn).run()


def test_a_batch_is_prepared_after_it_is_drawn_by_the_step(tmp_path):
  """Extras from `prepare` reach the loss, and a continued run prepares the same extras."""

  def prepare(state, batch):
    key = tr.named_key(0, "prepare", state.step)
    bonus = jax.random.uniform(key, (batch.ids.shape[0],))
    return dataclasses.replace(batch, extras={"bonus": bonus})

  def loss_fn(params, frozen, key, batch, progress):
    loss = toy.plain_loss(params, frozen, key, batch, progress)
    return loss._replace(sums={"bonus": jnp.sum(batch.extras["bonus"])})

  settings = {"log_every": 1, "save_every": 2}
  whole = Recorder(loss_fn=loss_fn, prepare=prepare, settings=tr.LoopSettings(steps=4, **settings))
  whole.run()
  first = Recorder(
    tmp_path, loss_fn=loss_fn, prepare=prepare, settings=tr.LoopSettings(steps=2, **settings)
  )
  first.run()
  bonuses = [row["bonus"] for _, row in whole.rows if "bonus" in row]
  assert len(set(bonuses)) == 4
  assert [row["bonus"] for _, row in first.rows if "bonus" in row] == bonuses[:2]


@pytest.mark.parametrize(
  ("number", "status", "code"),
  [(signal.SIGTERM, "preempted", 42), (signal.SIGINT, "interrupted", 130)],
)
def test_signals_finish_the_step_and_save(tmp_path, number, status, code):
  before = signal.getsignal(number)

  def write(at, row):
    if at == 1 and "loss" in row:  # read while step 2 is on its way
      os.kill(os.getpid(), number)

  result = Recorder(
    tmp_path, write=write, settings=tr.LoopSettings(steps=50, log_every=1, save_every=7)
  ).run()
  assert (result.status, result.step, result.exit_code) == (status, 2, code)
  assert checkpoint.steps_in(tmp_path) == [2]
  assert signal.getsignal(number) is before


def test_the_time_budget_counts_training_only_and_ends_with_evaluation_and_save(tmp_path):
  now = [0.0]

  def call(step, params):
    now[0] += 1000.0
    return {"score": 0.0}

  recorder = Recorder(
    tmp_path, call=call, every=100, settings=tr.LoopSettings(steps=50, log_every=1, max_seconds=9.5)
  )
  recorder.options["clock"] = tr.Clock(now=lambda: now[0])
  step = recorder.args[2]

  def slow(state, batch):
    now[0] += 3.0
    return step(state, batch)

  recorder.args = (*recorder.args[:2], slow, recorder.args[3])
  result = recorder.run()
  assert (result.status, result.step) == ("finished", 4)
  assert recorder.events[-3:] == ["evaluate 4", "scores 4", "save at draw 4"]


def test_reports_speed_and_use_of_the_hardware():
  reports, now = [], [0.0]

  def clock():
    now[0] += 0.5
    return now[0]

  settings = tr.LoopSettings(steps=4, log_every=2, flops_per_token=10.0, peak_flops=1e6)
  recorder = Recorder(settings=settings, hooks=[], report=reports.append, clock=tr.Clock(now=clock))
  recorder.run()
  assert [r["step"] for r in reports] == [2, 4]
  last = reports[-1]
  assert last["mfu"] == pytest.approx(10 * last["tokens_per_second"] / 1e6)
  assert last["tokens_per_second"] == pytest.approx(last["steps_per_second"] * toy.ROWS * toy.L)
  assert {"loss", "seconds_left", "device_hours"} <= last.keys()


def test_profile(tmp_path, root):
  """In another process: jax's profiler crashes after the compile tests, which load libtpu."""
  code = f"""
from diffusion_text import train as tr
from tests.train.loop_test import Recorder
settings = tr.LoopSettings(steps=3, profile_steps=(1, 2), profile_dir={str(tmp_path)!r})
Recorder(settings=settings, hooks=[]).run()
"""
  subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)
  assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize(
  ("bad", "says"),
  [
    ({"steps": 0}, "steps=0 must be at least 1"),
    ({"save_every": 0}, "save_every=0"),
    ({"max_seconds": 0}, "max_seconds=0 must be above 0; None means no limit"),
    ({"profile_steps": (5, 5), "profile_dir": "x"}, r"profile_steps=\(5, 5\) must be"),
    ({"profile_steps": (5, 6)}, "profile_dir=None go together"),
  ],
)
def test_bad_settings(bad, says):
  with pytest.raises(ValueError, match=says):
    tr.LoopSettings(**({"steps": 4} | bad))
  with pytest.raises(ValueError, match="every=0"):
    tr.Hook(0, print)

"""A campaign of faults: a run is killed, starved of disk and has its checkpoints damaged, and must
come out as if nothing had happened.

Each victim is a forked process, so that a start costs seconds and a kill -9 is a real one. What is
held after every fault:
  - every checkpoint that was finished before is still there, or was replaced by newer ones as
  `train.keep` says; - the next process goes on from the newest one that is not damaged: at most the
  steps since then are lost; - the losses on disk are those of an undisturbed run, bit for bit, each
  step once;
and at the end, that all arrays of the last checkpoint are those of the undisturbed run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import random
import re
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

from diffusion_text import train
from diffusion_text.experiment import run
from diffusion_text.experiment.build import build
from diffusion_text.train import checkpoint

# Where a kill lands. start: within the first seconds; train: some time after a new step; save:
# while a checkpoint is being written. truncate: as train, and the newest checkpoint is cut short.
# disk_full: no file may grow any more, so that the run ends by itself. terminate: SIGTERM, so that
# it saves and ends with 42.
KINDS = ("start", "train", "save", "truncate", "disk_full", "terminate")
LIMIT = 1200.0  # seconds that anything may take; a run that hangs is a failure
LARGEST = (
  1 << 16
)  # bytes of a file on a full disk: below the arrays of a checkpoint, above metrics and logs
STEP = re.compile(r"^step [1-9]\d* ", re.M)  # what a victim logs after an update, and
CONTINUING = re.compile(r"^continuing from .+/(\d+)$", re.M)  # after it has restored

log = logging.getLogger(__name__)


class CampaignFailed(AssertionError):
  """Something was lost, repeated or changed; the message says after which fault."""


@dataclasses.dataclass(frozen=True)
class Fault:
  """One fault: what it was, the step that the run had come to, the steps that were lost by it, and
  seconds until all were gone.
  """

  kind: str
  reached: int
  lost: int
  seconds: float


class Victim:
  """A training run of one or several forked processes; all that they print goes to `log`."""

  def __init__(self, config: Any, workdir: pathlib.Path, log: pathlib.Path, processes: int):
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      port = probe.getsockname()[1]
    self.log, self.codes = log, {}
    log.touch()
    self.pids = [
      _fork(lambda number=number: _train(config, workdir, number, processes, port), log)
      for number in range(processes)
    ]

  def running(self) -> bool:
    """Whether any process is still there."""
    for pid in set(self.pids) - self.codes.keys():
      done, status = os.waitpid(pid, os.WNOHANG)
      if done:
        self.codes[pid] = os.waitstatus_to_exitcode(status)
    return len(self.codes) < len(self.pids)

  def wait(self) -> list[int]:
    """The exit codes, once all have ended (negative: of a signal). Raises CampaignFailed after
    LIMIT seconds.
    """
    deadline = time.monotonic() + LIMIT
    while self.running():
      if time.monotonic() > deadline:
        self.end()
        raise CampaignFailed(f"processes were still there after {LIMIT:g} s; see {self.log}")
      time.sleep(0.005)
    return [self.codes[pid] for pid in self.pids]

  def end(self) -> None:
    """Kills what is left."""
    while self.running():
      for pid in set(self.pids) - self.codes.keys():
        os.kill(pid, signal.SIGKILL)
      time.sleep(0.005)


def _fork(work: Callable[[], int], log: pathlib.Path) -> int:
  """The process id of a child that does `work() -> exit code` and prints to `log`."""
  sys.stdout.flush()
  sys.stderr.flush()
  if pid := os.fork():
    return pid
  out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(out, 1)
  os.dup2(out, 2)
  code = 1
  try:
    code = work()
  except BaseException:  # whatever it is, the parent's code must not go on in this process
    resource.setrlimit(
      resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )  # a full disk must not hide why
    traceback.print_exc()
  finally:
    try:
      train.multihost.leave(code)
    finally:
      os._exit(code)


def _train(config: Any, workdir: pathlib.Path, number: int, processes: int, port: int) -> int:
  if processes > 1:
    train.multihost.connect(f"localhost:{port}", processes, number, heartbeat_timeout=10)
  logging.basicConfig(format="%(message)s", force=True)
  logging.getLogger("diffusion_text").setLevel(logging.INFO)
  return run.train_workdir(
    build(config), str(workdir), terminal=False, stall_seconds=LIMIT / 2
  ).exit_code


def losses(workdir: pathlib.Path) -> dict[int, tuple[float, ...]]:
  """step -> what was written of its update; raises CampaignFailed if a step is there twice or
  missing.
  """
  if not (workdir / "metrics.jsonl").exists():
    return {}
  rows = [row for row in train.read_metrics(workdir) if "loss" in row]
  if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
    raise CampaignFailed(f"{workdir}/metrics.jsonl has the steps {[row['step'] for row in rows]}")
  return {
    row["step"]: tuple(row[name] for name in ("loss", "grad_norm", "param_norm")) for row in rows
  }


def last_checksums(workdir: pathlib.Path) -> dict[str, list[int]]:
  """item -> the sum of bits of every array of the newest checkpoint."""
  directory = run.checkpoints(str(workdir))
  path = pathlib.Path(directory) / str(train.latest_step(directory)) / "extra" / "metadata"
  return json.loads(path.read_text())["checksums"]


class Campaign:
  """Runs a config undisturbed, then disturbed, and compares. See the docstring of the module."""

  def __init__(
    self,
    config: Any,
    workdir: pathlib.Path,
    *,
    faults: int,
    seed: int,
    processes: int = 1,
    kinds=KINDS,
  ):
    """config: of a short run with train.log_every=1. faults: how many; seed: of their kinds and
    times. Nothing may have used jax yet.
    """
    self.config, self.workdir, self.processes, self.kinds = config, workdir, processes, kinds
    self.wanted, self.random = faults, random.Random(seed)
    self.faults: list[Fault] = []
    self.starts = self.runs = 0
    self.cut: list[
      pathlib.Path
    ] = []  # files that were cut short; their checkpoints are bad for as long as they are there

  def start(self, workdir: pathlib.Path) -> Victim:
    """Another process (or group of them) that trains in `workdir`."""
    self.starts += 1
    return Victim(self.config, workdir, self.workdir / f"log-{self.starts}.txt", self.processes)

  def run(self) -> list[Fault]:
    """All faults. Raises CampaignFailed."""
    self.workdir.mkdir(parents=True)
    jax.config.update("jax_compilation_cache_dir", str(self.workdir / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    straight = self.workdir / "straight"
    self.finish(straight)
    self.expected = losses(straight)
    while len(self.faults) < self.wanted:
      self.runs += 1
      self.disturb(self.workdir / f"run-{self.runs}")
    return self.faults

  def finish(self, workdir: pathlib.Path) -> None:
    """Trains to the end, undisturbed."""
    victim = self.start(workdir)
    if any(victim.wait()):
      raise CampaignFailed(f"exit codes {victim.wait()} without a fault; see {victim.log}")

  def disturb(self, workdir: pathlib.Path) -> None:
    """One run from its start to its end, with faults until it has come to its end or there have
    been enough.
    """
    resumes = None  # the step that the next process must go on from
    while len(self.faults) < self.wanted:
      kind = self.random.choice(self.kinds)
      victim = self.start(workdir)
      try:
        struck = self.strike(kind, victim, workdir)
        began = time.monotonic()
        codes = victim.wait()
      finally:
        victim.end()
      if not any(codes):
        break  # it was faster
      if not struck:
        raise CampaignFailed(f"exit codes {codes} without a fault; see {victim.log}")
      seconds = time.monotonic() - began
      self.check(kind, victim, workdir, codes, resumes)
      resumes = self.newest_good(kind, workdir)
      reached = max(losses(workdir), default=0)
      self.faults.append(Fault(kind, reached, reached - (resumes or 0), seconds))
      log.info("%3d %s", len(self.faults), self.faults[-1])
    self.finish(workdir)
    self.compare(workdir, "the end")
    if len(losses(workdir)) != len(self.expected) or last_checksums(workdir) != last_checksums(
      self.workdir / "straight"
    ):
      raise CampaignFailed(f"{workdir} did not end as the undisturbed run; faults: {self.faults}")

  def strike(self, kind: str, victim: Victim, workdir: pathlib.Path) -> bool:
    """Waits for the moment and strikes one of the processes; False if the run was over before."""
    pid, draw = self.random.choice(victim.pids), self.random.random()
    steps = 1 + self.random.randrange(
      3 * self.config.train.save_every
    )  # not seconds: machines differ, and may be busy
    deadline = time.monotonic() + LIMIT
    while not self.is_moment(kind, steps, victim, workdir):
      if not victim.running():
        return False
      if time.monotonic() > deadline:
        raise CampaignFailed(f"no progress; see {victim.log}")
      time.sleep(0.002)
    time.sleep(draw * (4.0 if kind == "start" else 0.2))
    if not victim.running() or pid in victim.codes:
      return False
    if kind == "disk_full":
      resource.prlimit(pid, resource.RLIMIT_FSIZE, (LARGEST, resource.RLIM_INFINITY))
    else:
      os.kill(pid, signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
    return True

  def is_moment(self, kind: str, steps: int, victim: Victim, workdir: pathlib.Path) -> bool:
    """Whether the run is where a fault of this kind waits for it: some steps done, a save under
    way.
    """
    if kind == "start":
      return True
    if kind == "save" and not any(
      "tmp" in path.name for path in (workdir / "checkpoints").glob("*")
    ):
      return False
    return len(STEP.findall(victim.log.read_text())) >= steps

  def check(
    self, kind: str, victim: Victim, workdir: pathlib.Path, codes: list[int], resumes: int | None
  ) -> None:
    """Raises CampaignFailed if the victim went on from elsewhere than `resumes`, or has lost or
    changed something.
    """
    text, newest = victim.log.read_text(), train.latest_step(run.checkpoints(str(workdir)))
    found = CONTINUING.search(text)
    if found is None and resumes is not None and STEP.search(text):
      raise CampaignFailed(f"it began afresh, but there was checkpoint {resumes}; see {victim.log}")
    if found is not None and int(found[1]) != resumes:
      raise CampaignFailed(
        f"it went on from {found[1]}, but the newest good checkpoint was {resumes}; see"
        f" {victim.log}"
      )
    if (newest or 0) < (resumes or 0):
      raise CampaignFailed(
        f"after {kind} the newest checkpoint is {newest}, before it was {resumes}; see {victim.log}"
      )
    if (
      kind == "terminate"
      and set(codes) == {train.EXIT_PREEMPTED}
      and newest != max(losses(workdir))
    ):
      raise CampaignFailed(
        f"it ended with 42 at step {max(losses(workdir))}, but has saved {newest}; see {victim.log}"
      )
    if kind != "terminate" and not all(codes):
      raise CampaignFailed(
        f"exit codes {codes} after {kind}: one process was struck and another says that all is well"
      )
    if kind == "disk_full" and "Is the disk full" not in text:
      raise CampaignFailed(f"a full disk was not named as the reason; see {victim.log}")
    self.compare(workdir, f"{kind}, see {victim.log}")

  def compare(self, workdir: pathlib.Path, when: str) -> None:
    """Raises CampaignFailed if a loss on disk is not that of the undisturbed run."""
    for step, row in losses(workdir).items():
      if row != self.expected[step]:
        raise CampaignFailed(
          f"update {step} has (loss, grad_norm, param_norm) {row}, undisturbed"
          f" {self.expected[step]}: {when}"
        )

  def newest_good(self, kind: str, workdir: pathlib.Path) -> int | None:
    """The step of the newest checkpoint that can be read; after "truncate", once the newest of
    several has been cut short.
    """
    directory = pathlib.Path(run.checkpoints(str(workdir)))
    bad = {
      path.relative_to(directory).parts[0]
      for path in self.cut
      if path.is_relative_to(directory) and path.exists()
    }
    steps = [step for step in checkpoint.steps_in(str(directory)) if str(step) not in bad]
    if kind == "truncate" and len(steps) > 1:
      largest = max(
        (path for path in (directory / str(steps.pop())).rglob("*") if path.is_file()),
        key=os.path.getsize,
      )
      os.truncate(largest, os.path.getsize(largest) // 2)
      self.cut.append(largest)
    return max(steps, default=None)


def table(faults: Sequence[Fault]) -> str:
  """One line per kind: how many, most steps lost, longest time until all processes had ended."""
  lines = [f"{'fault':<10} {'times':>5} {'most steps lost':>15} {'longest end, s':>14}"]
  for kind in (*KINDS, "all"):
    some = [fault for fault in faults if kind in (fault.kind, "all")]
    if some:
      worst = max(fault.lost for fault in some), max(fault.seconds for fault in some)
      lines.append(f"{kind:<10} {len(some):>5} {worst[0]:>15} {worst[1]:>14.2f}")
  return "\n".join(lines)

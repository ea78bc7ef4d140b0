"""Systems in processes of their own, each on cores of its own: nothing of one counts in another."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from diffusion_text import train
from diffusion_text.train.multihost import everywhere, gather, is_alone

log = logging.getLogger(__name__)


def own_cores() -> list[int]:
  """The numbers of the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def leave_accelerator() -> None:
  """Keeps this process on the CPU, so that those that it starts find the accelerator free. Several
  processes start none and keep theirs.
  """
  if is_alone():
    jax.config.update("jax_platforms", "cpu")


def core_groups(jobs: int) -> list[list[int]]:
  """The cores of this process, shared out. Raises ValueError if there are fewer cores than jobs."""
  cores = own_cores()
  if not 1 <= jobs <= len(cores):
    raise ValueError(
      f"jobs={jobs} must be from 1 to {len(cores)}, the cores of this process: CPU time is to be"
      f" compared"
    )
  return [group.tolist() for group in np.array_split(cores, jobs)]


def _start(
  command: Sequence[str], directory: pathlib.Path, cores: Sequence[int]
) -> subprocess.Popen:
  directory.mkdir(parents=True, exist_ok=True)
  with (directory / "log.txt").open("a") as log:
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(process.pid, cores)  # long before XLA counts its cores; threads inherit it
  return process


def run_all(
  names: Sequence[str], workdir: pathlib.Path, command: Callable[[str], Sequence[str]], jobs: int
) -> dict[str, str]:
  """Runs `command(name)` for every system without results, `jobs` at a time, each on cores of its
  own. name -> why it failed.

  If this process is told to stop, so are they, and their training is saved.
  """
  free, running, failed = core_groups(jobs), {}, {}
  waiting = [name for name in names if not (workdir / name / "results.json").exists()]
  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(train.EXIT_PREEMPTED))
  try:
    while waiting or running:
      while waiting and free:
        name, cores = waiting.pop(0), free.pop(0)
        directory = workdir / name
        running[name] = _start(command(name), directory, cores), cores
        print(
          f"{name}: started on core{'s' * (len(cores) > 1)} {cores}, log in"
          f" {directory / 'log.txt'}",
          flush=True,
        )
      time.sleep(0.2)
      for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
        process, cores = running.pop(name)
        free.append(cores)
        if process.returncode:
          failed[name] = reason(workdir / name, process.returncode)
        print(f"{name}: " + (f"failed: {failed[name]}" if name in failed else "done"), flush=True)
  finally:
    for process, _ in running.values():
      process.terminate()
    for process, _ in running.values():
      process.wait()
    signal.signal(signal.SIGTERM, before)
  return failed


def run_together(
  names: Sequence[str], workdir: pathlib.Path, run_one: Callable[[str], None]
) -> dict[str, str]:
  """An empty mapping, as of `run_all`, once every system without results was measured by all
  processes of this run together, one system after the other.

  A system that fails ends the run: its processes may have failed at different places. The same
  command goes on where it ended.
  """
  for name in names:
    path = workdir / name / "results.json"
    there = gather(b"1" if path.exists() else b"")
    if not there[0]:  # process 0 writes results, and the others may see them later
      run_one(name)
      everywhere(True)  # the others read what process 0 has written
      log.info("%s: done", name)
  return {}


def reason(directory: pathlib.Path, code: int) -> str:
  """Why a system has no results: its own word, or the exit code of its process and the last line of
  its log.
  """
  path = directory / "failed.json"
  if path.exists():
    return json.loads(path.read_text())["error"]
  if code == train.EXIT_PREEMPTED:
    return "stopped, and saved; run the same command again to go on"
  last = (directory / "log.txt").read_text().strip().splitlines()[-1:]
  return (f"killed by signal {-code}" if code < 0 else f"exit code {code}") + "".join(
    f": {line}" for line in last
  )

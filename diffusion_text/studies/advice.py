"""Advice on what would make a machine faster. Each piece says what is seen, why it costs time, and
which command mends it. `studies.machine` reads the machine; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from diffusion_text.studies.machine import SLOW_SETTINGS, Machine

OLDEST_JAX = (0, 10)  # as in setup.py
# The first letters of file systems whose files come over a network or from another system.
DISTANT = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "fuse.gcsfuse", "fuse.s3fs", "drvfs", "ceph")
# Drivers of the clock whose rule "powersave" still raises the clock under load.
ADAPTIVE = ("intel_pstate", "amd-pstate")
FREE_DISK, FREE_MEMORY = 2.0, 2.0  # GiB; advice is given below

# A word of XLA_FLAGS -> why a run with it is slower.
SLOW_FLAGS = {
  "--xla_dump_to": "every program is written to disk, in many files",
  "--xla_backend_optimization_level=0": "programs are compiled quickly and run slowly",
  "--xla_cpu_multi_thread_eigen=false": "matmuls use one core",
}


class Advice(NamedTuple):
  """A thing to mend: what is seen, why it costs time, and the command that mends it."""

  seen: str
  why: str
  mend: str

  def __str__(self) -> str:
    return f"{self.seen}: {self.why}\n    {self.mend}"


def advice(machine: Machine) -> list[Advice]:
  """All advice on a machine; an empty list if nothing is found that slows it down."""
  return [each for check in CHECKS for each in check(machine)]


def _version(text: str) -> tuple[int, ...]:
  """The first two numbers of a version."""
  return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())


def accelerators(machine: Machine) -> Iterator[Advice]:
  """Advice on a GPU or TPU that the machine has and jax does not use."""
  chosen = machine.variables.get("JAX_PLATFORMS", "")
  for there, name, words in (
    (machine.nvidia, "gpu", ("gpu", "cuda")),
    (machine.tpu, "tpu", ("tpu",)),
  ):
    if not there or machine.backend in ("gpu", "tpu"):
      continue
    seen = f"a {name.upper()} is here, and jax computes on the {machine.backend}"
    if chosen and not set(words) & set(chosen.split(",")):
      yield Advice(seen, f"JAX_PLATFORMS={chosen} leaves it out", "unset JAX_PLATFORMS")
    elif name == "gpu":
      yield Advice(seen, *_cuda(machine))
    elif "libtpu" not in machine.versions:
      yield Advice(seen, "libtpu is not installed", "pip install -e '.[tpu]'")
    else:
      why = "libtpu is installed and found no chip that is free"
      yield Advice(seen, why, "fuser -v /dev/accel* /dev/vfio/*    # who holds the chips")


def _cuda(machine: Machine) -> tuple[str, str]:
  """(why jax does not use the GPU, what mends it)."""
  install = "pip install -U -e '.[cuda]'"
  own = machine.versions.get("jaxlib", "")
  found = {
    name: machine.versions[name]
    for name in ("jax-cuda13-plugin", "jax-cuda12-plugin")
    if name in machine.versions
  }
  if not found:
    return "jax's plugin for CUDA is not installed", install
  if own not in found.values():
    name, version = next(iter(found.items()))
    return f"{name} {version} is not of jaxlib {own}, so jax ignores it", install
  why = "its driver may be too old for the plugin (CUDA 13 needs 580), or all its memory taken"
  return why, "nvidia-smi; for an older driver: pip install -U -e '.[cuda12]'"


def old_versions(machine: Machine) -> Iterator[Advice]:
  """Advice on a jax that is older than the oldest one the tests pass with."""
  version = machine.versions.get("jax", "")
  if version and _version(version) < OLDEST_JAX:
    oldest = ".".join(map(str, OLDEST_JAX))
    why = f"the oldest that the tests pass with is {oldest}"
    yield Advice(f"jax {version}", why, "pip install -U -e .")


def processors(machine: Machine) -> Iterator[Advice]:
  """Advice on processors that this process leaves idle or shares with other programs."""
  usable, threads = machine.usable, machine.variables.get("NPROC", "")
  if machine.backend == "cpu" and usable < 0.9 * machine.cores and not threads:
    yield Advice(
      f"this process may use {usable:g} of {machine.cores} cores",
      "the affinity (taskset) or the control group (a container's --cpus) holds it back, while"
      " libraries start a thread for each core that they see",
      f"nproc; docker run --cpus={machine.cores} …; or, where that is meant to be so:"
      f" export NPROC={max(int(usable), 1)}",
    )
  if threads.isdecimal() and int(threads) < int(usable):
    why = "it is the number of threads of XLA on the CPU"
    yield Advice(f"NPROC={threads} of {usable:g} cores", why, "unset NPROC")
  if threads.isdecimal() and int(threads) > max(usable, 1):
    why = "XLA starts more threads than can run at once, and they wait for each other"
    yield Advice(f"NPROC={threads} on {usable:g} cores", why, "unset NPROC")
  if machine.backend == "cpu" and machine.devices > max(usable, 1):
    yield Advice(
      f"{machine.devices} devices on {usable:g} cores",
      "made by XLA_FLAGS or JAX_NUM_CPU_DEVICES for tests; they take turns, and sums between them"
      " are copies",
      "unset XLA_FLAGS JAX_NUM_CPU_DEVICES",
    )
  if machine.load > 1 + machine.usable / 2:  # 1 may be this process
    yield Advice(
      f"{machine.load:.1f} processes wanted {usable:g} cores in the last minute",
      "other programs take their share, and times that are measured now mean little",
      "top    # who they are",
    )
  driver, _, rule = machine.governor.partition(" ")
  if rule == "powersave" and not driver.startswith(ADAPTIVE):
    why = "the processors stay at their lowest clock"
    mend = "sudo cpupower frequency-set --governor performance"
    yield Advice(f"the clock is set by {machine.governor}", why, mend)


def settings(machine: Machine) -> Iterator[Advice]:
  """Advice on settings that make jax check, print or compile more than a run needs."""
  for name in machine.slow_settings:
    yield Advice(f"{name} is on", SLOW_SETTINGS[name], f"unset {name.upper()}")
  for word in machine.variables.get("XLA_FLAGS", "").split():
    for flag, why in SLOW_FLAGS.items():
      if word == flag or word.startswith(f"{flag}="):
        yield Advice(f"XLA_FLAGS has {word}", why, "unset XLA_FLAGS")
  if machine.backend == "gpu" and machine.variables.get("XLA_PYTHON_CLIENT_ALLOCATOR") == (
    "platform"
  ):
    why = "every array is allocated and freed by the driver"
    mend = "unset XLA_PYTHON_CLIENT_ALLOCATOR"
    yield Advice("XLA_PYTHON_CLIENT_ALLOCATOR=platform", why, mend)
  if not machine.bytecode:
    why = "each command compiles every Python file that it imports"
    yield Advice("PYTHONDONTWRITEBYTECODE is set", why, "unset PYTHONDONTWRITEBYTECODE")
  if not machine.compilations:
    why = "each command compiles its programs, also those that an earlier one has compiled"
    mend = "export JAX_COMPILATION_CACHE_DIR=~/.cache/jax"
    yield Advice("compiled programs are not kept", why, mend)


def places(machine: Machine) -> Iterator[Advice]:
  """Advice on folders, disks and memory."""
  elsewhere = "--config.data.cache_dir=FOLDER    # of experiments.train, on a disk of this machine"
  if not machine.token_folder_ok:
    why = "the text is tokenized there once, and no run can begin"
    yield Advice(f"{machine.token_folder} cannot be written", why, elsewhere)
  if machine.token_files.startswith(DISTANT):
    seen = f"{machine.token_folder} is on {machine.token_files}"
    yield Advice(seen, "rows are read from there in random order at every step", elsewhere)
  if machine.free_gib < FREE_DISK:
    seen = f"{machine.free_gib:.1f} GiB are free on this disk"
    yield Advice(seen, "a run that cannot save ends", "du -sh runs/*    # what takes room")
  if machine.available_gib < FREE_MEMORY:
    seen = f"{machine.available_gib:.1f} of {machine.memory_gib:.0f} GiB memory are free"
    yield Advice(seen, "what does not fit is swapped to disk, or ended", "top -o %MEM")


CHECKS: tuple[Callable[[Machine], Iterator[Advice]], ...] = (
  accelerators,
  old_versions,
  processors,
  settings,
  places,
)

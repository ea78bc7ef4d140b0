"""The properties of a machine that decide how fast jax runs on it. They are read here; `advice`
judges them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Mapping

import jax

from diffusion_text.experiment.control_groups import memory_bytes, processors, read
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.studies.jobs import own_cores

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")
# Settings of jax that are off unless somebody turned them on -> why a run with them is slower.
SLOW_SETTINGS = {
  "jax_debug_nans": "every compiled program is read back and searched for NaN before the next",
  "jax_debug_infs": "every compiled program is read back and searched for infinities",
  "jax_disable_jit": "nothing is compiled: every operation is a call from Python",
  "jax_enable_checks": "jax checks its own types at every operation that it traces",
  "jax_check_tracer_leaks": "every program is traced with a search for leaks, and not kept",
  "jax_enable_x64": "numbers without a type of their own take 64 bits: twice the memory traffic",
  "jax_disable_most_optimizations": "programs are compiled quickly and run slowly",
}
VARIABLES = ("NPROC", "XLA_FLAGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_ALLOCATOR")


@dataclasses.dataclass(frozen=True)
class Machine:
  """A machine and this process on it. The defaults describe a machine that needs no advice.

  Attributes:
    cores: processors of the machine.
    usable: processors that this process may use, by its affinity and its control group.
    load: processes that wanted a processor in the last minute, on average.
    governor: what sets the clock of the processors, as "acpi-cpufreq powersave"; "" if unknown.
    backend: what jax computes on: "cpu", "gpu" or "tpu".
    devices: how many of these devices jax has.
    nvidia, tpu: True if the system has files of such a device.
    versions: package -> version, of the PACKAGES that are installed.
    variables: name -> value, of the environment variables in VARIABLES that are set.
    slow_settings: the names in SLOW_SETTINGS that are on.
    bytecode: True if Python keeps the bytecode of the files that it imports.
    compilations: the folder in which jax keeps compiled programs; None: it keeps none.
    token_folder: the folder of token arrays.
    token_folder_ok: True if this folder can be written, or made.
    token_files: the kind of file system that this folder is on.
    free_gib: free space on the disk of the current folder.
    memory_gib: memory of the machine, or what the control group of this process allows.
    available_gib: the part of this memory that is free or can be freed.
  """

  cores: int = 8
  usable: float = 8.0
  load: float = 0.0
  governor: str = ""
  backend: str = "cpu"
  devices: int = 1
  nvidia: bool = False
  tpu: bool = False
  versions: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"jax": "0.10.2", "jaxlib": "0.10.2"}
  )
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
  slow_settings: tuple[str, ...] = ()
  bytecode: bool = True
  compilations: str | None = "~/.cache/jax"
  token_folder: str = "~/.cache/diffusion_text"
  token_folder_ok: bool = True
  token_files: str = "ext4"
  free_gib: float = 100.0
  memory_gib: float = 32.0
  available_gib: float = 24.0


def look(root: pathlib.Path = pathlib.Path("/")) -> Machine:
  """This machine. root: where its system files are."""
  cores = os.cpu_count() or 1
  memory, available = memory_bytes(root)
  tokens = os.path.expanduser(DataSettings().cache_dir)
  mounts = read(root / "proc/self/mountinfo") or ""
  return Machine(
    cores=cores,
    usable=min(len(own_cores()), processors(root)),
    load=os.getloadavg()[0],
    governor=governor(root),
    backend=jax.default_backend(),
    devices=jax.device_count(),
    nvidia=(root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists(),
    tpu=any((root / "dev").glob("accel*")) or (root / "dev/vfio/0").exists(),
    versions=versions(),
    variables={name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
    slow_settings=tuple(name for name in SLOW_SETTINGS if getattr(jax.config, name, False)),
    bytecode=not sys.dont_write_bytecode,
    compilations=jax.config.jax_compilation_cache_dir,
    token_folder=tokens,
    token_folder_ok=can_write(pathlib.Path(tokens)),
    token_files=file_system(mounts, tokens),
    free_gib=shutil.disk_usage(".").free / 2**30,
    memory_gib=memory / 2**30,
    available_gib=available / 2**30,
  )


def governor(root: pathlib.Path) -> str:
  """What sets the clock of the first processor, and by which rule; "" if unknown."""
  folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
  names = ("scaling_driver", "scaling_governor")
  return " ".join(text for name in names if (text := read(folder / name)))


def versions() -> dict[str, str]:
  """The version of each package of jax that is installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def file_system(mounts: str, path: str) -> str:
  """The kind of file system that a path is on, by the lines of /proc/self/mountinfo; "" if
  unknown.
  """
  best, kind = "", ""
  for line in mounts.splitlines():
    before, _, after = line.partition(" - ")
    place = before.split()[4].replace("\\040", " ")
    inside = os.path.commonpath([place, os.path.abspath(path)]) == place
    if inside and len(place) >= len(best):  # of two mounts of one place the later is on top
      best, kind = place, after.split()[0]
  return kind


def can_write(folder: pathlib.Path) -> bool:
  """True if a file can be written in a folder, or in the nearest above it that is there."""
  while not folder.exists() and folder != folder.parent:
    folder = folder.parent
  try:
    with tempfile.NamedTemporaryFile(dir=folder):
      return True
  except OSError:
    return False

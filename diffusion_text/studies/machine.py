"""What a machine is like, as far as it decides how fast jax runs on it: read here, judged in
`advice`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Mapping

import jax

from diffusion_text.experiment.settings import DataSettings

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")
# Settings of jax that check or print more than a run needs; each is off unless somebody set it.
DEBUGGING = (
  "jax_debug_nans",
  "jax_debug_infs",
  "jax_disable_jit",
  "jax_enable_checks",
  "jax_check_tracer_leaks",
  "jax_enable_x64",
  "jax_disable_most_optimizations",
)
VARIABLES = ("NPROC", "XLA_FLAGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_ALLOCATOR")


@dataclasses.dataclass(frozen=True)
class Machine:
  """A machine and the process on it. The defaults are a machine of which nothing is to be mended.

  Attributes:
    cores: processors that the machine shows.
    usable: processors that this process may use, by its affinity and its control group.
    load: processes that wanted a processor in the last minute, on average.
    governor: what sets the clock of the processors, as "acpi-cpufreq powersave"; "" if unknown.
    backend, devices: what jax computes on.
    nvidia, tpu: True where files of such a device are there.
    versions: of the packages of jax that are installed.
    variables: those of VARIABLES that are set.
    debugging: the settings of DEBUGGING that are on.
    bytecode: True where Python keeps what it has compiled.
    compilations: where jax keeps compiled programs; None: nowhere.
    token_folder, token_files: where token arrays are kept, and on what kind of file system.
    token_folder_ok: True where that folder can be written, or made.
    free_gib: of the disk of the current folder.
    memory_gib, available_gib: memory of this process, by the machine and its control group.
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
  debugging: tuple[str, ...] = ()
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
  memory, available = memory_gib(root)
  tokens = os.path.expanduser(DataSettings().cache_dir)
  mounts = _read(root / "proc/self/mountinfo") or ""
  return Machine(
    cores=cores,
    usable=min(len(os.sched_getaffinity(0)) if _has_affinity() else cores, quota(root)),
    load=os.getloadavg()[0],
    governor=governor(root),
    backend=jax.default_backend(),
    devices=jax.device_count(),
    nvidia=(root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists(),
    tpu=any((root / "dev").glob("accel*")) or (root / "dev/vfio/0").exists(),
    versions=versions(),
    variables={name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
    debugging=tuple(name for name in DEBUGGING if getattr(jax.config, name, False)),
    bytecode=not sys.dont_write_bytecode,
    compilations=jax.config.jax_compilation_cache_dir,
    token_folder=tokens,
    token_folder_ok=can_write(pathlib.Path(tokens)),
    token_files=file_system(mounts, tokens),
    free_gib=shutil.disk_usage(".").free / 2**30,
    memory_gib=memory,
    available_gib=available,
  )


def _has_affinity() -> bool:
  return sys.platform == "linux"


def _read(path: pathlib.Path) -> str | None:
  """The text of a file of the system; None where there is none, or none for us."""
  try:
    return path.read_text().strip()
  except OSError:
    return None


def groups(root: pathlib.Path) -> dict[str, str]:
  """The control groups of this process: controller -> path, "" for those of version 2."""
  found = {}
  for line in (_read(root / "proc/self/cgroup") or "").splitlines():
    _, controllers, path = line.split(":", 2)
    found.update((controller, path.strip("/")) for controller in controllers.split(","))
  return found


def _levels(base: pathlib.Path, path: str) -> list[pathlib.Path]:
  """The folders of a control group and of those that it is in; a limit of any of them counts.

  In a container the group's own folder is `base`, whatever its path outside is.
  """
  parts = pathlib.PurePath(path).parts
  return [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def quota(root: pathlib.Path) -> float:
  """Processors that the control groups of this process allow; inf without a limit."""
  base, found, limits = root / "sys/fs/cgroup", groups(root), [math.inf]
  for folder in _levels(base, found.get("", "")):
    words = (_read(folder / "cpu.max") or "max").split()
    if words[0] != "max":
      limits.append(float(words[0]) / float(words[1]))
  for folder in _levels(base / "cpu", found.get("cpu", "")):
    allowed = float(_read(folder / "cpu.cfs_quota_us") or -1)
    if allowed > 0:
      limits.append(allowed / float(_read(folder / "cpu.cfs_period_us") or 1e5))
  return min(limits)


def memory_gib(root: pathlib.Path) -> tuple[float, float]:
  """(memory, what of it is free or can be freed), GiB, of the machine and its control groups."""
  lines = (_read(root / "proc/meminfo") or "").splitlines()
  sizes = {line.partition(":")[0]: float(line.split()[1]) / 2**20 for line in lines}
  whole, free = sizes.get("MemTotal", math.inf), sizes.get("MemAvailable", math.inf)
  base, found = root / "sys/fs/cgroup", groups(root)
  places = [(each, "memory.max", "memory.current") for each in _levels(base, found.get("", ""))]
  names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
  places += [(each, *names) for each in _levels(base / "memory", found.get("memory", ""))]
  for folder, limit, used in places:
    text = _read(folder / limit)
    if text and text != "max" and int(text) / 2**30 < whole:
      whole = int(text) / 2**30
      taken = int(_read(folder / used) or 0) - _of_files(folder)
      free = min(free, whole - taken / 2**30)
  return whole, free


def _of_files(folder: pathlib.Path) -> int:
  """Bytes of a control group that hold files which nobody has read lately: given up on demand."""
  lines = (_read(folder / "memory.stat") or "").splitlines()
  counts = dict(line.split() for line in lines)
  return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def governor(root: pathlib.Path) -> str:
  """What sets the clock of the first processor, and by which rule; "" if unknown."""
  folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
  names = ("scaling_driver", "scaling_governor")
  return " ".join(text for name in names if (text := _read(folder / name)))


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

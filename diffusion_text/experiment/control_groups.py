"""The processors and the memory that the operating system allows this process, by the limits of its
control groups (such as those of a container), of version 1 and 2.

root, in every function: the folder that the files of the system are read from.
"""

from __future__ import annotations

import math
import os
import pathlib

ROOT = pathlib.Path("/")


def read(path: pathlib.Path) -> str | None:
  """The text of a file of the system; None if it is missing or may not be read."""
  try:
    return path.read_text().strip()
  except OSError:
    return None


def groups(root: pathlib.Path = ROOT) -> dict[str, str]:
  """The control groups of this process: controller -> path. The one group of version 2 has the
  controller "".
  """
  found = {}
  for line in (read(root / "proc/self/cgroup") or "").splitlines():
    _, controllers, path = line.split(":", 2)
    found.update((controller, path.strip("/")) for controller in controllers.split(","))
  return found


def _levels(base: pathlib.Path, path: str) -> list[pathlib.Path]:
  """The folder of a control group and the folders around it; a limit in any of them holds.

  In a container the folder of the group is `base`, whatever its path outside is.
  """
  parts = pathlib.PurePath(path).parts
  return [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def processors(root: pathlib.Path = ROOT) -> float:
  """The number of processors that the control groups allow; inf without a limit."""
  base, found, limits = root / "sys/fs/cgroup", groups(root), [math.inf]
  for folder in _levels(base, found.get("", "")):
    words = (read(folder / "cpu.max") or "max").split()
    if words[0] != "max":
      limits.append(float(words[0]) / float(words[1]))
  for folder in _levels(base / "cpu", found.get("cpu", "")):
    allowed = float(read(folder / "cpu.cfs_quota_us") or -1)
    if allowed > 0:
      limits.append(allowed / float(read(folder / "cpu.cfs_period_us") or 1e5))
  return min(limits)


def memory_bytes(root: pathlib.Path = ROOT) -> tuple[float, float]:
  """(memory, the part of it that is free or can be freed), in bytes, of the machine or, where a
  control group allows less, of the group; inf where it is not known.
  """
  lines = (read(root / "proc/meminfo") or "").splitlines()
  sizes = {line.partition(":")[0]: 1024 * float(line.split()[1]) for line in lines}
  whole, free = sizes.get("MemTotal", _installed()), sizes.get("MemAvailable", math.inf)
  base, found = root / "sys/fs/cgroup", groups(root)
  places = [(each, "memory.max", "memory.current") for each in _levels(base, found.get("", ""))]
  names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
  places += [(each, *names) for each in _levels(base / "memory", found.get("memory", ""))]
  for folder, limit, used in places:
    text = read(folder / limit)
    if text and text != "max" and int(text) < whole:
      whole = float(text)
      free = min(free, whole - int(read(folder / used) or 0) + _of_files(folder))
  return whole, free


def _installed() -> float:
  """Bytes of memory of the machine where there is no /proc/meminfo; inf where it is not known."""
  try:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
  except (ValueError, OSError):
    return math.inf


def _of_files(folder: pathlib.Path) -> int:
  """Bytes of a control group that hold files nobody has read lately; others may take them."""
  lines = (read(folder / "memory.stat") or "").splitlines()
  counts = dict(line.split() for line in lines)
  return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))

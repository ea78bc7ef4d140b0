"""Each piece of advice on a machine that needs it, and none on one that does not."""

import dataclasses
import pathlib
import re

import pytest

from diffusion_text.studies.advice import OLDEST_JAX, advice
from diffusion_text.studies.machine import SLOW_SETTINGS, Machine, file_system, look
from tests.conftest import ROOT

CUDA = {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda13-plugin": "0.10.2"}


def test_a_machine_that_lacks_nothing_gets_no_advice():
  assert advice(Machine()) == []
  assert advice(Machine(backend="gpu", nvidia=True, versions=CUDA, devices=8)) == []
  assert advice(Machine(backend="tpu", tpu=True, devices=4)) == []
  assert advice(Machine(governor="intel_pstate powersave")) == []
  assert advice(Machine(usable=2.0, variables={"NPROC": "2"})) == []  # as advised


@pytest.mark.parametrize(
  "what, seen, why, mend",
  [
    ({"nvidia": True}, "a GPU is here", "plugin .* not installed", "pip .*cuda"),
    (
      {"nvidia": True, "versions": {**CUDA, "jax-cuda13-plugin": "0.9.1"}},
      *("a GPU is here", "jax-cuda13-plugin 0.9.1 is not of jaxlib 0.10.2", "pip .*cuda"),
    ),
    ({"nvidia": True, "versions": CUDA}, "a GPU", "driver may be too old", "^nvidia-smi; .*cuda12"),
    (
      {"nvidia": True, "versions": CUDA, "variables": {"JAX_PLATFORMS": "cpu"}},
      *("a GPU", "JAX_PLATFORMS=cpu leaves it out", "unset JAX_PLATFORMS"),
    ),
    ({"tpu": True}, "a TPU is here", "libtpu is not installed", "pip .*tpu"),
    ({"tpu": True, "versions": {"libtpu": "0.0.52"}}, "a TPU", "no chip that is free", "fuser"),
    ({"versions": {"jax": "0.9.2"}}, r"jax 0\.9\.2", r"oldest .* is 0\.10", "pip install -U"),
    ({"usable": 2.5}, "2.5 of 8 cores", "control group", "export NPROC=2$"),
    ({"variables": {"NPROC": "1"}}, "NPROC=1 of 8 cores", "threads", "unset NPROC"),
    ({"variables": {"NPROC": "16"}}, "NPROC=16 on 8", "more threads than can run", "unset NPROC"),
    ({"devices": 16}, "16 devices on 8 cores", "take turns", "unset XLA_FLAGS"),
    ({"load": 6.2}, r"6\.2 processes wanted 8 cores", "other programs", "^top"),
    ({"governor": "acpi-cpufreq powersave"}, "powersave", "lowest clock", "performance$"),
    (
      {"variables": {"XLA_FLAGS": "--xla_dump_to=/tmp/x --xla_other"}},
      *("--xla_dump_to=/tmp/x", "written to disk", "unset XLA_FLAGS"),
    ),
    (
      {"backend": "gpu", "variables": {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}},
      *("ALLOCATOR=platform", "by the driver", "unset XLA_PYTHON_CLIENT_ALLOCATOR"),
    ),
    ({"bytecode": False}, "DONTWRITEBYTECODE", "compiles every Python file", "unset PYTHONDONT"),
    ({"compilations": None}, "not kept", "compiles its programs", "JAX_COMPILATION_CACHE_DIR="),
    ({"token_folder_ok": False}, "cannot be written", "no run can begin", "data.cache_dir="),
    ({"token_files": "nfs4"}, "is on nfs4", "every step", "data.cache_dir="),
    ({"free_gib": 0.5}, r"0\.5 GiB are free", "cannot save", "^du"),
    ({"available_gib": 1.0}, r"1\.0 of 32 GiB memory", "swapped", "^top"),
    *(
      ({"slow_settings": (name,)}, f"{name} is on", re.escape(why), f"unset {name.upper()}")
      for name, why in SLOW_SETTINGS.items()
    ),
  ],
)
def test_what_costs_time_is_said_with_its_mending(what, seen, why, mend):
  (found,) = advice(dataclasses.replace(Machine(), **what))
  for text, pattern in zip(found, (seen, why, mend)):
    assert re.search(pattern, text), (text, pattern)


def test_the_oldest_jax_is_that_of_setup():
  assert f'"jax>={".".join(map(str, OLDEST_JAX))}"' in (ROOT / "setup.py").read_text()


def files(root: pathlib.Path, texts):
  for path, text in texts.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


MEMORY = "MemTotal: 33554432 kB\nMemAvailable: 25165824 kB\n"


def test_limits_of_both_kinds_of_control_groups_are_read(tmp_path):
  """The tightest of a group and of those around it; files that it caches are free memory."""
  group = tmp_path / "two"
  files(
    group,
    {
      "proc/self/cgroup": "0::/user/job\n",
      "proc/meminfo": MEMORY,
      "sys/fs/cgroup/user/cpu.max": "150000 100000\n",
      "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
      "sys/fs/cgroup/user/job/memory.max": str(8 * 2**30),
      "sys/fs/cgroup/user/job/memory.current": str(7 * 2**30),
      "sys/fs/cgroup/user/job/memory.stat": f"anon 3\ninactive_file {2 * 2**30}\n",
      "dev/nvidia0": "",
      "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq\n",
      "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    },
  )
  machine = look(group)
  assert machine.usable <= 1.5 and (machine.memory_gib, machine.available_gib) == (8.0, 3.0)
  assert machine.nvidia and not machine.tpu and machine.governor == "acpi-cpufreq powersave"
  old = tmp_path / "one"
  files(
    old,
    {
      "proc/self/cgroup": "3:cpu,cpuacct:/job\n2:memory:/job\n",
      "proc/meminfo": MEMORY,
      "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",  # a container sees its own group here
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
      "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2**62),  # none
      "dev/accel0": "",
    },
  )
  machine = look(old)
  assert machine.usable == 0.5 and (machine.memory_gib, machine.available_gib) == (32.0, 24.0)
  assert machine.tpu and not machine.nvidia


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount():
  line = "{} 1 0:1 / {} rw - {} source rw"
  mounts = "\n".join(
    line.format(number, *each)
    for number, each in enumerate([("/", "ext4"), ("/home", "nfs4"), ("/home/a\\040b", "xfs")])
  )
  assert file_system(mounts, "/homes/x") == "ext4"
  assert file_system(mounts, "/home/x") == "nfs4"
  assert file_system(mounts, "/home/a b/x") == "xfs"
  assert file_system("", "/home") == ""

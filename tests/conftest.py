"""One setting for every test: CPU with 8 virtual devices, strict numerics, and a compilation cache
that survives runs.
"""

import functools
import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
  os.environ.setdefault("NPROC", "1")  # XLA's threads: workers share the cores out among themselves

import jax
import pytest
from jax.extend.mlir import ir
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (found by its name, below)

# Shapes and types in signatures are checked at every call of these rooms, before any of them is
# imported.
CHECKED = ("core", "schedules", "timing", "context", "process", "objective", "contrib")
CHECKED = (*CHECKED, "reader", "model", "sampler", "kernels")
install_import_hook([f"diffusion_text.{room}" for room in CHECKED], "tests.typecheck.checker")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Tests compile much and run little: XLA's older emitters take half the time, and a program that is
# not cut into parts for several threads takes a sixth less. Other versions may not know the flags.
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
FLAGS = FLAGS if jax.__version__.startswith("0.10.") else ""


def of_one_thread(context, pool):
  """Nothing; the context, into which one program is lowered, needs no locks between threads."""
  del pool
  context.enable_multithreading(False)


# JAX keeps the context of each program, made for many threads. So kept, they slow each other, and
# the compiler with them: the 900th program of a process took twice as long as the first.
ir.Context.set_thread_pool = of_one_thread

jax.config.update("jax_num_cpu_devices", 8)
# What is small is done sooner than handed over.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_rank_promotion", "allow")
jax.config.update("jax_disable_most_optimizations", True)  # a fifth of the time
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
# Also what compiles in a blink: the other worker and the commands that tests start ask for the same
# programs, and one that is read again takes a third of the time.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{given} {FLAGS}".strip()
# reads the flags, which must be gone before libtpu is loaded: it ends the process over one that it
# does not know
jax.devices()
os.environ["XLA_FLAGS"] = given


def environment(home, as_shipped: bool = False) -> dict[str, str]:
  """Of commands that tests start: one CPU device, compiled as here or as users have it, a cache
  that they share, a home of their own.
  """
  inherited = {
    name: value for name, value in os.environ.items() if name != "NPROC" or not as_shipped
  }
  compiler = (
    {"XLA_FLAGS": ""} if as_shipped else {"XLA_FLAGS": FLAGS, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  )
  return {
    **inherited,
    **{"JAX_PLATFORMS": "cpu", "HOME": str(home), **compiler},
    **{
      "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
  }


# For programs that run longer than they compile.
jit_well = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})


def pytest_collection_finish():
  """Cycles are looked for seldom, and never among what the imports left: a fortieth of the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


def mappings() -> int:
  """How many pieces of memory this process has mapped; compiled programs take several each."""
  maps = pathlib.Path("/proc/self/maps")
  return len(maps.read_bytes().splitlines()) if maps.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
  """Linux allows a process 65,530 mappings by default; a worker came to 58,000, and past the limit
  the next program ends it.
  """
  yield
  if mappings() > 20_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  """The repository."""
  return ROOT


# How many programs each test compiles: most of the time of a run, however small the programs are.
COMPILED = "/jax/core/compile/backend_compile_duration"
PROGRAMS = {}  # name of a test -> [number, seconds]
CURRENT = [""]


def _add(name: str, number: int, seconds: float, table: dict[str, list] = PROGRAMS) -> None:
  row = table.setdefault(name, [0, 0.0])
  row[0], row[1] = row[0] + number, row[1] + seconds


def _count(event: str, seconds: float, **_) -> None:
  if event == COMPILED:
    _add(CURRENT[0], 1, seconds)


jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_runtest_setup(item):
  """Programs are counted for the test that runs."""
  CURRENT[0] = item.nodeid


def pytest_sessionfinish(session):
  """A worker hands its counts to the process that reports."""
  output = getattr(session.config, "workeroutput", None)
  if output is not None:
    output["programs"] = PROGRAMS


def pytest_testnodedown(node, error):
  """The counts of a worker are added to those of the others."""
  del error
  for name, row in getattr(node, "workeroutput", {}).get("programs", {}).items():
    _add(name, *row)


def pytest_terminal_summary(terminalreporter):
  """The ten files and the ten tests that compile most."""
  files = {}
  for name, row in PROGRAMS.items():
    _add(name.partition("::")[0], *row, files)
  for title, table in (("files", files), ("tests", PROGRAMS)):
    worst = sorted(table.items(), key=lambda item: -item[1][0])[:10]
    if worst:
      total = sum(number for number, _ in table.values())
      terminalreporter.write_sep("=", f"{total} programs compiled; the {title} with most")
    for name, (number, seconds) in worst:
      terminalreporter.write_line(f"{number:6} programs, {seconds:6.1f} s  {name}")

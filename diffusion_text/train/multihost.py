"""Several processes: how they find each other, agree on things, and end together. The engine is JAX's own (`jax.distributed`).

Everything here is also right for one process, at no cost.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import jax
import numpy as np

T = TypeVar("T")
EXIT_LOST = 43  # another process has ended: no fault of this one, and a launcher that knows of a preemption may start all again
UNFINISHED = 5.0  # seconds that a failing process waits for the others to leave with it


def connect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  start_timeout: int = 300,
  heartbeat_timeout: int = 100,
) -> None:
  """Joins the other processes of this run, before any computation; does nothing where there is only this one.

  Args:
    coordinator: host:port of process 0. num_processes, process_id: of this run. Give all three, or none: then JAX looks for a TPU VM,
      GKE, SLURM or Open MPI. num_processes=1 alone does not look.
    start_timeout: seconds until all must be here. heartbeat_timeout: seconds without a sign of life after which a process counts as
      dead; JAX then ends all others with an error.

  Raises:
    ValueError: if only some of the three are given, or they do not fit together.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  if num_processes == 1 and coordinator is None and not process_id:
    return
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if len(missing) in (1, 2):
    raise ValueError(
      f"{', '.join(missing)} missing: give --coordinator=host:port, --num_processes and "
      "--process_id, or none of them"
    )
  if not missing and not 0 <= process_id < num_processes:
    raise ValueError(
      f"--process_id={process_id} must be 0 … {num_processes - 1}, as "
      f"--num_processes={num_processes}"
    )
  if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
    raise ValueError(f"--coordinator={coordinator} has no port; use host:port, as in 10.0.0.2:8476")
  timeouts = {
    "initialization_timeout": start_timeout,
    "heartbeat_timeout_seconds": heartbeat_timeout,
  }
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, shutdown_timeout_seconds=heartbeat_timeout, **timeouts
    )
  except ValueError:
    if not missing:
      raise
    # Nothing was found: this is one process on one machine.
  except (
    jax.errors.JaxRuntimeError
  ) as error:  # nothing that asks JAX for its processes may run any more
    print(
      f"error: not all processes were here after {start_timeout} s: {error}",
      file=sys.stderr,
      flush=True,
    )
    os._exit(EXIT_LOST)


def check_alone() -> None:
  """Raises ValueError if SLURM or Open MPI have started several of what is a command of one process."""
  for variable in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    if int(os.environ.get(variable, "1")) > 1:
      raise ValueError(
        f"this command is one process, but {variable}={os.environ[variable]}; start it once, as in "
        "srun --ntasks=1"
      )


def is_first() -> bool:
  """Whether this is the process that speaks and writes for all."""
  return (
    jax.process_index() == 0 if jax.distributed.is_initialized() else True
  )  # without touching the devices, if it is alone


def verdict(error: Exception, refused: bool) -> tuple[str, int]:
  """(message, exit code) of an error that ends this process: whose it is, and whether it may be the end of another process.

  refused: it is one of those that tell the user what to change. Exit code 2 for these, EXIT_LOST where a collective failed and memory
  and arguments are not to blame, else 1.
  """
  if not (jax.distributed.is_initialized() and jax.process_count() > 1):
    return str(error), 2 if refused else 1
  message = f"process {jax.process_index()} of {jax.process_count()}: {error}"
  lost: BaseException | None = error
  while lost is not None and not isinstance(lost, jax.errors.JaxRuntimeError):
    lost = lost.__cause__  # a save that could not meet the others, say
  if lost is not None and not str(lost).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")):
    return (
      f"{message}. If the others were fine until now, one of them has ended: what it printed last "
      "says why",
      EXIT_LOST,
    )
  return message, 2 if refused else 1


def gather(content: bytes) -> list[bytes]:
  """`content` of every process, in their order; all must call it."""
  if jax.process_count() == 1:
    return [content]
  from jax.experimental import multihost_utils

  lengths = multihost_utils.process_allgather(np.array(len(content)))
  padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
  padded[: len(content)] = np.frombuffer(content, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [rows[i, : int(n)].tobytes() for i, n in enumerate(lengths)]


def everywhere(ok: bool) -> bool:
  """Whether it is so on every process; all must call it."""
  return all(gather(b"1" if ok else b"")) if jax.process_count() > 1 else ok


def together(
  work: Callable[[], T], errors: tuple[type[Exception], ...] = (ValueError, OSError)
) -> T:
  """`work()`, which must not communicate with the others; if it fails with one of `errors` anywhere, it fails on all processes.

  Raises:
    ValueError: on every process, with the message of the first that failed, and which that was.
  """
  if jax.process_count() == 1:
    return work()
  try:
    result, told = work(), b""
  except errors as error:
    result, told = None, f"{error}".encode() or b"?"
  failed = {process: text for process, text in enumerate(gather(told)) if text}
  if failed:
    first = min(failed)
    which = (
      "every process"
      if len(failed) == jax.process_count()
      else f"process {first} of {jax.process_count()}"
    )
    raise ValueError(f"{which}: {failed[first].decode()}")
  return result


def check_same(values: Mapping[str, str]) -> None:
  """All must call it. Raises ValueError, on every process, if one of the values differs between processes."""
  if jax.process_count() == 1:
    return
  for name, value in values.items():
    found = gather(value.encode())
    if len(set(found)) > 1:
      other = next(process for process, text in enumerate(found) if text != found[0])
      shown = [text.decode()[:200] for text in (found[0], found[other])]
      raise ValueError(
        f"the processes of a run must agree, but {name} is {shown[0]!r} on process 0 and "
        f"{shown[1]!r} on process {other};"
        " start all with the same command, files and versions"
      )


def leave(code: int) -> NoReturn:
  """Ends this process, after a failure, whatever the others do: they may wait for it in the middle of a step."""
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.distributed.is_initialized():
    # If all fail alike they leave in peace; if only this one does, the others learn of it because it is gone.
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(UNFINISHED)
    os._exit(code)
  sys.exit(code)


class Watchdog:
  """Ends this process if it is not heard of for `seconds`: a collective waits for ever for a process that is stuck but alive.

  `with Watchdog(600) as watch`, then `watch.alive(step)` at least every 600 s. None watches nothing.
  """

  def __init__(self, seconds: float | None, *, give_up: Callable[[int], None] = os._exit):
    """give_up: called with exit code 1; tests bring their own."""
    if seconds is not None and not seconds > 0:
      raise ValueError(f"stall_seconds={seconds} must be above 0; None waits for ever")
    self._seconds, self._give_up = seconds, give_up
    self._news, self._done, self._step = threading.Event(), False, 0

  def alive(self, step: int) -> None:
    """Starts the time again."""
    self._step = step
    self._news.set()

  def __enter__(self) -> Watchdog:
    if self._seconds is not None:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._done = True
    self._news.set()

  def _watch(self) -> None:
    while not self._done:
      if not self._news.wait(self._seconds):
        print(
          f"error: process {jax.process_index()} of {jax.process_count()} has made no progress for "
          f"{self._seconds:g} s after step"
          f" {self._step}: it, another process or the disk is stuck. Ending. Where it stands:",
          file=sys.stderr,
          flush=True,
        )
        faulthandler.dump_traceback(sys.stderr)
        self._give_up(1)
        return
      self._news.clear()

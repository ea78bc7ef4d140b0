"""Several processes: how they connect, agree and end together, on top of `jax.distributed`.

All functions also work with one process, at no cost.
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
# Another process has ended. A launcher that knows of a preemption may start all processes again.
EXIT_LOST = 43
# How messages of the runtime begin when a collective has failed for want of another process.
LOST = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "INTERNAL")
LOST = (*LOST, "UNAVAILABLE", "UNKNOWN")
UNFINISHED = 5.0  # seconds that a failing process waits for the others to leave with it


def connect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  start_timeout: int = 300,
  heartbeat_timeout: int = 100,
) -> None:
  """Joins the other processes of this run. Must be called before any computation.

  Without coordinator, num_processes and process_id, JAX looks for a TPU VM, GKE, SLURM or Open MPI.
  Nothing happens if this process is the only one.

  Args:
    coordinator: host:port of process 0.
    num_processes: Number of processes of the run. 1 alone: nothing is looked for.
    process_id: The number of this process.
    start_timeout: Seconds in which all processes must have joined.
    heartbeat_timeout: Seconds without a sign of life after which a process counts as dead. JAX then
      ends all others with an error.

  Raises:
    ValueError: If only some of the first three arguments are set, or if they do not fit together.
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
  except jax.errors.JaxRuntimeError as error:
    # No code that asks JAX for its processes may run from here on.
    print(
      f"error: not all processes were here after {start_timeout} s: {error}",
      file=sys.stderr,
      flush=True,
    )
    os._exit(EXIT_LOST)


def check_alone() -> None:
  """Raises ValueError if SLURM or Open MPI have started a command of one process several times."""
  for variable in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    if int(os.environ.get(variable, "1")) > 1:
      raise ValueError(
        f"this command is one process, but {variable}={os.environ[variable]}; "
        "start it once, as in srun --ntasks=1"
      )


def is_first() -> bool:
  """True on process 0, which prints and writes for all processes."""
  # A single process is recognised without touching its devices.
  return jax.process_index() == 0 if jax.distributed.is_initialized() else True


def is_alone() -> bool:
  """True if this run is one process, which is found out without touching its devices."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def verdict(error: Exception, refused: bool) -> tuple[str, int]:
  """(message, exit code) of an error that ends this process.

  The message names the process, and says if the cause may be the end of another process. The exit
  code is EXIT_LOST if a collective failed for another reason than memory or arguments, otherwise 2
  for a refused input and 1 for anything else.

  Args:
    error: The error.
    refused: True for an error that tells the user what to change.
  """
  if is_alone():
    return str(error), 2 if refused else 1
  message = f"process {jax.process_index()} of {jax.process_count()}: {error}"
  lost: BaseException | None = error
  while lost is not None and not _of_collective(lost):
    lost = lost.__cause__  # for example of a save that could not reach the others
  if lost is not None:
    return (
      f"{message}. If the others were fine until now, one of them has ended: what it printed last "
      "says why",
      EXIT_LOST,
    )
  return message, 2 if refused else 1


def _of_collective(error: BaseException) -> bool:
  """True for an error of the runtime that is neither of memory nor of arguments.

  While arrays are gathered, JAX raises some of these as ValueError, with the same message.
  """
  if isinstance(error, jax.errors.JaxRuntimeError):
    return not str(error).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"))
  return isinstance(error, ValueError) and str(error).partition(": ")[0] in LOST


def gather(content: bytes) -> list[bytes]:
  """`content` of every process, in their order. All processes must call it."""
  if jax.process_count() == 1:
    return [content]
  from jax.experimental import multihost_utils

  lengths = multihost_utils.process_allgather(np.array(len(content)))
  padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
  padded[: len(content)] = np.frombuffer(content, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [rows[i, : int(n)].tobytes() for i, n in enumerate(lengths)]


def everywhere(ok: bool) -> bool:
  """True if `ok` is True on every process. All processes must call it."""
  return all(gather(b"1" if ok else b"")) if jax.process_count() > 1 else ok


def together(
  work: Callable[[], T], errors: tuple[type[Exception], ...] = (ValueError, OSError)
) -> T:
  """The result of `work()`, which must not communicate with other processes.

  If `work()` fails with one of `errors` on any process, all processes fail.

  Raises:
    ValueError: On every process, with the number and the message of the first that failed.
  """
  if jax.process_count() == 1:
    return work()
  try:
    result = work()
    message = b""
  except errors as error:
    result = None
    message = f"{error}".encode() or b"?"
  failed = {process: text for process, text in enumerate(gather(message)) if text}
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
  """Raises ValueError, on every process, if one of the values differs between processes.

  All processes must call it.
  """
  if jax.process_count() == 1:
    return
  for name, value in values.items():
    found = gather(value.encode())
    if len(set(found)) > 1:
      other = next(process for process, text in enumerate(found) if text != found[0])
      shown = [text.decode()[:200] for text in (found[0], found[other])]
      raise ValueError(
        f"the processes of a run must agree, but {name} is {shown[0]!r} on process 0 and "
        f"{shown[1]!r} on process {other}; start all with the same command, files and versions"
      )


def leave(code: int) -> NoReturn:
  """Ends this process after a failure, even if others wait for it in the middle of a step."""
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.distributed.is_initialized():
    # If all processes fail, they leave together. If only this one fails, the others learn of the
    # failure because it is gone.
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(UNFINISHED)
    os._exit(code)
  sys.exit(code)


class Watchdog:
  """Ends this process if it makes no progress for `seconds`.

  Without a watchdog, a collective waits for ever for a process that is stuck but alive. Use
  `with Watchdog(600) as watch`, and call `watch.alive(step)` at least every 600 s.
  """

  def __init__(self, seconds: float | None, *, give_up: Callable[[int], None] = os._exit):
    """Makes a watchdog.

    Args:
      seconds: The longest time between two calls of `alive`. None: the watchdog does nothing.
      give_up: Ends the process; called with exit code 1. Tests may replace it.
    """
    if seconds is not None and not 0 < seconds <= threading.TIMEOUT_MAX:
      raise ValueError(
        f"stall_seconds={seconds} must be above 0 and at most {threading.TIMEOUT_MAX:g}; None waits"
        " for ever"
      )
    self._seconds = seconds
    self._give_up = give_up
    self._news = threading.Event()
    self._done = False
    self._step = 0

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
          f"error: process {jax.process_index()} of {jax.process_count()} has made no progress "
          f"for {self._seconds:g} s after step {self._step}: it, another process or the disk is "
          "stuck. Ending. Where it stands:",
          file=sys.stderr,
          flush=True,
        )
        faulthandler.dump_traceback(sys.stderr)
        self._give_up(1)
        return
      self._news.clear()

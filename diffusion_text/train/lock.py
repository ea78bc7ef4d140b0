"""One run at a time in a workdir: a file that says who holds it.

The file `lock` names the owner, the host, the process and the time. A run that ends takes its lock
away. One that was killed leaves the lock behind: a lock of a dead process of this machine is taken
over at once, and a lock of another machine once nobody has touched it for `WATCH` seconds, as a
living run touches its lock every `BEAT` seconds. No clock of another machine is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from diffusion_text.train import multihost
from diffusion_text.train.storage import as_path, is_remote

log = logging.getLogger(__name__)
FILE = "lock"
BEAT = 10.0  # seconds between two signs of life
WATCH = 45.0  # seconds without a sign of life after which a run on another machine counts as dead
_POLL = 0.5


class WorkdirHeld(ValueError):
  """Another run is at work in the directory."""


class WorkdirLock:
  """The right to write in a workdir, for all processes of one run: `with WorkdirLock(workdir)`.

  Process 0 holds the file; if it cannot, all processes are refused together.
  """

  def __init__(self, workdir: str, *, beat: float = BEAT, watch: float = WATCH):
    """Takes nothing yet.

    Args:
      workdir: a directory, local or gs://. It is made if absent.
      beat: seconds between two signs of life.
      watch: seconds without one after which a run on another machine counts as dead.
    """
    self.workdir = workdir
    self._path = as_path(workdir) / FILE
    self._beat, self._watch = beat, watch
    self._own: dict[str, Any] = {}
    self._dead: str | None = None  # a lock that has been watched for long enough
    self._done = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> WorkdirLock:
    multihost.together(lambda: self._take() if multihost.is_first() else None)
    return self

  def __exit__(self, *_) -> None:
    self.release()

  def check(self) -> None:
    """Raises WorkdirHeld, on process 0, if another run is at work in the directory. Writes
    nothing.
    """
    text = _read(self._path) if multihost.is_first() else None
    if text is not None and not self._is_dead(text):
      raise WorkdirHeld(_refusal(self.workdir, text))

  def release(self) -> None:
    """Gives the directory free, if this object holds it."""
    if self._thread is None:
      return
    self._done.set()
    self._thread.join()
    self._thread = None
    if self._is_ours():
      self._path.unlink()

  def _take(self) -> None:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._own = _this_process()
    while not self._create():
      text = _read(self._path)
      if text is None:
        continue  # it was given free in between
      if not self._is_dead(text):
        raise WorkdirHeld(_refusal(self.workdir, text))
      self._set_aside(text)
    self._thread = threading.Thread(target=self._touch, daemon=True)
    self._thread.start()

  def _create(self) -> bool:
    """True if this call made the file; whoever makes it has the directory."""
    if is_remote(self.workdir):  # a store without an exclusive "create": the last writer has it
      if self._path.exists():
        return False
      self._path.write_text(json.dumps(self._own))
      time.sleep(_POLL)
      return self._is_ours()
    draft = self._path.with_name(f"{FILE}.{self._own['id']}")
    draft.write_text(json.dumps(self._own))
    try:
      # Unlike a rename, a link never replaces what is there, and nobody reads half a file.
      os.link(draft, self._path)
    except FileExistsError:
      return False
    except OSError:  # a file system without links
      try:
        with self._path.open("x") as file:
          file.write(json.dumps(self._own))
      except FileExistsError:
        return False
    finally:
      draft.unlink()
    return True

  def _set_aside(self, text: str) -> None:
    """Removes a dead run's lock. Those that try take turns, so that nobody removes the lock of a
    run that was quicker: the directory would be free for a moment, and a third run begin.
    """
    with _in_turn(self.workdir):
      now = _read(self._path)
      if now is None or _identity(now) != _identity(text):
        return
      self._path.unlink(missing_ok=True)
    log.warning("%s: took over the lock of a run that is dead (%s)", self.workdir, _who(text))

  def _is_dead(self, text: str) -> bool:
    """True if the run that wrote this lock is no more."""
    holder, here = _parsed(text), _this_process()
    if all(holder.get(key) == here[key] for key in ("host", "machine")):
      return not _is_running(holder.get("pid", 0), holder.get("started"))
    if text == self._dead:
      return True
    # Another machine, or another container: is there a sign of life?
    end = time.monotonic() + self._watch
    log.warning("%s: is the run of %s alive? Watching its lock", self.workdir, _who(text))
    while time.monotonic() < end:
      time.sleep(min(_POLL, self._watch))
      now = _read(self._path)
      if now != text:
        return now is None  # it was touched, or given free
    self._dead = text
    return True

  def _touch(self) -> None:
    while not self._done.wait(self._beat):
      try:
        if not self._is_ours():
          log.error("%s: the lock of this run is gone; is another run at work?", self.workdir)
          return
        self._own["beats"] += 1
        self._rewrite()
      except OSError as error:  # a full or absent disk must end the run where it saves, not here
        log.warning("%s: the lock could not be touched: %s", self.workdir, error)

  def _rewrite(self) -> None:
    if is_remote(self.workdir):  # whoever reads an object there sees it whole
      self._path.write_text(json.dumps(self._own))
      return
    fresh = self._path.with_name(f"{FILE}.{self._own['id']}")
    fresh.write_text(json.dumps(self._own))
    fresh.replace(self._path)

  def _is_ours(self) -> bool:
    return _identity(_read(self._path) or "{}") == self._own["id"]


@contextlib.contextmanager
def _in_turn(workdir: str) -> Iterator[None]:
  """Within it no other process of this kind is within it. The kernel ends the turn of a process
  that dies. Stores and file systems without such turns go without.
  """
  if is_remote(workdir):
    yield
    return
  directory = os.open(workdir, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(directory, fcntl.LOCK_EX)
    yield
  finally:
    os.close(directory)  # which ends the turn


def _this_process() -> dict[str, Any]:
  """Who this process is, under a name that no other run has."""
  pid = os.getpid()
  return {
    "owner": _owner(),
    "host": socket.gethostname(),
    "machine": _machine(),
    "pid": pid,
    "started": _started(pid),
    "time": _now(),
    "beats": 0,  # signs of life
    "id": uuid.uuid4().hex,
  }


def _owner() -> str:
  try:
    return getpass.getuser()
  except (KeyError, OSError):  # a container's user may have no name
    return str(os.getuid())


def _machine() -> str:
  """What tells machines, boots and containers of the same host name apart; empty if unknown."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


def _started(pid: int) -> str | None:
  """When a process was started, as its system counts; "" for a dead one, None where unknown.

  A number of a process is used again, and so is a low number in every container.
  """
  path = pathlib.Path(f"/proc/{pid}/stat")
  if not pathlib.Path("/proc/self/stat").exists():
    return None
  try:
    # The name, in brackets, may hold anything.
    fields = path.read_text().rpartition(")")[2].split()
  except OSError:
    return ""
  return "" if fields[0] in "ZX" else fields[19]


def _is_running(pid: int, started: str | None) -> bool:
  now = _started(pid)
  if now is not None:
    return now != "" and now == started
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def _now() -> str:
  return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _read(path: Any) -> str | None:
  try:
    return path.read_text()
  except (FileNotFoundError, NotADirectoryError):
    return None


def _parsed(text: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _identity(text: str) -> str | None:
  return _parsed(text).get("id")


def _who(text: str) -> str:
  holder = _parsed(text)
  return (
    f"{holder.get('owner', '?')} on {holder.get('host', '?')}, process {holder.get('pid', '?')},"
    f" since {holder.get('time', '?')}"
  )


def _refusal(workdir: str, text: str) -> str:
  return (
    f"{workdir} is in use by another run ({_who(text)}): two runs in one workdir would destroy each"
    f" other's checkpoints. Wait for that run or end it, or use another workdir; if there is no"
    f" such run, delete {as_path(workdir) / FILE}"
  )

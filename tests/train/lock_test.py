"""One run at a time in a workdir; the lock of a dead run is taken over."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils.epath import register_path_cls

from diffusion_text.train import WorkdirHeld, WorkdirLock
from diffusion_text.train.lock import FILE


def _left_behind(workdir, **changes):
  """Writes the lock that this process would have, after changes."""
  with WorkdirLock(str(workdir)):
    holder = json.loads((workdir / FILE).read_text())
  (workdir / FILE).write_text(json.dumps(holder | changes))


def test_the_lock_says_who_holds_it_and_is_gone_at_the_end(tmp_path):
  with WorkdirLock(str(tmp_path)):
    holder = json.loads((tmp_path / FILE).read_text())
    assert holder["pid"] == os.getpid()
    assert {"owner", "host", "time"} <= holder.keys()
  assert not list(tmp_path.iterdir())


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path):
  with WorkdirLock(str(tmp_path)):
    match = rf"{tmp_path} is in use by another run \(.* process {os.getpid()}, since .*delete"
    with pytest.raises(WorkdirHeld, match=match):
      WorkdirLock(str(tmp_path)).check()
    with pytest.raises(WorkdirHeld, match="in use"), WorkdirLock(str(tmp_path)):
      raise AssertionError("two runs are in one workdir")
  with WorkdirLock(str(tmp_path)):
    pass


def test_a_run_that_fails_gives_the_workdir_free(tmp_path):
  with pytest.raises(KeyError), WorkdirLock(str(tmp_path)):
    raise KeyError
  WorkdirLock(str(tmp_path)).check()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, caplog):
  code = (
    "import os, signal, sys; from diffusion_text.train import WorkdirLock;"
    " WorkdirLock(sys.argv[1]).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
  )
  subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
  assert (tmp_path / FILE).exists(), "nothing was left behind"
  WorkdirLock(str(tmp_path), watch=60.0).check()
  with WorkdirLock(str(tmp_path), watch=60.0):
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
  assert "Watching" not in caplog.text, "it was watched like one of another machine"


def test_a_number_of_a_process_that_is_used_again_is_no_sign_of_life(tmp_path):
  """As in a container, whose first process has number 1 after every restart."""
  _left_behind(tmp_path, started="1")
  WorkdirLock(str(tmp_path), watch=60.0).check()


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"machine": "another boot"}])
def test_another_machine_is_watched(tmp_path, other):
  """Without a sign of life it is dead; with one, a second run is refused."""
  _left_behind(tmp_path, **other)
  WorkdirLock(str(tmp_path), watch=0.2).check()
  alive = WorkdirLock(str(tmp_path), beat=0.1, watch=0.2)
  with alive:  # takes the dead lock over, and touches its own
    alive._own |= other
    while any(json.loads((tmp_path / FILE).read_text())[key] != other[key] for key in other):
      time.sleep(0.01)
    with pytest.raises(WorkdirHeld, match="in use"):
      WorkdirLock(str(tmp_path), watch=5.0).check()


def test_half_a_lock_is_watched_too(tmp_path):
  (tmp_path / FILE).write_text('{"owner": "so')
  with WorkdirLock(str(tmp_path), watch=0.1):
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_dead_run_is_watched_once(tmp_path, caplog):
  """By the check of a run and again when the run takes the workdir: together one watch."""
  _left_behind(tmp_path, host="elsewhere")
  lock = WorkdirLock(str(tmp_path), watch=0.2)
  lock.check()
  with lock:
    pass
  assert caplog.text.count("Watching") == 1


def test_a_directory_on_a_network_is_locked_too(tmp_path):
  """A test scheme for a store, where files have no links."""
  register_path_cls("lockstore://")(lambda url: tmp_path / str(url).removeprefix("lockstore://"))
  with WorkdirLock("lockstore://run", beat=0.05) as lock:
    assert {path.name for path in (tmp_path / "run").iterdir()} == {FILE}
    while lock._own["beats"] < 2:
      time.sleep(0.01)
    with pytest.raises(WorkdirHeld, match=r"lockstore://run is in use"):
      WorkdirLock("lockstore://run").check()
  assert not list((tmp_path / "run").iterdir())


def test_a_lock_that_was_taken_over_is_not_touched_by_those_who_saw_the_dead_one(tmp_path):
  """Not even for a moment, in which a third run would begin. A rename and back changes ctime."""
  _left_behind(tmp_path, started="1")
  dead = (tmp_path / FILE).read_text()
  with WorkdirLock(str(tmp_path), beat=60.0):
    late, before = WorkdirLock(str(tmp_path)), (tmp_path / FILE).stat()
    late._set_aside(dead)
    after = (tmp_path / FILE).stat()
    assert (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)
  assert not list(tmp_path.iterdir())


def test_of_many_that_find_a_dead_run_one_gets_the_workdir(tmp_path):
  _left_behind(tmp_path, started="1")
  locks = [WorkdirLock(str(tmp_path)) for _ in range(8)]
  begin = threading.Barrier(len(locks))

  def take(lock):
    begin.wait()
    try:
      return lock.__enter__()
    except WorkdirHeld:
      return None

  with concurrent.futures.ThreadPoolExecutor(len(locks)) as pool:
    taken = [lock for lock in pool.map(take, locks) if lock is not None]
  assert len(taken) == 1
  taken[0].release()
  assert not list(tmp_path.iterdir())

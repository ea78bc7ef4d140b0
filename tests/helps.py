"""What commands say, all asked in one process, which imports what they share once."""

import contextlib
import io
import json
import pathlib
import runpy
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
GONE = []  # modules of earlier commands: absl knows a module by its id, which must not be reused


def answers(lines, home: pathlib.Path) -> list[tuple[int, str, str]]:
  """(exit code, output, errors) of each command line, (name, *flags), on a screen of 100 columns.

  A command line must end before it computes anything, as the commands share a process.
  """
  from tests.conftest import environment

  done = subprocess.run(
    [sys.executable, __file__],
    input=json.dumps(lines),
    env={**environment(home), "COLUMNS": "100"},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return [tuple(answer) for answer in json.loads(done.stdout)]


def forget(kept):
  """Removes the modules of the last command, and its flags: all whose names are not in `kept`."""
  for name in [name for name in sys.modules if name.startswith("experiments")]:
    GONE.append(sys.modules.pop(name))
  for name in {*flags.FLAGS} - kept:
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()


def answer(name: str, *words: str) -> tuple[int, str, str]:
  """(exit code, output, errors) of one command line."""
  sys.argv = [name, *words]
  out, errors, code = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    try:
      runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else int(end.code is not None)
  return code, out.getvalue(), errors.getvalue()


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  from absl import app, flags  # noqa: F401  (app has flags of its own)

  common, said = {*flags.FLAGS}, []
  for line in json.load(sys.stdin):
    forget(common)
    said.append(answer(*line))
  json.dump(said, sys.stdout)

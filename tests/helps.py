"""What commands say, all in one process that imports what they share once.

python tests/helps.py    # reads a JSON list of command lines, [name, *flags], and writes the list
of [exit code, output, errors]
"""

import contextlib
import io
import json
import pathlib
import runpy
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
GONE = []  # absl knows modules by their id, which another would get if these were collected


def forget():
  """Removes the flags of the last command and what defined them."""
  from absl import flags

  for name in [name for name in sys.modules if name.startswith("experiments")]:
    GONE.append(sys.modules.pop(name))
  for name in [*flags.FLAGS]:
    if name not in KEPT:
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()


def said(name: str, *words: str) -> tuple[int, str, str]:
  """(exit code, output, errors) of a command that ends before it computes anything."""
  forget()
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

  KEPT = {*flags.FLAGS}
  answers = [said(*line) for line in json.load(sys.stdin)]
  json.dump(answers, sys.stdout)

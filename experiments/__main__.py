"""Prints what each command does, in one line each.

python -m experiments
"""

import difflib
import pathlib
import shutil
import signal
import sys
import textwrap

from diffusion_text.experiment.catalogue import commands


def main(argv: list[str]) -> int:
  """The exit code: 2 for a word, which is most likely a command that was meant to be run."""
  known = commands(pathlib.Path(__file__).parent)
  if not argv:
    longest = max(map(len, known))
    columns = shutil.get_terminal_size().columns
    for name, purpose in known.items():
      begin = f"python -m experiments.{name:<{longest}}  "
      print(begin + textwrap.shorten(purpose, max(columns - len(begin), 30), placeholder=" …"))
    print("\nEach has --help.")
    return 0
  near = difflib.get_close_matches(argv[0], known, n=1)
  hint = f"use python -m experiments.{near[0]}" if near else "python -m experiments lists them"
  print(f"error: {argv[0]!r} is not called like this; {hint}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, as in | head
  sys.exit(main(sys.argv[1:]))

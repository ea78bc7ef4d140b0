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
  if not argv or argv[0] in ("-h", "--help"):
    print("python -m experiments.NAME runs one of these; --help explains it and its flags.")
    print("To begin: launch/quickstart, then train, evaluate and sample.\n")
    longest = max(map(len, known))
    width = max(shutil.get_terminal_size().columns - longest - 4, 30)
    for name, purpose in known.items():
      first, *others = textwrap.wrap(purpose, width)
      print(f"  {name:<{longest}}  {first}")
      for line in others:
        print(" " * (longest + 4) + line)
    return 0
  near = difflib.get_close_matches(argv[0], known, n=1)
  hint = f"use python -m experiments.{near[0]}" if near else "python -m experiments lists them"
  print(f"error: {argv[0]!r} is run in another way; {hint}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, as in | head
  sys.exit(main(sys.argv[1:]))

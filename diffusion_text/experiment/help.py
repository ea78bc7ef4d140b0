"""What `--help` of a command prints: its docstring, then each flag with its default in a line."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict

WORDS = ("-h", "-help", "--help", "-?", "--helpshort")
PROCESSES = "experiments.processes"  # has the flags of commands that run as several processes
MARGIN = 24  # columns before the meaning of a flag
REPEATED = "repeat this option to specify a list of values"  # what absl adds to such a flag
LAST = "--traceback shows where an error came from."
MEETING = (
  "Several processes: launch/local -n 2 -- python -m … (--coordinator, …: launch/README.md)."
)


def show_if_asked(argv: Sequence[str]) -> None:
  """Prints what the command does, and its flags, and exits, if the command line asks for help."""
  if not any(word in WORDS for word in argv[1:]):
    return
  own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  meeting = flags.FLAGS.get_flags_for_module(PROCESSES) if PROCESSES in sys.modules else ()
  width = min(shutil.get_terminal_size((100, 40)).columns, 100)
  print(text(sys.modules["__main__"].__doc__ or "", own, [flag.name for flag in meeting], width))
  sys.exit(0)


def text(docstring: str, shown: Iterable[flags.Flag], meeting: Iterable[str], width: int) -> str:
  """The help of a command.

  Args:
    docstring: What the command does, with examples.
    shown: Its flags.
    meeting: Names of the flags that say how several processes meet; one line stands for all.
    width: Columns of the screen.
  """
  meeting = set(meeting)
  own = sorted(
    (flag for flag in shown if flag.name not in meeting | {"traceback"} and "." not in flag.name),
    key=lambda flag: flag.name,
  )
  lines = [line for flag in own for line in _lines(flag, width)]
  last = [LAST]
  if meeting:
    last = [MEETING, *last]
  return "\n".join([docstring.strip(), "", *lines, "", *last])


def _lines(flag: flags.Flag, width: int) -> list[str]:
  """The lines of a flag: its name and default, and behind them what it means."""
  meaning = " ".join((flag.help or "").split())
  if isinstance(flag, flags.EnumFlag):
    choices = ", ".join(flag.parser.enum_values)
    meaning = f"{meaning.removeprefix(_choices(flag)).strip()}: {choices}"
  if isinstance(flag, flags.MultiFlag):
    meaning = f"{meaning.removesuffix(REPEATED).strip('; ')} (may be repeated)"
  head = f"  {_name(flag)}".ljust(MARGIN - 1) + " "
  return textwrap.wrap(head + meaning, width, subsequent_indent=" " * MARGIN)


def _choices(flag: flags.EnumFlag) -> str:
  """What absl writes before the meaning of a flag with choices."""
  return f"<{'|'.join(flag.parser.enum_values)}>:"


def _name(flag: flags.Flag) -> str:
  """A flag as it is typed, with its default."""
  if flag.boolean:
    return f"--[no]{flag.name}" if flag.default else f"--{flag.name}"
  usual = flag.default
  if usual is None or isinstance(usual, ConfigDict) or usual in ("", []):
    return f"--{flag.name}=…"
  if isinstance(usual, list | tuple):
    usual = ",".join(map(str, usual))
  return f"--{flag.name}={usual}"

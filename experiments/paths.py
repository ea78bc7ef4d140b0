"""Flags for paths, flags of a command in its --help, and a terminal that shows any text."""

import io
import os
import sys

from absl import flags

flags.disclaim_key_flags()  # a flag is the command's that asks for it, and is in its --help


class PathParser(flags.ArgumentParser):
  """A path, in which ~ is the user's home also where no shell has seen it (--workdir=~/runs)."""

  def parse(self, argument):
    return os.path.expanduser(argument)


def path_flag(name: str, meaning: str, required: bool = False, default: str | None = None):
  """A flag for a path."""
  write = flags.ArgumentSerializer()
  return flags.DEFINE(PathParser(), name, default, meaning, serializer=write, required=required)


def adopt_flags():
  """Shows flags of files that a command imports in its --help too."""
  for name, module in [*sys.modules.items()]:
    if name.startswith("experiments."):
      flags.adopt_module_key_flags(module)


def show_any_text():
  """A character that the terminal cannot show is written as \\u…, and ends nothing."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")

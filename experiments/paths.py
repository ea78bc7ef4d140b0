"""Flags for paths, and a terminal that shows any text."""

import io
import os
import sys

from absl import flags

flags.disclaim_key_flags()  # --help shows them with those of the main that asks for them


class PathParser(flags.ArgumentParser):
  """A path, in which ~ is the user's home also where no shell has seen it (--workdir=~/runs)."""

  def parse(self, argument):
    return os.path.expanduser(argument)


def path_flag(name: str, meaning: str, required: bool = False, default: str | None = None):
  """A flag for a path."""
  write = flags.ArgumentSerializer()
  return flags.DEFINE(PathParser(), name, default, meaning, serializer=write, required=required)


def show_any_text():
  """A character that the terminal cannot show is written as \\u…, and ends nothing."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")

"""What the launch scripts share. Standard library only: they run where nothing is installed."""

import shlex
import sys

EXIT_PREEMPTED = 42  # of experiments.train after SIGTERM: saved; start it again and it goes on


def command_after_dashes(parser):
  """(options, command): what comes before and after `--`. Ends with a message if there is no command."""
  arguments = sys.argv[1:]
  if "--" not in arguments:
    parser.parse_args(arguments)  # --help
    parser.error("no command: put it after --, as in -- python -m experiments.train --workdir=…")
  middle = arguments.index("--")
  command = arguments[middle + 1 :]
  if not command:
    parser.error("there is nothing after --")
  return parser.parse_args(arguments[:middle]), command


def show(command):
  """Prints a command as a shell would read it."""
  print(shlex.join(command), flush=True)

"""Flags that several mains share, and the one way errors of the user are shown: the message, not a traceback."""

import functools
import sys

from absl import app, flags, logging
from ml_collections import config_flags

USER_ERRORS = (ValueError, FileNotFoundError)


def config_flag(default: str | None = None):
  """--config=configs/mdlm.py:tiny, every key of which can be overridden: --config.train.steps=100."""
  help_string = (
    "a file of configs/ and a size: configs/mdlm.py:tiny (sizes: micro, tiny, small, medium, 1b, 8b); keys: configs/base.py"
  )
  return config_flags.DEFINE_config_file("config", default, help_string=help_string)


def workdir_flag(required: bool = True):
  holder = flags.DEFINE_string("workdir", None, "directory of the run: config, checkpoints, metrics")
  if required:
    flags.mark_flag_as_required("workdir")
  return holder


def run(main):
  """absl's app.run, with a user's mistake told in one line and exit code 2."""

  @functools.wraps(main)
  def guarded(argv):
    if len(argv) > 1:
      print(f"error: {argv[1:]} are not flags; did you mean --{argv[1].lstrip('-')}? See --help.", file=sys.stderr)
      sys.exit(2)
    # jax and orbax log at INFO through absl; what a user should read of ours comes through the package's own logger.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(None)
    import logging as standard

    standard.getLogger("diffusion_text").setLevel(standard.INFO)
    try:
      main(argv)
    except USER_ERRORS as error:
      if flags.FLAGS.traceback:
        raise
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)

  flags.DEFINE_bool("traceback", False, "show where an error came from")
  app.run(guarded)

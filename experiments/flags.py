"""Flags that several mains share, and how errors of the user are shown: without a traceback."""

import functools
import logging as standard_logging
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from diffusion_text.experiment import help as explained
from diffusion_text.experiment import mistakes
from diffusion_text.train.checkpoint import CheckpointError
from diffusion_text.train.loop import TrainingDiverged
from diffusion_text.train.multihost import check_alone, is_first, leave, verdict
from diffusion_text.train.storage import check_compilation_cache
from experiments import parts
from experiments.paths import adopt_flags, path_flag, show_any_text

flags.disclaim_key_flags()  # --help shows them with those of the main that asks for them
# An OSError says which file or disk is at fault, which is not the program's.
USER_ERRORS = (ValueError, OSError, CheckpointError, TrainingDiverged)


def config_flag(default: str | None = None, name: str = "config"):
  """--config=configs/mdlm.py:tiny, any option of which can be set: --config.train.steps=100."""
  help_string = "a file of configs/ and a size: configs/mdlm.py:tiny; see docs/commands.md"
  parts.take(name)
  try:  # unlocked: build refuses what nobody reads
    return config_flags.DEFINE_config_file(
      name, default, help_string=help_string, lock_config=False, accept_new_attributes=True
    )
  except (AttributeError, KeyError) as error:  # an override of a default file, read at once
    fail(mistakes.override(error))


def workdir_flag(required: bool = True):
  return path_flag("workdir", "folder of the run: config, checkpoints, metrics", required)


def run(main, connect=None):
  """absl's app.run, with a user's mistake told in one line and exit code 2. connect: joins the
  other processes of the run; without it, several processes are refused.
  """

  @functools.wraps(main)
  def guarded(argv):
    if len(argv) > 1:
      fail(f"{argv[1:]} are not flags; did you mean --{argv[1].lstrip('-')}? See --help.")
    # jax and orbax log at INFO through absl; ours goes through the package's own logger.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(None)
    try:
      (connect or check_alone)()
      standard_logging.getLogger("diffusion_text").setLevel("INFO" if is_first() else "WARNING")
      parts.set_all()
      check_compilation_cache()
      main(argv)
    except Exception as error:  # nobody may wait for the others while they wait for us
      user, known = isinstance(error, USER_ERRORS), mistakes.told(error)
      if not (user or known) or flags.FLAGS.traceback:
        traceback.print_exc()
      fail(*(known or verdict(error, user)))

  def parsed(argv):
    explained.show_if_asked(argv)
    try:
      return mistakes.parse(argv, parts.PARTS)
    except mistakes.Mistake as error:
      fail(str(error))

  show_any_text()
  adopt_flags()
  flags.DEFINE_bool("traceback", False, "show where an error came from")
  app.run(guarded, flags_parser=parsed)


def fail(message: str, code: int = 2):
  print(f"error: {message}", file=sys.stderr)
  leave(code)

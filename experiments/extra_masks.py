r"""Asks trained runs the test prompts of their task with masks behind the row, and prints what is
still right (mask-agnostic loss, arXiv 2511.21338).

  python -m experiments.extra_masks --workdirs=runs/mdlm,runs/mask_agnostic \
      --workdir=runs/extra_masks
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags
from experiments.workdirs import workdirs_flag

WORKDIR = workdir_flag()
WORKDIRS = workdirs_flag("runs on a task that are asked")
SETTINGS = settings_flags("extra_masks")


def main(_):
  from diffusion_text.experiment.run import load
  from diffusion_text.studies import extra_masks

  settings = extra_masks.Settings(**SETTINGS())
  runs = {name: load(workdir) for name, workdir in WORKDIRS().items()}
  print(extra_masks.run(settings, runs, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

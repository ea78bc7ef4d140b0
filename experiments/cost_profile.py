r"""Prints what tokens cost trained runs by stretch of the clock and by place in the row: where in
time the text is decided, and whether a learned timing makes all stretches cost the same.

  python -m experiments.cost_profile --workdirs=runs/mdlm,runs/cdcd --workdir=runs/cost_profile
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags
from experiments.workdirs import workdirs_flag

WORKDIR = workdir_flag()
WORKDIRS = workdirs_flag("trained runs")
SETTINGS = settings_flags("cost_profile")


def main(_):
  from diffusion_text.experiment.run import load
  from diffusion_text.studies import cost_profile

  settings = cost_profile.Settings(**SETTINGS())
  runs = {name: load(workdir) for name, workdir in WORKDIRS().items()}
  print(cost_profile.run(settings, runs, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

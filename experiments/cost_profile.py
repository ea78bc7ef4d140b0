r"""Prints what tokens cost trained runs by stretch of the clock and by place in the row: where in
time the text is decided, and whether a learned timing makes all stretches cost the same.

  python -m experiments.cost_profile --workdirs=runs/mdlm,runs/cdcd --workdir=runs/cost_profile
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
WORKDIRS = flags.DEFINE_list("workdirs", [], "trained runs")
SETTINGS = settings_flags("cost_profile")


def main(_):
  from diffusion_text.experiment.run import load
  from diffusion_text.studies import cost_profile

  if not WORKDIRS.value:
    raise ValueError("--workdirs is empty; name one run or more, as in --workdirs=runs/a,runs/b")
  settings = cost_profile.Settings(**SETTINGS())
  runs = {pathlib.Path(name).name: load(name) for name in WORKDIRS.value}
  print(cost_profile.run(settings, runs, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

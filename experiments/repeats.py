r"""Trains systems on the same few characters for many epochs, and prints where each is best, what
repeats are worth to it, and after how many epochs it is below the first.

  python -m experiments.repeats --workdir=runs/repeats \
      --configs=autoregressive,mdlm,autoregressive@model.dropout=0.1

What follows @ differs from the config of the name. A study that was stopped goes on.
"""

import pathlib

from absl import flags

from experiments.flags import config_flag, run, workdir_flag
from experiments.settings import settings_flags

CONFIGS = flags.DEFINE_list("configs", ["autoregressive", "mdlm"], "systems; the first is crossed")
BASE = config_flag("configs/comparison.py", name="base")  # what all share
WORKDIR = workdir_flag()
SETTINGS = settings_flags("repeats")
FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"


def main(_):
  from diffusion_text.studies import repeats

  settings, workdir = repeats.Settings(**SETTINGS()), pathlib.Path(WORKDIR.value)
  print(repeats.run(settings, CONFIGS.value, BASE.value, FOLDER, workdir))


if __name__ == "__main__":
  run(main)

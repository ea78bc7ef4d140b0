r"""Classifies texts by the bounds of diffusion models that know each class, and tells texts from
the same texts read backwards: with shared noise or not, by draws, and with classes given up early.

  python -m experiments.zero_shot --workdir=runs/zero_shot
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("zero_shot")


def main(_):
  from diffusion_text.studies import zero_shot
  from diffusion_text.testing.chain_network import chain_model

  settings = zero_shot.Settings(**SETTINGS())
  print(zero_shot.run(settings, chain_model, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

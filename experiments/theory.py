r"""Prints what theory says of the calls that masked diffusion needs, on chains whose denoiser is
exact: the excess cost and the impossible texts by length, and the cost gap by calls.

  python -m experiments.theory --workdir=runs/theory
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("theory")


def main(_):
  from diffusion_text.studies import theory
  from diffusion_text.testing.chain_network import chain_model

  settings = theory.Settings(**SETTINGS())
  print(theory.run(settings, chain_model, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

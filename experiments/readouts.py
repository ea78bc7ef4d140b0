r"""Compares what a network of a Gaussian process may say, the posterior or the leave-one-out law:
what the same errors of a network that knows a chain cost in the bound of each process.

  python -m experiments.readouts --workdir=runs/readouts
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("readouts")


def main(_):
  from diffusion_text.studies import readouts
  from diffusion_text.testing.chain_network import chain_model

  settings = readouts.Settings(**SETTINGS())
  print(readouts.run(settings, chain_model, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

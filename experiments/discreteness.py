r"""Measures what masks, random tokens, both, and Gaussian noise mean for a text, on a chain that
the network knows: the bound by place and by level of noise, and what parallel calls lose.

  python -m experiments.discreteness --workdir=runs/discreteness
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("discreteness")


def main(_):
  from diffusion_text.studies import discreteness
  from diffusion_text.testing.chain_network import chain_model

  settings = discreteness.Settings(**SETTINGS())
  print(discreteness.run(settings, chain_model, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Plants wrong tokens in right rows of a chain and counts what each sampler repairs and damages
when it goes on from there, with a network that knows the chain.

  python -m experiments.repairs --workdir=runs/repairs
  python -m experiments.repairs --workdir=runs/repairs --chain=branchy --time=0.2
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("repairs")


def main(_):
  from diffusion_text.studies import repairs
  from diffusion_text.testing.chain_network import chain_model

  settings = repairs.Settings(**SETTINGS())
  print(repairs.run(settings, chain_model, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Measures what skipping steps costs along the lines of AR-Diffusion, and along shared and slanted
times: calls against the law of the texts, by a network that knows a chain.

  python -m experiments.skipping --workdir=runs/skipping
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("skipping")


def main(_):
  from diffusion_text.studies import skipping
  from diffusion_text.testing.exact_model import exact_model
  from diffusion_text.testing.languages import MarkovChain

  settings = skipping.Settings(**SETTINGS())
  print(
    skipping.run(settings, skipping.World(MarkovChain, exact_model), pathlib.Path(WORKDIR.value))
  )


if __name__ == "__main__":
  run(main)

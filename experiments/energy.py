r"""Lets an autoregressive model choose among candidates of a masked one (EDLM, arXiv 2410.21357),
on a Markov chain of known law: quality beside the calls of both, with controls. One table.

  python -m experiments.energy --workdir=runs/energy
  python -m experiments.energy --workdir=runs/energy8 --calls=8 --candidates=2,8
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
CHAIN = flags.DEFINE_enum("chain", "phrase", ["branchy", "phrase"], "what text is made of")
SETTINGS = settings_flags("energy")


def main(_):
  from diffusion_text.studies import energy

  settings = energy.Settings(**SETTINGS())
  print(energy.run(CHAIN.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

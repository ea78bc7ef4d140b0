r"""Draws several tokens per call by one extra layer (ADJUST, arXiv 2509.22738), on Markov chains of
known law, and shows what this costs and saves: one table.

  python -m experiments.joint_layer --workdir=runs/joint_layer
  python -m experiments.joint_layer --workdir=runs/joint_entropy --order=entropy --chains=branchy

A masked model and two layers are trained per chain: the layer, and one that is shown no drawn
token. The table has independent tokens, at as many calls and at equal cost, and one token per call.
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
CHAINS = flags.DEFINE_list("chains", ["branchy", "phrase"], "branchy, phrase")
SETTINGS = settings_flags("joint_layer")


def main(_):
  from diffusion_text.studies import joint_layer

  settings = joint_layer.Settings(**SETTINGS())
  print(joint_layer.run(CHAINS.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

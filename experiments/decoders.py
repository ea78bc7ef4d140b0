r"""Draws from one small masked model by every decoder and many of its options, and shows what calls
buy: one table.

  python -m experiments.decoders --workdir=runs/decoders --chain=phrase
  python -m experiments.decoders --workdir=runs/decoders --chain=branchy

The texts are those of a Markov chain whose law is known: a text is invalid if it makes a step that
the chain never makes.
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
CHAIN = flags.DEFINE_string("chain", "phrase", "phrase, branchy")
SETTINGS = settings_flags("decoders")


def main(_):
  from diffusion_text.studies import decoders

  settings = decoders.Settings(**SETTINGS())
  print(decoders.run(CHAIN.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

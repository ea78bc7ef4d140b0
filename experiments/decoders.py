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

WORKDIR = workdir_flag()
CHAIN = flags.DEFINE_string("chain", "phrase", "phrase, branchy")
LAYERS = flags.DEFINE_integer("layers", 2, "of the network", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 64, "of the network", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 1500, "updates of the network", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 512, "texts of each line", lower_bound=2)
BLOCK = flags.DEFINE_integer("block", 12, "positions of a window, for decoders in blocks")
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import decoders

  plain = (LAYERS, WIDTH, STEPS, ROWS, BLOCK, SEED)
  settings = decoders.Settings(**{flag.name: flag.value for flag in plain})
  print(decoders.run(CHAIN.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

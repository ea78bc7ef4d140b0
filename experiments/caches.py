r"""Decodes with each cache from a small trained model that sees the whole row: how often the tokens
are those of whole rows, and what share of the positions is read.

  python -m experiments.caches --workdir=runs/caches
  python -m experiments.caches --workdir=runs/caches --on=phrase --layers=2 --width=64 --steps=1500
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
ON = flags.DEFINE_string("on", "text", "text (the bundled novels), or a chain: phrase, branchy")
READERS = flags.DEFINE_list("readers", [], "lines of the table; default all")
LAYERS = flags.DEFINE_integer("layers", 4, "of the network", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 128, "of the network", lower_bound=2)
LENGTH = flags.DEFINE_integer("length", 128, "characters of a row of text", lower_bound=8)
PROMPT = flags.DEFINE_integer("prompt", 32, "characters that are observed", lower_bound=0)
BLOCK = flags.DEFINE_integer("block", 32, "characters of a window", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 450, "updates of the network", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 32, "texts of each line", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import caches

  plain = (LAYERS, WIDTH, LENGTH, PROMPT, BLOCK, STEPS, ROWS, SEED)
  settings = caches.Settings(**{flag.name: flag.value for flag in plain})
  print(caches.run(ON.value, settings, pathlib.Path(WORKDIR.value), READERS.value))


if __name__ == "__main__":
  run(main)

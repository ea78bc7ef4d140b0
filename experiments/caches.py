r"""Decodes with each cache from a small trained model that sees the whole row: how often the tokens
are those of whole rows, and what share of the positions is read.

  python -m experiments.caches --workdir=runs/caches
  python -m experiments.caches --workdir=runs/caches --on=phrase --layers=2 --width=64 --steps=1500
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
ON = flags.DEFINE_string("on", "text", "text (the bundled novels), or a chain: phrase, branchy")
READERS = flags.DEFINE_list("readers", [], "lines of the table; default all")
SETTINGS = settings_flags("caches")


def main(_):
  from diffusion_text.studies import caches

  settings = caches.Settings(**SETTINGS())
  print(caches.run(ON.value, settings, pathlib.Path(WORKDIR.value), READERS.value))


if __name__ == "__main__":
  run(main)

r"""Commits the proposals of a masked model up to the first that an autoregressive one would not
have written (Guided Diffusion, arXiv 2505.21467), and what two calls agree on (CCD, 2512.02044):
calls, and what is right, on sums, Sudoku of 4 × 4 cells or Countdown, and on a chain.

  python -m experiments.guided --workdir=runs/guided
  python -m experiments.guided --workdir=runs/sudoku --puzzle=sudoku --parts=puzzle --layers=3
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
PARTS = flags.DEFINE_list("parts", ["puzzle", "chain"], "tables that are made")
SETTINGS = settings_flags("guided")


def main(_):
  from diffusion_text.studies import guided

  settings = guided.Settings(**SETTINGS())
  print(guided.run(settings, pathlib.Path(WORKDIR.value), tuple(PARTS.value)))


if __name__ == "__main__":
  run(main)

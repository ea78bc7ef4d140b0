r"""Commits the proposals of a masked model up to the first that an autoregressive one would not
have written (Guided Diffusion, arXiv 2505.21467), and what two calls agree on (CCD, 2512.02044):
calls, and what is right, on sums or Sudoku of 4 × 4 cells, and on a chain.

  python -m experiments.guided --workdir=runs/guided
  python -m experiments.guided --workdir=runs/sudoku --puzzle=sudoku --parts=puzzle --layers=3
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
PARTS = flags.DEFINE_list("parts", ["puzzle", "chain"], "tables that are made")
PUZZLE = flags.DEFINE_enum("puzzle", "sums", ["sums", "sudoku"], "whose answers are checked")
DIGITS = flags.DEFINE_integer("digits", 3, "of each number of a sum", lower_bound=1)
LAYERS = flags.DEFINE_integer("layers", 2, "of both networks", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 64, "of both networks", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 1200, "updates of each network", lower_bound=1)
SHARES = flags.DEFINE_list("shares", ["0", "0.5", "0.8", "1"], "R, on the chain")
ROWS = flags.DEFINE_integer("rows", 512, "texts of each line", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import guided

  plain = (PUZZLE, DIGITS, LAYERS, WIDTH, STEPS, ROWS, SEED)
  settings = guided.Settings(
    shares=tuple(float(share) for share in SHARES.value),
    **{flag.name: flag.value for flag in plain},
  )
  print(guided.run(settings, pathlib.Path(WORKDIR.value), tuple(PARTS.value)))


if __name__ == "__main__":
  run(main)

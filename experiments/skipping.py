r"""Measures what skipping steps costs along the lines of AR-Diffusion, and along shared and slanted
times: calls against the law of the texts, by a network that knows a chain.

  python -m experiments.skipping --workdir=runs/skipping
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
LENGTH = flags.DEFINE_integer("length", 8, "tokens of a row", lower_bound=2)
LEVELS = flags.DEFINE_integer("levels", 2000, "T of the whole chain", lower_bound=2)
STEPS = flags.DEFINE_list("steps", ["2", "5", "10", "20", "50", "100", "400"], "with skipping")
ROWS = flags.DEFINE_integer("rows", 512, "texts of each line", lower_bound=8)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import skipping
  from diffusion_text.testing.exact_model import exact_model
  from diffusion_text.testing.languages import MarkovChain

  plain = (LENGTH, LEVELS, ROWS, SEED)
  settings = skipping.Settings(
    steps=tuple(int(steps) for steps in STEPS.value), **{flag.name: flag.value for flag in plain}
  )
  print(
    skipping.run(settings, skipping.World(MarkovChain, exact_model), pathlib.Path(WORKDIR.value))
  )


if __name__ == "__main__":
  run(main)

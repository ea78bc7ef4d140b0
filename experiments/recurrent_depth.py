r"""Decodes a depth-recurrent network (arXiv 2502.05171) token by token and by a wavefront (arXiv
2510.14961), on text and on iterates of permutations: one table.

  python -m experiments.recurrent_depth --workdir=runs/recurrent_depth
  python -m experiments.recurrent_depth --workdir=runs/recurrent_text --tasks=text --exits=0.3,0.01
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
TASKS = flags.DEFINE_list("tasks", ["text", "iterates"], "text, iterates")
SETTINGS = settings_flags("recurrent_depth")


def main(_):
  from diffusion_text.studies import recurrent_depth

  settings = recurrent_depth.Settings(**SETTINGS())
  print(recurrent_depth.run(TASKS.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Decodes a depth-recurrent network (arXiv 2502.05171) token by token and by a wavefront (arXiv
2510.14961), on text and on iterates of permutations: one table.

  python -m experiments.recurrent_depth --workdir=runs/recurrent_depth
  python -m experiments.recurrent_depth --workdir=runs/recurrent_text --tasks=text --exits=0.3,0.01
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
TASKS = flags.DEFINE_list("tasks", ["text", "iterates"], "text, iterates")
WIDTH = flags.DEFINE_integer("width", 64, "of the network", lower_bound=2)
RECURRENCES = flags.DEFINE_integer("recurrences", 4, "iterations in training", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 700, "updates", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 64, "rows of an update", lower_bound=1)
INNER = flags.DEFINE_integer("inner", 2, "iterations per read of the wavefront", lower_bound=1)
EXITS = flags.DEFINE_list("exits", ["0.3", "0.1", "0.03"], "thresholds of the wavefront")
DEPTHS = flags.DEFINE_list("depths", ["1", "2", "4", "8"], "iterations of sequential decoding")
ROWS = flags.DEFINE_integer("rows", 128, "texts of each line", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import recurrent_depth

  plain = (WIDTH, RECURRENCES, STEPS, BATCH, INNER, ROWS, SEED)
  settings = recurrent_depth.Settings(
    exits=tuple(float(number) for number in EXITS.value),
    depths=tuple(int(number) for number in DEPTHS.value),
    **{flag.name: flag.value for flag in plain},
  )
  print(recurrent_depth.run(TASKS.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

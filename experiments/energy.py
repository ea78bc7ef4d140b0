r"""Lets an autoregressive model choose among candidates of a masked one (EDLM, arXiv 2410.21357),
on a Markov chain of known law: quality beside the calls of both, with controls. One table.

  python -m experiments.energy --workdir=runs/energy
  python -m experiments.energy --workdir=runs/energy8 --calls=8 --candidates=2,8
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
CHAIN = flags.DEFINE_enum("chain", "phrase", ["branchy", "phrase"], "what text is made of")
LAYERS = flags.DEFINE_integer("layers", 2, "of both networks", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 64, "of both networks", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 1200, "updates of each network", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 4, "steps of a text", lower_bound=1)
CANDIDATES = flags.DEFINE_list("candidates", ["2", "4", "8", "16"], "candidates per step")
ROWS = flags.DEFINE_integer("rows", 1024, "texts of each line", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import energy

  plain = (LAYERS, WIDTH, STEPS, CALLS, ROWS, SEED)
  settings = energy.Settings(
    candidates=tuple(int(number) for number in CANDIDATES.value),
    **{flag.name: flag.value for flag in plain},
  )
  print(energy.run(CHAIN.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

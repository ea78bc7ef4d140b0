r"""Trains a small any-subset model (AS-ARM, arXiv 2504.20456) on the bundled novels and counts the
calls of its speculative sampler, where half of the text is given and where a twentieth is.

  python -m experiments.any_order --workdir=runs/any_order
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
LAYERS = flags.DEFINE_integer("layers", 2, "of the network", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 128, "of the network", lower_bound=2)
LENGTH = flags.DEFINE_integer("length", 64, "characters of a row", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 800, "updates of each network", lower_bound=1)
TRAINED = flags.DEFINE_list("trained", ["0", "0.5"], "shares of training rows that are drafts")
HIDDEN = flags.DEFINE_list("hidden", ["0.5", "0.95"], "shares of the tokens that are drawn")
DRAFTS = flags.DEFINE_list("drafts", ["5", "10"], "drafts per step")
ROWS = flags.DEFINE_integer("rows", 256, "texts of each line", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import any_order

  plain = (LAYERS, WIDTH, LENGTH, STEPS, ROWS, SEED)
  settings = any_order.Settings(
    trained=tuple(float(share) for share in TRAINED.value),
    hidden=tuple(float(share) for share in HIDDEN.value),
    drafts=tuple(int(number) for number in DRAFTS.value),
    **{flag.name: flag.value for flag in plain},
  )
  print(any_order.run(settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Draws several tokens per call by one extra layer (ADJUST, arXiv 2509.22738), on Markov chains of
known law, and shows what this costs and saves: one table.

  python -m experiments.joint_layer --workdir=runs/joint_layer
  python -m experiments.joint_layer --workdir=runs/joint_entropy --order=entropy --chains=branchy

A masked model and two layers are trained per chain: the layer, and one that is shown no drawn
token. The table has independent tokens, at as many calls and at equal cost, and one token per call.
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
CHAINS = flags.DEFINE_list("chains", ["branchy", "phrase"], "branchy, phrase")
LAYERS = flags.DEFINE_integer("layers", 4, "of the network", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 64, "of the network and the layer", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 1200, "updates of the network", lower_bound=1)
LAYER_STEPS = flags.DEFINE_integer("layer_steps", 400, "updates of each layer", lower_bound=1)
OWN_ROWS = flags.DEFINE_integer(
  "own_rows", 2048, "rows of the network for the layer to learn from; 0: the chain's", lower_bound=0
)
ORDER = flags.DEFINE_string("order", "random", "of the places: random, entropy, left_to_right …")
TOKENS = flags.DEFINE_list("tokens", ["2", "4", "8"], "tokens per call")
ROWS = flags.DEFINE_integer("rows", 1024, "texts of each line", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import joint_layer

  plain = (LAYERS, WIDTH, STEPS, LAYER_STEPS, OWN_ROWS, ORDER, ROWS, SEED)
  settings = joint_layer.Settings(
    tokens=tuple(int(number) for number in TOKENS.value),
    **{flag.name: flag.value for flag in plain},
  )
  print(joint_layer.run(CHAINS.value, settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Measures what decoding costs: caches against whole rows, the loop against bare forward passes, a
token against the length of its context. The network is not trained; ratios are of one run.

  python -m experiments.decoding_speed --workdir=runs/decoding_speed
  python -m experiments.decoding_speed --workdir=runs/wide --width=512 --layers=2 --heads=4
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
WIDTH = flags.DEFINE_integer("width", 256, "D, of the network", lower_bound=2)
LAYERS = flags.DEFINE_integer("layers", 2, "of the network", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 2, "of the network", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 1, "texts at a time", lower_bound=1)
BLOCK = flags.DEFINE_integer("block", 32, "tokens of a block", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 4, "network calls per block", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 512, "tokens of a row, for caches", lower_bound=64)
LENGTHS = flags.DEFINE_list("lengths", ["512", "1024", "2048", "4096"], "contexts of a token")
ROUNDS = flags.DEFINE_integer("rounds", 3, "timed rounds; medians are reported", lower_bound=1)


def main(_):
  from diffusion_text.studies import decoding_speed as study

  plain = (WIDTH, LAYERS, HEADS, ROWS, BLOCK, CALLS)
  print(
    study.run(
      study.Sizes(**{flag.name: flag.value for flag in plain}),
      length=LENGTH.value,
      lengths=tuple(int(length) for length in LENGTHS.value),
      rounds=ROUNDS.value,
      workdir=pathlib.Path(WORKDIR.value),
    )
  )


if __name__ == "__main__":
  run(main)

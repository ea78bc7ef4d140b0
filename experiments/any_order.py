r"""Trains a small any-subset model (AS-ARM, arXiv 2504.20456) on the bundled novels and counts the
calls of its speculative sampler, where half of the text is given and where a twentieth is.

  python -m experiments.any_order --workdir=runs/any_order
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("any_order")


def main(_):
  from diffusion_text.studies import any_order

  settings = any_order.Settings(**SETTINGS())
  print(any_order.run(settings, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

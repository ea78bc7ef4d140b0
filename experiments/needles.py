r"""Looks up values by their keys in rows up to four times as long as those of training, with rotary
positions as they were, scaled for the length, and scaled by a wrong factor (LongLLaDA, arXiv
2506.14429).

  python -m experiments.needles --workdir=runs/needles
  python -m experiments.needles --workdir=runs/needles_masked --model=masked
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("needles")


def main(_):
  from diffusion_text.studies import needles

  print(needles.run(needles.Settings(**SETTINGS()), pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Prints what tokens cost trained runs by how often they occur in the training text, and how often
a run prefers the token of a text to another of the same class (arXiv 2509.05056).

  python -m experiments.rare_tokens --workdirs=runs/mdlm,runs/frequency_masked \
      --workdir=runs/rare_tokens

The other runs are held against the first, row by row.
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags
from experiments.workdirs import workdirs_flag

WORKDIR = workdir_flag()
WORKDIRS = workdirs_flag("runs of the same data and tokenizer")
SETTINGS = settings_flags("rare_tokens")


def main(_):
  from diffusion_text.experiment.run import load
  from diffusion_text.studies import rare_tokens

  settings = rare_tokens.Settings(**SETTINGS())
  runs = {name: load(workdir) for name, workdir in WORKDIRS().items()}
  print(rare_tokens.run(settings, runs, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

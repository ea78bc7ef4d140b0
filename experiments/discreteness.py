r"""Measures what masks, random tokens, both, and Gaussian noise mean for a text, on a chain that
the network knows: the bound by place and by level of noise, and what parallel calls lose.

  python -m experiments.discreteness --workdir=runs/discreteness
"""

import pathlib

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
SETTINGS = settings_flags("discreteness")


def exact(process, chain, options):
  """(a model of the process whose network knows the chain, its parameters)."""
  from diffusion_text.testing.chain_network import chain_model
  from diffusion_text.testing.languages import MarkovChain

  language = MarkovChain(chain.initial, chain.transition, chain.length)
  return chain_model(process, language, **options)


def main(_):
  from diffusion_text.studies import discreteness

  settings = discreteness.Settings(**SETTINGS())
  print(discreteness.run(settings, exact, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Decodes with each cache from a small trained model that sees the whole row: how often the tokens
are those of whole rows, and what share of the positions is read.

  python -m experiments.caches --workdir=runs/caches
  python -m experiments.caches --workdir=runs/caches --on=phrase --layers=2 --width=64 --steps=1500
  python -m experiments.caches --workdir=runs/caches --on=exact --per_call=1 --rows=512
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
ON = flags.DEFINE_string(
  "on", "text", "text (the bundled novels), phrase, branchy (chains), or exact (branchy, untrained)"
)
READERS = flags.DEFINE_list("readers", [], "lines of the table; default all")
SETTINGS = settings_flags("caches")


def exact(chain):
  """(a masked model that computes the exact posterior of a chain, its parameters)."""
  from diffusion_text.process.masked import Masked
  from diffusion_text.testing.exact_model import exact_model
  from diffusion_text.testing.languages import MarkovChain

  language = MarkovChain(chain.initial, chain.transition, chain.length)
  return exact_model(Masked(vocab_size=language.vocab_size), language)


def main(_):
  from diffusion_text.studies import caches

  settings = caches.Settings(**SETTINGS())
  print(caches.run(ON.value, settings, pathlib.Path(WORKDIR.value), READERS.value, exact))


if __name__ == "__main__":
  run(main)

r"""Sentences as vectors: trains a small autoregressive and a small masked model on the sentences of
a file of pairs and compares their pooled hidden states, by layer and noise level, and after
contrastive fine-tuning, at finding the sentence with the same translation.

  python -m experiments.embed --path=fra.txt --workdir=runs/embed [--references=runs/minilm]

Files with two columns between tabs: sentence, translation. docs/results.md has a run.
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag

WORKDIR = workdir_flag()
PATH = path_flag("path", "file of pairs: sentence and translation", required=True)
REFERENCES = flags.DEFINE_list("references", [], "workdirs of other models, converted ones")
LAYERS = flags.DEFINE_integer("layers", 3, "of the networks", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 128, "of the networks", lower_bound=2)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 2000, "pieces of the tokenizer", lower_bound=300)
STEPS = flags.DEFINE_integer("steps", 500, "updates of each language model", lower_bound=1)
TUNE_STEPS = flags.DEFINE_integer("tune_steps", 120, "contrastive updates; 0: none", lower_bound=0)
LEVELS = flags.DEFINE_list("levels", ["0", "0.15", "0.4"], "noise at which sentences are read")
CANDIDATES = flags.DEFINE_integer("candidates", 1000, "pairs that are searched", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import embed

  plain = (LAYERS, WIDTH, VOCAB_SIZE, STEPS, TUNE_STEPS, CANDIDATES, SEED)
  levels = tuple(float(level) for level in LEVELS.value)
  settings = embed.Settings(levels=levels, **{flag.name: flag.value for flag in plain})
  print(embed.run(PATH.value, settings, pathlib.Path(WORKDIR.value), REFERENCES.value))


if __name__ == "__main__":
  run(main)

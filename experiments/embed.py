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
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
PATH = path_flag("path", "file of pairs: sentence and translation", required=True)
REFERENCES = flags.DEFINE_list("references", [], "workdirs of other models, converted ones")
SETTINGS = settings_flags("embed")


def main(_):
  from diffusion_text.studies import embed

  settings = embed.Settings(**SETTINGS())
  print(embed.run(PATH.value, settings, pathlib.Path(WORKDIR.value), REFERENCES.value))


if __name__ == "__main__":
  run(main)

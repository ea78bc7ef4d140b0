"""Writes the weights of a workdir as other libraries read them: safetensors, config.json,
tokenizer.json.

  python -m experiments.export --workdir=runs/smollm2 --output=exported [--family=llama]

A change of low rank (model.low_rank) is added to its matrices, and integers (model.quantized)
become floats. --family=workdir: as a workdir of ours with such plain matrices, at step 0.

  python -m experiments.export --workdir=runs/lora --output=runs/merged --family=workdir

--keep_tokens_of: tokens that a text does not need are left out, of the tokenizer and of the tables,
so that a large vocabulary costs less on a small corpus:

  python -m experiments.export --workdir=runs/minilm --output=small --keep_tokens_of=corpus
"""

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag

WORKDIR = workdir_flag()
OUTPUT = path_flag("output", "folder to write", required=True)
FAMILY = flags.DEFINE_string(
  "family", None, "a family of docs/pretrained.md, or workdir; default as converted"
)
KEEP = path_flag(
  "keep_tokens_of",
  "a file of text, or corpus: the training text of the workdir; default all tokens",
)


def main(_):
  from diffusion_text.studies.export import export

  print(export(WORKDIR.value, OUTPUT.value, FAMILY.value, KEEP.value))


if __name__ == "__main__":
  run(main)

"""Writes the weights of a workdir as other libraries read them: safetensors, config.json,
tokenizer.json.

  python -m experiments.export --workdir=runs/smollm2 --output=exported [--family=llama]

A change of low rank (model.low_rank) is added to its matrices, and integers (model.quantized)
become floats. --family=workdir: as a workdir of ours with such plain matrices, at step 0.

  python -m experiments.export --workdir=runs/lora --output=runs/merged --family=workdir
"""

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag

WORKDIR = workdir_flag()
OUTPUT = path_flag("output", "folder to write", required=True)
FAMILY = flags.DEFINE_string(
  "family", None, "a family of docs/pretrained.md, or workdir; default as converted"
)


def main(_):
  from diffusion_text.studies.export import export

  print(export(WORKDIR.value, OUTPUT.value, FAMILY.value))


if __name__ == "__main__":
  run(main)

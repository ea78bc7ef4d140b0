r"""Trains a tokenizer on a config's training split and saves it to a file, for
--config.data.tokenizer_path.

  python -m experiments.tokenize --config=configs/mdlm.py \
      --config.data.tokenizer=sentencepiece --config.data.vocab_size=4096 --output=bpe4096

--workdir: instead, saves the tokenizer of that run, for a run on other text that starts with its
weights.

  python -m experiments.tokenize --workdir=runs/mdlm --output=mdlm_tokenizer
"""

import pathlib

from experiments.flags import config_flag, run, workdir_flag
from experiments.paths import path_flag

CONFIG = config_flag("configs/mdlm.py:tiny")
WORKDIR = workdir_flag(required=False)
OUTPUT = path_flag("output", "file to write", required=True)


def main(_):
  from diffusion_text.experiment import registry
  from diffusion_text.experiment.checks import saved_tokenizer
  from diffusion_text.experiment.settings import DataSettings

  path = pathlib.Path(OUTPUT.value)
  if path.exists():
    raise ValueError(
      f"--output={path} is there already, and runs may have been trained with it; write another"
      " file, or delete this one"
    )
  if WORKDIR.value is None:
    data = registry.settings(DataSettings, CONFIG.value.data.to_dict(), "config.data")
    tokenizer = data.make_tokenizer()
  else:
    tokenizer = saved_tokenizer(WORKDIR.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(tokenizer.to_bytes())
  print(
    f"{tokenizer.name} tokenizer with V = {tokenizer.vocab_size}, fingerprint"
    f" {tokenizer.fingerprint}, in {path}"
  )


if __name__ == "__main__":
  run(main)

r"""Trains a tokenizer on a config's training split and saves it to a file, for
--config.data.tokenizer_path.

  python -m experiments.tokenize --config=configs/mdlm.py \
      --config.data.tokenizer=sentencepiece --config.data.vocab_size=4096 --output=bpe4096
"""

import pathlib

from absl import flags

from experiments.flags import config_flag, run

CONFIG = config_flag("configs/mdlm.py:tiny")
OUTPUT = flags.DEFINE_string("output", None, "file to write", required=True)


def main(_):
  from diffusion_text.experiment import registry
  from diffusion_text.experiment.settings import DataSettings

  data = registry.settings(DataSettings, CONFIG.value.data.to_dict(), "config.data")
  tokenizer = data.make_tokenizer()
  path = pathlib.Path(OUTPUT.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(tokenizer.to_bytes())
  print(
    f"{tokenizer.name} tokenizer with V = {tokenizer.vocab_size}, fingerprint"
    f" {tokenizer.fingerprint}, in {path}"
  )


if __name__ == "__main__":
  run(main)

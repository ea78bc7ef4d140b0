r"""Classifies texts by the bounds of diffusion models that know each class, and tells texts from
the same texts read backwards: with shared noise or not, by draws, and with classes given up early.

  python -m experiments.zero_shot --workdir=runs/zero_shot

With --path, a folder of records and texts (the csv files of the E2E challenge), the model is
trained, and is asked which of two pairs is the true one: the other has a value of the record, the
two names of the text, or two words of a kind exchanged. Models that are in the workdir are read.

  python -m experiments.zero_shot --path=e2e-nlg --workdir=runs/records
"""

import pathlib

from experiments.flags import config_flag, run, workdir_flag
from experiments.paths import path_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
PATH = path_flag("path", "folder of records and texts, for trained models")
BASE = config_flag("configs/short_texts.py", name="base")  # of the trained models
SETTINGS = settings_flags("zero_shot")
FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"


def main(_):
  from diffusion_text.studies import record_texts, zero_shot, zero_shot_records
  from diffusion_text.testing.chain_network import chain_model

  settings, workdir = zero_shot.Settings(**SETTINGS()), pathlib.Path(WORKDIR.value)
  if PATH.value is None:
    return print(zero_shot.run(settings, chain_model, workdir))
  texts = record_texts.read(PATH.value)
  models = record_texts.trained(texts, BASE.value, FOLDER, workdir)
  both = [models[name] for name in record_texts.SYSTEMS]
  print(zero_shot_records.run(settings, texts, *both, workdir))


if __name__ == "__main__":
  run(main)

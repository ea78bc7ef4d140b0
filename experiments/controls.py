r"""Steers one generator, which has seen no labels, in six ways: what a text says, its parts of
speech, a phrase at a place, its length, a word that it must hold, and the words of a hole.

  python -m experiments.controls --path=e2e-nlg --workdir=runs/records

PATH has the three csv files of the E2E challenge. The generator and the judge are trained in the
workdir unless they are there. An attribute of your own, from lines with a label, a tab and a text:

  python -m experiments.controls --path=e2e-nlg --workdir=runs/records --attributes=file \
      --examples=labelled.tsv --target=LABEL

--attributes=transfer makes texts say another value of the field, and keep the rest;
--attributes=paraphrase makes them say the same in other words, and asks what becomes of their
vectors. --encoder=runs/minilm: a run whose vectors say how near texts are; else the generator's.
"""

import pathlib

from absl import flags

from experiments.flags import config_flag, run, workdir_flag
from experiments.paths import path_flag
from experiments.settings import settings_flags

PATH = path_flag("path", "folder of records and texts: csv files with mr and ref", required=True)
WORKDIR = workdir_flag()
BASE = config_flag("configs/short_texts.py", name="base")  # of the generator and the judge
ALL = ["meaning", "parts_of_speech", "phrase", "length", "word", "hole"]
ATTRIBUTES = flags.DEFINE_list(
  "attributes", ALL, f"controls: {', '.join(ALL)}, file, transfer, paraphrase"
)
APART = ("transfer", "paraphrase")
EXAMPLES = path_flag("examples", "labelled texts, for --attributes=file")
TARGET = flags.DEFINE_string("target", None, "the label that is sought, for --attributes=file")
ENCODER = path_flag("encoder", "workdir of a run whose vectors say how near texts are")
SETTINGS = settings_flags("control_targets")
FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"


def main(_):
  from diffusion_text.experiment.run import load
  from diffusion_text.studies import control_targets, controls, paraphrases, record_texts, transfer

  settings, workdir = control_targets.Settings(**SETTINGS()), pathlib.Path(WORKDIR.value)
  examples = (EXAMPLES.value, TARGET.value)
  examples = controls.FromFile(*examples) if any(examples) else None
  texts = record_texts.read(PATH.value)
  models = record_texts.trained(texts, BASE.value, FOLDER, workdir)
  study = controls.Study(texts, *(models[name] for name in record_texts.SYSTEMS), settings)
  if kinds := [kind for kind in ATTRIBUTES.value if kind not in APART]:
    print(controls.run(study, kinds, workdir, examples))
  if "transfer" in ATTRIBUTES.value:
    print(transfer.run(study, workdir))
  if "paraphrase" in ATTRIBUTES.value:
    steps = settings.paraphrase_steps
    model = paraphrases.trained(texts, BASE.value, FOLDER, workdir, steps)
    encoder = load(ENCODER.value) if ENCODER.value else None
    print(paraphrases.run(study, model, workdir, encoder))


if __name__ == "__main__":
  run(main)

"""Writes targets for held-out sources and scores them: one row of a table for each workdir that was
trained on pairs.

  python -m experiments.translate --workdirs=runs/mdlm,runs/diffuseq,runs/tess --num=200 --mbr=1,4
  python -m experiments.translate --workdirs=runs/mdlm --sampler=name=reveal --show=10

--mbr: the text is the consensus of so many samples, which are scored against each other; a
reference is never seen.
"""

import json
import pathlib

from absl import flags

from experiments.flags import run
from experiments.paths import path_flag

WORKDIRS = flags.DEFINE_list("workdirs", [], "directories of runs on pairs")
PATH = path_flag("path", "file or folder of the pairs; default the runs' own")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "which pairs")
NUM = flags.DEFINE_integer("num", None, "only the first sources; default all", lower_bound=1)
MBR = flags.DEFINE_list("mbr", ["1"], "numbers of samples that a text is chosen from")
SCORER = flags.DEFINE_enum("scorer", "bleu", ["bleu", "chrf"], "what samples are compared by")
STEPS = flags.DEFINE_integer(
  "steps", None, "of the time grid; default from each config", lower_bound=1
)
SAMPLER = flags.DEFINE_multi_string(
  "sampler", [], "an option of config.sampler, as in top_p=0.9; may be repeated"
)
NUM_DRAWS = flags.DEFINE_integer(
  "num_draws", 2, "draws of time and noise per pair, for the bound", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)
SHOW = flags.DEFINE_integer("show", 0, "examples to print", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "print one JSON line per system instead")


def main(_):
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.decoding import sampler_of
  from diffusion_text.studies import translate

  if not WORKDIRS.value or not all(text.isdecimal() and int(text) for text in MBR.value):
    raise ValueError(
      f"--workdirs={WORKDIRS.value} --mbr={MBR.value}: give directories of runs, and numbers such"
      f" as 1,4"
    )
  chosen = {
    "split": SPLIT.value,
    "samples": sorted(map(int, MBR.value)),
    "scorer": SCORER.value,
    "seed": SEED.value,
  }
  rows = []
  for workdir in WORKDIRS.value:
    trained = runs.load(workdir, {"data.path": PATH.value}.items() if PATH.value else ())
    sampler = sampler_of(trained.experiment, SAMPLER.value, steps=STEPS.value)
    rows.append(
      translate.measure(
        pathlib.Path(workdir).name,
        trained,
        num=NUM.value,
        num_draws=NUM_DRAWS.value,
        sampler=sampler,
        **chosen,
      )
    )
    for source, text, reference in rows[-1]["examples"][: SHOW.value]:
      print(f"{rows[-1]['name']}: {source} => {text}   (reference: {reference})")
  if JSON.value:
    print(
      "\n".join(json.dumps({key: row[key] for key in row if key != "examples"}) for row in rows)
    )
  else:
    print(f"{translate.table(rows)}\n\n{translate.caption(rows, **chosen)}")


if __name__ == "__main__":
  run(main)

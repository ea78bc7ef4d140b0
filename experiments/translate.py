"""Answers to the prompts of held-out text and their scores, for runs on pairs or on a task: a line
of one table for each workdir, with baselines, as `experiments.compare --tasks` makes it.

  python -m experiments.translate --workdirs=runs/mdlm,runs/diffuseq,runs/tess --num=200 --mbr=1,4
  python -m experiments.translate --workdirs=runs/mdlm --sampler=name=reveal --show=10

--mbr: the text is the consensus of so many samples, which are scored against each other; a
reference is never seen.
"""

import json

from absl import flags

from experiments.flags import run
from experiments.paths import path_flag
from experiments.workdirs import workdirs_flag

WORKDIRS = workdirs_flag("directories of runs on pairs or a task")
PATH = path_flag("path", "file or folder of the pairs; default the runs' own")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "which pairs")
NUM = flags.DEFINE_integer("num", None, "only the first sources; default all", lower_bound=1)
MBR = flags.DEFINE_list("mbr", ["1"], "numbers of samples that a text is chosen from")
SCORER = flags.DEFINE_enum("scorer", "bleu", ["bleu", "chrf"], "what samples are compared by")
STEPS = flags.DEFINE_integer("steps", None, "of the time grid; default each run's", lower_bound=1)
SAMPLER = flags.DEFINE_multi_string(
  "sampler", [], "an option of config.sampler, as in top_p=0.9; may be repeated"
)
NUM_DRAWS = flags.DEFINE_integer("num_draws", 2, "draws of time and noise, for the bound", 1)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)
SHOW = flags.DEFINE_integer("show", 0, "examples to print", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "print one JSON line per system instead")


def main(_):
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.decoding import sampler_of
  from diffusion_text.studies import exams, task_report, tasks
  from diffusion_text.studies.exam_contract import How

  workdirs = WORKDIRS()
  mbr = tuple(map(int, MBR.value))
  how = How(num=NUM.value, mbr=mbr, scorer=SCORER.value, split=SPLIT.value)
  found, asked = [], None
  for name, workdir in workdirs.items():
    trained = runs.load(workdir, {"data.path": PATH.value}.items() if PATH.value else ())
    exam = tasks.exam_of(trained)
    asked = tasks.exam_of_both(asked or exam, exam)
    sampler = sampler_of(trained.experiment, SAMPLER.value, steps=STEPS.value)
    numbers, text = exams.measured(
      exam, trained, how, seed=SEED.value, sampler=sampler, num_draws=NUM_DRAWS.value
    )
    found.append({"system": name, "seed": SEED.value, **numbers})
    for line in text.splitlines()[: SHOW.value]:
      print(f"{found[-1]['system']}: {line}")
  if JSON.value:
    return print("\n".join(map(json.dumps, found)))
  print(task_report.table_of_runs(asked, found, how, trained.experiment))


if __name__ == "__main__":
  run(main)

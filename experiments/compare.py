r"""Trains several systems under one roof, and writes one table and one plot. Everything but the
system comes from --base.

  python -m experiments.compare --configs=mdlm,md4 --budget=600 --workdir=runs/compare [--jobs=2]

With --tasks every system is trained on every task, once for each seed, and answers test prompts:
tasks.md, tasks.csv and tasks.png have the scores, with baselines. --tasks=? lists the tasks.

  python -m experiments.compare --configs=mdlm,bd3lm --tasks=sudoku4 --steps=500 --workdir=runs/t \
      [--seeds=3] [--task_option=sudoku4.clues=8] [--mbr=1,4]

What follows @ differs from the config of the name: --configs=mdm,mdm@objective.focusing=0.
A system with results is skipped and one that was stopped goes on; one that fails is reported, the
others go on, and the exit code is 1. As several processes (launch/) it needs --steps.
"""

import pathlib
import shlex
import sys

from absl import flags

from experiments import parts
from experiments.flags import config_flag, run, workdir_flag
from experiments.processes import connect

CONFIGS = flags.DEFINE_list("configs", [], "names of files in configs/, or paths; values after @")
BASE = config_flag("configs/comparison.py", name="base")  # what all share
WORKDIR = workdir_flag(required=False)
BUDGET = flags.DEFINE_float("budget", None, "CPU-seconds of training each; default 600", 1.0)
STEPS = flags.DEFINE_integer("steps", None, "training steps in place of a budget", lower_bound=1)
CALLS = flags.DEFINE_list("calls", None, "network calls: default 8,32,128, with --tasks 32")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 16, "rows for each number of calls", 1)
NUM_DRAWS = flags.DEFINE_integer("num_draws", 2, "draws of time and noise per test row", 1)
MAX_ROWS = flags.DEFINE_integer("max_rows", None, "only the first test rows; default all", 1)
TASKS = flags.DEFINE_list("tasks", [], "names of tasks; '?' lists them")
OPTIONS = flags.DEFINE_multi_string("task_option", [], "as in countdown3.train_size=5000")
MBR = flags.DEFINE_list("mbr", ["1"], "samples that an answer of a task is the consensus of")
SEEDS = flags.DEFINE_integer("seeds", 1, "seeds of each system on each task", lower_bound=1)
NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 100, "test prompts of a task", lower_bound=1)
ROOT = pathlib.Path(__file__).resolve().parents[1]
JOBS = flags.DEFINE_integer("jobs", 1, "systems at a time, each on cores of its own", 1)
ONLY = flags.DEFINE_string("only", None, "measure this system in this process (how each is run)")


def main(_):
  from diffusion_text.studies import compare, exams, task_table
  from diffusion_text.train.multihost import is_first

  if TASKS.value == ["?"]:
    return print(exams.listing())
  if WORKDIR.value is None:
    raise ValueError("--workdir is not set; give a directory for the runs and the table")
  calls = CALLS.value or (["32"] if TASKS.value else ["8", "32", "128"])
  common = {"workdir": pathlib.Path(WORKDIR.value), "base": BASE.value, "steps": STEPS.value}
  if not TASKS.value:
    files = compare.config_files(CONFIGS.value, ROOT / "configs")
    budget = BUDGET.value or (600.0 if STEPS.value is None else None)
    made = compare.Comparison(
      files=files, budget=budget, calls=tuple(map(int, calls)), **common,
      **{flag.name: flag.value for flag in (NUM_SAMPLES, NUM_DRAWS, MAX_ROWS)},
    )  # fmt: skip
  else:
    made = task_table.of_flags(
      TASKS.value, OPTIONS.value, CONFIGS.value, ROOT / "configs", calls, BUDGET.value, **common,
      **{flag.name: flag.value for flag in (SEEDS, NUM_PROMPTS, NUM_DRAWS, MAX_ROWS, MBR)},
    )  # fmt: skip
  if ONLY.value:
    return made.run_one(ONLY.value)
  command = ["python", "-m", "experiments.compare", *parts.ARGV[1:]]
  text, failed = made.run_all([sys.executable, *command[1:]], JOBS.value, shlex.join(command))
  if is_first():
    print(f"\n{text}")
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  run(main, lambda: connect(alone=ONLY.value is not None))

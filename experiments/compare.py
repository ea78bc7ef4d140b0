r"""Trains several systems under one roof, and writes one table and one plot. Everything but the
system comes from --base.

  python -m experiments.compare --configs=mdlm,md4,bd3lm,autoregressive --budget=600 \
      --workdir=runs/compare [--jobs=2]
  python -m experiments.compare --configs=mdlm,my/own.py --steps=1000 --base.data.length=64 \
      --workdir=runs/short

A system with results is skipped and one that was stopped goes on; one that fails is reported, the
others go on, and the exit code is 1.
"""

import pathlib
import shlex
import sys

import jax
from absl import flags

from experiments import parts
from experiments.flags import config_flag, run, workdir_flag

CONFIGS = flags.DEFINE_list("configs", [], "names of files in configs/, or paths of config files")
BASE = config_flag("configs/quickstart.py", name="base")  # what all share
WORKDIR = workdir_flag()
BUDGET = flags.DEFINE_float(
  "budget", None, "CPU-seconds of training of each system; default 600", lower_bound=1.0
)
STEPS = flags.DEFINE_integer(
  "steps", None, "instead of a budget: training steps of each system", lower_bound=1
)
CALLS = flags.DEFINE_list("calls", ["8", "32", "128"], "network calls of the samples")
NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 16, "rows drawn at each number of calls", lower_bound=1
)
NUM_DRAWS = flags.DEFINE_integer(
  "num_draws", 2, "draws of time and noise per row of the test split", lower_bound=1
)
MAX_ROWS = flags.DEFINE_integer(
  "max_rows", None, "score only the first rows; default all", lower_bound=1
)
ROOT = pathlib.Path(__file__).resolve().parents[1]
JOBS = flags.DEFINE_integer("jobs", 1, "systems at a time, each on cores of its own", lower_bound=1)
ONLY = flags.DEFINE_string("only", None, "measure this system in this process (how each is run)")


def main(_):
  from diffusion_text.studies import compare, jobs

  if bad := [text for text in CALLS.value if not text.isdecimal()]:
    raise ValueError(f"--calls has {', '.join(map(repr, bad))}; use numbers such as 8,32,128")
  comparison = compare.Comparison(
    workdir=pathlib.Path(WORKDIR.value),
    base=BASE.value,
    files=compare.config_files(CONFIGS.value, ROOT / "configs"),
    budget=BUDGET.value or (600.0 if STEPS.value is None else None),
    calls=tuple(map(int, CALLS.value)),
    **{flag.name: flag.value for flag in (STEPS, NUM_SAMPLES, NUM_DRAWS, MAX_ROWS)},
  )
  if ONLY.value:
    return compare.run_one(comparison, ONLY.value)
  # Of this process only: the accelerator is for those that it starts.
  jax.config.update("jax_platforms", "cpu")
  jobs.core_groups(JOBS.value)  # refused now, if there are too few
  comparison.claim(write=False)
  corpus = compare.corpus_quality(comparison)
  comparison.claim()
  command = [sys.executable, "-m", "experiments.compare", *parts.ARGV[1:]]
  failed = jobs.run_all(
    list(comparison.files),
    comparison.workdir,
    lambda name: [*command, f"--only={name}"],
    JOBS.value,
  )
  print("\n" + compare.report(comparison, failed, corpus, shlex.join(["python", *command[1:]])))
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  run(main)

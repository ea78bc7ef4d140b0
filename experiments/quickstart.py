"""Trains on the bundled corpus for a few minutes, scores held-out text, samples, and writes a
report. launch/quickstart makes the environment and runs it.

  python -m experiments.quickstart [--seconds=270] [--workdir=runs/quickstart]

The number of steps is what this machine can do in --seconds, measured at the start, so that the
learning rate can fall to its end. A run that goes on keeps the config that it began with.
"""

import json
import pathlib
import sys
import time

from absl import flags

from experiments.flags import config_flag, run
from experiments.paths import path_flag

CONFIG = config_flag("configs/quickstart.py")
WORKDIR = path_flag(
  "workdir", "of the run: config, checkpoints, metrics, report", default="runs/quickstart"
)
SECONDS = flags.DEFINE_float("seconds", 270.0, "of training", lower_bound=1.0, upper_bound=1e7)
NUM_DRAWS = flags.DEFINE_integer("num_draws", 8, "draws of time and noise per scored row", 1)
INFILL = "It was [12] that she was very [8] of him, and could not help being [6] at last."


def main(_):
  from diffusion_text import train
  from diffusion_text.experiment import summary as plan
  from diffusion_text.experiment.build import build
  from diffusion_text.experiment.run import load, open_rows, read_run_config, train_workdir
  from diffusion_text.studies import quickstart_report as showcase

  workdir = pathlib.Path(WORKDIR.value)
  results = workdir / "results.json"
  config = read_run_config(workdir)
  if results.exists():
    print(f"{workdir} is finished; delete it, or give another --workdir, to train again\n")
    print(json.loads(results.read_text())["text"])
    return
  if config is None:
    config = CONFIG.value
    config.train.steps = showcase.steps_in(build(config), SECONDS.value)
  experiment = build(config)
  open_rows(
    experiment.tokenizer, 1, None, infills=[INFILL]
  )  # refused now rather than after training, if it cannot be written
  print(plan.summary(experiment), flush=True)
  started = time.monotonic()
  result = train_workdir(experiment, str(workdir))
  if result.status != "finished":
    print(f"{result.status} at step {result.step}, saved; run launch/quickstart again to go on")
    sys.exit(result.exit_code)
  print(f"trained {result.step} steps; scoring held-out text and sampling ...", flush=True)
  rows = train.read_metrics(workdir / "metrics.jsonl")
  seconds = time.monotonic() - started
  text = showcase.show(
    load(str(workdir)),
    workdir / "report.html",
    rows=rows,
    infill=INFILL,
    seconds=seconds,
    num_draws=NUM_DRAWS.value,
  )
  results.write_text(json.dumps({"text": text}))
  print(text)


if __name__ == "__main__":
  run(main)

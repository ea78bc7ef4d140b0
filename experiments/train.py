r"""Trains a config in a workdir, going on from its newest checkpoint if there is one.

  python -m experiments.train --config=configs/mdlm.py:tiny --workdir=runs/mdlm \
      [--config.train.steps=100] [--dry_run]

Exit code 42 after SIGTERM (saved; run the same command again), 130 after Ctrl-C (saved too).
Several processes: see processes.py.
"""

import sys

from absl import flags

from experiments.flags import config_flag, run, workdir_flag
from experiments.processes import STALL_TIMEOUT, connect

CONFIG = config_flag("configs/mdlm.py:tiny")
WORKDIR = workdir_flag()
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything, print the plan, compute nothing")


def main(_):
  from diffusion_text import train
  from diffusion_text.experiment import summary as plan
  from diffusion_text.experiment.build import build
  from diffusion_text.experiment.run import prepare, train_workdir

  experiment = train.multihost.together(lambda: build(CONFIG.value))
  show = print if train.multihost.is_first() else lambda text: None
  show(plan.summary(experiment))
  if DRY_RUN.value:
    tokens, _, start = prepare(experiment, WORKDIR.value)
    show(f"corpus       {len(tokens.tokens):,} training tokens, {tokens.characters:,} characters")
    show(f"workdir      {WORKDIR.value}: {start}")
    return
  result = train_workdir(experiment, WORKDIR.value, stall_seconds=STALL_TIMEOUT.value)
  show(
    f"{result.status} at step {result.step}; python -m experiments.sample --workdir={WORKDIR.value}"
  )
  sys.exit(result.exit_code)


if __name__ == "__main__":
  run(main, connect)

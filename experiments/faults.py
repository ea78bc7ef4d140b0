r"""Kills, starves and damages a small run again and again, and holds it against an undisturbed one,
bit for bit.

  python -m experiments.faults --workdir=/tmp/faults --faults=60 [--seed=0] [--processes=2] \
      [--kinds=start,train,save]

Kinds: kill -9 during the start, after a step, during a save; the newest checkpoint cut short; a
full disk; SIGTERM. The workdir must be new; every process has a log there. Exit code 1 if anything
was lost, repeated or changed.
"""

import pathlib
import sys
import time

from absl import flags

from experiments.flags import config_flag, run, workdir_flag

CONFIG = config_flag("configs/mdlm.py:micro")
WORKDIR = workdir_flag()
FAULTS = flags.DEFINE_integer("faults", 60, "how many", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the kinds and times of the faults")
PROCESSES = flags.DEFINE_integer(
  "processes", 1, "of the run; each fault strikes one of them", lower_bound=1
)
STEPS = flags.DEFINE_integer(
  "steps", 120, "of a run; one that comes to its end is followed by another", lower_bound=1
)
SAVE_EVERY = flags.DEFINE_integer("save_every", 5, "steps", lower_bound=1)
KINDS = flags.DEFINE_list("kinds", [], "which kinds of fault; default all")


def main(_):
  from diffusion_text.experiment.registry import check_names
  from diffusion_text.experiment.run import override
  from diffusion_text.studies import fault_injection as faults

  check_names("--kinds", KINDS.value, faults.KINDS)
  workdir = pathlib.Path(WORKDIR.value).absolute()
  if workdir.exists():
    raise ValueError(f"--workdir={workdir} is there already; use a new one")
  config = CONFIG.value
  small = {
    "data.length": 16,
    "train.batch_size": 8,
    "evaluate.batch_size": 8,
    "evaluate.max_rows": 8,
  }
  small |= {"sampler.steps": 4, "model.layers": 1}
  often = {
    "train.log_every": 1,
    "train.save_every": SAVE_EVERY.value,
    "train.evaluate_every": 10 * STEPS.value,
  }
  override(
    config,
    {**small, **often, "train.steps": STEPS.value, "data.cache_dir": str(workdir / "data")}.items(),
  )
  kinds = KINDS.value or faults.KINDS
  campaign = faults.Campaign(
    config, workdir, faults=FAULTS.value, seed=SEED.value, processes=PROCESSES.value, kinds=kinds
  )
  began = time.monotonic()
  try:
    campaign.run()
  except faults.CampaignFailed as error:
    print(f"{faults.table(campaign.faults)}\nFAILED: {error}")
    sys.exit(1)
  print(faults.table(campaign.faults))
  seconds = time.monotonic() - began
  count = f"{campaign.runs} runs of {STEPS.value} steps, {campaign.starts} starts, {seconds:.0f} s"
  print(f"{count}: nothing lost, repeated or changed")


if __name__ == "__main__":
  run(main)

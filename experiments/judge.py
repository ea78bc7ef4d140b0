r"""Samples of trained systems, judged by an autoregressive run: quality against entropy over
temperatures, never one number.

  python -m experiments.judge --judge=runs/ar --workdirs=runs/mdlm,runs/duo \
      --temperatures=0.7,0.85,1.0 --num=64 [--steps=64]

Lower nats of the judge are better text only at the same entropy: the last lines compare there.
distinct-2, rep-4, self-BLEU (over ordered pairs), the longest copy of training text and MAUVE (of
the judge's features, small samples) stand beside. Held-out text is the last row.
"""

import math

from absl import flags

from experiments.flags import run
from experiments.paths import path_flag
from experiments.workdirs import workdirs_flag

JUDGE = path_flag("judge", "workdir of an autoregressive run", required=True)
WORKDIRS = workdirs_flag("directories of the runs to judge")
TEMPERATURES = flags.DEFINE_list("temperatures", ["0.7", "0.85", "1.0"], "of the samplers")
NUM = flags.DEFINE_integer("num", 64, "samples at each temperature", lower_bound=20)
STEPS = flags.DEFINE_integer("steps", None, "of the samplers; default the runs'", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)


def main(_):
  from diffusion_text.experiment import run as runs
  from diffusion_text.studies import judge

  temperatures = [float(text) for text in TEMPERATURES.value]
  workdirs = WORKDIRS()
  by = judge.Judge(runs.load(JUDGE.value))
  text, reference = judge.held_out_texts(by, NUM.value)
  rows = []
  for name, workdir in workdirs.items():
    trained = runs.load(workdir)
    for temperature in temperatures:
      how = {"num": NUM.value, "seed": SEED.value, "steps": STEPS.value}
      texts = judge.sampled(trained, temperature, **how)
      rows.append(judge.judged(by, name, temperature, texts, reference))
  print(judge.report(rows, judge.judged(by, "held-out text", math.nan, text, reference)))


if __name__ == "__main__":
  run(main)

r"""Prints what runs pay for a bound, in updates, tokens, CPU-seconds and floating-point operations,
and the best size of a network for a number of operations.

  python -m experiments.costs --workdirs=runs/compare/mdlm,runs/compare/duo --bounds=3.0,2.5 \
      --workdir=runs/costs

With --budgets, numbers of operations, the sizes of one system are compared at each of them: the
best size is where a parabola through their bounds is lowest. A learning rate that decays gives its
best bound at its end only, so train the sizes at a constant rate, or once for each budget.

  python -m experiments.costs --workdirs=runs/small,runs/middle,runs/large --budgets=1e12,4e12 \
      --workdir=runs/sizes
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.workdirs import workdirs_flag

WORKDIR = workdir_flag()
WORKDIRS = workdirs_flag("runs whose metrics are read")
BOUNDS = flags.DEFINE_list("bounds", [], "bits per character; default the lowest that all have")
BUDGETS = flags.DEFINE_list("budgets", [], "operations at which sizes are compared")


def main(_):
  from diffusion_text.studies import costs

  bounds, budgets = list(map(float, BOUNDS.value)), list(map(float, BUDGETS.value))
  runs = [costs.read(pathlib.Path(workdir), name) for name, workdir in WORKDIRS().items()]
  print(costs.report(runs, bounds, budgets, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

"""Prints what a config is, without running it: parameters with their sharding, FLOPs per token, memory.

python -m experiments.inspect --config=configs/mdlm.py:small
"""

from experiments.flags import config_flag, run

CONFIG = config_flag("configs/mdlm.py:tiny")


def main(_):
  from diffusion_text import plan
  from diffusion_text.build import build

  experiment = build(CONFIG.value)
  print(plan.parameter_table(experiment))
  print()
  print(plan.summary(experiment))


if __name__ == "__main__":
  run(main)

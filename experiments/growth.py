"""Measures how cost grows, in ratios: step time, temporaries and compilation with length, batch, vocabulary, devices and parameters; the
bytes and seconds of a checkpoint, and the seconds to the first step, with parameters. Writes growth.json and growth.png.

  python -m experiments.growth --workdir=runs/growth [--axes=length,batch] [--largest=4096] [--rounds=5]

On CPU, devices are 8 virtual ones that share its cores: what is seen along that axis is the price of the split, not a gain.
"""

import pathlib

import jax
from absl import flags

from experiments.flags import config_flag, run, workdir_flag

CONFIG = config_flag("configs/mdlm.py:micro")
WORKDIR = workdir_flag()
AXES = flags.DEFINE_list("axes", [], "length, batch, vocabulary, devices, parameters (widths of the network); default all")
LARGEST = flags.DEFINE_integer("largest", None, "leave out larger values, on all axes", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds; medians are reported", lower_bound=1)


def main(_):
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
  from diffusion_text import growth

  names = AXES.value or list(growth.AXES)
  if unknown := set(names) - set(growth.AXES):
    raise ValueError(f"--axes has {sorted(unknown)}; use some of {','.join(growth.AXES)}")
  most = {"devices": jax.device_count()}
  limit = lambda name: min(LARGEST.value or 10**9, most.get(name, 10**9))
  values = {name: [value for value in growth.AXES[name][1] if value <= limit(name)] for name in names}
  if empty := [name for name, chosen in values.items() if len(chosen) < 2]:
    raise ValueError(f"--largest={LARGEST.value} leaves less than two values of {', '.join(empty)}; make it larger")
  print(growth.run(CONFIG.value, values, ROUNDS.value, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

r"""Measures how cost grows, in ratios: step time, temporaries and compilation with length, batch,
vocabulary, devices and parameters; the bytes and seconds of a checkpoint, and the seconds to the
first step, with parameters. Writes growth.json and growth.png.

  python -m experiments.growth --workdir=runs/growth [--axes=length,batch] [--largest=4096] \
      [--rounds=5]

Set, where they are not the axis: rows (1 along length, else 8), accumulation 1, V = 1024, one
device, heads of 64. A checkpoint is read back from a warm cache of files. On one device the devices
axis is left out; on CPU, devices are 8 virtual ones that share its cores: what is seen there is the
price of the split, not a gain.
"""

import pathlib

import jax
from absl import flags

from experiments.flags import config_flag, run, workdir_flag

CONFIG = config_flag("configs/mdlm.py:micro")
WORKDIR = workdir_flag()
AXES = flags.DEFINE_list(
  "axes", [], "length, batch, vocabulary, devices, parameters (widths of the network); default all"
)
LARGEST = flags.DEFINE_integer(
  "largest", None, "leave out larger values, on all axes", lower_bound=1
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds; medians are reported", lower_bound=1)


def main(_):
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
  from diffusion_text.experiment.registry import check_names
  from diffusion_text.studies import scaling as growth

  names = AXES.value or list(growth.AXES)
  check_names("--axes", names, growth.AXES)
  most = {"devices": jax.device_count()}

  def limit(name):
    return min(LARGEST.value or 10**9, most.get(name, 10**9))

  values = {
    name: [value for value in growth.AXES[name][1] if value <= limit(name)] for name in names
  }
  if (few := [name for name, chosen in values.items() if len(chosen) < 2]) and AXES.value:
    why = f"--largest={LARGEST.value} and {jax.device_count()} devices leave"
    raise ValueError(
      f"{why} less than two values of {', '.join(few)}; raise --largest, or leave them out of"
      f" --axes"
    )
  values = {name: chosen for name, chosen in values.items() if name not in few}
  print(growth.run(CONFIG.value, values, ROUNDS.value, pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  run(main)

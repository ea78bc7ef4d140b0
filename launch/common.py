"""Code that the launch scripts share. Standard library only: the scripts need no installation."""

import argparse
import shlex
import subprocess
import sys

# The exit code of experiments.train after SIGTERM: saved, and continued by another start.
EXIT_PREEMPTED = 42

# Compiler flags with their purpose. All hide communication behind computation; results do not
# depend on them.
TPU_FLAGS = {
  "--xla_enable_async_all_gather=true": (
    "start gathering the weights of the next layer (fsdp) while this one computes"
  ),
  "--xla_tpu_enable_async_collective_fusion=true": (
    "let collectives run inside fused computation, not between"
  ),
  "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true": (
    "the same for all-gathers, most of the traffic of fsdp"
  ),
  "--xla_tpu_enable_async_collective_fusion_multiple_steps=true": (
    "spread one collective over several fusions, so that it fits behind them"
  ),
  "--xla_tpu_overlap_compute_collective_tc=true": (
    "allow the tensor cores to compute during a collective"
  ),
  "--xla_tpu_enable_data_parallel_all_reduce_opt=true": (
    "sum gradients across slices (replica) during the backward pass"
  ),
  "--xla_tpu_data_parallel_opt_different_sized_ops=true": (
    "the same for sums of different sizes, such as those of layers and embeddings"
  ),
}
GPU_FLAGS = {
  "--xla_gpu_enable_latency_hiding_scheduler=true": (
    "order operations so that collectives run behind computation"
  ),
  "--xla_gpu_enable_pipelined_all_gather=true": (
    "gather the weights of the next layer of a scan while this one computes (fsdp)"
  ),
  "--xla_gpu_enable_pipelined_reduce_scatter=true": "the same for the gradients of a layer",
  "--xla_gpu_all_gather_combine_threshold_bytes=134217728": (
    "join small gathers up to 128 MiB: fewer launches"
  ),
  "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728": "the same for gradients",
}


def parser(doc):
  """A parser whose help is the docstring of the script, with the option of all scripts."""
  result = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  result.add_argument(
    "--dry_run", action="store_true", help="print exactly what would be run, run nothing"
  )
  return result


def command_after_dashes(options):
  """(options, command): the arguments before and after `--`.

  Ends with a message if there is no command.
  """
  arguments = sys.argv[1:]
  if "--" not in arguments:
    options.parse_args(arguments)  # --help
    options.error("no command: put it after --, as in -- python -m experiments.train --workdir=…")
  middle = arguments.index("--")
  command = arguments[middle + 1 :]
  if not command:
    options.error("there is nothing after --")
  return options.parse_args(arguments[:middle]), command


def check_name(options, name, place="--name="):
  """Ends with a message for a name that is not a host name; place: where it was given.

  Clouds refuse other names, and a shell might interpret them.
  """
  if not (
    name
    and len(name) <= 40
    and all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in name)
    and name[0].isalpha()
  ):
    options.error(f"{place}{name!r} must begin with a letter and have at most 40 of a-z, 0-9 and -")


def explained(flags, mark="#"):
  """One comment line per flag, with its purpose."""
  return [f"{mark} {flag}: {why}" for flag, why in flags.items()]


def show(command):
  """Prints a command, quoted for a shell."""
  print(shlex.join(command), flush=True)


def give(text, command, dry_run):
  """The exit code of a command (sbatch, kubectl) that reads `text`. A dry run prints both."""
  if dry_run:
    print(f"{text.rstrip()}\n# | {shlex.join(command)}")
    return 0
  return subprocess.run(command, input=text, text=True, check=False).returncode

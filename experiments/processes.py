"""Flags of the mains that run as several processes: how these meet, and how long one waits for
another.

With none of them given, JAX looks for a TPU VM, GKE, SLURM or Open MPI and uses what it finds; else
this is one process. `launch/` has a script for each; `launch/local -n 2 -- python -m
experiments.train …` starts several on this machine.
"""

from absl import flags

COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, where JAX cannot find out by itself"
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "processes of this run; 1: do not look for others", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "which of them this is, from 0", lower_bound=0
)
START_TIMEOUT = flags.DEFINE_integer(
  "start_timeout", 300, "seconds until all processes must be here", lower_bound=1
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout",
  100,
  "seconds without a sign of life after which a process counts as dead and the others end",
  lower_bound=1,
)
STALL_TIMEOUT = flags.DEFINE_float(
  "stall_timeout",
  1800.0,
  "several processes: seconds without a finished step, evaluation or save after which this one"
  " ends",
)


def connect(alone: bool = False):
  """Joins the other processes, if there are any; before anything is computed.

  alone: whether this process is the child of one that may have others.
  """
  if alone:
    return
  from diffusion_text.train import multihost as processes

  timeouts = {"start_timeout": START_TIMEOUT.value, "heartbeat_timeout": HEARTBEAT_TIMEOUT.value}
  processes.connect(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, **timeouts)

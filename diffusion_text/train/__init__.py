"""Training: one state, one pure step, one loop.

The trainer knows a `LossFn` and a `DataIterator`, and nothing of diffusion.

state, step          the training state, and the update that changes it
optimizer            optimizers by name, and learning-rate schedules
sharding             the mesh, the placement of arrays, batches across hosts
loop, stop           the training loop, and the ways in which it ends
multihost            several processes: how they connect, agree and end
checkpoint, workdir  the training state on disk, and the run that a directory belongs to
lock                 one run at a time in a workdir
initialize           another run's weights as the start of this one
clock, metrics, progress
"""

from diffusion_text.train import multihost
from diffusion_text.train.checkpoint import (
  Checkpointer,
  CheckpointError,
  Restored,
  latest_step,
  read_asset,
  read_extra,
  restore,
  restore_params,
)
from diffusion_text.train.clock import Clock
from diffusion_text.train.initialize import (
  Initialized,
  compared,
  initialize,
  newest_shapes,
  shapes_by_path,
)
from diffusion_text.train.lock import WorkdirHeld, WorkdirLock
from diffusion_text.train.loop import Hook, LoopSettings, Result, TrainingDiverged, train
from diffusion_text.train.metrics import (
  MetricsWriter,
  check_wandb,
  mfu,
  peak_flops,
  read_metrics,
)
from diffusion_text.train.optimizer import Optimizer, is_kernel, make_optimizer, make_schedule
from diffusion_text.train.progress import reporter
from diffusion_text.train.sharding import (
  global_batch,
  make_mesh,
  row_places,
  state_shardings,
  with_shardings,
)
from diffusion_text.train.state import TrainState, create_state, named_key
from diffusion_text.train.step import (
  TrainStep,
  jit_train_step,
  make_train_step,
)
from diffusion_text.train.stop import EXIT_INTERRUPTED, EXIT_PREEMPTED
from diffusion_text.train.workdir import check_shared, check_workdir

__all__ = [
  "EXIT_INTERRUPTED",
  "EXIT_PREEMPTED",
  "CheckpointError",
  "Checkpointer",
  "Clock",
  "Hook",
  "Initialized",
  "LoopSettings",
  "MetricsWriter",
  "Optimizer",
  "Restored",
  "Result",
  "TrainState",
  "TrainStep",
  "TrainingDiverged",
  "WorkdirHeld",
  "WorkdirLock",
  "check_shared",
  "check_wandb",
  "check_workdir",
  "compared",
  "create_state",
  "global_batch",
  "initialize",
  "is_kernel",
  "jit_train_step",
  "latest_step",
  "make_mesh",
  "make_optimizer",
  "make_schedule",
  "make_train_step",
  "mfu",
  "multihost",
  "named_key",
  "newest_shapes",
  "peak_flops",
  "read_asset",
  "read_extra",
  "read_metrics",
  "reporter",
  "restore",
  "restore_params",
  "row_places",
  "shapes_by_path",
  "state_shardings",
  "train",
  "with_shardings",
]

"""The training loop. Everything it uses is passed in: it knows no diffusion, model or config."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from diffusion_text.train.checkpoint import Checkpointer
from diffusion_text.train.clock import Clock
from diffusion_text.train.metrics import mfu
from diffusion_text.train.multihost import Watchdog
from diffusion_text.train.progress import Report
from diffusion_text.train.state import TrainState
from diffusion_text.train.step import TrainStep
from diffusion_text.train.stop import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stop
from diffusion_text.types import Batch, DataIterator, Params

log = logging.getLogger(__name__)
GUARDED = ("loss", "grad_norm", "param_norm")  # metrics that must be finite


class TrainingDiverged(RuntimeError):
  """The loss, the gradient or the parameters are no longer finite."""


@dataclasses.dataclass(frozen=True)
class Hook:
  """A call with the parameters, such as evaluation or sampling.

  It happens every `every` steps, at step 0 and at the end.

  Attributes:
    every: Number of steps between two calls.
    call: (step, params) -> metrics to write, name -> float, or None. `params` are the averaged
      parameters if there are any. The call must not keep them, because the next step reuses their
      memory.
  """

  every: int
  call: Callable[[int, Params], Mapping[str, float] | None]

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(
        f"every={self.every} must be at least 1 step; leave the hook out to never run it"
      )


@dataclasses.dataclass(frozen=True)
class LoopSettings:
  """The length of training and the intervals of its parts.

  Attributes:
    steps: Number of updates of the whole run.
    log_every: Number of steps between two rows of metrics.
    save_every: Number of steps between two checkpoints.
    max_seconds: Training time (by the clock, which survives restarts) after which the run
      evaluates, saves and finishes. None: no limit.
    profile_steps: (first, last): the updates first, …, last - 1 are traced by the profiler.
    profile_dir: The directory of the profile.
    flops_per_token: FLOPs of the model per token, forward and backward. The MFU is left out unless
      both this and `peak_flops` are known.
    peak_flops: Peak FLOP/s of all devices together.
    stall_seconds: A process that makes no progress for this time ends (see `multihost.Watchdog`).
      None: it waits for ever.
  """

  steps: int
  log_every: int = 100
  save_every: int = 1000
  max_seconds: float | None = None
  profile_steps: tuple[int, int] | None = None
  profile_dir: str | None = None
  flops_per_token: float | None = None
  peak_flops: float | None = None
  stall_seconds: float | None = None

  def __post_init__(self):
    for name in ("steps", "log_every", "save_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if self.max_seconds is not None and not self.max_seconds > 0:
      raise ValueError(f"max_seconds={self.max_seconds} must be above 0; None means no limit")
    if self.profile_steps is not None and not 0 <= self.profile_steps[0] < self.profile_steps[1]:
      raise ValueError(
        f"profile_steps={self.profile_steps} must be (first, last) with 0 <= first < last, e.g. "
        "(10, 15)"
      )
    if (self.profile_steps is None) != (self.profile_dir is None):
      raise ValueError(
        f"profile_steps={self.profile_steps} and profile_dir={self.profile_dir!r} go together"
      )


@dataclasses.dataclass(frozen=True)
class Result:
  """The end of training.

  Attributes:
    state: The last train state.
    step: Number of updates done.
    status: "finished" (all steps done or the time used up), "preempted" or "interrupted".
  """

  state: TrainState
  step: int
  status: str

  @property
  def exit_code(self) -> int:
    """The argument of `sys.exit`. The launcher restarts the run on EXIT_PREEMPTED only."""
    return {"finished": 0, "preempted": EXIT_PREEMPTED, "interrupted": EXIT_INTERRUPTED}[
      self.status
    ]


def train(
  state: TrainState,
  data: DataIterator,
  train_step: TrainStep,
  settings: LoopSettings,
  *,
  checkpointer: Checkpointer | None = None,
  hooks: Sequence[Hook] = (),
  clock: Clock | None = None,
  place: Callable[[Batch], Batch] = lambda batch: batch,
  write: Callable[[int, Mapping[str, float]], None] = lambda step, row: None,
  report: Report = lambda row: None,
  evaluated: bool = False,
  prepare: Callable[[TrainState, Batch], Batch] | None = None,
) -> Result:
  """The result of training from `state.step` to the end.

  The order of one round is part of the contract:

  1. Evaluate with the current (averaged) parameters, if due.
  2. Save, if due. This comes after 1, so that a checkpoint knows its score, and before 3, so that
     its data position is exact.
  3. Draw the batch, place it, prepare it. From here to the next round the data iterator is ahead of
     the state.
  4. Dispatch the step, without waiting for it.
  5. Check and log the metrics of the PREVIOUS step, so that the device always has the next one
     queued.

  Before 1 and 2 the loop waits for the last metrics and checks them: a state that is not finite is
  neither evaluated nor saved. SIGTERM and Ctrl-C finish the step, skip 1, save and return; the
  caller exits with `Result.exit_code`.

  Args:
    state: The state to begin with. It is donated to the first step; do not use it afterwards.
    data: The batches of this process, already at the position that belongs to `state`.
    train_step: (state, batch) -> (state, metrics), see `step.jit_train_step`.
    settings: See `LoopSettings`.
    checkpointer: None saves nothing. The loop waits for it but does not close it.
    hooks: Calls that are made in this order. Their metrics share one row.
    clock: The clock of the run. None makes a new one.
    place: Turns local numpy rows into global arrays, see `sharding.global_batch`.
    write: (step, row) writes to disk, e.g. a `MetricsWriter`. The row of step n has the training
      loss of the n-th update.
    report: Shows a row to people, see `progress.reporter`.
    evaluated: True if the hooks have already run at `state.step`, see `checkpoint.Restored`.
    prepare: (state, batch) -> batch with `Batch.extras` that an objective needs (predictions of a
      teacher, samples with their rewards). Keys must come from `named_key` with a name and
      `state.step`, so that a continued run prepares the same batches.

  Raises:
    TrainingDiverged: If the loss is not finite.
    CheckpointError: If a checkpoint cannot be written.
  """
  clock = Clock(devices=jax.device_count()) if clock is None else clock
  step = start = int(state.step)
  pending = None  # (step, metrics) of the update that is not checked yet
  profiler = _Profiler(settings)

  def settle(done):
    if done is not None:
      _log_metrics(
        *done, settings=settings, clock=clock, write=write, report=report, checkpointer=checkpointer
      )

  clock.start()
  with (
    Stop(agree_every=settings.log_every) as stop,
    Watchdog(settings.stall_seconds) as watch,
    profiler,
  ):
    while True:
      watch.alive(step)
      halt = stop.status(
        step, settings.max_seconds is not None and clock.seconds >= settings.max_seconds
      )
      ended = step >= settings.steps or halt == "out_of_time"
      halted = halt in ("preempted", "interrupted") and not ended
      known = evaluated and step == start
      due = [] if halted or known else [hook for hook in hooks if ended or step % hook.every == 0]
      saving = checkpointer is not None and checkpointer.latest_step != step
      saving = saving and (ended or halted or (step > start and step % settings.save_every == 0))
      if due or saving or ended or halted:
        settle(pending)
        pending = None

      # 1. Evaluate.
      scores = None
      if due:
        with clock.paused():
          scores = {}
          for hook in due:
            scores |= hook.call(step, state.eval_params) or {}
            watch.alive(step)
        if scores:
          write(step, scores)

      # 2. Save.
      if saving:
        with clock.paused():
          checkpointer.save(step, state, data=data.get_state(), clock=clock, metrics=scores)
          if ended or halted:
            checkpointer.wait()
      if ended or halted:
        return Result(state, step, halt if halted else "finished")

      # 3. Draw the batch.
      batch = place(next(data))
      if prepare is not None:
        batch = prepare(state, batch)

      # 4. Step.
      profiler.before(step, state)
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        state, metrics = train_step(state, batch)
      step += 1

      # 5. Log the previous step.
      settle(pending)
      pending = (step, metrics)
      clock.tick(step, batch.ids.size)


def _log_metrics(
  step: int, metrics: Any, *, settings: LoopSettings, clock: Clock, write, report, checkpointer
) -> None:
  """Waits for the metrics of one update, checks that they are finite, and writes a row if due."""
  row = {name: float(value) for name, value in jax.device_get(metrics).items()}
  bad = {name: row[name] for name in GUARDED if name in row and not math.isfinite(row[name])}
  if bad:
    if checkpointer is not None:
      checkpointer.wait()  # a good checkpoint may still be on its way to the disk
    write(step, row)
    raise TrainingDiverged(_diverged(step, bad, row, checkpointer))
  if step % settings.log_every and step != settings.steps:
    return
  row |= clock.rates() | {"device_hours": clock.device_hours}
  if settings.flops_per_token is not None and "tokens_per_second" in row:
    use = mfu(settings.flops_per_token, row["tokens_per_second"], settings.peak_flops)
    row |= {} if use is None else {"mfu": use}
  write(step, row)
  left = clock.seconds_left(settings.steps, settings.max_seconds)
  report({"step": step} | row | ({} if left is None else {"seconds_left": left}))


def _diverged(
  step: int, bad: Mapping[str, float], row: Mapping[str, float], checkpointer: Checkpointer | None
) -> str:
  values = ", ".join(f"{name}={value}" for name, value in bad.items())
  last = None if checkpointer is None else checkpointer.latest_step
  saved = (
    "There is no checkpoint."
    if last is None
    else f"The last good checkpoint is {checkpointer.directory}/{last}."
  )
  return (
    f"training diverged at update {step}: {values} (learning_rate={row.get('learning_rate')}). "
    f"{saved} The state after update {step} was not saved. "
    "Restart with a lower learning_rate, a smaller clip_norm or a longer warm-up; "
    "if it fails at the same update again, look at that batch."
  )


class _Profiler:
  """A profiler trace of `settings.profile_steps`, closed even if the loop ends during the trace."""

  def __init__(self, settings: LoopSettings):
    self._settings = settings
    self._running = False

  def before(self, step: int, state: TrainState) -> None:
    """Starts or ends the trace, before the update at `step`."""
    if self._settings.profile_steps is None:
      return
    first, last = self._settings.profile_steps
    if step in (first, last):
      jax.block_until_ready(state)  # so that the trace has whole steps only
    if step == first:
      jax.profiler.start_trace(self._settings.profile_dir)
      self._running = True
    elif step == last:
      self._stop()

  def _stop(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      log.info(
        "profile of updates %s in %s", self._settings.profile_steps, self._settings.profile_dir
      )

  def __enter__(self) -> _Profiler:
    return self

  def __exit__(self, *_) -> None:
    self._stop()

"""Checkpoints of the whole training state: a kill at any moment loses at most the steps since one.

Orbax writes a checkpoint in the background, every process its own shards, under a temporary name
that is changed at the end. A checkpoint has the items `params`, `ema` (if kept), `frozen` (if there
are frozen parameters), `optimizer` (step and optimizer state) and `extra`, a JSON with the data
position, the clock, the assets (tokenizer, configuration) and a checksum of every array. Nothing in
a checkpoint depends on the mesh or on the number of processes, so a run may continue on another
machine.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.core.trees import merge
from diffusion_text.train.clock import Clock
from diffusion_text.train.multihost import check_same, everywhere
from diffusion_text.train.state import TrainState
from diffusion_text.train.storage import as_path
from diffusion_text.types import Array, DataIterator, Params

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none could be read."""


class Checkpointer:
  """Saves checkpoints of one run; keeps the newest `max_to_keep` and the best by `keep_best`."""

  def __init__(
    self,
    directory: str,
    *,
    max_to_keep: int = 3,
    keep_best: str | None = None,
    assets: Mapping[str, bytes] | None = None,
    asynchronous: bool = True,
  ):
    """Opens a directory for saving and removes checkpoints that a kill left unfinished.

    Args:
      directory: Local or gs://. It is made if absent.
      max_to_keep: Number of newest checkpoints to keep.
      keep_best: Name of an evaluation metric, lower is better. The checkpoint with the lowest value
        is kept too. Only steps that are both evaluated and saved can be best.
      assets: Small files, name -> bytes, saved with every checkpoint. `read_asset` reads them.
      asynchronous: True to write in the background.
    """
    import orbax.checkpoint as ocp  # here, because it is slow to import

    if max_to_keep < 1:
      raise ValueError(f"max_to_keep={max_to_keep} must be at least 1")
    self.directory = str(as_path(directory))
    self._keep_best = keep_best
    self._assets = {name: _text(content) for name, content in (assets or {}).items()}
    policies = ocp.checkpoint_managers
    keep = [policies.LatestN(max_to_keep)]
    if keep_best is not None:
      least = policies.BestN(
        get_metric_fn=lambda metrics: metrics[keep_best],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      keep.append(least)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(keep),
      enable_async_checkpointing=asynchronous,
      # Directories are made at once, so that a failure is an error of `save` and not of a thread
      # that other processes wait for.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      cleanup_tmp_directories=True,
    )
    self._args = ocp.args
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  @property
  def latest_step(self) -> int | None:
    """The newest step that is saved or being saved, None if there is none."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: TrainState,
    *,
    data: bytes,
    clock: Clock,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Saves a checkpoint.

    Returns when the arrays are copied to the host, so that `state` may be donated.

    Args:
      step: Number of updates done.
      state: The whole train state.
      data: `DataIterator.get_state()` before the batch of this step is drawn, the same on every
        process.
      clock: The clock of the run.
      metrics: The metrics of the evaluation at this step, None if there was none.

    Raises:
      CheckpointError: If this save or the last one failed (disk full, directory gone).
      ValueError: If the metrics lack `keep_best`, or the processes are not at the same batch.
    """
    evaluated = metrics is not None
    best = None
    if metrics and self._keep_best is not None:
      if self._keep_best not in metrics:
        raise ValueError(
          f"keep_best={self._keep_best!r} is not an evaluation metric; use one of {sorted(metrics)}"
        )
      best = float(metrics[self._keep_best])
    check_same({f"the data position at step {step}": _text(data)})
    extra = {
      "data": [_text(data)],
      "clock": clock.to_dict(),
      "evaluated": evaluated,
      "assets": self._assets,
      "checksums": checksums(_items(state)),
    }
    items = {name: self._args.StandardSave(tree) for name, tree in _items(state).items()}
    with self._explained(f"save step {step}"):
      self._manager.save(
        step,
        args=self._args.Composite(extra=self._args.JsonSave(extra), **items),
        metrics={self._keep_best: best} if best is not None and math.isfinite(best) else None,
      )

  def wait(self) -> None:
    """Waits until the last save is on disk. Raises CheckpointError if it failed."""
    with self._explained("finish the last save"):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save and closes. Raises CheckpointError if the last save failed."""
    with self._explained("finish the last save"):
      self._manager.close()

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, _, error, __) -> None:
    # After a failure of a run with one process the last save may still be good, so it is finished.
    # With several processes, one of them may be gone and never finish its part.
    if error is None or jax.process_count() == 1:
      self.close()

  def _explained(self, what: str):
    return _Explained(f"could not {what} in {self.directory}")


class _Explained:
  """A context that turns any error into a CheckpointError with the place and a hint."""

  def __init__(self, what: str):
    self._what = what

  def __enter__(self) -> None:
    pass

  def __exit__(self, _, error, __) -> None:
    if isinstance(error, Exception):
      raise CheckpointError(
        f"{self._what}: {error}. Is the disk full, or the directory gone?"
      ) from error


def _items(state: TrainState) -> dict[str, Any]:
  items = {"params": state.params, "optimizer": {"step": state.step, "opt_state": state.opt_state}}
  if state.ema is not None:
    items["ema"] = state.ema
  if state.frozen:
    items["frozen"] = state.frozen
  return items


def _text(content: bytes) -> str:
  return base64.b64encode(content).decode("ascii")


@jax.jit
def _sums_of_bits(tree: Any) -> list[Array]:
  def bits(x):
    if jnp.issubdtype(x.dtype, jnp.bool_):
      return x.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)

  return [jnp.sum(bits(x), dtype=jnp.uint32) for x in jax.tree.leaves(tree)]


def checksums(items: Mapping[str, Any]) -> dict[str, list[int]]:
  """A table from each item to the sums of the bits of its arrays, as uint32.

  Integer sums do not depend on their order, so a checkpoint can be compared with them on any mesh
  without being gathered.
  """
  return {
    name: [int(x) for x in jax.device_get(_sums_of_bits(tree))] for name, tree in items.items()
  }


def steps_in(directory: str) -> list[int]:
  """The steps of the finished checkpoints in a directory, ascending. [] if it does not exist."""
  import orbax.checkpoint as ocp

  path = as_path(directory)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def latest_step(directory: str) -> int | None:
  """The step of the newest finished checkpoint, None if there is none."""
  return max(steps_in(directory), default=None)


def load(
  directory: str, step: int, abstract_items: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(the requested items, `extra`) of one checkpoint, compared with its checksums.

  Args:
    directory: The directory of the checkpoints.
    step: The step of the checkpoint.
    abstract_items: item -> tree of `jax.ShapeDtypeStruct`. Each device reads its own part of each
      array, whatever mesh the array was saved from. An array without a sharding goes to the first
      device.

  Raises:
    CheckpointError: On every process, if a file cannot be read, or an array is missing, has another
      shape or does not match its checksum.
  """
  import orbax.checkpoint as ocp

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def placed(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here)

  args = {
    name: ocp.args.StandardRestore(jax.tree.map(placed, tree))
    for name, tree in abstract_items.items()
  }
  # The handler itself, because ocp.Checkpointer ends a restore with a barrier, which a process that
  # cannot read its part would never reach.
  reader = ocp.CompositeCheckpointHandler()
  error = None
  restored = {}
  try:
    restored = reader.restore(
      as_path(directory) / str(step), args=ocp.args.Composite(extra=ocp.args.JsonRestore(), **args)
    )
  except Exception as e:  # orbax raises many kinds; each means that this checkpoint is not usable
    error = e
  finally:
    reader.close()
  if not everywhere(error is None):
    raise CheckpointError(
      f"{directory}/{step} cannot be read: {error or 'another process could not read its part'}"
    ) from error
  items = {name: restored[name] for name in abstract_items}
  for name, found in checksums(items).items():
    if found != restored["extra"]["checksums"][name]:
      raise CheckpointError(
        f"{directory}/{step}/{name} does not match its checksum: the files are damaged"
      )
  return items, restored["extra"]


def load_newest(
  directory: str, abstract_items: Mapping[str, Any]
) -> tuple[int, dict[str, Any], dict[str, Any]]:
  """(step, items, extra) of the newest readable checkpoint.

  A warning is logged for every newer checkpoint that cannot be read.

  Raises:
    CheckpointError: If there is no checkpoint, or none can be read; quotes the reasons.
  """
  reasons = []
  for step in reversed(steps_in(directory)):
    try:
      return step, *load(directory, step, abstract_items)
    except CheckpointError as error:  # raised on all processes
      reason = " ".join(str(error).split())[:300]
    reasons.append(f"{directory}/{step}: {reason}")
    log.warning(
      "checkpoint %s/%d cannot be read, trying the one before it: %s", directory, step, reason
    )
  if not reasons:
    raise CheckpointError(f"there is no checkpoint in {directory}; is the path right?")
  raise CheckpointError(
    f"none of the checkpoints in {directory} can be read, and a run does not start afresh over "
    "existing data:\n  "
    + "\n  ".join(reasons)
    + "\nIf the model or the optimizer changed, use a new workdir; "
    "if the files are damaged, move them away to start afresh."
  )


@dataclasses.dataclass(frozen=True)
class Restored:
  """The beginning of a run.

  Attributes:
    state: The train state.
    step: Number of updates done.
    source: "workdir", "restore_from" or "fresh".
    evaluated: True if the hooks have already run at `step`.
  """

  state: TrainState
  step: int
  source: str
  evaluated: bool = False

  @property
  def resume_step(self) -> int | None:
    """For `MetricsWriter`: the step if this run continues the metrics of its workdir, else None."""
    return self.step if self.source == "workdir" else None


def restore(
  directory: str,
  abstract_state: TrainState,
  *,
  data: DataIterator,
  clock: Clock,
  fresh: Callable[[], TrainState],
  restore_from: str | None = None,
) -> Restored:
  """The state that a run begins with. This is the only place that decides it.

  The first case that applies:

  1. `directory` has checkpoints: this run was preempted and continues (state, data, clock).
  2. `restore_from` is set: another run is continued here (state, data; the clock starts at 0).
  3. Otherwise the run starts with `fresh()`.

  Args:
    directory: The directory of this run's checkpoints.
    abstract_state: `jax.ShapeDtypeStruct`s with shardings, see `sharding.with_shardings`.
    data: The data iterator; it is set to the position in the checkpoint.
    clock: The clock; it is set to the time in the checkpoint.
    fresh: () -> the state of a new run, already placed.
    restore_from: The directory of another run's checkpoints.

  Raises:
    CheckpointError: If there are checkpoints but none can be read.
  """
  if latest_step(directory) is not None:  # 1.
    restored, extra = _resume(directory, abstract_state, data, "workdir")
    clock.from_dict(extra["clock"])
    _set_aside_after(directory, restored.step)
    return restored
  if restore_from is not None:  # 2.
    return _resume(restore_from, abstract_state, data, "restore_from")[0]
  return Restored(fresh(), 0, "fresh")  # 3.


def _resume(
  directory: str, abstract_state: TrainState, data: DataIterator, source: str
) -> tuple[Restored, dict]:
  step, items, extra = load_newest(directory, _items(abstract_state))
  # The position is stored as a list with one entry.
  data.set_state(base64.b64decode(extra["data"][0]))
  state = TrainState(
    items["optimizer"]["step"],
    items["params"],
    items.get("ema"),
    items["optimizer"]["opt_state"],
    items.get("frozen", {}),
  )
  log.info("continuing from %s/%d", directory, step)
  return Restored(state, step, source, extra["evaluated"] and source == "workdir"), extra


def _set_aside_after(directory: str, step: int) -> None:
  """Renames checkpoints that could not be read.

  The run will reach their steps again and must be able to save there.
  """
  if jax.process_index() == 0:
    for bad in steps_in(directory):
      if bad > step:
        aside = as_path(directory) / f"damaged-{bad}"
        if aside.exists():
          aside.rmtree()
        (as_path(directory) / str(bad)).rename(aside)
        log.warning(
          "checkpoint %s/%d was damaged; it is now %s, and step %d is used",
          directory,
          bad,
          aside,
          step,
        )
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("damaged checkpoints set aside")


def restore_params(
  directory: str,
  abstract_params: Params,
  abstract_frozen: Params | None = None,
  *,
  ema: bool = True,
  step: int | None = None,
) -> Params:
  """The parameters alone, for sampling and evaluation: trained and frozen ones, as one tree.

  Args:
    directory: The directory of the checkpoints.
    abstract_params: `jax.ShapeDtypeStruct`s, with shardings if there is more than one device.
      Parameters are saved as float32. Each device converts its own part to another dtype, such as
      bfloat16, after the comparison with the checksums.
    abstract_frozen: The same for the frozen parameters. None or empty if there are none.
    ema: True for the average, if one was kept. False for the last parameters.
    step: The step of the checkpoint. None: the newest that can be read.

  Raises:
    CheckpointError: If there is no such checkpoint.
  """
  chosen = latest_step(directory) if step is None else step
  if chosen is None or chosen not in steps_in(directory):
    raise CheckpointError(
      f"there is no checkpoint {'' if step is None else step} in {directory}; "
      f"it has {steps_in(directory)}"
    )
  item = "ema" if ema and (as_path(directory) / str(chosen) / "ema").exists() else "params"

  def saved(x):
    dtype = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

  wanted = {item: abstract_params} | ({"frozen": abstract_frozen} if abstract_frozen else {})
  items = jax.tree.map(saved, wanted)
  found = load_newest(directory, items)[1] if step is None else load(directory, step, items)[0]
  found = jax.tree.map(
    lambda x, like: x if x.dtype == like.dtype else x.astype(like.dtype), found, wanted
  )
  return merge(found[item], found.get("frozen", {}))


def read_asset(directory: str, name: str) -> bytes:
  """The content of a small file in the newest readable checkpoint, e.g. of the tokenizer.

  Raises:
    CheckpointError: If there is no checkpoint, or no such asset in it.
  """
  assets = read_extra(directory)["assets"]
  if name not in assets:
    raise CheckpointError(f"{directory} has no asset {name!r}; it has {sorted(assets)}")
  return base64.b64decode(assets[name])


def read_extra(directory: str) -> dict[str, Any]:
  """The data position ("data", in base64), the clock and the assets of the newest readable
  checkpoint.

  Raises:
    CheckpointError: If there is no checkpoint, or none can be read.
  """
  return load_newest(directory, {})[2]

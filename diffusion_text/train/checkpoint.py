"""Checkpoints: all that moves, saved so that a kill at any moment loses at most the steps since the last one.

orbax writes them: in the background, each process its own shards, under a temporary name that is changed at the end. A
checkpoint has the items `params`, `ema` (if kept), `optimizer` (step and optimizer state) and `extra`, a JSON with the data
position, the clock, the assets (tokenizer, configuration) and a checksum of every array. None of it depends on the mesh or on how
many processes there are, so that a run may go on with others.
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
  """Saves checkpoints of one run: the newest `max_to_keep`, and the best one if `keep_best` says what best means."""

  def __init__(
    self,
    directory: str,
    *,
    max_to_keep: int = 3,
    keep_best: str | None = None,
    assets: Mapping[str, bytes] | None = None,
    asynchronous: bool = True,
  ):
    """Opens a directory for saving and removes what a kill left half written.

    Args:
      directory: local or gs://; made if absent.
      max_to_keep: how many of the newest stay.
      keep_best: name of an evaluation metric, lower is better; the checkpoint with the least stays too. Only steps at which
        evaluation and saving coincide can be best.
      assets: small files, name -> bytes, saved with every checkpoint; `read_asset` reads them.
      asynchronous: write in the background.
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
      # Made at once, so that a directory that cannot be made is an error of `save`, not of a thread that others wait for.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      cleanup_tmp_directories=True,
    )
    self._args = ocp.args
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  @property
  def latest_step(self) -> int | None:
    """The newest step saved or being saved; None if there is none."""
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
    """Saves a checkpoint. Returns once the arrays are copied to the host, so that `state` may be donated.

    Args:
      step: updates done. state: the whole train state.
      data: `DataIterator.get_state()`, before the batch of this step is drawn; the same on every process.
      clock: of the run.
      metrics: of the evaluation at this very step; None if there was none.

    Raises:
      CheckpointError: if this or the last save failed (disk full, directory gone).
      ValueError: if the metrics lack `keep_best`, or the processes are not at the same batch.
    """
    evaluated, best = metrics is not None, None
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
    with self._told(f"save step {step}"):
      self._manager.save(
        step,
        args=self._args.Composite(extra=self._args.JsonSave(extra), **items),
        metrics={self._keep_best: best} if best is not None and math.isfinite(best) else None,
      )

  def wait(self) -> None:
    """Until the last save is on disk. Raises CheckpointError if it failed."""
    with self._told("finish the last save"):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and closes. Raises CheckpointError if the last save failed."""
    with self._told("finish the last save"):
      self._manager.close()

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, _, error, __) -> None:
    # After a failure the last save is waited for, as it may be good; of several processes one that is gone may never finish its part.
    if error is None or jax.process_count() == 1:
      self.close()

  def _told(self, what: str):
    return _Told(f"could not {what} in {self.directory}")


class _Told:
  """Turns any error within into a CheckpointError that says where and what to look at."""

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
  """item -> the sum of the bits of each of its arrays, as uint32.

  Integer sums do not depend on their order, so that a checkpoint can be held against them on any mesh, without gathering it.
  """
  return {
    name: [int(x) for x in jax.device_get(_sums_of_bits(tree))] for name, tree in items.items()
  }


def steps_in(directory: str) -> list[int]:
  """The steps of the finished checkpoints in a directory, ascending; [] if it does not exist."""
  import orbax.checkpoint as ocp

  path = as_path(directory)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def latest_step(directory: str) -> int | None:
  """The newest finished checkpoint; None if there is none."""
  return max(steps_in(directory), default=None)


def load(
  directory: str, step: int, abstract_items: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """One checkpoint, checked: (the items asked for, `extra`).

  Args:
    directory, step: which one.
    abstract_items: item -> tree of `jax.ShapeDtypeStruct`; each array is read straight to its sharding, each device its part
      only, whatever mesh it was saved from. Without a sharding it goes to the first device.

  Raises:
    CheckpointError: on every process, if a file cannot be read, or an array is missing, has another shape or does not match its checksum.
  """
  import orbax.checkpoint as ocp

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def placed(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)

  args = {
    name: ocp.args.StandardRestore(jax.tree.map(placed, tree))
    for name, tree in abstract_items.items()
  }
  # The handler itself: ocp.Checkpointer ends a restore with a barrier, at which a process that cannot read its part would be missed.
  reader, error, restored = ocp.CompositeCheckpointHandler(), None, {}
  try:
    restored = reader.restore(
      as_path(directory) / str(step), args=ocp.args.Composite(extra=ocp.args.JsonRestore(), **args)
    )
  except Exception as e:  # orbax raises many kinds; each means that this one cannot be used
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
  """(step, items, extra) of the newest checkpoint that can be read; says so, loudly, if it is not the newest there is.

  Raises:
    CheckpointError: if there is none, or none can be read; quotes why.
  """
  reasons = []
  for step in reversed(steps_in(directory)):
    try:
      return step, *load(directory, step, abstract_items)
    except CheckpointError as error:  # on all processes alike
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
    + "\nIf the model or the optimizer changed, use a new workdir; if the files are damaged, move them away to start afresh."
  )


@dataclasses.dataclass(frozen=True)
class Restored:
  """Where a run begins. source: "workdir", "restore_from" or "fresh". evaluated: the hooks have run at `step`."""

  state: TrainState
  step: int
  source: str
  evaluated: bool = False

  @property
  def resume_step(self) -> int | None:
    """For `MetricsWriter`: the step if this continues the metrics of the same workdir, else None."""
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
  """The one place that decides where a run begins. The first that applies:

  1. `directory` has checkpoints: this run was preempted, go on (state, data, clock).
  2. `restore_from` is given: continue another run here (state, data; the clock starts at 0).
  3. Otherwise afresh.

  Args:
    directory: of this run's checkpoints.
    abstract_state: `jax.ShapeDtypeStruct`s with shardings, see `sharding.with_shardings`.
    data, clock: are set to the position in the checkpoint.
    fresh: () -> the state to begin with, already placed.
    restore_from: directory of another run's checkpoints.

  Raises:
    CheckpointError: if there are checkpoints but none can be read.
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
  data.set_state(
    base64.b64decode(extra["data"][0])
  )  # a list, from when each process had its own: all said the same
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
  """Renames checkpoints that could not be read: the run will come to their steps again and must be able to save there."""
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
  """Parameters alone, for sampling and evaluation: those that moved and those that are frozen, merged.

  Args:
    directory: of checkpoints.
    abstract_params: `jax.ShapeDtypeStruct`s, with shardings if there is more than one device. They are saved as float32; another
      dtype, as bfloat16, is converted to after the check, each device its own part.
    abstract_frozen: the same of the frozen parameters; None or empty if there are none.
    ema: the average, if one was kept; False: the last parameters.
    step: which checkpoint; None: the newest that can be read.

  Raises:
    CheckpointError: if there is none.
  """
  chosen = latest_step(directory) if step is None else step
  if chosen is None or chosen not in steps_in(directory):
    raise CheckpointError(
      f"there is no checkpoint {'' if step is None else step} in {directory}; it has "
      f"{steps_in(directory)}"
    )
  item = "ema" if ema and (as_path(directory) / str(chosen) / "ema").exists() else "params"

  def saved(x):
    dtype = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=getattr(x, "sharding", None))

  wanted = {item: abstract_params} | ({"frozen": abstract_frozen} if abstract_frozen else {})
  items = jax.tree.map(saved, wanted)
  found = load_newest(directory, items)[1] if step is None else load(directory, step, items)[0]
  found = jax.tree.map(
    lambda x, like: x if x.dtype == like.dtype else x.astype(like.dtype), found, wanted
  )
  return merge(found[item], found.get("frozen", {}))


def read_asset(directory: str, name: str) -> bytes:
  """A small file that was saved with the newest readable checkpoint, e.g. the tokenizer.

  Raises:
    CheckpointError: if there is no checkpoint, or no such asset in it.
  """
  assets = load_newest(directory, {})[2]["assets"]
  if name not in assets:
    raise CheckpointError(f"{directory} has no asset {name!r}; it has {sorted(assets)}")
  return base64.b64decode(assets[name])

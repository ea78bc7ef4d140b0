"""The weights of one run as the start of another: nothing else of it is taken.

Resuming (`checkpoint.restore`) continues a run with its optimizer, step, clock and place in the
data. Initialising begins a run at step 0, with its own data, seed and rates, from another run's
parameters and their average.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.core.trees import merge
from diffusion_text.train.checkpoint import CheckpointError, load, steps_in
from diffusion_text.train.multihost import everywhere
from diffusion_text.train.sharding import path_names
from diffusion_text.train.state import TrainState
from diffusion_text.train.storage import as_path
from diffusion_text.types import Params

log = logging.getLogger(__name__)
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Initialized:
  """What another run's weights become in this run, by the path of each array.

  Attributes:
    source: the checkpoint.
    loaded: arrays that are taken.
    missing: arrays of this run that the other does not have; they start afresh.
    reshaped: arrays of another shape there, with both shapes, (there, here); they start afresh.
    unused: arrays of the other run that this one does not have.
  """

  source: str
  loaded: tuple[str, ...]
  missing: tuple[str, ...]
  reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
  unused: tuple[str, ...]

  def __str__(self) -> str:
    lines = [f"weights of {self.source}: {len(self.loaded)} arrays loaded"]
    lines += [
      f"  {path}: {there} there and {here} here, starts afresh"
      for path, there, here in self.reshaped
    ]
    lines += [f"  {path}: missing there, starts afresh" for path in self.missing]
    lines += [f"  {path}: not used here" for path in self.unused]
    return "\n".join(lines)


def newest_shapes(directory: str) -> tuple[int, dict[str, Any]]:
  """(step, `saved_shapes`) of the newest checkpoint that can be read. All processes must call it.

  Raises:
    CheckpointError: if there is none.
  """
  reasons = []
  for step in reversed(steps_in(directory)):
    error = None
    try:
      shapes = saved_shapes(directory, step)
    except CheckpointError as found:
      error = found
    if everywhere(error is None):
      return step, shapes
    reasons.append(str(error or "another process could not read it"))
  raise CheckpointError(
    f"there is no checkpoint that can be read in {directory}: {'; '.join(reasons) or 'none at all'}"
  )


def saved_shapes(directory: str, step: int) -> dict[str, Any]:
  """item ("params", "ema", "frozen") -> tree of `jax.ShapeDtypeStruct` of a checkpoint, from its
  metadata alone. Items that it does not have are left out.

  Raises:
    CheckpointError: if the metadata cannot be read.
  """
  import orbax.checkpoint as ocp  # here, because it is slow to import

  def shape(leaf):
    return jax.ShapeDtypeStruct(tuple(leaf.shape), jnp.dtype(leaf.dtype))

  found = {}
  for item in ("params", "ema", "frozen"):
    path = as_path(directory) / str(step) / item
    if not path.exists():
      continue
    handler = ocp.StandardCheckpointHandler()
    try:
      tree = handler.metadata(path).tree
      found[item] = jax.tree.map(shape, tree, is_leaf=_is_array)
    except Exception as error:  # orbax raises many kinds; each means that it is not usable
      raise CheckpointError(f"{path} cannot be read: {error}") from error
    finally:
      handler.close()
  return found


def compared(source: str, shapes: dict[str, Any], state: TrainState) -> Initialized:
  """What initialising `state` (arrays or shapes) would take from a checkpoint of these shapes.

  Args:
    source: the checkpoint, for the report.
    shapes: its `saved_shapes`.
    state: of this run.

  Raises:
    ValueError: if not one array fits.
  """
  there = _by_path(_whole(shapes, "params"))
  here = _by_path(merge(state.params, state.frozen))
  both = [path for path in here if path in there]
  report = Initialized(
    source=source,
    loaded=tuple("/".join(p) for p in both if there[p].shape == here[p].shape),
    missing=tuple("/".join(p) for p in here if p not in there),
    reshaped=tuple(
      ("/".join(p), there[p].shape, here[p].shape) for p in both if there[p].shape != here[p].shape
    ),
    unused=tuple("/".join(p) for p in there if p not in here),
  )
  if not report.loaded:
    raise ValueError(
      f"{report.source} has no array of the name and shape of one here, so there is nothing to"
      f" start from; is it another kind of model?\n{report}".replace("\n", "; ")
    )
  return report


def initialize(
  directory: str, state: TrainState, step: int | None = None
) -> tuple[TrainState, Initialized]:
  """(the state with another run's weights, what was taken). Step, optimizer and data stay as they
  are. Consumes `state`.

  Args:
    directory: of the other run's checkpoints.
    state: the fresh state of this run, placed.
    step: of the checkpoint; None: the newest.

  The average becomes the other run's average where both keep one, otherwise the parameters
  themselves. Arrays may be trained in one run and frozen in the other.

  Raises:
    CheckpointError: if there is no such checkpoint, or it cannot be read.
    ValueError: if not one array fits.
  """
  steps = steps_in(directory)
  if not steps or (step is not None and step not in steps):
    raise CheckpointError(f"there is no checkpoint {step or ''} in {directory}; it has {steps}")
  if step is not None:
    return _initialize(directory, state, step)
  reasons = []
  for number in reversed(steps):
    try:
      return _initialize(directory, state, number)
    except CheckpointError as error:  # raised on all processes
      reasons.append(str(error))
      log.warning("%s/%d cannot be read, trying the one before it: %s", directory, number, error)
  raise CheckpointError("; ".join(reasons))


def _initialize(directory: str, state: TrainState, step: int) -> tuple[TrainState, Initialized]:
  shapes = saved_shapes(directory, step)
  report = compared(f"{directory}/{step}", shapes, state)
  here = _by_path(merge(state.params, state.frozen))
  taken = {path for path in here if "/".join(path) in set(report.loaded)}

  def placed(path, leaf):
    sharding = here[path].sharding if path in taken else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  wanted = {item: _map_paths(placed, tree) for item, tree in shapes.items()}
  if state.ema is None:
    wanted.pop("ema", None)
  items = load(directory, step, wanted)[0]
  params = _by_path(_whole(items, "params"))
  average = _by_path(_whole(items, "ema" if "ema" in items else "params"))

  def start(source):
    def one(path, leaf):
      return source[path].astype(leaf.dtype) if path in taken else leaf

    return one

  return dataclasses.replace(
    state,
    params=_map_paths(start(params), state.params),
    # A copy, as one buffer cannot be donated twice.
    ema=None
    if state.ema is None
    else jax.tree.map(jnp.copy, _map_paths(start(average), state.ema)),
    frozen=_map_paths(start(params), state.frozen),
  ), report


def _whole(items: dict[str, Any], item: str) -> Params:
  """Trained (or averaged) and frozen arrays as one tree."""
  return merge(items[item], items.get("frozen", {}))


def _by_path(tree: Params) -> dict[Path, Any]:
  return {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes_by_path(tree: Params) -> dict[str, tuple[int, ...]]:
  """{"network/head/kernel": (64, 82), …} of arrays or shapes."""
  return {"/".join(path): tuple(leaf.shape) for path, leaf in _by_path(tree).items()}


def _map_paths(function: Any, tree: Params) -> Params:
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_names(path), leaf), tree)


def _is_array(leaf: Any) -> bool:
  # Every node of the metadata is a dict or a list; whatever else there is describes an array.
  return not isinstance(leaf, dict | list | tuple)

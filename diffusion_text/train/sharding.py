"""The mesh, the placement of the state on it, and global batches from local rows.

The table of how each weight is split lives with the model. Here it is a function
`(path, shape) -> PartitionSpec`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_text.types import Batch

AXES = ("replica", "fsdp", "tensor", "sequence", "expert")
ROWS = ("replica", "fsdp")  # the axes that the rows of a batch are split over
SpecFn = Callable[[tuple[str, ...], tuple[int, ...]], PartitionSpec]


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
  """The plain names of a jax key path: `["a"].b[0]` is ("a", "b", "0")."""
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def make_mesh(
  *,
  replica: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  sequence: int = 1,
  expert: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """The mesh of every array of a run. On one device all axes are 1 and the code is the same.

  One of the five sizes may be -1, which means all devices that are left.

  Args:
    replica: Number of copies of the parameters. The slow network between pods belongs here.
    fsdp: Number of pieces that both parameters and rows are split into.
    tensor, sequence, expert: See the model's partition table.
    devices: None: all devices of all processes. Devices of a topology description work too.

  Raises:
    ValueError: If the product of the axes is not the number of devices, or if neither replica nor
      fsdp is a multiple of the number of slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  asked = dict(zip(AXES, (replica, fsdp, tensor, sequence, expert)))
  sizes = _filled(asked, len(devices))
  # Auto: the compiler propagates shardings from the table. With Explicit axes, every operation
  # would have to name its sharding.
  types = (jax.sharding.AxisType.Auto,) * len(AXES)
  return Mesh(_placed(sizes, devices), AXES, axis_types=types)


def _filled(asked: dict[str, int], devices: int) -> dict[str, int]:
  """The sizes of all axes, in which -1 has become what is left of so many devices."""
  free = [axis for axis, size in asked.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in asked.values()):
    raise ValueError(
      f"mesh {_shown(asked)}: sizes must be at least 1, and at most one of them -1 (fills); "
      f"got -1 for {free}"
    )
  fixed = math.prod(size for size in asked.values() if size != -1)
  sizes = asked | {axis: devices // fixed for axis in free}
  if math.prod(sizes.values()) != devices:
    fix = (
      f"make the fixed axes divide {devices}"
      if free
      else "set one axis, usually fsdp, to -1 to fill"
    )
    raise ValueError(
      f"mesh {_shown(asked)} needs a multiple of {fixed} devices but there are {devices}; {fix}"
    )
  return sizes


def _placed(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
  """The devices in an array with these axes, such that neighbours in it are near each other."""
  # An axis of the mesh may be a part of an axis of the slice, as fsdp=256 is on 8 × 8 × 8 chips.
  split = {"allow_split_physical_axes": True}
  # A slice of TPUs, or a node of a GPU cluster, has a fast network inside and a slow one outside.
  # Devices without the attribute, such as those of a CPU, are one slice.
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(tuple(sizes.values()), devices, **split)
  outer = next((axis for axis in ROWS if sizes[axis] % slices == 0), None)
  if outer is None:
    raise ValueError(
      f"mesh {_shown(sizes)} over {slices} slices or nodes: only rows are split between them, so"
      f" replica or fsdp must be a multiple of {slices}"
    )
  within = [size // slices if axis == outer else size for axis, size in sizes.items()]
  between = [slices if axis == outer else 1 for axis in AXES]
  return mesh_utils.create_hybrid_device_mesh(within, between, devices, **split)


def _shown(sizes: dict[str, int]) -> str:
  return " ".join(f"{axis}={size}" for axis, size in sizes.items())


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds as a whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: rows are split over (replica, fsdp), other axes see the same rows."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def row_shards(mesh: Mesh) -> int:
  """The number of pieces that the rows of a batch are split into."""
  return mesh.shape["replica"] * mesh.shape["fsdp"]


def token_shards(mesh: Mesh) -> int:
  """The number of pieces of the tokens of a batch: rows, and each row over the sequence axis."""
  return row_shards(mesh) * mesh.shape["sequence"]


def state_shardings(abstract_state: Any, spec_fn: SpecFn, mesh: Mesh) -> Any:
  """The placement of a `TrainState`, as a tree of the same structure.

  Parameters, frozen or not, and their average are placed by the table. A leaf of the optimizer with
  the shape of a parameter, whose path ends with the path of that parameter (a moment), is placed
  like the parameter. All other leaves (counts) are on every device.

  Args:
    abstract_state: A `TrainState` of arrays or `jax.ShapeDtypeStruct`s.
    spec_fn: (path, shape) of a parameter -> its PartitionSpec. An example of the arguments is
      (("mlp", "kernel"), (512, 2048)).
    mesh: See `make_mesh`.

  Raises:
    ValueError: If an axis of a parameter does not divide over its devices in the table.
  """
  table = {}
  both = (abstract_state.params, abstract_state.frozen)
  leaves = [pair for tree in both for pair in jax.tree_util.tree_leaves_with_path(tree)]
  for path, leaf in leaves:
    names = path_names(path)
    spec = spec_fn(names, leaf.shape)
    _check_divides(names, leaf.shape, spec, mesh)
    table[names] = (leaf.shape, NamedSharding(mesh, spec))

  def moment(path, leaf):
    names = path_names(path)
    for start in range(len(names)):  # the longest suffix first: "a/b/kernel" before "kernel"
      shape, sharding = table.get(names[start:], (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated(mesh)

  def placed(tree):
    return jax.tree_util.tree_map_with_path(lambda path, _: table[path_names(path)][1], tree)

  return dataclasses.replace(
    abstract_state,
    step=replicated(mesh),
    params=placed(abstract_state.params),
    ema=None if abstract_state.ema is None else placed(abstract_state.ema),
    opt_state=jax.tree_util.tree_map_with_path(moment, abstract_state.opt_state),
    frozen=placed(abstract_state.frozen),
  )


def _check_divides(
  names: tuple[str, ...], shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh
) -> None:
  if len(spec) > len(shape):
    raise ValueError(
      f"{'/'.join(names)} has shape {shape} but its spec {spec} names {len(spec)} axes; "
      "fix the partition table"
    )
  for size, entry in zip(shape, spec):
    if entry is None:
      over = ()
    elif isinstance(entry, str):
      over = (entry,)
    else:
      over = tuple(entry)
    pieces = math.prod(mesh.shape[axis] for axis in over)
    if size % pieces:
      raise ValueError(
        f"{'/'.join(names)} of shape {shape}: {size} does not divide over {'×'.join(over)} = "
        f"{pieces} devices; use a mesh whose {'×'.join(over)} divides {size}, or leave that axis "
        "whole in the partition table"
      )


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s with their placement, to restore a checkpoint to."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
  )


def row_places(mesh: Mesh, rows: int) -> np.ndarray:
  """int64, ascending: the rows of a global batch of `rows` rows that this process must read.

  These are the rows that its devices hold. Processes whose devices hold the same rows (tensor
  parallelism across hosts) read the same rows. On a TPU the devices of one host need not hold
  neighbouring rows, because the mesh follows the wires and the rows follow the mesh.

  Raises:
    ValueError: If the rows do not divide over the devices.
  """
  owners = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
  return places_of_process(owners.reshape(row_shards(mesh), -1), jax.process_index(), rows)


def places_of_process(owners: np.ndarray, process: int, rows: int) -> np.ndarray:
  """`row_places` as pure arithmetic.

  Args:
    owners: int [row shards, devices of each shard], the process of every device.
    process: The number of this process.
    rows: Rows of the global batch.
  """
  shards = len(owners)
  if rows < 1 or rows % shards:
    raise ValueError(
      f"a batch of {rows} rows does not divide over {shards} devices (replica × fsdp); "
      f"use {-(-max(rows, 1) // shards) * shards}"
    )
  return np.arange(rows).reshape(shards, -1)[(owners == process).any(axis=1)].reshape(-1)


def global_batch(batch: Batch, mesh: Mesh, rows: int | None = None) -> Batch:
  """jax arrays [rows, L], split over (replica, fsdp), from the rows that this process has read.

  Args:
    batch: numpy arrays [rows of this process, L], the rows of `row_places` in that order.
    mesh: See `make_mesh`.
    rows: Rows of the global batch. None if this process has read all of them.

  Raises:
    ValueError: If the rows do not divide over the devices, or are not the rows that this process
      holds.
  """
  rows = len(batch.ids) if rows is None else rows
  places = row_places(mesh, rows)
  if len(places) != len(batch.ids):
    raise ValueError(
      f"this process has read {len(batch.ids)} rows, but holds {len(places)} of {rows}; "
      "read those of row_places"
    )
  sharding = batch_sharding(mesh)

  def place(x):
    def piece(index):  # this process holds whole shards, so the rows of one are neighbours in x too
      start, stop, _ = index[0].indices(rows)
      first = int(np.searchsorted(places, start))
      return x[(slice(first, first + stop - start), *index[1:])]

    x = np.asarray(x)
    return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, piece)

  return jax.tree.map(place, batch)

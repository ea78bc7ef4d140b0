"""Which device holds what: the mesh, the placement of the state, and global batches from local rows.

The table that says how each weight is split lives with the model; here it is a function `(path, shape) -> PartitionSpec`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_text.types import Batch

AXES = ("replica", "fsdp", "tensor", "sequence", "expert")
ROWS = ("replica", "fsdp")  # the axes that share out the rows of a batch
SpecFn = Callable[[tuple[str, ...], tuple[int, ...]], PartitionSpec]


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
  """A jax key path as plain names: `["a"].b[0]` is ("a", "b", "0")."""
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
  """The mesh that every array of a run lives on; on one device all axes are 1 and the code is the same.

  Args:
    replica: copies of the parameters; the slow network between pods goes here. fsdp: parameters and rows are both split.
    tensor, sequence, expert: see the model's partition table. One of the five may be -1: all devices that are left.
    devices: default all of them, of all processes; described devices of a topology are accepted too.

  Raises:
    ValueError: if the product of the axes is not the number of devices, or neither replica nor fsdp is a multiple of the number of slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = dict(zip(AXES, (replica, fsdp, tensor, sequence, expert)))
  free = [axis for axis, size in sizes.items() if size == -1]
  asked = " ".join(f"{axis}={size}" for axis, size in sizes.items())
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise ValueError(
      f"mesh {asked}: sizes must be at least 1, and at most one of them -1 (fills); got -1 for "
      f"{free}"
    )
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    fix = (
      f"make the fixed axes divide {len(devices)}"
      if free
      else "set one axis, usually fsdp, to -1 to fill"
    )
    raise ValueError(
      f"mesh {asked} needs a multiple of {fixed} devices but there are {len(devices)}; {fix}"
    )
  # Auto: the compiler propagates shardings from the table; with Explicit axes every operation would have to name its own.
  types = (jax.sharding.AxisType.Auto,) * len(AXES)
  # TPU slices, and the nodes of a GPU cluster: a fast network within each, a slow one between them.
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)
  outer = next((axis for axis in ROWS if sizes[axis] % slices == 0), None)
  if outer is None:
    raise ValueError(
      f"mesh {asked} over {slices} slices or nodes: only rows are split between them, so replica "
      f"or fsdp must be a multiple of {slices}"
    )
  within = [size // slices if axis == outer else size for axis, size in sizes.items()]
  between = [slices if axis == outer else 1 for axis in AXES]
  from jax.experimental import mesh_utils

  placed = mesh_utils.create_hybrid_device_mesh(
    within, between, devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows are split over (replica, fsdp); the other axes see the same rows."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def row_shards(mesh: Mesh) -> int:
  """In how many pieces the rows of a batch are split."""
  return mesh.shape["replica"] * mesh.shape["fsdp"]


def token_shards(mesh: Mesh) -> int:
  """In how many pieces the tokens of a batch are split: its rows, and over the sequence axis each row."""
  return row_shards(mesh) * mesh.shape["sequence"]


def state_shardings(abstract_state: Any, spec_fn: SpecFn, mesh: Mesh) -> Any:
  """The placement of a `TrainState`, as a tree like it.

  Parameters, frozen or not, and their average are placed by the table. A leaf of the optimizer whose path ends with the path of a parameter
  and which has its shape (the moments) is placed like that parameter; all others (counts) are on every device.

  Args:
    abstract_state: a `TrainState` of arrays or `jax.ShapeDtypeStruct`s.
    spec_fn: (path, shape) of a parameter -> its PartitionSpec, e.g. (("mlp", "kernel"), (512, 2048)).
    mesh: see `make_mesh`.

  Raises:
    ValueError: if an axis of a parameter does not divide over the devices that the table gives it.
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
      f"{'/'.join(names)} has shape {shape} but its spec {spec} names {len(spec)} axes; fix the "
      "partition table"
    )
  for size, entry in zip(shape, spec):
    over = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    pieces = math.prod(mesh.shape[axis] for axis in over)
    if size % pieces:
      raise ValueError(
        f"{'/'.join(names)} of shape {shape}: {size} does not divide over {'×'.join(over)} = "
        f"{pieces} devices;"
        f" use a mesh whose {'×'.join(over)} divides {size}, or leave that axis whole in the "
        "partition table"
      )


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s that carry their placement: what a checkpoint is restored to."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
  )


def row_places(mesh: Mesh, rows: int) -> np.ndarray:
  """int64, ascending: which rows of a global batch of `rows` rows this process must read, those that its devices hold.

  Processes whose devices hold the same rows (tensor parallelism across hosts) read the same. On a TPU the devices of one host need
  not hold neighbouring rows: the mesh follows the wires, and the rows follow the mesh.

  Raises:
    ValueError: if the rows do not divide over the devices.
  """
  owners = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
  return places_of_process(owners.reshape(row_shards(mesh), -1), jax.process_index(), rows)


def places_of_process(owners: np.ndarray, process: int, rows: int) -> np.ndarray:
  """`row_places` as arithmetic: owners is int [row shards, devices of each shard], the process of every device."""
  shards = len(owners)
  if rows < 1 or rows % shards:
    raise ValueError(
      f"a batch of {rows} rows does not divide over {shards} devices (replica × fsdp); use "
      f"{-(-max(rows, 1) // shards) * shards}"
    )
  return np.arange(rows).reshape(shards, -1)[(owners == process).any(axis=1)].reshape(-1)


def global_batch(batch: Batch, mesh: Mesh, rows: int | None = None) -> Batch:
  """Global arrays on the mesh from the rows that this process has read.

  Args:
    batch: numpy arrays [rows of this process, L]: the rows of `row_places`, in that order.
    mesh: see `make_mesh`.
    rows: of the global batch; None if this process has read them all.

  Returns:
    jax arrays [rows, L], split over (replica, fsdp).

  Raises:
    ValueError: if the rows do not divide over the devices, or are not those that this process holds.
  """
  rows = len(batch.ids) if rows is None else rows
  places = row_places(mesh, rows)
  if len(places) != len(batch.ids):
    raise ValueError(
      f"this process has read {len(batch.ids)} rows, but holds {len(places)} of {rows}; read those "
      "of row_places"
    )
  sharding = batch_sharding(mesh)

  def place(x):
    def piece(index):  # whole shards are ours, so that the rows of one are neighbours in x too
      start, stop, _ = index[0].indices(rows)
      first = int(np.searchsorted(places, start))
      return x[(slice(first, first + stop - start), *index[1:])]

    x = np.asarray(x)
    return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, piece)

  return jax.tree.map(place, batch)

"""The sharding table: one line per kind of weight, read top-down, first match wins.

Each axis of a weight has a logical name; `AXES` says over which mesh axis a logical name is split.
Optimizer moments and EMA are sharded like their weight. A name that does not divide its axis is not
split, so any mesh fits any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

# Logical axis -> mesh axes. fsdp gathers weights just in time. tensor and expert split heads, MLP
# and vocabulary; the experts of a mixture are split over expert, and each of them over tensor:
# every device then has the tokens of its rows, and its experts' share of the result is summed as
# that of its heads is.
SPLIT = ("tensor", "expert")
AXES = {
  "layers": (),
  "embed": ("fsdp",),
  "heads": SPLIT,
  "mlp": SPLIT,
  "vocab": SPLIT,
  "experts": ("expert",),
  "expert_mlp": ("tensor",),
  None: (),
}

# End of the weight's path -> logical axes. Shapes are per layer; stacked, they begin with layers.
# Weights that no line names (norm scales, small biases, the time embedding) are replicated.
# fmt: off
TABLE: Sequence[tuple[tuple[str, ...], tuple[str | None, ...]]] = (
  (("embedding",), ("vocab", "embed")),  # [V or V+1, D]; also of a first stage, of positions
  (("vector_embedding",), ("vocab", "embed")),  # [E, D]
  (("head", "kernel"), ("embed", "vocab")),  # [D, V]
  (("head", "bias"), ("vocab",)),  # [V]
  (("attention", "query", "kernel"), ("layers", "embed", "heads")),  # [D, H·K]
  (("attention", "key", "kernel"), ("layers", "embed", "heads")),  # [D, G·K]
  (("attention", "value", "kernel"), ("layers", "embed", "heads")),  # [D, G·K]
  (("attention", "out", "kernel"), ("layers", "heads", "embed")),  # [H·K, D]
  (("mlp", "up", "kernel"), ("layers", "embed", "mlp")),  # [D, F]
  (("mlp", "gate", "kernel"), ("layers", "embed", "mlp")),  # [D, F]
  (("mlp", "down", "kernel"), ("layers", "mlp", "embed")),  # [F, D]
  (("mlp", "up"), ("layers", "experts", "embed", "expert_mlp")),  # [experts, D, F]
  (("mlp", "gate"), ("layers", "experts", "embed", "expert_mlp")),  # [experts, D, F]
  (("mlp", "down"), ("layers", "experts", "expert_mlp", "embed")),  # [experts, F, D]
  (("shared", "up", "kernel"), ("layers", "embed", "mlp")),  # [D, F], of the shared expert
  (("shared", "gate", "kernel"), ("layers", "embed", "mlp")),  # [D, F]
  (("shared", "down", "kernel"), ("layers", "mlp", "embed")),  # [F, D]
  (("modulation", "kernel"), ("layers", None, "embed")),  # [C, 6·D]
  (("time_input", "kernel"), ("layers", None, "embed")),  # [C, D]
  (("final_modulation", "kernel"), (None, "embed")),  # [C, 2·D], not per layer
  (("prefix", "kernel"), (None, "embed")),  # [C, D], not per layer
  (("head_transform", "dense", "kernel"), ("embed", None)),  # [D, D], not per layer
)
# fmt: on

# Axes of what may stand beside or in place of a kernel (low_rank.py, quantized/), by those of the
# kernel: its outer axes, its inputs and its outputs. Their own axis, of ranks or groups, is whole.
# fmt: off
BESIDE = {
  ("low_rank", "a"): ("in", None),  # [D_in, r]
  ("low_rank", "b"): (None, "out"),  # [r, D_out]
  ("quantized", "codes"): ("in", "out"),  # [D_in · bits / 8, D_out]
  ("quantized", "scale"): (None, "out"),  # [groups, D_out]
  ("quantized", "zero"): (None, "out"),  # [groups, D_out]
  ("quantized", "inputs"): ("in",),  # [D_in]
}
# fmt: on

# Matrices of a mixture of experts, which are arrays of their own and no `kernel`.
EXPERTS = (("mlp", "router"), ("mlp", "up"), ("mlp", "gate"), ("mlp", "down"))
LOW_RANK = (("low_rank", "a"), ("low_rank", "b"))


def decays(path: Sequence[str]) -> bool:
  """True if weight decay should reach the parameter at `path`: matrices, but no embedding tables.

  By name, not by rank: layers are stacked, so the scale of a norm is a matrix [layers, D] too.
  """
  return path[-1] == "kernel" or tuple(path[-2:]) in (*EXPERTS, *LOW_RANK)


def partition_spec(
  path: Sequence[str], shape: Sequence[int], mesh_shape: Mapping[str, int]
) -> PartitionSpec:
  """Where the weight at `path` (names from the root) lies on a mesh with these axis sizes."""
  beside = BESIDE.get(tuple(path[-2:]))
  kernel = path if beside is None else (*path[:-2], "kernel")
  for ending, axes in TABLE:
    if tuple(kernel[-len(ending) :]) == ending:
      axes = axes if beside is None else _beside(axes, beside)
      if len(axes) == len(shape):
        entries = (_entry(split(axis, size, mesh_shape)) for axis, size in zip(axes, shape))
        return PartitionSpec(*entries)
  return PartitionSpec()


def _beside(axes: Sequence[str | None], own: Sequence[str | None]) -> tuple[str | None, ...]:
  """The logical axes of an array beside a kernel that has the logical axes `axes`."""
  by_name = {"in": axes[-2], "out": axes[-1], None: None}
  return (*axes[:-2], *(by_name[name] for name in own))


def split(axis: str | None, size: int, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes over which a logical axis of this size is split: the first of them, as many as
  divide the size."""
  chosen = tuple(name for name in AXES[axis] if mesh_shape.get(name, 1) > 1)
  while chosen and size % math.prod(mesh_shape[name] for name in chosen):
    chosen = chosen[:-1]
  return chosen


def memory(
  shape: Sequence[int], spec: PartitionSpec, mesh_shape: Mapping[str, int], itemsize: int = 4
) -> float:
  """Bytes of one weight on one device."""
  over = []
  for entry in spec:
    if entry is not None:
      over += [entry] if isinstance(entry, str) else entry
  return math.prod(shape) * itemsize / math.prod(mesh_shape.get(axis, 1) for axis in over)


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
  if not axes:
    return None
  return axes if len(axes) > 1 else axes[0]

"""The sharding table: one line per kind of weight, read top-down, first match wins.

Each axis of a weight has a logical name; `AXES` says over which mesh axis a logical name is split. Optimizer moments and EMA are
sharded like their weight (train/sharding.py). A name that does not divide its axis is not split, so any mesh fits any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

ROWS = ("replica", "fsdp")  # mesh axes that share out the rows of a batch

# Logical axis -> mesh axis. fsdp gathers weights just in time; tensor splits heads, MLP and vocabulary.
AXES = {"layers": None, "embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor", None: None}

# End of the weight's path             logical axes                     shape, per layer (stacked: [layers, ...])
TABLE: Sequence[tuple[tuple[str, ...], tuple[str | None, ...]]] = (
  (("embedding",), ("vocab", "embed")),  #                              [V or V+1, D], also the table of a first stage: [V, D]
  (("head", "kernel"), ("embed", "vocab")),  #                          [D, V]
  (("head", "bias"), ("vocab",)),  #                                    [V]
  (("attention", "query", "kernel"), ("layers", "embed", "heads")),  #  [D, H·K]
  (("attention", "key", "kernel"), ("layers", "embed", "heads")),  #    [D, G·K]
  (("attention", "value", "kernel"), ("layers", "embed", "heads")),  #  [D, G·K]
  (("attention", "out", "kernel"), ("layers", "heads", "embed")),  #    [H·K, D]
  (("mlp", "up", "kernel"), ("layers", "embed", "mlp")),  #             [D, F]
  (("mlp", "gate", "kernel"), ("layers", "embed", "mlp")),  #           [D, F]
  (("mlp", "down", "kernel"), ("layers", "mlp", "embed")),  #           [F, D]
  (("modulation", "kernel"), ("layers", None, "embed")),  #             [C, 6·D]
  (("time_input", "kernel"), ("layers", None, "embed")),  #             [C, D]
  (("prefix", "kernel"), (None, "embed")),  #                           [C, D], not per layer
)  # everything else (norm scales, small biases, the time embedding) is replicated


def partition_spec(path: Sequence[str], shape: Sequence[int], mesh_shape: Mapping[str, int]) -> PartitionSpec:
  """The PartitionSpec of the weight at `path` (names from the root) on a mesh with these axis sizes."""
  for ending, axes in TABLE:
    if tuple(path[-len(ending) :]) == ending and len(axes) == len(shape):
      return PartitionSpec(*(_split(AXES[axis], size, mesh_shape) for axis, size in zip(axes, shape)))
  return PartitionSpec()


def _split(mesh_axis: str | None, size: int, mesh_shape: Mapping[str, int]) -> str | None:
  devices = 1 if mesh_axis is None else mesh_shape.get(mesh_axis, 1)
  return mesh_axis if devices > 1 and size % devices == 0 else None


def memory(shape: Sequence[int], spec: PartitionSpec, mesh_shape: Mapping[str, int], itemsize: int = 4) -> float:
  """Bytes of one weight on one device."""
  return math.prod(shape) * itemsize / math.prod(mesh_shape.get(axis, 1) for axis in spec if axis is not None)

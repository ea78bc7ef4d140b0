"""The grid of values that a group of numbers may take, and rounding to it.

A code c of 0 … 2**b - 1 stands for (c - zero) · scale. A group is `group` inputs of one output (all
of them if group = 0). The asymmetric grid reaches from the least to the largest number of its
group, and holds zero exactly; the symmetric one has its zero in the middle, at 2**(b-1).

These functions take numpy arrays (float64 stays float64) and jax arrays alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffusion_text.types import Array


class Grid(NamedTuple):
  """scale [..., G, 1, D_out], above 0, and zero of the same shape, a whole number."""

  scale: Any
  zero: Any


def in_groups(matrix: Any, group: int) -> Any:
  """[..., D_in, D_out] as [..., G, group, D_out]; group = 0: one group.

  Raises:
    ValueError: if the group does not divide D_in.
  """
  *stack, rows, columns = matrix.shape
  size = group or rows
  if rows % size:
    raise ValueError(f"group={group} must divide the {rows} inputs of a matrix; 64 is usual")
  return matrix.reshape(*stack, rows // size, size, columns)


def asymmetric(groups: Any, bits: int) -> Grid:
  """The grid between the extremes of each group [..., group, D_out]."""
  low = groups.min(axis=-2, keepdims=True).clip(None, 0)
  high = groups.max(axis=-2, keepdims=True).clip(0, None)
  scale = _positive((high - low) / (2**bits - 1))
  return Grid(scale, (-low / scale).round())


def symmetric(groups: Any, bits: int) -> Grid:
  """The grid around zero that holds the largest absolute number of each group; the lowest code,
  which has no counterpart, is never used."""
  largest = abs(groups).max(axis=-2, keepdims=True)
  scale = _positive(largest / (2 ** (bits - 1) - 1))
  return Grid(scale, 0 * scale + 2 ** (bits - 1))


def nearest(values: Any, grid: Grid, bits: int) -> Any:
  """The codes of the nearest values of the grid, as whole floats."""
  return (values / grid.scale + grid.zero).round().clip(0, 2**bits - 1)


def at_random(values: np.ndarray, grid: Grid, bits: int, random: np.random.Generator) -> np.ndarray:
  """Codes of one of the two neighbouring values of the grid, by a fair coin: the control."""
  below = np.floor(values / grid.scale + grid.zero)
  return (below + random.integers(0, 2, values.shape)).clip(0, 2**bits - 1)


def values_of(codes: Any, grid: Grid) -> Any:
  """The numbers that codes stand for."""
  return (codes - grid.zero) * grid.scale


def _positive(scale: Array) -> Any:
  """A group of zeros has any scale."""
  return scale + (scale == 0)

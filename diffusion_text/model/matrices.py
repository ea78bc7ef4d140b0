"""Which weights are matrices of the layers, and whose sums grow with the width of the network: what
an optimizer asks, answered by the names of axes in the partition table.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_text.model.partition import TABLE

# Axes that count matrices instead of being a side of one: an array [D, 3, H·K] with a fused axis of
# 3 holds three matrices [D, H·K].
STACKED = ("layers", "experts", "fused")


def logical_axes(path: Sequence[str], dimensions: int) -> tuple[str | None, ...]:
  """The logical name of each axis of the weight at `path`; () where no line names it."""
  for ending, axes in TABLE:
    if tuple(path[-len(ending) :]) == ending and len(axes) == dimensions:
      return axes
  return ()


def matrix_axes(
  path: Sequence[str], shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """(axes that are summed over, axes of the result) of a matrix of the layers; None for all else.

  All else: tables of tokens, heads, biases, norm scales, low-rank adapters, and maps of the time,
  whose input has no name. See `sides`.
  """
  axes = logical_axes(path, len(shape))
  return sides(axes) if axes[:1] == ("layers",) and None not in axes else None


def sides(axes: Sequence[str | None]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """(axes that are summed over, axes of the result) of an array whose axes have these names.

  The axes of `STACKED` count matrices. Of the others, "embed" is one side and all that are left,
  together, are the other: an array [D, H, K] is the matrix [D, H·K], and [H, K, D] is [H·K, D].
  The side that comes first is summed over. None where a side is empty.
  """
  kept = [place for place, axis in enumerate(axes) if axis not in STACKED]
  width = tuple(place for place in kept if axes[place] == "embed")
  rest = tuple(place for place in kept if axes[place] != "embed")
  if not (width and rest):
    return None
  return (width, rest) if kept[0] in width else (rest, width)


def input_width(path: Sequence[str], shape: Sequence[int]) -> int | None:
  """D, if the sums of the linear map at `path` grow with the width of the network, as those of the
  layers and of the head do. None for all else: tables of tokens, maps of the time, biases, norm
  scales, and a weight that no line names.
  """
  if tuple(path[-2:]) == ("mlp", "router"):  # [layers, D, experts], which no line splits
    return shape[-2]
  axes = logical_axes(path, len(shape))
  summed = next((axis for axis in axes if axis not in STACKED), None)
  if len(axes) < 2 or summed in (None, "vocab") or "embed" not in axes:
    return None
  return shape[axes.index("embed")]

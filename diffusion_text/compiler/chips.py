"""Peak figures of TPU chips by their maker, and the least time of a collective on their torus.

Nothing here is measured. Sources: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x for bf16
FLOP/s, memory and its bandwidth, and "bidirectional ICI bandwidth per chip" (400, 1200, 800, 1200
GB/s over 4, 6, 4, 6 ports), which is twice ports × `link`. Axes are rings along the 16 chips of a
whole pod on the 2D tori and along multiples of 4 on the 3D tori. All other axes are lines.

A chip of TPU7x is two devices of jax, each with half of the chip's cores and memory. Both use the
links of the chip. What travels between the two halves is not counted: its speed is not published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """The peak figures of one device of jax: a chip, or half of a chip of TPU7x.

  Attributes:
    flops: bf16 FLOP/s.
    memory: Bytes of HBM.
    bandwidth: Bytes/s of HBM.
    link: Bytes/s of one ICI link in one direction.
    ring: An axis of the slice is a ring if its length is a multiple of this number.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  ring: int


CHIPS = {
  "v5e": Chip(197e12, 16 * GIB, 819e9, 50e9, 16),
  "v5p": Chip(459e12, 95 * GIB, 2765e9, 100e9, 4),
  "v6e": Chip(918e12, 32 * GIB, 1638e9, 100e9, 16),
  "tpu7x": Chip(2307e12 / 2, 96 * GIB, 7380e9 / 2, 100e9, 4),
}


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as "v5e:16x16".

  Raises:
    ValueError: For a name that is not in the table or has no size.
  """
  name, _, sizes = topology.partition(":")
  if name not in CHIPS or not sizes:
    raise ValueError(
      f"topology={topology!r} must be one of {', '.join(CHIPS)} and a size, as in v5e:16x16, "
      "v5p:8x8x8, v6e:16x16, tpu7x:4x4x4"
    )
  return CHIPS[name]


def collective_seconds(
  chip: Chip, kind: str, payload: float, group: Sequence[Sequence[int]], slice_shape: Sequence[int]
) -> float:
  """The least time in seconds of one collective on an otherwise idle torus, without latency.

  The bytes that each chip must receive go over the links along the axes in which the coordinates of
  the group differ: two links for a ring, one for a line. Two devices at the same coordinates are
  one chip, which receives a gathered array, or its part of a sum, once for both.

  Args:
    chip: The chip.
    kind: One of `hlo.COLLECTIVES`.
    payload: Bytes per device of the whole array, see `hlo.Collective`.
    group: Coordinates of the chips of the devices that take part.
    slice_shape: Sizes of the axes of the slice.
  """
  devices, group = len(group), set(map(tuple, group))
  count = len(group)
  if count < 2:
    return 0.0
  spread = [axis for axis in range(len(slice_shape)) if len({place[axis] for place in group}) > 1]
  if kind == "collective-permute":  # to the neighbour, one way
    return devices / count * payload / chip.link
  extents = [len({place[axis] for place in group}) for axis in spread]
  rings = [
    extent == slice_shape[axis] and extent % chip.ring == 0 for axis, extent in zip(spread, extents)
  ]
  bandwidth = chip.link * sum(1 + ring for ring in rings)
  if kind == "all-to-all":
    # Every byte travels a quarter of a ring (half of a line) on average, in both directions.
    return devices / count * payload * max(extents) / (4 * bandwidth)
  passes = 2 if kind == "all-reduce" else 1
  return passes * payload * (count - 1) / count / max(bandwidth, chip.link)

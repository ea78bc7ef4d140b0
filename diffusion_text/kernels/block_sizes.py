"""Tile sizes of the Pallas kernels, by device; and the device that code is compiled for."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """How many queries and keys one step of a kernel works on, in the forward pass and in the two of
  the backward pass.
  """

  q: int = 128
  k: int = 128
  q_backward: int = 128
  k_backward: int = 128

  def __post_init__(self):
    for field in dataclasses.fields(self):
      size = getattr(self, field.name)
      if not isinstance(size, int) or size < 8 or size % 8:
        raise ValueError(f"{field.name}={size!r} must be a positive multiple of 8; use 128")


# device kind (the start of `jax.Device.device_kind`, lower case) -> sizes. None of these has been
# measured: no accelerator has run them. Larger tiles amortise the cost of a grid step (published
# runs of long rows on a TPU use 1,024 to 2,048, which fit, see `pallas_tpu.VMEM`), but take a
# multiple of the time to compile; smaller ones skip more of a layout's empty part. Once measured,
# the command goes here beside the figure.
TABLE = {
  "tpu v5": BlockSizes(512, 512, 512, 512),  # not yet measured; v5e ("tpu v5 lite") and v5p
  "tpu v6": BlockSizes(512, 512, 512, 512),  # not yet measured
  "tpu7x": BlockSizes(512, 512, 512, 512),  # not yet measured
  "nvidia h": BlockSizes(128, 64, 64, 64),  # not yet measured; Hopper, Triton
}
SAFE = {"tpu": BlockSizes(), "gpu": BlockSizes(64, 64, 32, 32)}  # not yet measured


def default_block_sizes(L: int, S: int) -> BlockSizes:
  """Sizes for L queries and S keys on the device compiled for: the table's, but no tile much longer
  than the row.
  """
  platform, kind = target()
  found = next(
    (sizes for start, sizes in TABLE.items() if kind.lower().startswith(start)),
    SAFE.get(platform, BlockSizes()),
  )
  least = 128 if platform == "tpu" else 16

  def fit(tile, length):
    return min(tile, max(least, 1 << (length - 1).bit_length()))

  return BlockSizes(
    fit(found.q, L), fit(found.k, S), fit(found.q_backward, L), fit(found.k_backward, S)
  )


_TARGET: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar(
  "target", default=None
)


def target() -> tuple[str, str]:
  """(platform, device kind) that kernels are built for: that of `compile_for`, or else of the
  default backend.
  """
  return _TARGET.get() or (jax.default_backend(), jax.devices()[0].device_kind)


@contextlib.contextmanager
def compile_for(platform: str, device_kind: str = ""):
  """Within it, kernels are built for "tpu" or "gpu" although none is attached.

  Lower a function that was not traced outside it: jit does not know that the target is part of what
  it traced.
  """
  token = _TARGET.set((platform, device_kind))
  try:
    yield
  finally:
    _TARGET.reset(token)

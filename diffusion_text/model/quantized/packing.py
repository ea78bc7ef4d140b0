"""Codes of 3, 4 or 8 bits as bytes, along the axis of inputs: eight codes of b bits are b bytes.

These functions take numpy and jax arrays alike.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, UInt8

EIGHT = 8


def check_rows(rows: int, bits: int, where: str) -> None:
  """Raises ValueError for a number of inputs whose codes do not fill whole bytes."""
  if bits < EIGHT and rows % EIGHT:
    raise ValueError(
      f"{where} has {rows} inputs, and codes of bits={bits} are packed {EIGHT} at a time; use"
      " bits=8, or leave this matrix out"
    )


def pack(codes: UInt8[Array, "*stack D_in D_out"], bits: int) -> UInt8[Array, "*stack b D_out"]:
  """uint8 [..., D_in · bits / 8, D_out]: the codes, each below 2**bits, without empty bits.

  Raises:
    ValueError: if D_in is no multiple of 8 and bits < 8.
  """
  *stack, rows, columns = codes.shape
  check_rows(rows, bits, "a matrix")
  if bits == EIGHT:
    return codes
  wide = codes.reshape(*stack, rows // EIGHT, EIGHT, columns).astype(np.uint32)
  words = (wide << _shifts(bits, EIGHT)).sum(axis=-2, keepdims=True, dtype=np.uint32)
  parts = (words >> _shifts(EIGHT, bits)) & np.uint32(255)
  return parts.astype(np.uint8).reshape(*stack, rows // EIGHT * bits, columns)


def unpack(packed: UInt8[Array, "*stack b D_out"], bits: int) -> UInt8[Array, "*stack D_in D_out"]:
  """uint8 [..., D_in, D_out]: the codes that `pack` was given."""
  if bits == EIGHT:
    return packed
  *stack, rows, columns = packed.shape
  parts = packed.reshape(*stack, rows // bits, bits, columns).astype(np.uint32)
  words = (parts << _shifts(EIGHT, bits)).sum(axis=-2, keepdims=True, dtype=np.uint32)
  codes = (words >> _shifts(bits, EIGHT)) & np.uint32(2**bits - 1)
  return codes.astype(np.uint8).reshape(*stack, rows // bits * EIGHT, columns)


def _shifts(step: int, count: int) -> np.ndarray:
  """uint32 [count, 1]: 0, step, 2 · step …"""
  return (step * np.arange(count, dtype=np.uint32))[:, None]

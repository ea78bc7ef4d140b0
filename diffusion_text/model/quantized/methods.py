"""A tree of parameters with chosen matrices as integers, by one of five methods.

nearest      rounding to nearest (RTN)
gptq         rounding with compensation (gptq.py)
awq          inputs rescaled by the exponent that costs least, then nearest (rescaling.py)
smoothquant  inputs rescaled, matrices and activations of 8 bits (rescaling.py)
random       up or down by a fair coin: the control
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_text.model.quantized import grid as grids
from diffusion_text.model.quantized.gptq import DAMPING, gptq
from diffusion_text.model.quantized.rescaling import awq, smoothing
from diffusion_text.model.quantized.stored import Quantized, arrays_of
from diffusion_text.types import Array

METHODS = ("nearest", "gptq", "awq", "smoothquant", "random")
CALIBRATED = ("gptq", "awq", "smoothquant")


def options_of(method: str, bits: int, group: int) -> Quantized:
  """How the result of a method is stored.

  Raises:
    ValueError: for an unknown method, and for bits and groups that it does not have.
  """
  if method not in METHODS:
    raise ValueError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}")
  if method == "smoothquant" and bits != 8:
    raise ValueError(
      f"bits={bits} with method='smoothquant', whose matrices and activations have 8; use bits=8,"
      " or 'awq' or 'gptq'"
    )
  if method == "smoothquant":
    return Quantized(bits=8, group=0, activations="int8", scaled_inputs=True)
  return Quantized(bits=bits, group=group, scaled_inputs=method == "awq")


def quantize_matrix(
  kernel: Array,
  seen: Mapping[str, Array] | None,
  options: Quantized,
  method: str,
  *,
  damping: float = DAMPING,
  random: np.random.Generator | None = None,
) -> dict[str, Array]:
  """The arrays of one matrix [D_in, D_out] (stored.py).

  Args:
    kernel: the matrix.
    seen: statistics of its inputs (observed.py); None for a method that reads none.
    options: of `options_of`.
    method: one of `METHODS`.
    damping: of GPTQ.
    random: the coins of "random".
  """
  whole = np.asarray(kernel, np.float64)
  seen = None if seen is None else {name: np.asarray(x, np.float64) for name, x in seen.items()}
  if method == "gptq":
    codes, grid = gptq(whole, seen["moment"], options, damping)
    return arrays_of(codes, grid, options)
  scale = None
  if method == "awq":
    scale = awq(whole, seen["moment"], seen["mean"], options)
  if method == "smoothquant":
    scale = smoothing(whole, seen["peak"])
  groups = grids.in_groups(whole if scale is None else whole * scale[:, None], options.group)
  grid = options.grid(groups)
  if method == "random":
    codes = grids.at_random(groups, grid, options.bits, random)
  else:
    codes = grids.nearest(groups, grid, options.bits)
  inputs = None if scale is None else 1 / scale
  return arrays_of(codes.reshape(whole.shape), grid, options, inputs)


def bytes_of(arrays: Mapping[str, Any]) -> int:
  """Bytes of the arrays of a map as they are stored."""
  return sum(int(np.prod(each.shape)) * np.dtype(each.dtype).itemsize for each in arrays.values())

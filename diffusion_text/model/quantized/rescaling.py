"""Factors of inputs: x is divided by s and the rows of the matrix are multiplied by it.

The product is the same before rounding, and s decides what rounding costs. Published code puts 1/s
into the norm or the matrix before; here it is stored with the map and multiplied at run time, one
number per input, so that any map can have its own s. Those that read the same input (query, key and
value) share one s in published code and need not here.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffusion_text.model.quantized import grid as grids
from diffusion_text.model.quantized.stored import Quantized

POINTS = 20  # exponents that are tried


def smoothing(
  kernel: Float[np.ndarray, "D_in D_out"], peak: Float[np.ndarray, " D_in"], strength: float = 0.5
) -> Float[np.ndarray, " D_in"]:
  """s = max|x|^a / max|w|^(1-a) of each input, a = `strength` (SmoothQuant, arXiv 2211.10438,
  equation 4). 1 for an input that is always zero, or whose row is."""
  row = np.abs(kernel).max(axis=1)
  used = (peak > 0) & (row > 0)
  ratio = np.where(used, peak, 1.0) ** strength / np.where(used, row, 1.0) ** (1 - strength)
  return np.maximum(ratio, 1e-5)


def awq(
  kernel: Float[np.ndarray, "D_in D_out"],
  moment: Float[np.ndarray, "D_in D_in"],
  mean: Float[np.ndarray, " D_in"],
  options: Quantized,
) -> Float[np.ndarray, " D_in"]:
  """s = mean|x|^a of each input, over the root of its largest times its least value (AWQ, arXiv
  2306.00978, equation 5).

  The exponent a is the best of 0, 1/20 … 19/20 by the error of the product over the calibration
  inputs, tr(Δᵀ H Δ). Published code measures the error of a whole attention or MLP branch and also
  searches a clipping of the matrix; neither is done here.
  """
  largest = max(float(mean.max()), 1e-30)
  size = np.maximum(mean / largest, 1e-4)
  best, least = np.ones_like(size), np.inf
  for point in range(POINTS):
    scale = size ** (point / POINTS)
    scale = scale / np.sqrt(scale.max() * scale.min())
    error = product_error(rescaled_nearest(kernel, scale, options) - kernel, moment)
    if error < least:
      best, least = scale, error
  return best


def rescaled_nearest(
  kernel: Float[np.ndarray, "D_in D_out"], scale: Float[np.ndarray, " D_in"], options: Quantized
) -> Float[np.ndarray, "D_in D_out"]:
  """The matrix that comes of multiplying its rows by `scale`, rounding, and dividing them again."""
  groups = grids.in_groups(kernel * scale[:, None], options.group)
  grid = options.grid(groups)
  codes = grids.nearest(groups, grid, options.bits)
  return grids.values_of(codes, grid).reshape(kernel.shape) / scale[:, None]


def product_error(
  change: Float[np.ndarray, "D_in D_out"], moment: Float[np.ndarray, "D_in D_in"]
) -> float:
  """tr(Δᵀ H Δ): Σ |x Δ|² over the inputs with second moment H."""
  return float(np.sum(change * (moment @ change)))

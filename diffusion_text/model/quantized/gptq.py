"""Rounding a matrix input by input, each error made good by the inputs that are still to come.

GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1). For y = x W with W [D_in, D_out], the error of
the product over calibration inputs is tr(Δᵀ H Δ), H = Σ x xᵀ. Row i of W is rounded; with U the
upper Cholesky factor of H⁻¹ (H⁻¹ = Uᵀ U), the later rows j > i change by -U_ij · e, where
e = (w_i - rounded w_i) / U_ii. Each step is the best one for the rows that are left.

Choices, those of the published code: inputs in their own order (the variant "act-order" takes the
largest diagonal of H first and is not here); H gets 0.01 times the mean of its diagonal added to
its diagonal; inputs that are always zero have row 0. One choice differs: the grid of a group is
that of its rows as they are when the first of them is reached, where published code takes them as
they were at the last multiple of 128.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffusion_text.model.quantized import grid as grids
from diffusion_text.model.quantized.stored import Quantized

DAMPING = 0.01
BLOCK = 128  # rows whose errors reach the later rows in one product


def gptq(
  kernel: Float[np.ndarray, "D_in D_out"],
  moment: Float[np.ndarray, "D_in D_in"],
  options: Quantized,
  damping: float = DAMPING,
) -> tuple[np.ndarray, grids.Grid]:
  """(codes [D_in, D_out] as whole floats, the grid of [G, 1, D_out]), float64.

  Args:
    kernel: W.
    moment: H, up to a factor.
    options: bits and group.
    damping: of the mean of the diagonal of H.

  Raises:
    ValueError: for an H that is not positive definite even with damping.
  """
  rows = kernel.shape[0]
  size = options.group or rows
  left = np.array(kernel, np.float64)
  factor = _factor(moment, left, damping)
  codes, found = np.zeros_like(left), []
  for start in range(0, rows, BLOCK):
    stop = min(start + BLOCK, rows)
    errors = np.zeros((stop - start, left.shape[1]))
    for i in range(start, stop):
      if i % size == 0:
        # Rows beyond the block have not yet been changed by it.
        group = left[i : i + size].copy()
        group[max(stop - i, 0) :] -= factor[start:i, stop : i + size].T @ errors[: i - start]
        found.append(options.grid(group))
      one = grids.Grid(found[-1].scale[0], found[-1].zero[0])
      codes[i] = grids.nearest(left[i], one, options.bits)
      error = (left[i] - grids.values_of(codes[i], one)) / factor[i, i]
      left[i:stop] -= np.outer(factor[i, i:stop], error)
      errors[i - start] = error
    left[stop:] -= factor[start:stop, stop:].T @ errors
  scale = np.stack([each.scale for each in found])
  return codes, grids.Grid(scale, np.stack([each.zero for each in found]))


def _factor(moment: np.ndarray, kernel: np.ndarray, damping: float) -> np.ndarray:
  """U, upper, with H⁻¹ = Uᵀ U. Sets the rows of `kernel` for inputs that are always zero to 0."""
  damped = np.array(moment, np.float64)
  diagonal = np.diag(damped).copy()
  dead = diagonal == 0
  kernel[dead] = 0
  places = np.arange(len(damped))
  damped[places[dead], places[dead]] = 1
  damped[places, places] += damping * diagonal.mean()
  try:
    inverse = np.linalg.inv(damped)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T
  except np.linalg.LinAlgError as error:
    raise ValueError(
      f"the second moment of the inputs of a matrix of {kernel.shape} is singular with"
      f" damping={damping} ({error}); calibrate on more rows, or raise damping"
    ) from error

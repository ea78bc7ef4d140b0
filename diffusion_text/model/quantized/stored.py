"""A quantised linear map: its options, its arrays, and the product that a network computes.

The arrays lie in the tree of parameters in place of the kernel, under "quantized":

  codes   uint8 [..., D_in · bits / 8, D_out]   packed (packing.py)
  scale   float32 [..., G, D_out]
  zero    uint8 [..., G, D_out]                 where activations are floats; else it is 128
  inputs  float32 [..., D_in]                   factors of the inputs, where there are some

y = (x · inputs) @ ((codes - zero) · scale) (+ bias). None of these arrays is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from diffusion_text.core.options import member, option
from diffusion_text.model.low_rank import EVERY
from diffusion_text.model.quantized import grid as grids
from diffusion_text.model.quantized.packing import check_rows, pack, unpack

NAME = "quantized"  # of the group of these arrays in the tree of parameters
MIDDLE = 128  # the zero of a symmetric grid of 8 bits


@member
class Quantized:
  """Integers in place of the chosen matrices; `experiments.quantize` makes them."""

  bits: Literal[8, 4, 3] = option(4, "of each number of a matrix, as stored")
  group: int = option(64, "inputs that share a scale; 0: all of them, a scale per output", ge=0)
  activations: Literal["float", "int8"] = option(
    "float",
    "int8: the inputs of each position are rounded to 8 bits too, and the product is one of"
    " integers (W8A8, arXiv 2211.10438); its gradient is that without rounding",
  )
  scaled_inputs: bool = option(
    False, "inputs are multiplied by stored factors (AWQ, SmoothQuant), which matrices undo"
  )
  matrices: tuple[str, ...] = option(
    EVERY,
    "patterns of the linear maps of the layers, as in blocks/attention/query; * stands for"
    " anything. Embeddings, norms, the head and the experts of a mixture stay as they are",
    min_length=1,
  )

  def __post_init__(self):
    if self.activations == "int8" and (self.bits != 8 or self.group):
      raise ValueError(
        f"activations='int8' with bits={self.bits} and group={self.group}: the product of integers"
        " is of 8 bits and one scale per output; use bits=8 and group=0"
      )

  @property
  def symmetric(self) -> bool:
    """True if zero is the middle of the grid, and not stored."""
    return self.activations == "int8"

  def grid(self, groups: Any) -> grids.Grid:
    """The grid of each group [..., group, D_out]."""
    make = grids.symmetric if self.symmetric else grids.asymmetric
    return make(groups, self.bits)

  def check(self, shape: tuple[int, ...], where: str) -> None:
    """Raises ValueError for a matrix whose inputs do not divide into groups or bytes."""
    rows = shape[-2]
    check_rows(rows, self.bits, where)
    if self.group and rows % self.group:
      raise ValueError(
        f"{where} has {rows} inputs, which group={self.group} does not divide; use a divisor, 0 for"
        " one scale per output, or leave this matrix out"
      )


QUANTIZED = {"integers": Quantized}


def arrays_of(
  codes: Any, grid: grids.Grid, options: Quantized, inputs: Any = None
) -> dict[str, Array]:
  """The arrays of a map, of numpy if the codes are. codes [..., D_in, D_out]; grid of [..., G, 1,
  D_out]; inputs [..., D_in]; None: ones."""
  made = {
    "codes": pack(codes.astype(np.uint8), options.bits),
    "scale": grid.scale.astype(np.float32)[..., 0, :],
  }
  if not options.symmetric:
    made["zero"] = grid.zero.astype(np.uint8)[..., 0, :]
  if options.scaled_inputs:
    inputs = 0 * codes[..., 0] + 1 if inputs is None else inputs
    made["inputs"] = inputs.astype(np.float32)
  return made


def rounded(kernel: Float[Array, "*stack D_in D_out"], options: Quantized) -> dict[str, Array]:
  """The arrays of a matrix whose numbers are rounded to the nearest value."""
  groups = grids.in_groups(kernel, options.group)
  grid = options.grid(groups)
  codes = grids.nearest(groups, grid, options.bits).reshape(kernel.shape)
  return arrays_of(codes, grid, options)


def matrix_of(arrays: Mapping[str, Array], options: Quantized) -> Float[Array, "*stack D_in D_out"]:
  """The matrix that the codes stand for, float32, for inputs that have their factors."""
  codes = unpack(arrays["codes"], options.bits)
  groups = grids.in_groups(codes.astype(np.float32), options.group)
  zero = arrays["zero"][..., None, :].astype(np.float32) if "zero" in arrays else MIDDLE
  scale = arrays["scale"][..., None, :].astype(np.float32)
  return grids.values_of(groups, grids.Grid(scale, zero)).reshape(codes.shape)


def kernel_of(arrays: Mapping[str, Array], options: Quantized) -> Float[Array, "*stack D_in D_out"]:
  """The matrix for inputs as they are, float32: factors of inputs are multiplied into its rows."""
  matrix = matrix_of(arrays, options)
  return matrix * arrays["inputs"][..., None] if "inputs" in arrays else matrix


class QuantizedMap(nnx.Module):
  """The product of a linear map whose matrix is stored as integers."""

  def __init__(self, kernel: Float[Array, "*stack D_in D_out"], options: Quantized):
    """Rounds a kernel to nearest; other codes come as parameters."""
    arrays = rounded(kernel, options)
    self.codes = nnx.Param(arrays["codes"])
    self.scale = nnx.Param(arrays["scale"])
    self.zero = None if options.symmetric else nnx.Param(arrays["zero"])
    self.inputs = nnx.Param(arrays["inputs"]) if options.scaled_inputs else None
    self.options = options

  def __call__(self, x: Float[Array, "n D_in"]) -> Float[Array, "n D_out"]:
    """The product in the dtype of x."""
    if self.inputs is not None:
      x = x * self.inputs[...].astype(x.dtype)
    arrays = {"codes": self.codes[...], "scale": self.scale[...]}
    if self.options.symmetric:
      return integer_product(x, arrays["codes"], arrays["scale"])
    arrays["zero"] = self.zero[...]
    return x @ matrix_of(arrays, self.options).astype(x.dtype)


@jax.custom_vjp
def integer_product(
  x: Float[Array, "n D_in"], codes: UInt8[Array, "D_in D_out"], scale: Float[Array, "1 D_out"]
) -> Float[Array, "n D_out"]:
  """The product of x, rounded to 8 bits per row, with codes of 8 bits, summed as integers.

  A row of x is divided by its largest absolute number / 127 and rounded ("per token, dynamic", of
  arXiv 2211.10438). The gradient is that of the product without rounding of x.
  """
  wide = x.astype(jnp.float32)
  step = jnp.max(jnp.abs(wide), axis=1, keepdims=True) / 127
  step = step + (step == 0)
  whole = jnp.round(wide / step).astype(jnp.int8)
  sums = jax.lax.dot_general(
    whole, _signed(codes), (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
  )
  return (sums.astype(jnp.float32) * step * scale.astype(jnp.float32)).astype(x.dtype)


def _signed(codes: UInt8[Array, "D_in D_out"]) -> Array:
  return (codes.astype(jnp.int32) - MIDDLE).astype(jnp.int8)


def _forward(x, codes, scale):
  return integer_product(x, codes, scale), (codes, scale)


def _backward(kept, gradient):
  codes, scale = kept
  matrix = (_signed(codes).astype(jnp.float32) * scale).astype(gradient.dtype)
  nothing = np.zeros(codes.shape, jax.dtypes.float0)
  return gradient @ matrix.T, nothing, jnp.zeros_like(scale)


integer_product.defvjp(_forward, _backward)

"""What the inputs of a linear map are like, seen while the network runs.

The map gets arrays of zeros beside its kernel, under "observed", which change nothing. Their
"gradient" is defined to be the statistics of the inputs of the call. So one backward pass returns
them for all layers at once, scanned or not, jitted and sharded like any gradient:

  moment  float32 [..., D_in, D_in]   Σ x xᵀ
  mean    float32 [..., D_in]         Σ |x|
  peak    float32 [..., D_in]         max |x|
  count   float32 [...]               the number of inputs
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

NAME = "observed"  # of the group of these arrays in the tree of parameters


class Observed(nnx.Module):
  """The arrays of a matrix [D_in, D_out], or of a stack of them."""

  def __init__(self, shape: tuple[int, ...]):
    *stack, rows, _ = shape
    self.moment = nnx.Param(jnp.zeros((*stack, rows, rows), jnp.float32))
    self.mean = nnx.Param(jnp.zeros((*stack, rows), jnp.float32))
    self.peak = nnx.Param(jnp.zeros((*stack, rows), jnp.float32))
    self.count = nnx.Param(jnp.zeros(tuple(stack), jnp.float32))

  def __call__(self, x: Float[Array, "n D_in"]) -> Float[Array, "n D_in"]:
    """x itself."""
    return _seen(x, self.moment[...], self.mean[...], self.peak[...], self.count[...])


@jax.custom_vjp
def _seen(x, moment, mean, peak, count):
  del moment, mean, peak, count
  return x


def _forward(x, moment, mean, peak, count):
  return _seen(x, moment, mean, peak, count), x


def _backward(x, gradient):
  wide = x.astype(jnp.float32)
  moment = jnp.matmul(wide.T, wide, precision=jax.lax.Precision.HIGHEST)
  size = jnp.abs(wide)
  count = jnp.float32(x.shape[0])
  return gradient, moment, jnp.sum(size, axis=0), jnp.max(size, axis=0), count


_seen.defvjp(_forward, _backward)


def together(first: Any, second: Any) -> Any:
  """The statistics of two batches as those of one: peaks by their maximum, all else summed."""

  def one(path, a, b):
    return jnp.maximum(a, b) if path[-1].key == "peak" else a + b

  return jax.tree_util.tree_map_with_path(one, first, second)

"""Products of sorted rows with the matrix of their group: against numpy, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.compiler.hlo import Program
from diffusion_text.kernels.grouped import grouped_matmul, tile_rows, tiles_of

D, F = 3, 4
# Empty first, in the middle and last; of one row; of three tiles of 8 rows; 9 rows of no group.
SIZES = np.array([0, 17, 1, 0, 13, 0], np.int32)
M = 40


def by_hand(x, weights, g):
  """(the products, the gradients of Σ g · products) in float64."""
  out, dx, dw = np.zeros((M, F)), np.zeros((M, D)), np.zeros(weights.shape)
  start = 0
  for group, size in enumerate(SIZES):
    own = slice(start, start + size)
    out[own] = x[own] @ weights[group]
    dx[own] = g[own] @ weights[group].T
    dw[group] = x[own].T @ g[own]
    start += size
  return out, dx, dw


@pytest.mark.parametrize("interpret", [False, True], ids=["tiles", "tpu"])
def test_products_and_gradients(interpret):
  """Groups of any size, also where a tile reaches into the next group and beyond the last."""
  assert tile_rows(M, len(SIZES)) == 8
  random = np.random.default_rng(0)
  x, weights, g = (
    random.normal(size=shape).astype(np.float32) for shape in ((M, D), (6, D, F), (M, F))
  )

  @jax.jit
  def both(x, weights, sizes):
    out, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, interpret=interpret), x, weights)
    return out, *pull(jnp.asarray(g))

  for got, true in zip(both(x, weights, SIZES), by_hand(x, weights, g), strict=True):
    np.testing.assert_allclose(got, true, atol=1e-5)


def test_cost_is_that_of_the_tiles_in_use():
  """The compiler's count of multiply-adds, for the turns that the loop takes."""
  assert int(tiles_of(SIZES, M)) == 3 + 1 + 2
  args = np.zeros((M, D), np.float32), np.zeros((6, D, F), np.float32), SIZES
  text = jax.jit(grouped_matmul).lower(*args).compile().as_text()
  assert Program(text, unknown_trips=6).matmul_flops() == 2 * D * F * 6 * 8

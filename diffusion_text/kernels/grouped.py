"""Products of rows, sorted by group, with the matrix of their group: what a mixture of experts
computes, at the cost of one product per row.

On TPU this is jax's grouped kernel (megablox). Elsewhere it is a loop over tiles of rows, as many
as the groups fill: `jax.lax.ragged_dot` compiles to N products of all rows on CPU and on TPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.kernels.block_sizes import target

# Tiles of the TPU kernel: rows, inputs and outputs. Two of each are in VMEM at a time, with the sum
# in float32: 10 MiB in bfloat16. Not yet measured.
TPU_TILES = (512, 1024, 1024)
# Rows of a tile elsewhere: about as many as a group has on average, within these bounds. The last
# tile of each group is half empty on average, and small tiles read the matrix more often.
FEWEST_ROWS, MOST_ROWS = 8, 128


def grouped_matmul(
  x: Float[Array, "M D"],
  weights: Float[Array, "N D F"],
  sizes: Int[Array, " N"],
  *,
  interpret: bool = False,
) -> Float[Array, "M F"]:
  """[M, F] in the dtype of x: each row times the matrix of its group, differentiable in both.

  The first sizes[0] rows are of group 0, the next sizes[1] of group 1, and so on. The rows after
  the last group give zeros and cost nothing; a group may be empty. Sums are float32. `interpret`
  runs the TPU kernel on any backend, slowly.
  """
  if interpret or target()[0] == "tpu":
    return _on_tpu(x, weights, sizes, interpret)
  return _in_tiles(x, weights, sizes)


def tile_rows(rows: int, groups: int) -> int:
  """The number of rows of a tile: a power of two near the average size of a group."""
  average = max(1, rows // groups)
  return min(MOST_ROWS, max(FEWEST_ROWS, 1 << (average - 1).bit_length()))


def tiles_of(sizes: Int[Array, " N"], rows: int) -> Int[Array, ""]:
  """The number of tiles that `grouped_matmul` computes off TPU, for groups of these sizes in an x
  of so many rows.
  """
  return jnp.sum(-(-sizes // tile_rows(rows, sizes.shape[0])))


def _on_tpu(x: Array, weights: Array, sizes: Array, interpret: bool) -> Array:
  # Imported here: it needs Pallas for TPU, which other platforms have no use for.
  from jax.experimental.pallas.ops.tpu.megablox import ops

  (M, D), F = x.shape, weights.shape[2]
  tiles = min(TPU_TILES[0], -(-M // 128) * 128), min(TPU_TILES[1], D), min(TPU_TILES[2], F)
  padded = -(-M // tiles[0]) * tiles[0]
  # The rows after the last group are a group without a matrix, which the kernel leaves out.
  sizes = jnp.append(sizes, padded - jnp.sum(sizes)).astype(jnp.int32)
  x = jnp.pad(x, ((0, padded - M), (0, 0)))
  return ops.gmm(x, weights, sizes, x.dtype, tiles, interpret=interpret)[:M]


@jax.custom_vjp
def _in_tiles(x, weights, sizes):
  return _products(x, weights, sizes, contracted=1)


def _forward(x, weights, sizes):
  return _products(x, weights, sizes, contracted=1), (x, weights, sizes)


def _backward(saved, cotangent):
  x, weights, sizes = saved
  dx = _products(cotangent, weights, sizes, contracted=2)
  return dx, _sums(x, cotangent, sizes).astype(weights.dtype), None


_in_tiles.defvjp(_forward, _backward)


def _tiles(rows: int, sizes: Array) -> tuple[int, Array, Array, Array]:
  """(rows of a tile, number of tiles, the group of each, the first row of each)."""
  size = tile_rows(rows, sizes.shape[0])
  counts = -(-sizes // size)
  ends = jnp.cumsum(counts)
  number = jnp.arange(rows // size + sizes.shape[0])
  group = jnp.minimum(jnp.searchsorted(ends, number, side="right"), sizes.shape[0] - 1)
  first = (jnp.cumsum(sizes) - sizes)[group] + (number - (ends - counts)[group]) * size
  return size, ends[-1], group, first


def _products(x: Array, weights: Array, sizes: Array, *, contracted: int) -> Array:
  """Rows times matrices, of which the axis `contracted` is summed over."""
  rows = x.shape[0]
  size, count, group, first = _tiles(rows, sizes)
  x = jnp.pad(x, ((0, size), (0, 0)))
  axes = (((1,), (contracted - 1,)), ((), ()))

  def one(number, out):
    # A last tile reaches into the rows of the next group, whose own tiles are written later.
    start = first[number]
    tile = jax.lax.dynamic_slice_in_dim(x, start, size)
    matrix = jax.lax.dynamic_index_in_dim(weights, group[number], keepdims=False)
    product = jax.lax.dot_general(tile, matrix, axes, preferred_element_type=jnp.float32)
    return jax.lax.dynamic_update_slice_in_dim(out, product.astype(x.dtype), start, axis=0)

  out = jnp.zeros((rows + size, weights.shape[3 - contracted]), x.dtype)
  out = jax.lax.fori_loop(0, count, one, out)[:rows]
  return jnp.where(jnp.arange(rows)[:, None] < jnp.sum(sizes), out, 0)


def _sums(x: Array, g: Array, sizes: Array) -> Array:
  """Σ x ⊗ g over the rows of each group: float32 [N, D, F]."""
  size, count, group, first = _tiles(x.shape[0], sizes)
  ends = jnp.cumsum(sizes)
  x, g = (jnp.pad(rows, ((0, size), (0, 0))) for rows in (x, g))

  def one(number, total):
    start, of = first[number], group[number]
    own = start + jnp.arange(size) < ends[of]
    left = jax.lax.dynamic_slice_in_dim(x, start, size)
    right = jax.lax.dynamic_slice_in_dim(g, start, size)
    right = jnp.where(own[:, None], right, 0)
    product = jax.lax.dot_general(
      left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    old = jax.lax.dynamic_index_in_dim(total, of, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, old + product, of, axis=0)

  start = jnp.zeros((sizes.shape[0], x.shape[1], g.shape[1]), jnp.float32)
  return jax.lax.fori_loop(0, count, one, start)

"""Attention on GPU (Pallas, Triton): forward and backward in tiles, empty tiles neither fetched nor
computed.

One program owns a tile of queries (for dk and dv: of keys) and loops over the tiles of the other
side, from the first useful one to the last; the summaries of the tiles' ids tell which of those are
empty, full or partial. Triton, because its lowering needs no GPU and is in both supported lines of
jax; Mosaic GPU would ask for Hopper.

Lowers for CUDA on any machine, run in interpret mode only: not yet run on a GPU.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.block_sizes import BlockSizes, default_block_sizes, target
from diffusion_text.kernels.reference import MASKED
from diffusion_text.types import Layout


def attention(
  q: Float[Array, "B L H K"],
  k: Float[Array, "B S G K"],
  v: Float[Array, "B S G K"],
  q_layout: Layout,
  k_layout: Layout,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
  block_sizes: BlockSizes | None = None,
  interpret: bool = False,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H"]]:
  """(out, lse) as `reference`, differentiable in both; float32 or bfloat16, accumulated in float32.

  Lengths are padded to whole tiles and head widths to a power of two. `interpret` runs it on any
  backend, slowly. On a mesh, call it inside `jax.shard_map(..., check_vma=False)`. Raises
  NotImplementedError off GPU and for K over 256, ValueError for tiles that are no power of two.
  """
  if not interpret and target()[0] not in ("gpu", "cuda"):
    raise NotImplementedError(f"needs a GPU, but the platform is {target()[0]!r}")
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"needs float32 or bfloat16, not {q.dtype}")
  L, S, K = q.shape[1], k.shape[1], q.shape[3]
  if K > 256:
    raise NotImplementedError(
      f"head width K={K} is over 256, more than one program's registers hold"
    )
  sizes = block_sizes or default_block_sizes(L, S)
  for field in dataclasses.fields(sizes):
    tile = getattr(sizes, field.name)
    if tile < 16 or tile & (tile - 1):
      fit = max(16, 1 << tile.bit_length() - 1)
      raise ValueError(
        f"{field.name}={tile} must be a power of two of at least 16 on GPU; use {fit}"
      )
  options = _Options(K**-0.5 if scale is None else scale, soft_cap, sizes, interpret)
  wide = max(16, 1 << (K - 1).bit_length())
  q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0),) * 3 + ((0, wide - K),)) for x in (q, k, v))
  out, lse = _attention(
    options, q, k, v, (layouts.materialise(q_layout, L), layouts.materialise(k_layout, S))
  )
  return out[..., :K].swapaxes(1, 2), lse.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class _Options:
  scale: float
  soft_cap: float | None
  sizes: BlockSizes
  interpret: bool


class _Side:
  """Queries or keys in tiles, as arrays (whole rows, one per batch row) and as the refs a kernel
  has of them.
  """

  def __init__(self, layout, summary, tile, useful):
    self.tile = tile
    first = jnp.argmax(useful, axis=2)
    last = useful.shape[2] - jnp.argmax(useful[:, :, ::-1], axis=2)
    last = jnp.where(useful.any(axis=2), last, 0)  # with `first` 0: no turn at all
    self.arrays = (
      jnp.stack([layout.segment, layout.block, layout.noisy], axis=1),  # [B or 1, 3, L]
      jnp.stack(summary, axis=1),  # [B or 1, 6, tiles]
      # [B or 1, 2, tiles]: the useful tiles of the other side
      jnp.stack([first, last], axis=1).astype(jnp.int32),
    )

  def specs(self):
    """Whole rows in each program, which reads what it needs of them."""

    def row(rows):
      return lambda _, h, b: (b if rows > 1 else 0, 0, 0)

    return [pl.BlockSpec((None, *x.shape[1:]), row(x.shape[0])) for x in self.arrays]


def _sides(ids, q_tile, k_tile):
  tiles = layouts.cut(*ids, ids[0].segment.shape[1], ids[1].segment.shape[1], q_tile, k_tile)
  useful = tiles.kinds != layouts.EMPTY
  return _Side(tiles.q, tiles.q_summary, q_tile, useful), _Side(
    tiles.k, tiles.k_summary, k_tile, useful.swapaxes(1, 2)
  )


def _ids(ref, start, tile):
  """The three ids of one tile, each int32 [tile]."""
  return [ref[n, pl.ds(start, tile)] for n in range(3)]


def _loop(q_refs, k_refs, i, j, update, carry):
  """Fold `update(i, j, partial, carry)` over the tiles that are not empty; i or j is None, the side
  that is looped over.
  """
  bounds = q_refs[2] if j is None else k_refs[2]
  mine = i if j is None else j

  def turn(n, carry):
    at_i, at_j = (i, n) if j is None else (n, j)

    def summary(refs, tile):
      return layouts.Summary(*(refs[1][c, tile] for c in range(6)))

    kind = layouts.tile_kind(summary(q_refs, at_i), summary(k_refs, at_j))
    branches = [
      lambda carry: carry,
      functools.partial(update, at_i, at_j, True),
      functools.partial(update, at_i, at_j, False),
    ]
    return jax.lax.switch(kind, branches, carry)

  return jax.lax.fori_loop(bounds[0, mine], bounds[1, mine], turn, carry)


def _dot(a, b):
  """a @ b accumulated in float32; float32 operands are not rounded to tensorfloat32."""
  exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jnp.dot(a, b, precision=exact, preferred_element_type=jnp.float32)


def _scores(options, q, k, mask):
  """(scores float32 [M, N], MASKED where the mask does not hold; slope of the soft cap or None)."""
  score, slope = _dot(q, k.T) * options.scale, None
  if options.soft_cap is not None:
    # Triton has no tanh on every target.
    tanh = 2 / (1 + jnp.exp(-2 * score / options.soft_cap)) - 1
    score, slope = options.soft_cap * tanh, 1 - tanh * tanh
  return score if mask is None else jnp.where(mask, score, MASKED), slope


def _mask(q_ids, k_ids, i, j, q_tile, k_tile):
  """bool [q_tile, k_tile] of tile (i, j)."""
  q, k = _ids(q_ids, i * q_tile, q_tile), _ids(k_ids, j * k_tile, k_tile)
  return layouts.rule(*(x[:, None] for x in q), *(x[None, :] for x in k))


def _forward_kernel(options, tiles, *refs):
  """One query tile of one head: online softmax over key tiles."""
  q_refs, k_refs, (q_ref, k_ref, v_ref, out_ref, lse_ref) = refs[:3], refs[3:6], refs[6:]
  q_tile, k_tile = tiles
  q = q_ref[...]

  def update(i, j, partial, carry):
    acc, top, total = carry
    keys = pl.ds(j * k_tile, k_tile)
    score, _ = _scores(
      options, q, k_ref[keys, :], _mask(q_refs[0], k_refs[0], i, j, *tiles) if partial else None
    )
    new = jnp.maximum(top, score.max(axis=1))
    weight, fade = jnp.exp(score - new[:, None]), jnp.exp(top - new)
    acc = acc * fade[:, None] + _dot(weight.astype(v_ref.dtype), v_ref[keys, :])
    return acc, new, total * fade + weight.sum(axis=1)

  start = (
    jnp.zeros(q.shape, jnp.float32),
    jnp.full((q_tile,), MASKED, jnp.float32),
    jnp.zeros((q_tile,), jnp.float32),
  )
  acc, top, total = _loop(q_refs, k_refs, pl.program_id(0), None, update, start)
  sees = top > MASKED / 2
  total = jnp.where(sees, total, 1.0)
  out_ref[...] = jnp.where(sees[:, None], acc / total[:, None], 0.0).astype(out_ref.dtype)
  lse_ref[...] = jnp.where(sees, top + jnp.log(total), MASKED)


def _dq_kernel(options, tiles, *refs):
  """One query tile of one head: dq = Σ over key tiles of ds k."""
  q_refs, k_refs, (q_ref, k_ref, v_ref, g_ref, lse_ref, shift_ref, dq_ref) = (
    refs[:3],
    refs[3:6],
    refs[6:],
  )
  q, g, lse, shift = q_ref[...], g_ref[...], lse_ref[...], shift_ref[...]

  def update(i, j, partial, dq):
    keys = pl.ds(j * tiles[1], tiles[1])
    k, mask = k_ref[keys, :], _mask(q_refs[0], k_refs[0], i, j, *tiles) if partial else None
    score, slope = _scores(options, q, k, mask)
    ds = (
      jnp.exp(score - lse[:, None]) * (_dot(g, v_ref[keys, :].T) - shift[:, None]) * options.scale
    )
    return dq + _dot((ds if slope is None else ds * slope).astype(k.dtype), k)

  dq = _loop(q_refs, k_refs, pl.program_id(0), None, update, jnp.zeros(q.shape, jnp.float32))
  dq_ref[...] = dq.astype(dq_ref.dtype)


def _dkv_kernel(options, tiles, *refs):
  """One key tile of one key head: dk = Σ dsᵀ q and dv = Σ pᵀ g over the group's query heads and
  their tiles.
  """
  q_refs, k_refs, (q_ref, k_ref, v_ref, g_ref, lse_ref, shift_ref, dk_ref, dv_ref) = (
    refs[:3],
    refs[3:6],
    refs[6:],
  )
  k, v, mine = k_ref[...], v_ref[...], pl.program_id(0)

  def head(r, carry):
    def update(i, j, partial, carry):
      dk, dv = carry
      queries = pl.ds(i * tiles[0], tiles[0])
      q, g = q_ref[r, queries, :], g_ref[r, queries, :]
      score, slope = _scores(
        options, q, k, _mask(q_refs[0], k_refs[0], i, j, *tiles) if partial else None
      )
      weight = jnp.exp(score - lse_ref[r, queries][:, None])
      ds = weight * (_dot(g, v.T) - shift_ref[r, queries][:, None]) * options.scale
      ds = ds if slope is None else ds * slope
      return dk + _dot(ds.T.astype(q.dtype), q), dv + _dot(weight.T.astype(g.dtype), g)

    return _loop(q_refs, k_refs, None, mine, update, carry)

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = jax.lax.fori_loop(0, q_ref.shape[0], head, (zeros, zeros))
  dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _call(options, kernel, sides, grid, in_specs, out_specs, out_shapes, arrays):
  q_side, k_side = sides
  return pl.pallas_call(
    functools.partial(kernel, options, (q_side.tile, k_side.tile)),
    grid=grid,
    in_specs=[*q_side.specs(), *k_side.specs(), *in_specs],
    out_specs=out_specs,
    out_shape=[jax.ShapeDtypeStruct(*shape) for shape in out_shapes],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    interpret=options.interpret,
  )(*q_side.arrays, *k_side.arrays, *arrays)


def _pad_rows(x, tile):
  """Zeros after the end of x [B, H, L, ...], to whole tiles."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % tile)) + ((0, 0),) * (x.ndim - 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q, k, v, ids):
  return _forward(options, q, k, v, ids)[0]


def _forward(options, q, k, v, ids):
  (B, H, L, K), group = q.shape, q.shape[1] // k.shape[1]
  q_tile, k_tile = options.sizes.q, options.sizes.k
  sides = _sides(ids, q_tile, k_tile)
  arrays = _pad_rows(q, q_tile), _pad_rows(k, k_tile), _pad_rows(v, k_tile)
  rows, keys = arrays[0].shape[2], arrays[1].shape[2]
  of_query = pl.BlockSpec((None, None, q_tile, K), lambda i, h, b: (b, h, i, 0))
  of_keys = pl.BlockSpec((None, None, keys, K), lambda i, h, b: (b, jax.lax.div(h, group), 0, 0))
  of_row = pl.BlockSpec((None, None, q_tile), lambda i, h, b: (b, h, i))
  shapes = ((B, H, rows, K), q.dtype), ((B, H, rows), jnp.float32)
  grid = rows // q_tile, H, B
  out, lse = _call(
    options,
    _forward_kernel,
    sides,
    grid,
    [of_query, of_keys, of_keys],
    [of_query, of_row],
    shapes,
    arrays,
  )
  out, lse = out[:, :, :L], lse[:, :, :L]
  return (out, lse), (q, k, v, out, lse, ids)


def _backward(options, saved, cotangents):
  q, k, v, out, lse, ids = saved
  g, c = cotangents
  (B, H, L, K), (G, S), group = q.shape, k.shape[1:3], q.shape[1] // k.shape[1]
  q_tile, k_tile = options.sizes.q_backward, options.sizes.k_backward
  sides = _sides(ids, q_tile, k_tile)
  shift = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1) - c
  # Where a query sees no key, so that its weights are 0.
  lse = jnp.where(lse > MASKED / 2, lse, -MASKED)
  k, v = _pad_rows(k, k_tile), _pad_rows(v, k_tile)
  q, g, lse, shift = (_pad_rows(x, q_tile) for x in (q, g.astype(q.dtype), lse, shift))
  rows, keys = q.shape[2], k.shape[2]
  of_query = pl.BlockSpec((None, None, q_tile, K), lambda i, h, b: (b, h, i, 0))
  of_row = pl.BlockSpec((None, None, q_tile), lambda i, h, b: (b, h, i))
  of_keys = pl.BlockSpec((None, None, keys, K), lambda i, h, b: (b, jax.lax.div(h, group), 0, 0))
  specs = [of_query, of_keys, of_keys, of_query, of_row, of_row]
  arrays, shapes = (q, k, v, g, lse, shift), [((B, H, rows, K), q.dtype)]
  (dq,) = _call(
    options, _dq_kernel, sides, (rows // q_tile, H, B), specs, [of_query], shapes, arrays
  )
  of_key = pl.BlockSpec((None, None, k_tile, K), lambda j, h, b: (b, h, j, 0))
  of_queries = pl.BlockSpec((None, group, rows, K), lambda j, h, b: (b, h, 0, 0))
  of_rows = pl.BlockSpec((None, group, rows), lambda j, h, b: (b, h, 0))
  specs = [of_queries, of_key, of_key, of_queries, of_rows, of_rows]
  shapes = [((B, G, keys, K), k.dtype)] * 2
  dk, dv = _call(
    options, _dkv_kernel, sides, (keys // k_tile, G, B), specs, [of_key] * 2, shapes, arrays
  )
  return dq[:, :, :L], dk[:, :, :S], dv[:, :, :S], None


_attention.defvjp(_forward, _backward)

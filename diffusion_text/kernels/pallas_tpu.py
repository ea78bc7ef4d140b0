"""Attention on TPU (Pallas, Mosaic): forward and backward in tiles, empty tiles neither fetched nor
computed.

Every position's three ids travel as [8, tile] int32 blocks beside q and k; the smallest and largest
id of each tile travel ahead as scalars (SMEM), O(L / tile) of them. From those a grid step knows
whether its tile is empty, full or partial before any block arrives, and its index map points all
empty tiles of a row at that row's first useful block: of consecutive empty tiles none but the first
can cause a fetch, and those ahead of the first useful one fetch what it needs anyway.

Compiled for v5e, v5p, v6e and TPU7x by libtpu, run in interpret mode only: not yet run on a TPU.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.block_sizes import BlockSizes, default_block_sizes, target
from diffusion_text.kernels.reference import MASKED
from diffusion_text.types import Layout

LANES, SUBLANES = 128, 8  # of a TPU vector register of 32-bit values
MIB = 2**20
# Bytes of VMEM that one kernel may use, by the start of the device kind in lower case: half of what
# a core has (128 MiB on v5e and v6e, 64 MiB on v5p and TPU7x), since the compiler keeps values of
# other instructions there too. A kernel asks for what its tiles need, and for no less than the
# compiler gives to a kernel by default, which is all that it gets on other chips.
VMEM = {"tpu v5 lite": 64 * MIB, "tpu v5": 32 * MIB, "tpu v6": 64 * MIB, "tpu7x": 32 * MIB}
SMALLEST_VMEM = 16 * MIB
SEMANTICS = ("parallel", "parallel", "parallel", "arbitrary", "arbitrary")


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

  Lengths are padded to whole tiles and head widths to 64 or a multiple of 128. `interpret` runs it
  on any backend, slowly, with tiles of any size. On a mesh, call it inside `jax.shard_map(...,
  check_vma=False)`: XLA cannot divide a kernel over devices. Raises NotImplementedError off TPU,
  ValueError if the tiles do not fit a TPU.
  """
  if not interpret and target()[0] != "tpu":
    raise NotImplementedError(f"needs a TPU, but the platform is {target()[0]!r}")
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"needs float32 or bfloat16, not {q.dtype}")
  L, S, K = q.shape[1], k.shape[1], q.shape[3]
  sizes = block_sizes or default_block_sizes(L, S)
  wide = 64 if K <= 64 else -(-K // LANES) * LANES
  vmem = SMALLEST_VMEM
  for tiles in ((sizes.q, sizes.k), (sizes.q_backward, sizes.k_backward)):
    _check_tiles(*tiles, wide, q.dtype.itemsize, interpret)
    vmem = max(vmem, _vmem_bytes(*tiles, wide, q.dtype.itemsize))
  options = _Options(K**-0.5 if scale is None else scale, soft_cap, sizes, interpret, vmem)
  # [B, H, L, K] from here on, zeros beyond K: they add nothing to a score, and give zeros in out.
  q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0),) * 3 + ((0, wide - K),)) for x in (q, k, v))
  ids = layouts.materialise(q_layout, L), layouts.materialise(k_layout, S)
  out, lse = _attention(options, q, k, v, ids)
  return out[..., :K].swapaxes(1, 2), lse.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class _Options:
  scale: float
  soft_cap: float | None
  sizes: BlockSizes
  interpret: bool
  vmem: int  # bytes


def vmem_limit() -> int:
  """Bytes of VMEM that one kernel may use on the chip compiled for."""
  kind = target()[1].lower()
  return next((size for start, size in VMEM.items() if kind.startswith(start)), SMALLEST_VMEM)


def _check_tiles(q_tile, k_tile, width, itemsize, interpret):
  """ValueError if a tile is not whole registers or if the kernels would not fit VMEM."""
  if interpret:
    return
  for name, tile in (("q", q_tile), ("k", k_tile)):
    if tile % LANES:
      raise ValueError(
        f"tile {name}={tile} must be a multiple of {LANES} on TPU; use {-(-tile // LANES) * LANES}"
      )
  need, limit = _vmem_bytes(q_tile, k_tile, width, itemsize), vmem_limit()
  if need > limit:
    smaller = max(q_tile, k_tile)
    while smaller > LANES and _vmem_bytes(smaller, smaller, width, itemsize) > limit:
      smaller //= 2
    raise ValueError(
      f"tiles of {q_tile} queries and {k_tile} keys, K={width}, need {need} bytes of VMEM; the"
      f" limit is {limit}. Use BlockSizes with tiles of {smaller // LANES * LANES or LANES}"
    )


def _vmem_bytes(q_tile, k_tile, width, itemsize):
  """Of the hungriest kernel, the one for dk and dv: blocks twice (one in flight), accumulators, and
  four score tiles.
  """
  width = -(-width // LANES) * LANES
  blocks = 2 * itemsize * width * (2 * q_tile + 4 * k_tile) + 2 * 4 * SUBLANES * (
    2 * q_tile + k_tile
  )
  return blocks + 4 * width * 2 * k_tile + 4 * 4 * q_tile * k_tile


def _pad_rows(x, tile):
  """Zeros after the end of x [B, H, L, K], to whole tiles."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % tile), (0, 0)))


class _Map:
  """The layouts of one call, cut in tiles: the arrays of a kernel, and how it reads them."""

  def __init__(self, ids, q_tile, k_tile):
    tiles = layouts.cut(*ids, ids[0].segment.shape[1], ids[1].segment.shape[1], q_tile, k_tile)
    sides = tiles.q_summary, tiles.k_summary
    self.rows = tuple(
      side.segment_min.shape[0] for side in sides
    )  # 1 where the batch shares a layout
    self.tiles = tuple(side.segment_min.shape[1] for side in sides)
    # For each tile of one side, its first useful tile on the other.
    first = [
      jnp.argmax(tiles.kinds != layouts.EMPTY, axis=axis).astype(jnp.int32).ravel()
      for axis in (2, 1)
    ]
    self.scalars = [jnp.stack(side, axis=-1).ravel() for side in sides] + first
    self.ids = [self._block(tiles.q), self._block(tiles.k)]

  @staticmethod
  def _block(layout):
    """[B or 1, 8, L] int32: segment, block, noisy, and zeros that fill a register."""
    ids = jnp.stack([layout.segment, layout.block, layout.noisy], axis=1)
    return jnp.pad(ids, ((0, 0), (0, SUBLANES - 3), (0, 0)))

  def kind(self, scalars, b, i, j):
    """EMPTY, PARTIAL or FULL, a scalar, of query tile i and key tile j."""
    sides = []
    for ref, rows, tiles, tile in zip(scalars, self.rows, self.tiles, (i, j)):
      start = ((b * tiles if rows > 1 else 0) + tile) * 6
      sides.append(layouts.Summary(*(ref[start + n] for n in range(6))))
    return layouts.tile_kind(*sides)

  def key(self, scalars, b, i, j):
    """The key tile to fetch at step (i, j): j, or where that is empty the first that query tile i
    has use for.
    """
    first = scalars[2][(b * self.tiles[0] if max(self.rows) > 1 else 0) + i]
    return jnp.where(self.kind(scalars, b, i, j) == layouts.EMPTY, first, j)

  def query(self, scalars, b, i, j):
    """The query tile to fetch at step (i, j): i, or where that is empty the first that key tile j
    has use for.
    """
    first = scalars[3][(b * self.tiles[1] if max(self.rows) > 1 else 0) + j]
    return jnp.where(self.kind(scalars, b, i, j) == layouts.EMPTY, first, i)

  def row(self, side, b):
    """The row of the ids of batch row b."""
    return b if self.rows[side] > 1 else 0


def _scores(options, a, b):
  """(scores, slope or None) of a [M, K] and b [N, K], float32 [M, N]."""
  score = _dot(a, b, 1, 1) * options.scale
  if options.soft_cap is None:
    return score, None
  tanh = jnp.tanh(score / options.soft_cap)
  return options.soft_cap * tanh, 1 - tanh * tanh


def _dot(a, b, a_axis, b_axis):
  """The product of two matrices over one axis of each, accumulated in float32; float32 operands are
  not rounded to bfloat16.
  """
  exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    a, b, (((a_axis,), (b_axis,)), ((), ())), precision=exact, preferred_element_type=jnp.float32
  )


def _columns(x, n):
  """The first n rows of a block [8, T] as columns [T, 1]."""
  x = x.T
  return [x[:, c : c + 1] for c in range(n)]


def _rows(x, n):
  return [x[r : r + 1, :] for r in range(n)]


def _on_kind(kind, update):
  """Run `update(partial)` unless the tile is empty."""
  pl.when(kind == layouts.FULL)(lambda: update(False))
  pl.when(kind == layouts.PARTIAL)(lambda: update(True))


def _forward_kernel(options, map_, steps, *refs):
  """Grid (b, h, query tile, 1, key tile): online softmax over key tiles."""
  scalars, (q_ids, k_ids, q, k, v, out, lse, acc, top, total) = refs[:4], refs[4:]
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(4)

  @pl.when(j == 0)
  def _():
    acc[...] = jnp.zeros_like(acc)
    top[...] = jnp.full_like(top, MASKED)
    total[...] = jnp.zeros_like(total)

  def update(partial):
    score, _ = _scores(options, q[0, 0], k[0, 0])
    if partial:
      score = jnp.where(layouts.rule(*_columns(q_ids[0], 3), *_rows(k_ids[0], 3)), score, MASKED)
    old = top[:, :1]
    new = jnp.maximum(old, score.max(axis=1, keepdims=True))
    weight, fade = jnp.exp(score - new), jnp.exp(old - new)
    acc[...] = acc[...] * fade + _dot(weight.astype(v.dtype), v[0, 0], 1, 0)
    total[...] = total[...] * fade + weight.sum(axis=1, keepdims=True)
    top[...] = jnp.broadcast_to(new, top.shape)

  _on_kind(map_.kind(scalars, b, i, j), update)

  @pl.when(j == steps - 1)
  def _():
    sees = top[...] > MASKED / 2
    safe = jnp.where(sees, total[...], 1.0)
    out[0, 0] = jnp.where(sees[:, :1], acc[...] / safe[:, :1], 0.0).astype(out.dtype)
    lse[0, 0] = jnp.where(sees, top[...] + jnp.log(safe), MASKED).T[:SUBLANES]


def _weights(options, a, b, mask, lse):
  """(softmax weights, slope or None), from the log-sum-exp; `mask` None for a full tile."""
  score, slope = _scores(options, a, b)
  score = score if mask is None else jnp.where(mask, score, MASKED)
  return jnp.exp(score - lse), slope


def _dq_kernel(options, map_, steps, *refs):
  """Grid (b, h, query tile, 1, key tile): dq = Σ over key tiles of ds k."""
  scalars, (q_ids, k_ids, q, k, v, g, stats, dq, acc) = refs[:4], refs[4:]
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(4)
  pl.when(j == 0)(lambda: acc.__setitem__(..., jnp.zeros_like(acc)))

  def update(partial):
    lse, shift = _columns(stats[0, 0], 2)
    mask = layouts.rule(*_columns(q_ids[0], 3), *_rows(k_ids[0], 3)) if partial else None
    weight, slope = _weights(options, q[0, 0], k[0, 0], mask, lse)
    ds = weight * (_dot(g[0, 0], v[0, 0], 1, 1) - shift) * options.scale
    ds = ds if slope is None else ds * slope
    acc[...] += _dot(ds.astype(k.dtype), k[0, 0], 1, 0)

  _on_kind(map_.kind(scalars, b, i, j), update)

  @pl.when(j == steps - 1)
  def _():
    dq[0, 0] = acc[...].astype(dq.dtype)


def _dkv_kernel(options, map_, steps, *refs):
  """Grid (b, g, key tile, query head of the group, query tile): dk = Σ dsᵀ q and dv = Σ pᵀ g, on
  transposed score tiles.
  """
  scalars, (q_ids, k_ids, q, k, v, g, stats, dk, dv, dk_acc, dv_acc) = refs[:4], refs[4:]
  b, j, r, i = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)

  @pl.when((r == 0) & (i == 0))
  def _():
    dk_acc[...] = jnp.zeros_like(dk_acc)
    dv_acc[...] = jnp.zeros_like(dv_acc)

  def update(partial):
    lse, shift = _rows(stats[0, 0], 2)
    mask = layouts.rule(*_rows(q_ids[0], 3), *_columns(k_ids[0], 3)) if partial else None
    weight, slope = _weights(options, k[0, 0], q[0, 0], mask, lse)
    ds = weight * (_dot(v[0, 0], g[0, 0], 1, 1) - shift) * options.scale
    ds = ds if slope is None else ds * slope
    dv_acc[...] += _dot(weight.astype(g.dtype), g[0, 0], 1, 0)
    dk_acc[...] += _dot(ds.astype(q.dtype), q[0, 0], 1, 0)

  _on_kind(map_.kind(scalars, b, i, j), update)

  @pl.when((r == steps[0] - 1) & (i == steps[1] - 1))
  def _():
    dk[0, 0] = dk_acc[...].astype(dk.dtype)
    dv[0, 0] = dv_acc[...].astype(dv.dtype)


def _call(options, kernel, map_, grid, in_specs, out_specs, out_shapes, scratch, arrays):
  """One pallas_call with the map's scalars ahead."""
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=4,
      grid=grid,
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=scratch,
    ),
    out_shape=[jax.ShapeDtypeStruct(*shape) for shape in out_shapes],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=SEMANTICS, vmem_limit_bytes=options.vmem
    ),
    interpret=options.interpret,
  )(*map_.scalars, *map_.ids, *arrays)


def _query_major(map_, q_tile, k_tile, width, group):
  """Specs for grid (b, h, i, 0, j): q ids, k ids, and blocks of a query array, of a key array, of
  query statistics.
  """

  def key(b, i, j, s):
    return map_.key(s, b, i, j)

  return (
    pl.BlockSpec((1, SUBLANES, q_tile), lambda b, h, i, _, j, *s: (map_.row(0, b), 0, i)),
    pl.BlockSpec(
      (1, SUBLANES, k_tile), lambda b, h, i, _, j, *s: (map_.row(1, b), 0, key(b, i, j, s))
    ),
    pl.BlockSpec((1, 1, q_tile, width), lambda b, h, i, _, j, *s: (b, h, i, 0)),
    pl.BlockSpec(
      (1, 1, k_tile, width),
      lambda b, h, i, _, j, *s: (b, jax.lax.div(h, group), key(b, i, j, s), 0),
    ),
    pl.BlockSpec((1, 1, SUBLANES, q_tile), lambda b, h, i, _, j, *s: (b, h, 0, i)),
  )


def _key_major(map_, q_tile, k_tile, width, group):
  """The same for grid (b, g, j, r, i), r being the query head within group g."""

  def query(b, i, j, s):
    return map_.query(s, b, i, j)

  return (
    pl.BlockSpec(
      (1, SUBLANES, q_tile), lambda b, g, j, r, i, *s: (map_.row(0, b), 0, query(b, i, j, s))
    ),
    pl.BlockSpec((1, SUBLANES, k_tile), lambda b, g, j, r, i, *s: (map_.row(1, b), 0, j)),
    pl.BlockSpec(
      (1, 1, q_tile, width), lambda b, g, j, r, i, *s: (b, g * group + r, query(b, i, j, s), 0)
    ),
    pl.BlockSpec((1, 1, k_tile, width), lambda b, g, j, r, i, *s: (b, g, j, 0)),
    pl.BlockSpec(
      (1, 1, SUBLANES, q_tile), lambda b, g, j, r, i, *s: (b, g * group + r, 0, query(b, i, j, s))
    ),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q, k, v, ids):
  return _forward(options, q, k, v, ids)[0]


def _forward(options, q, k, v, ids):
  B, H, L, K = q.shape
  q_tile, k_tile = options.sizes.q, options.sizes.k
  map_ = _Map(ids, q_tile, k_tile)
  nq, nk = map_.tiles
  q_ids, k_ids, of_query, of_key, of_stats = _query_major(map_, q_tile, k_tile, K, H // k.shape[1])
  scratch = [pltpu.VMEM((q_tile, K), jnp.float32)] + [pltpu.VMEM((q_tile, LANES), jnp.float32)] * 2
  out, lse = _call(
    options,
    functools.partial(_forward_kernel, options, map_, nk),
    map_,
    (B, H, nq, 1, nk),
    [q_ids, k_ids, of_query, of_key, of_key],
    [of_query, of_stats],
    [((B, H, nq * q_tile, K), q.dtype), ((B, H, SUBLANES, nq * q_tile), jnp.float32)],
    scratch,
    (_pad_rows(q, q_tile), _pad_rows(k, k_tile), _pad_rows(v, k_tile)),
  )
  out, lse = out[:, :, :L], lse[:, :, 0, :L]
  return (out, lse), (q, k, v, out, lse, ids)


def _backward(options, saved, cotangents):
  q, k, v, out, lse, ids = saved
  g, c = cotangents
  (B, H, L, K), (G, S) = q.shape, k.shape[1:3]
  q_tile, k_tile = options.sizes.q_backward, options.sizes.k_backward
  map_ = _Map(ids, q_tile, k_tile)
  nq, nk = map_.tiles
  shift = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1) - c
  # Where a query sees no key, so that its weights are 0.
  lse = jnp.where(lse > MASKED / 2, lse, -MASKED)
  stats = jnp.pad(
    jnp.stack([lse, shift], axis=2), ((0, 0), (0, 0), (0, SUBLANES - 2), (0, -L % q_tile))
  )
  arrays = (
    _pad_rows(q, q_tile),
    _pad_rows(k, k_tile),
    _pad_rows(v, k_tile),
    _pad_rows(g.astype(q.dtype), q_tile),
    stats,
  )

  def accumulator(tile):
    return pltpu.VMEM((tile, K), jnp.float32)

  def call(kernel, steps, grid, specs, outs, shapes, scratch):
    q_ids, k_ids, of_query, of_key, of_stats = specs(map_, q_tile, k_tile, K, H // G)
    in_specs = [q_ids, k_ids, of_query, of_key, of_key, of_query, of_stats]
    out_specs = [{"query": of_query, "key": of_key}[name] for name in outs]
    kernel = functools.partial(kernel, options, map_, steps)
    return _call(options, kernel, map_, grid, in_specs, out_specs, shapes, scratch, arrays)

  of_q, of_k = ((B, H, nq * q_tile, K), q.dtype), ((B, G, nk * k_tile, K), k.dtype)
  (dq,) = call(
    _dq_kernel, nk, (B, H, nq, 1, nk), _query_major, ["query"], [of_q], [accumulator(q_tile)]
  )
  dk, dv = call(
    _dkv_kernel,
    (H // G, nq),
    (B, G, nk, H // G, nq),
    _key_major,
    ["key"] * 2,
    [of_k] * 2,
    [accumulator(k_tile)] * 2,
  )
  return dq[:, :, :L], dk[:, :, :S], dv[:, :, :S], None


_attention.defvjp(_forward, _backward)

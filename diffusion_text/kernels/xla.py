"""Attention in XLA, for every backend: dense for short rows, chunked with O(L · chunk) memory for
long ones.

Both compute in float32 and differentiate by hand, with the same formulas as the Pallas kernels.
With p the weights, g the cotangent of out, and c that of the log-sum-exp:  dp = g vᵀ,  di = Σ p dp
(= Σ g out),  ds = p (dp − di + c).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.reference import MASKED
from diffusion_text.types import Layout

# Rows up to this many positions are attended to densely, longer ones in chunks of CHUNK queries and
# keys. Forward and backward in ms on one busy CPU core (H=4, K=64, f32): bidirectional, dense and
# chunked, L=256 B=16 69, 87; L=512 B=8 152, 118; L=1024 B=4 377, 236. Noisy-clean in blocks of 16
# at the same sizes, where empty chunks are skipped: 71, 81; 158, 78; 386, 119.
DENSE_LENGTH = 256
DENSE_LENGTH_UNMASKED = 512  # dense uses two cores better
# Few queries over a long cache are attended to densely, as a copy of the cache in tiles would cost
# more than the keys that it could leave out; up to so many scores per head.
DENSE_SCORES = 2**17
CHUNK = 128


def attention(
  q: Float[Array, "B L H K"],
  k: Float[Array, "B S G K"],
  v: Float[Array, "B S G K"],
  q_layout: Layout,
  k_layout: Layout,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
  window: layouts.Window | None = None,
  chunk: int | None = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H"]]:
  """(out, lse) as `reference`, differentiable in both. `chunk` forces the chunked regime, which
  else depends on the length.
  """
  L, S, K = q.shape[1], k.shape[1], q.shape[3]
  scale = K**-0.5 if scale is None else scale
  unmasked = window is None and layouts.is_bidirectional(q_layout, k_layout)
  short = max(L, S) <= (DENSE_LENGTH_UNMASKED if unmasked else DENSE_LENGTH)
  few = L < S and L <= CHUNK and L * S <= DENSE_SCORES
  if chunk is None and (short or few):
    mask = layouts.visible(q_layout, k_layout, window)
    out, lse = _dense(scale, soft_cap, q, k, v, mask)
    if mask is None:
      return out, lse
    sees = mask.any(axis=-1)[..., None]
    return jnp.where(sees[..., None], out, 0), jnp.where(sees, lse, MASKED)
  q_tile, k_tile = _even_tile(L, chunk or CHUNK), _even_tile(S, chunk or CHUNK)
  if unmasked and L % q_tile == 0 and S % k_tile == 0:
    q_layout = k_layout = None
  else:
    q_layout, k_layout = layouts.materialise(q_layout, L), layouts.materialise(k_layout, S)
  return _chunked((scale, soft_cap, q_tile, k_tile), q, k, v, (q_layout, k_layout, window))


def _even_tile(length, most):
  """The tile, at most `most`, that cuts a row in equal parts with the least padding."""
  return -(-length // -(-length // most))


def _scores(q, k, scale, soft_cap):
  """(scores, their derivative by the uncapped scores or None), float32, from [..., L, K] and [...,
  S, K].
  """
  score = jnp.einsum("...lk,...sk->...ls", q, k, preferred_element_type=jnp.float32) * scale
  if soft_cap is None:
    return score, None
  tanh = jnp.tanh(score / soft_cap)
  return soft_cap * tanh, 1 - tanh * tanh


def _heads_first(x, groups):
  """[B, G, R · L, K] with R = H // G query heads per group. An explicit transpose: XLA's CPU
  matmuls are 2.7x faster on it.
  """
  B, L, H, K = x.shape
  return (
    x.reshape(B, L, groups, H // groups, K)
    .transpose(0, 2, 3, 1, 4)
    .reshape(B, groups, H // groups * L, K)
  )


def _heads_last(x, length):
  """[B, L, H, K], the inverse of `_heads_first`."""
  B, G, N, K = x.shape
  return (
    x.reshape(B, G, N // length, length, K)
    .transpose(0, 3, 1, 2, 4)
    .reshape(B, length, G * N // length, K)
  )


def _biased(score, mask, length):
  """`score`, with MASKED where `mask` (broadcastable to [B, L, S], or None) does not hold.

  By adding: |score| is far below the spacing of floats near MASKED, so the sum is MASKED exactly,
  and XLA's CPU backend fuses a sum with the matmuls on both sides of it.
  """
  if mask is None:
    return score
  B, G, N, S = score.shape
  bias = jnp.where(mask, 0.0, MASKED)[:, None, None]
  return (score.reshape(B, G, N // length, length, S) + bias).reshape(B, G, N, S)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dense(scale, soft_cap, q, k, v, mask):
  return _dense_forward(scale, soft_cap, q, k, v, mask)[0]


def _dense_forward(scale, soft_cap, q, k, v, mask):
  L, dtype = q.shape[1], q.dtype
  q, k, v = (_heads_first(x, k.shape[2]) for x in (q, k, v))
  score, slope = _scores(q, k, scale, soft_cap)
  score = _biased(score, mask, L)
  top = score.max(axis=-1, keepdims=True)
  weight = jnp.exp(score - top)
  total = weight.sum(axis=-1, keepdims=True)
  lse = top + jnp.log(total)
  weight = jax.lax.optimization_barrier((weight / total).astype(v.dtype))
  # Dividing again by a sum that is 1 keeps that sum in one fusion with the matmul; XLA's CPU
  # backend then computes both row by row in cache: 6 ms instead of 13 for B=16 L=256 H=4 K=64.
  again = weight.astype(jnp.float32).sum(axis=-1, keepdims=True)
  out = _dot("bgls,bgsk->bglk", weight, v) / again
  return (_heads_last(out.astype(dtype), L), _heads_last(lse, L)[..., 0]), (q, k, v, weight, slope)


def _dense_backward(scale, soft_cap, saved, cotangents):
  q, k, v, weight, slope = saved
  g, c = cotangents
  L, dtype = g.shape[1], q.dtype
  g, c = _heads_first(g, k.shape[1]), _heads_first(c[..., None], k.shape[1])
  dp = _dot("bglk,bgsk->bgls", g, v)
  di = (weight * dp).sum(axis=-1, keepdims=True)
  ds = weight * (dp - di + c) if slope is None else weight * (dp - di + c) * slope
  ds = jax.lax.optimization_barrier((ds * scale).astype(dtype))
  dq = _dot("bgls,bgsk->bglk", ds, k)
  dk = _dot("bgls,bglk->bgsk", ds, q)
  dv = _dot("bgls,bglk->bgsk", weight, g)
  S = k.shape[2]
  return (
    _heads_last(dq, L).astype(dtype),
    _heads_last(dk, S).astype(dtype),
    _heads_last(dv, S).astype(dtype),
    None,
  )


_dense.defvjp(_dense_forward, _dense_backward)


def _tiles(x, groups, tile):
  """[n, B, G, R · tile, K]: the row cut in tiles, zeros after its end, heads first."""
  B, L, H, K = x.shape
  n = -(-L // tile)
  x = jnp.pad(x, ((0, 0), (0, n * tile - L), (0, 0), (0, 0))).reshape(B, n, tile, H, K)
  return jax.vmap(lambda x: _heads_first(x, groups), in_axes=1)(x)


def _untiles(x, tile, length):
  """[B, length, H, K], the inverse of `_tiles`."""
  x = jax.vmap(lambda x: _heads_last(x, tile), out_axes=1)(x)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _tile_ids(layouts_qk, lengths, q_tile, k_tile):
  """(q ids, k ids, kinds [nq, nk] of the whole batch), or Nones where all is visible. Ids are the
  layout, each field [n, B or 1, tile], and the positions likewise if there is a window.
  """
  q_layout, k_layout, window = layouts_qk
  if q_layout is None:
    return None, None, None
  tiles = layouts.cut(q_layout, k_layout, *lengths, q_tile, k_tile, window)
  low, high = tiles.kinds.min(axis=0), tiles.kinds.max(axis=0)
  _, q_position, k_position = tiles.window or (None, None, None)

  def split(layout, tile):
    return jax.tree.map(lambda ids: ids.reshape(ids.shape[0], -1, tile).swapaxes(0, 1), layout)

  return (
    split((tiles.q, q_position), q_tile),
    split((tiles.k, k_position), k_tile),
    jnp.where(low == high, low, layouts.PARTIAL),
  )


def _on_kind(kind, update, carry, q_ids, k_ids, window):
  """`carry` for an empty tile, else `update(carry, mask or None)`."""
  if kind is None:
    return update(carry, None)

  def partial(carry):
    (q_layout, q_position), (k_layout, k_position) = q_ids, k_ids
    near = None if window is None else layouts.Window(window.size, q_position, k_position)
    return update(carry, layouts.visible(q_layout, k_layout, near))

  return jax.lax.switch(
    kind, [lambda carry: carry, partial, lambda carry: update(carry, None)], carry
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_raw(options, q, k, v, layouts_qk):
  return _chunked_forward(options, q, k, v, layouts_qk)[0]


def _chunked_forward(options, q, k, v, layouts_qk):
  scale, soft_cap, q_tile, k_tile = options
  L, S, groups = q.shape[1], k.shape[1], k.shape[2]
  q_ids, k_ids, kinds = _tile_ids(layouts_qk, (L, S), q_tile, k_tile)
  keys = (_tiles(k, groups, k_tile), _tiles(v, groups, k_tile), k_ids)

  def per_query(_, xs):
    q, q_ids, kinds = xs

    def per_key(carry, xs):
      (k, v, k_ids), kind = xs

      def update(carry, mask):
        acc, top, total = carry
        score = _biased(_scores(q, k, scale, soft_cap)[0], mask, q_tile)
        new_top = jnp.maximum(top, score.max(axis=-1, keepdims=True))
        weight, fade = jnp.exp(score - new_top), jnp.exp(top - new_top)
        acc = acc * fade + _dot("bgls,bgsk->bglk", weight.astype(v.dtype), v)
        return acc, new_top, total * fade + weight.sum(axis=-1, keepdims=True)

      return _on_kind(kind, update, carry, q_ids, k_ids, layouts_qk[2]), None

    column = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
    start = jnp.zeros(q.shape, jnp.float32), column + MASKED, column
    (acc, top, total), _ = jax.lax.scan(per_key, start, (keys, kinds))
    total = jnp.where(total > 0, total, 1.0)
    return None, ((acc / total).astype(q.dtype), top + jnp.log(total))

  _, (out, lse) = jax.lax.scan(per_query, None, (_tiles(q, groups, q_tile), q_ids, kinds))
  out, lse = _untiles(out, q_tile, L), _untiles(lse, q_tile, L)[..., 0]
  return (out, lse), (q, k, v, out, lse, layouts_qk)


def _chunked_backward(options, saved, cotangents):
  scale, soft_cap, q_tile, k_tile = options
  q, k, v, out, lse, layouts_qk = saved
  g, c = cotangents
  L, S, groups, dtype = q.shape[1], k.shape[1], k.shape[2], q.dtype
  q_ids, k_ids, kinds = _tile_ids(layouts_qk, (L, S), q_tile, k_tile)
  shift = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1) - c
  queries = [_tiles(x, groups, q_tile) for x in (q, g, lse[..., None], shift[..., None])]

  def per_key(dq, xs):
    k, v, k_ids, kinds = xs

    def per_query(carry, xs):
      (q, g, lse, shift), dq, q_ids, kind = xs

      def update(carry, mask):
        dq, dk, dv = carry
        score, slope = _scores(q, k, scale, soft_cap)
        weight = jnp.exp(_biased(score, mask, q_tile) - lse)
        ds = weight * (_dot("bglk,bgsk->bgls", g, v) - shift) * scale
        ds = (ds if slope is None else ds * slope).astype(dtype)
        dq += _dot("bgls,bgsk->bglk", ds, k)
        return (
          dq,
          dk + _dot("bgls,bglk->bgsk", ds, q),
          dv + _dot("bgls,bglk->bgsk", weight.astype(dtype), g),
        )

      dq, dk, dv = _on_kind(kind, update, (dq, *carry), q_ids, k_ids, layouts_qk[2])
      return (dk, dv), dq

    zeros = jnp.zeros(k.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(per_query, (zeros, zeros), (queries, dq, q_ids, kinds))
    return dq, (dk, dv)

  start = jnp.zeros(queries[0].shape, jnp.float32)
  keys = (
    _tiles(k, groups, k_tile),
    _tiles(v, groups, k_tile),
    k_ids,
    None if kinds is None else kinds.T,
  )
  dq, (dk, dv) = jax.lax.scan(per_key, start, keys)
  return *(
    _untiles(x, tile, n).astype(dtype)
    for x, tile, n in ((dq, q_tile, L), (dk, k_tile, S), (dv, k_tile, S))
  ), None


_chunked_raw.defvjp(_chunked_forward, _chunked_backward)


def _chunked(options, q, k, v, layouts_qk):
  out, lse = _chunked_raw(options, q, k, v, layouts_qk)
  if layouts_qk[0] is None:
    return out, lse
  sees = lse > MASKED / 2
  return jnp.where(sees[..., None], out, 0), jnp.where(sees, lse, MASKED)

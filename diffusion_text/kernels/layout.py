"""Who sees whom: the rule, the layouts built for it, and what it says of whole tiles at once.

`rule` is the only place where the rule is written for single positions, `tile_kind` the only place
for tiles. The dense mask (`visible`), the chunked XLA attention and the Pallas kernels all call
these two.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from diffusion_text.types import Layout

EMPTY, PARTIAL, FULL = 0, 1, 2  # what `tile_kind` answers

# Segments of the positions that pad a row to whole tiles. Differing, so that padding sees no
# padding and costs nothing; the two most negative int32, which no caller's segment may be.
PAD_QUERY, PAD_KEY = -(2**31), -(2**31) + 1


def rule(q_segment, q_block, q_noisy, k_segment, k_block, k_noisy):
  """Bool, broadcast over its integer arguments: may query q see key k? The sentence in
  `types.Layout`, in code.
  """
  same = (q_block == k_block) & (q_noisy == k_noisy)
  earlier = (k_noisy == 0) & (k_block < q_block)
  return (q_segment == k_segment) & (same | earlier)


class Window(NamedTuple):
  """How far queries see, beside what the layouts say: to keys whose position differs by less than
  `size`, on both sides.

  In a causal row that is a sliding window of `size` tokens, the query included. Positions, not
  places, so that a noisy copy, a clean copy and the slots of a cache have one distance.

  Attributes:
    size: a number, or int32 [].
    query: int32 [B or 1, Lq], the position of each query.
    key: int32 [B or 1, Lk], the position of each key.
  """

  size: Array | int
  query: Array
  key: Array

  @property
  def mask(self) -> Bool[Array, "B Lq Lk"]:
    """True where the window lets a query see a key."""
    return jnp.abs(self.query[:, :, None] - self.key[:, None, :]) < self.size


def visible(
  q_layout: Layout, k_layout: Layout, window: Window | None = None
) -> Bool[Array, "B Lq Lk"] | None:
  """The dense mask: bool, broadcastable to [B, Lq, Lk]; None if every query sees every key (and
  there is no work to do).

  A field that is None on one side only counts as 0 at each of its positions.
  """
  if is_bidirectional(q_layout, k_layout):
    return None if window is None else window.mask
  zero = jnp.zeros((1, 1), jnp.int32)
  # Arrays of jax: from arrays of numpy the whole mask would be made on the host, as a constant.
  q = [jnp.asarray(zero if field is None else field)[:, :, None] for field in _fields(q_layout)]
  k = [jnp.asarray(zero if field is None else field)[:, None, :] for field in _fields(k_layout)]
  return rule(*q, *k) if window is None else rule(*q, *k) & window.mask


def is_bidirectional(q_layout: Layout, k_layout: Layout) -> bool:
  """True if no field is set on either side: every query sees every key. Known before tracing, so a
  mask costs nothing.
  """
  return all(field is None for field in (*_fields(q_layout), *_fields(k_layout)))


def is_causal(q_layout: Layout, k_layout: Layout) -> bool:
  """True if both layouts are those of `causal`, and while a program is traced: if both are known to
  be. Layouts that the program computes are not known.
  """
  if any(layout.segment is not None or layout.noisy is not None for layout in (q_layout, k_layout)):
    return False
  blocks = q_layout.block, k_layout.block
  if any(block is None or isinstance(block, jax.core.Tracer) for block in blocks):
    return False
  q_block, k_block = map(np.asarray, blocks)
  every = np.arange(q_block.shape[1])
  return q_block.shape == k_block.shape and bool(np.all((q_block == every) & (k_block == every)))


def bidirectional() -> Layout:
  """Every position sees every position."""
  return Layout()


def causal(length: int) -> Layout:
  """[1, L]: every position sees itself and those before it."""
  _positive(length=length)
  return Layout(block=numbers(length))


def block_causal(length: int, block_size: int) -> Layout:
  """[1, L]: every position sees its own block of `block_size` and all earlier blocks; the last
  block may be shorter.
  """
  _positive(length=length, block_size=block_size)
  return Layout(block=_arange(length) // block_size)


def prefix(prefix_lengths: Int[Array, " B"], length: int) -> Layout:
  """[B, L] from int32 [B]: the first `prefix_lengths[i]` positions of row i see each other, the
  rest are causal.
  """
  _positive(length=length)
  return Layout(
    block=jnp.maximum(_arange(length) + 1 - jnp.asarray(prefix_lengths, jnp.int32)[:, None], 0)
  )


def packed(segment: Int[Array, "B L"], block_size: int | None = None) -> Layout:
  """[B, L] from int32 [B, L]: several documents in a row, each a run of equal `segment`; none sees
  another.

  With `block_size`, each document is block-causal, its blocks counted from its own first token.
  """
  segment = jnp.asarray(segment, jnp.int32)
  if block_size is None:
    return Layout(segment=segment)
  _positive(block_size=block_size)
  return Layout(segment=segment, block=packed_positions(segment) // block_size)


def packed_positions(segment: Int[Array, "B L"]) -> Int[Array, "B L"]:
  """int32 [B, L] from int32 [B, L]: the index of each token within its document (a run of equal
  `segment`).
  """
  index = _arange(segment.shape[1])
  starts = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def padded(lengths: Int[Array, " B"], length: int, side: str = "right") -> Layout:
  """[B, L] from int32 [B]: row i holds `lengths[i]` tokens, then (side="left": before them)
  padding, a segment of its own.

  Padding sees padding, so no row of the mask is empty; no token sees it.
  """
  _positive(length=length)
  lengths = jnp.asarray(lengths, jnp.int32)[:, None]
  if side == "right":
    return Layout(segment=(_arange(length) >= lengths).astype(jnp.int32))
  if side == "left":
    return Layout(segment=(_arange(length) < length - lengths).astype(jnp.int32))
  raise ValueError(f"side={side!r} must be 'right' or 'left'")


def doubled(layout: Layout, length: int) -> Layout:
  """[B or 1, 2L] from [B or 1, L]: a noisy copy of the row, then its clean copy; `layout.noisy` is
  replaced.

  A noisy token sees its own noisy block and the clean tokens of earlier blocks of its segment,
  never the clean copy of itself. `doubled(packed(segment, b), L)` trains packed documents in
  blocks.
  """
  _positive(length=length)
  twice = jax.tree.map(lambda ids: jnp.concatenate([ids, ids], axis=1), layout)
  return Layout(
    segment=twice.segment, block=twice.block, noisy=(_arange(2 * length) < length).astype(jnp.int32)
  )


def noisy_clean(length: int, block_size: int) -> Layout:
  """[1, 2L]: the training layout of block diffusion, L noisy tokens and then the same L clean ones,
  in blocks.
  """
  return doubled(block_causal(length, block_size), length)


def noisy_clean_positions(length: int) -> Int[Array, "1 L2"]:
  """0 … L-1 twice: the noisy and the clean copy of a token share one rotary position."""
  _positive(length=length)
  return jnp.tile(_arange(length), (1, 2))


def any_order(rank: Int[Array, "B L"]) -> Layout:
  """[B, L] from int32 [B, L]: every token sees itself and those of lower `rank`, its place in the
  order of generation.
  """
  return Layout(block=jnp.asarray(rank, jnp.int32))


def two_stream(rank: Int[Array, "B L"]) -> Layout:
  """[B, 2L] from int32 [B, L]: XLNet's query stream (noisy half), then its content stream (clean
  half).

  A query sees itself and the content of lower rank; content sees itself and the content of lower
  rank.
  """
  return doubled(any_order(rank), rank.shape[1])


def decode_block(
  used: Int[Array, " B"], capacity: int, block_size: int, noisy: bool = True
) -> tuple[Layout, Layout]:
  """(q_layout [B, b], k_layout [B, capacity + b]): one block of b queries; keys are the clean
  cache, then that block.

  used: int32 [B], the filled slots of each row's cache, which come first; the rest are not seen.
  noisy=False is the pass that appends a finished block to the cache. What it sees is the same.
  """
  _positive(capacity=capacity, block_size=block_size)
  slot = _arange(capacity + block_size)
  of_block = (slot >= capacity).astype(jnp.int32)
  unused = (slot >= jnp.asarray(used, jnp.int32)[:, None]) & (of_block == 0)
  keys = Layout(segment=unused.astype(jnp.int32), block=of_block, noisy=of_block * int(noisy))
  ones = jnp.ones((1, block_size), jnp.int32)
  return Layout(segment=0 * ones, block=ones, noisy=ones * int(noisy)), keys


class Summary(NamedTuple):
  """Smallest and largest id in each tile, int32 [B or 1, tiles]."""

  segment_min: Array
  segment_max: Array
  block_min: Array
  block_max: Array
  noisy_min: Array
  noisy_max: Array


def tile_summary(layout: Layout, tile: int) -> Summary:
  """Summary of each run of `tile` positions of a layout whose fields are all set (see
  `materialise`); O(L) memory.

  Raises ValueError if `tile` does not divide the length.
  """
  length = layout.segment.shape[1]
  if length % tile:
    raise ValueError(
      f"tile={tile} must divide length={length}; `materialise` the layout at"
      f" {-(-length // tile) * tile}"
    )
  tiles = [field.reshape(field.shape[0], length // tile, tile) for field in _fields(layout)]
  return Summary(*(reduce(field, axis=2) for field in tiles for reduce in (jnp.min, jnp.max)))


def tile_kind(q: Summary, k: Summary) -> Array:
  """EMPTY, PARTIAL or FULL, broadcast over the summaries' fields: what the rule says of all pairs
  of two tiles.

  Conservative: EMPTY and FULL are certain, PARTIAL says nothing. Works on arrays and on scalars
  inside a kernel.
  """
  one_segment = (q.segment_min == q.segment_max) & (k.segment_min == k.segment_max)
  same_segment = (q.segment_min <= k.segment_max) & (
    k.segment_min <= q.segment_max
  )  # for some pair, perhaps
  same_block = (q.block_min <= k.block_max) & (k.block_min <= q.block_max)
  same_noisy = (q.noisy_min <= k.noisy_max) & (k.noisy_min <= q.noisy_max)
  earlier = (k.noisy_min == 0) & (k.block_min < q.block_max)
  some = same_segment & ((same_block & same_noisy) | earlier)
  all_same = (
    (q.block_min == k.block_max) & (k.block_min == q.block_max) & (q.noisy_min == k.noisy_max)
  )
  all_same &= k.noisy_min == q.noisy_max
  all_earlier = (k.noisy_max == 0) & (k.block_max < q.block_min)
  all_clean = (k.noisy_max == 0) & (q.noisy_max == 0) & (k.block_max <= q.block_min)
  every = same_segment & one_segment & (all_same | all_earlier | all_clean)
  return jnp.where(every, FULL, jnp.where(some, PARTIAL, EMPTY))


class Tiles(NamedTuple):
  """Two layouts padded to whole tiles, their summaries, and `kinds` int32 [B or 1, query tiles, key
  tiles]; and the window, padded likewise, or None.
  """

  q: Layout
  k: Layout
  q_summary: Summary
  k_summary: Summary
  kinds: Array
  window: Window | None = None


def cut(
  q_layout: Layout,
  k_layout: Layout,
  q_length: int,
  k_length: int,
  q_tile: int,
  k_tile: int,
  window: Window | None = None,
) -> Tiles:
  """The `Tiles` of queries and keys. `kinds` is (L / tile)² integers where it is kept, nothing
  where it is only reduced.
  """
  q = materialise(q_layout, q_length, -(-q_length // q_tile) * q_tile, PAD_QUERY)
  k = materialise(k_layout, k_length, -(-k_length // k_tile) * k_tile, PAD_KEY)
  q_summary, k_summary = tile_summary(q, q_tile), tile_summary(k, k_tile)
  kinds = tile_kind(
    jax.tree.map(lambda x: x[:, :, None], q_summary),
    jax.tree.map(lambda x: x[:, None, :], k_summary),
  )
  if window is None:
    return Tiles(q, k, q_summary, k_summary, kinds)
  window = Window(window.size, _whole(window.query, q_tile), _whole(window.key, k_tile))
  kinds = _within(window, q_tile, k_tile, kinds)
  return Tiles(q, k, q_summary, k_summary, kinds, window)


def _whole(position: Int[Array, "B L"], tile: int) -> Int[Array, "B L2"]:
  """Positions padded to whole tiles by the last of them, which leaves every tile's range as it is.
  Padding is in a segment of its own."""
  length = position.shape[1]
  return jnp.pad(position, ((0, 0), (0, -length % tile)), mode="edge")


def _within(
  window: Window, q_tile: int, k_tile: int, kinds: Int[Array, "B nq nk"]
) -> Int[Array, "B2 nq nk"]:
  """`tile_kind` of each pair of tiles under the window too."""
  q = window.query.reshape(window.query.shape[0], -1, 1, q_tile)
  k = window.key.reshape(window.key.shape[0], 1, -1, k_tile)
  after, before = q.max(-1) - k.min(-1), k.max(-1) - q.min(-1)  # the largest differences
  nearest = jnp.maximum(q.min(-1) - k.max(-1), k.min(-1) - q.max(-1))
  kinds = jnp.where(jnp.maximum(after, before) < window.size, kinds, jnp.minimum(kinds, PARTIAL))
  return jnp.where(nearest < window.size, kinds, EMPTY)


def materialise(
  layout: Layout, length: int, padded_length: int | None = None, pad_segment: int = PAD_KEY
) -> Layout:
  """The layout with all three fields set, int32 [B or 1, padded_length] alike; new positions form
  segment `pad_segment`.

  Raises ValueError if a field is not [B or 1, length].
  """
  extra = (padded_length or length) - length

  def fill(field, pad):
    field = jnp.zeros((1, length), jnp.int32) if field is None else field
    if field.ndim != 2 or field.shape[1] != length:
      raise ValueError(
        f"layout field has shape {field.shape}, but the row has {length} positions; give"
        f" [B, {length}] or None"
      )
    return jnp.pad(field.astype(jnp.int32), ((0, 0), (0, extra)), constant_values=pad)

  fields = fill(layout.segment, pad_segment), fill(layout.block, 0), fill(layout.noisy, 0)
  return Layout(*jnp.broadcast_arrays(*fields))


def _fields(layout):
  return layout.segment, layout.block, layout.noisy


def numbers(length: int) -> Int[Array, "1 L"]:
  """int32 [1, L] of numpy: 0 … L-1. A layout of these is known to `is_causal` while a program is
  traced, which one of `_arange` is not.
  """
  return np.arange(length, dtype=np.int32)[None]


def _arange(length):
  return jnp.asarray(numbers(length))


def _positive(**sizes):
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name}={size} must be at least 1")

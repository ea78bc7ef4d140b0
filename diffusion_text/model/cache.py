"""A cache with slots: keys and values of tokens that the network has read, and who may see them.

A slot holds one token: its keys and values in every layer, and the three integers of its layout. A
token may be written over, so finished tokens, prompts and stale noisy tokens all live in the one
cache, and the rule over `Layout` decides what a query sees of them, as in an uncached row.

Heads come before slots, as attention multiplies them. Layers that are not scanned have arrays of
their own, so that no call copies the cache.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from diffusion_text.kernels.layout import PAD_KEY
from diffusion_text.types import Layout, pytree


@pytree()
class SlotCache:
  """What has been read of B rows, in S slots each.

  Attributes:
    keys, values: one [B, G, S, K] per layer, in the dtype of the network; a tuple, or stacked to
      [layers, B, G, S, K] where one compiled layer is scanned over all.
    segment, block, noisy: int32 [B, S], the layout of the slots. A slot that has not been written
      is in a segment of its own, which no query is in.
    position: int32 [B, S], the positions of the slots, for layers with a window; None without.
  """

  # Any: JAX rebuilds a pytree with whatever stands for its arrays (shapes, shardings, None).
  keys: Any
  values: Any
  segment: Any
  block: Any
  noisy: Any
  position: Any = None

  @property
  def written(self) -> Bool[Array, "B S"]:
    """True where a slot holds a token."""
    return self.segment != PAD_KEY

  @property
  def layout(self) -> Layout:
    """Who may see the slots."""
    return Layout(self.segment, self.block, self.noisy)


def empty(
  layers: int,
  rows: int,
  slots: int,
  kv_heads: int,
  head_width: int,
  dtype: str,
  *,
  stacked: bool,
  with_position: bool = False,
) -> SlotCache:
  """A cache in which nothing is written."""
  shape = (rows, kv_heads, slots, head_width)

  def zeros():
    if stacked:
      return jnp.zeros((layers, *shape), dtype)
    return tuple(jnp.zeros(shape, dtype) for _ in range(layers))

  none = jnp.zeros((rows, slots), jnp.int32)
  position = none if with_position else None
  return SlotCache(zeros(), zeros(), none + PAD_KEY, none, none, position)


def write_layout(
  cache: SlotCache, layout: Layout, slots: Int[Array, "B Q"], position: Int[Array, "B1 Q"]
) -> tuple[Layout, SlotCache]:
  """(the layout of the Q tokens with every field set, [B, Q]; the cache with it in their slots, and
  with their positions if it has any)."""

  def whole(field):
    return jnp.broadcast_to(jnp.int32(0) if field is None else field, slots.shape)

  tokens = Layout(whole(layout.segment), whole(layout.block), whole(layout.noisy))
  put = (put_tokens(old, new, slots) for old, new in zip(_fields(cache), _fields(tokens)))
  placed = None if cache.position is None else put_tokens(cache.position, whole(position), slots)
  return tokens, SlotCache(cache.keys, cache.values, *put, placed)


def put_tokens(old: Array, new: Array, slots: Int[Array, "B Q"]) -> Array:
  """[B, S] with new [B, Q] in the slots. A slot beyond the last is not written."""
  rows = jnp.arange(slots.shape[0])[:, None]
  return old.at[rows, slots].set(new.astype(old.dtype), mode="drop")


def put_heads(
  old: Array, new: Array, slots: Int[Array, "B Q"], layer: Int[Array, ""] | None
) -> Array:
  """[B, G, S, K] with new [B, Q, G, K] in the slots; or the same in one layer of [layers, B, …].

  A slot beyond the last is not written. One scatter, so that the old array may be updated in place.
  """
  rows = jnp.arange(slots.shape[0])[:, None]
  index = (rows, slice(None), slots) if layer is None else (layer, rows, slice(None), slots)
  return old.at[index].set(new.astype(old.dtype), mode="drop")


def heads_of(store: Array, layer: Int[Array, ""] | None) -> Array:
  """The keys or values of a layer, [B, S, G, K], in the order that attention takes."""
  return jnp.swapaxes(store if layer is None else store[layer], 1, 2)


def _fields(layout: Layout | SlotCache) -> tuple[Array, Array, Array]:
  return layout.segment, layout.block, layout.noisy

"""Where tokens stand in the rows that the network reads, and where they are answered.

Rows may hold a noisy and a clean copy of the same N positions, one after the other. Over a sequence
axis of P devices, half of these would then have all noisy tokens and half all clean ones, and
cutting the answers out would move features between devices (3 all-to-all and 2 collective-permute
on 4 devices). So the network reads such rows in another order, (part, copy, place) instead of
(copy, part, place): every device has its part of each copy. No result depends on the order, as
attention goes by layout and by rotary position.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from diffusion_text.model.parallel import SEQUENCE, mesh_sizes
from diffusion_text.types import Rows, Span


def parts_of(rows: Rows) -> int:
  """P, over how many parts of the sequence the copies of these rows are spread; 1: as they are."""
  length = rows.t.shape[1]
  parts = mesh_sizes().get(SEQUENCE, 1)
  if rows.copies == 1 or parts == 1 or length % (rows.copies * parts):
    return 1
  size = length // rows.copies
  whole = all(not span.size or _is_copy(span, size) for span in (rows.tokens, rows.answers))
  return parts if whole else 1


def spread(rows: Rows, parts: int) -> Rows:
  """The rows with every field [B or 1, L', …] in the order (part, copy, place)."""
  if parts == 1:
    return rows
  length = rows.t.shape[1]
  if rows.inputs.position is None:
    place = jnp.arange(length, dtype=jnp.int32)[None]
    rows = dataclasses.replace(rows, inputs=dataclasses.replace(rows.inputs, position=place))

  def one(leaf):
    cut = leaf.reshape(leaf.shape[0], rows.copies, parts, -1, *leaf.shape[2:])
    return jnp.swapaxes(cut, 1, 2).reshape(leaf.shape)

  return jax.tree.map(one, rows)


def place(
  memory: Float[Array, "B N D"], absent: Float[Array, " D"], rows: Rows, parts: int
) -> Float[Array, "B L D"]:
  """The memory where the N tokens stand, and `absent` at every other position."""
  batch, size, width = memory.shape
  length = rows.t.shape[1]
  if size != rows.tokens.size:
    raise ValueError(
      f"memory of {size} tokens does not fit the {rows.tokens.size} of rows.tokens={rows.tokens}"
    )
  if size == length:
    return memory
  if parts == 1:
    row = jnp.broadcast_to(absent.astype(memory.dtype), (batch, length, width))
    return row.at[:, rows.tokens.start : rows.tokens.stop].set(memory)
  cut = memory.reshape(batch, parts, -1, width)
  copies = [jnp.broadcast_to(absent.astype(memory.dtype), cut.shape)] * rows.copies
  copies[rows.tokens.start // size] = cut
  return jnp.stack(copies, axis=2).reshape(batch, length, width)


def answered(x: Shaped[Array, "B L *rest"], rows: Rows, parts: int) -> Shaped[Array, "B N *rest"]:
  """What x holds where the N tokens are answered; x itself if it holds no more than these."""
  span = rows.answers
  batch, length, *rest = x.shape
  if span.size == length:
    return x
  if parts == 1 or not span.size:
    return x[:, span.start : span.stop]
  cut = x.reshape(batch, parts, rows.copies, -1, *rest)
  return cut[:, :, span.start // span.size].reshape(batch, span.size, *rest)


def _is_copy(span: Span, size: int) -> bool:
  return span.size == size and span.start % size == 0

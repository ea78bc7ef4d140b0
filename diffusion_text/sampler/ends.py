"""Where a row ends: which tokens may close it, and what stands behind a token that has."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from diffusion_text.types import Model


def count_before(where: Bool[Array, "B u"], segment: Int[Array, "B u"] | None) -> Int[Array, "B u"]:
  """How many tokens of the same document before each token are among those; int32."""
  number = where.astype(jnp.int32)
  if segment is None:
    return jnp.cumsum(number, axis=1) - number
  size = where.shape[1]
  before = jnp.arange(size) < jnp.arange(size)[:, None]
  same = segment[:, :, None] == segment[:, None, :]
  return jnp.sum(jnp.where(before & same, number[:, None, :], 0), axis=-1)


def may_end(
  ids: Int[Array, "B u"],
  end_id: int,
  waiting: Bool[Array, "B u"],
  segment: Int[Array, "B u"] | None,
) -> Bool[Array, "B u"]:
  """False for ends of text that have a waiting token before them in their document."""
  return (ids != end_id) | (count_before(waiting, segment) == 0)


def behind_end(
  ids: Int[Array, "B u"],
  end_id: int,
  waiting: Bool[Array, "B u"],
  active: Bool[Array, "B u"],
  segment: Int[Array, "B u"] | None,
) -> Bool[Array, "B u"]:
  """True for the tokens to generate that stand behind an end which was generated and has no waiting
  token before it.
  """
  settled = active & ~waiting & (ids == end_id)
  closes = settled & (count_before(waiting, segment) == 0)
  return active & (count_before(closes, segment) > 0)


def check_end(model: Model, end_id: int | None) -> None:
  """Raises ValueError for an id that the vocabulary does not have, and for a process whose tokens
  take several positions.
  """
  if end_id is None:
    return
  process = model.process
  if not 0 <= end_id < process.vocab_size:
    raise ValueError(f"end_id={end_id} is no id of a vocabulary of {process.vocab_size}")
  if process.positions(1) != 1:
    raise ValueError(
      f"end_id={end_id}: a token of {type(process).__name__} takes {process.positions(1)}"
      " positions, so no position holds an end of text; leave end_id out"
    )

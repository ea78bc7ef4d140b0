"""Groups of tokens with equal keys within a row: the rank of each token, the size of its group."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def run_lengths(
  keys: Sequence[Array], order: Sequence[Array] = ()
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
  """(rank, size), int32 [B, L] each, of every token within its group.

  A group is all tokens of a row with equal keys. The rank counts from 0 in the order of `order`,
  then of the place in the row. Found by sorting: memory is O(L) per row, time O(L log L).

  Args:
    keys: Arrays [B, L] of integers.
    order: Arrays [B, L] that rank the tokens of one group.
  """
  shape = keys[0].shape
  place = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
  number = len(keys) + len(order)
  in_order = jax.lax.sort((*keys, *order, place), dimension=1, num_keys=number + 1)
  runs, source = in_order[: len(keys)], in_order[-1]
  new = jnp.zeros((shape[0], shape[1] - 1), bool)
  for run in runs:
    new = new | (run[:, 1:] != run[:, :-1])
  edge = jnp.ones((shape[0], 1), bool)
  first = jnp.where(jnp.concatenate([edge, new], axis=1), place, 0)
  first = jax.lax.cummax(first, axis=1)
  end = jnp.where(jnp.concatenate([new, edge], axis=1), place + 1, shape[1])
  end = jax.lax.cummin(end, axis=1, reverse=True)
  _, rank, size = jax.lax.sort((source, place - first, end - first), dimension=1, num_keys=1)
  return rank, size

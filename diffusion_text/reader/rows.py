"""What readers share: the rows of a question, and windows of arrays over the positions of a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.numerics import select
from diffusion_text.types import Model, Params, Query, Rows, State


def window(tree: Any, start: Array | int, size: int) -> Any:
  """Positions start … start + size - 1 of every leaf: [B, N, …] -> [B, size, …]."""

  def cut(leaf):
    return jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=1)

  return jax.tree.map(cut, tree)


def put_window(tree: Any, new: Any, start: Array | int) -> Any:
  """Every leaf [B, N, …] with the positions from `start` on replaced by `new` [B, size, …]."""

  def put(leaf, part):
    return jax.lax.dynamic_update_slice_in_dim(leaf, part.astype(leaf.dtype), start, axis=1)

  return jax.tree.map(put, tree, new)


def visible_state(query: Query) -> tuple[State, Float[Array, "B N"]]:
  """(state, t) as the network reads them: hidden tokens are noise at t = 1."""
  if query.hidden is None:
    return query.state, query.t
  state = select(query.hidden, query.noise, query.state)
  return state, jnp.where(query.hidden, 1.0, query.t)


def rows_of(model: Model, params: Params, query: Query) -> Rows:
  """The rows that the network reads for the query: whole ones, L' = N."""
  process, of_process = model.process, params["process"]
  state, t = visible_state(query)
  noisy = process.inputs(of_process, state, t)
  noise = process.inputs(of_process, query.noise, jnp.ones_like(t))
  told = t if query.told is None else visible_state(query._replace(t=query.told))[1]
  return model.context.sampling_rows(noisy, noise, told, query.batch)


def whole_memory(model: Model, params: Params, query: Query) -> Float[Array, "B N D"] | None:
  """The memory of all N positions: that of the query in the window, none elsewhere. None for a
  query without one.
  """
  if query.memory is None:
    return None
  empty = model.network.no_memory(params["network"]).astype(query.memory.dtype)
  everywhere = jnp.broadcast_to(empty, (*query.t.shape, empty.shape[0]))
  return put_window(everywhere, query.memory, query.start)

"""What caches share: a call reads some tokens of a row, over slots of keys and values, one for each
position.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from diffusion_text.reader.rows import rows_of, whole_memory, window
from diffusion_text.types import (
  Cache,
  Inputs,
  Model,
  Params,
  Prediction,
  Query,
  Rows,
  Span,
)

# `every` of a cache that reads the whole row at the first call of a window only.
ONCE = 1_000_000


def empty_cache(model: Model, params: Params, query: Query) -> Cache:
  """A cache with an empty slot for each position of the row.

  Raises:
    ValueError: if a token is answered elsewhere than at its own position.
  """
  rows = answered_in_place(rows_of(model, params, query), query)
  return model.network.cache(params["network"], rows, query.t.shape[1])


def all_tokens(query: Query) -> Int[Array, "B N"]:
  """The positions 0 … N - 1, of every row."""
  return jnp.broadcast_to(jnp.arange(query.t.shape[1]), query.t.shape)


def window_tokens(query: Query) -> Int[Array, "B u"]:
  """The positions of the window."""
  return jnp.broadcast_to(query.start + jnp.arange(query.needs.shape[1]), query.needs.shape)


def extended(
  model: Model,
  params: Params,
  cache: Cache,
  query: Query,
  index: Int[Array, "B Q"],
  live: Bool[Array, "#B #Q"] | None = None,
) -> tuple[Prediction, Cache]:
  """(the prediction of the tokens at `index` [B, Q, …], the cache with their slots written).

  live: True at the tokens that are written. The other slots stay as they are, and the predictions
  there have no meaning. None: all are written.
  """
  told = whole_memory(model, params, query)
  if told is not None:
    told = jnp.take_along_axis(told, index[..., None], axis=1)
  rows = taken(answered_in_place(rows_of(model, params, query), query), index)
  slots = index
  if live is not None:
    slots = jnp.where(live, index, query.t.shape[1])
  return model.network.extend(params["network"], rows, cache, slots, memory=told)


def is_text(query: Query) -> Bool[Array, "B N"]:
  """True at text, False at padding, on which the choice of tokens must not depend."""
  weights = query.batch.weights
  return jnp.ones(query.t.shape, bool) if weights is None else weights > 0


def cut_to_window(prediction: Prediction, query: Query) -> Prediction:
  """The window's part of a prediction of all N tokens."""
  features = window(prediction.features, query.start, query.needs.shape[1])
  return dataclasses.replace(prediction, features=features)


def spread_to_window(
  prediction: Prediction, query: Query, index: Int[Array, "B Q"]
) -> tuple[Prediction, Bool[Array, "B N"]]:
  """(the window's part of a prediction of the tokens at `index`, fresh where they are; bool [B, N],
  True at the tokens that were read). An index beyond the row is ignored.
  """
  rows, positions = query.t.shape
  row = jnp.arange(rows)[:, None]
  read = jnp.zeros((rows, positions), bool).at[row, index].set(True)
  features = prediction.features
  everywhere = jnp.zeros((rows, positions, features.shape[-1]), features.dtype)
  everywhere = everywhere.at[row, index].set(features)
  cut = (query.start, query.needs.shape[1])
  prediction = dataclasses.replace(
    prediction, features=window(everywhere, *cut), fresh=window(read, *cut)
  )
  return prediction, read


def taken(rows: Rows, index: Int[Array, "B Q"]) -> Rows:
  """Rows of the Q positions `index`, in this order."""

  def take(leaf):
    leaf = jnp.broadcast_to(leaf, (index.shape[0], *leaf.shape[1:]))
    return jnp.take_along_axis(leaf, index.reshape(*index.shape, *(1,) * (leaf.ndim - 2)), axis=1)

  inputs = jax.tree.map(take, rows.inputs)
  if rows.inputs.position is None:
    inputs = _placed(inputs, index)
  queries = Span(0, index.shape[1])
  weights = None if rows.weights is None else take(rows.weights)
  layout = jax.tree.map(take, rows.layout)
  return Rows(inputs, take(rows.t), layout, weights, 1, tokens=queries, answers=queries)


def _placed(inputs: Inputs, index: Int[Array, "B Q"]) -> Inputs:
  return dataclasses.replace(inputs, position=index.astype(jnp.int32))


def answered_in_place(rows: Rows, query: Query) -> Rows:
  """The rows, unchanged. Raises ValueError if a token is answered at another position than its own,
  as a slot holds one token.
  """
  whole = Span(0, query.t.shape[1])
  if rows.answers != whole or rows.t.shape[1] != whole.stop:
    raise ValueError(
      "a reader with a cache needs rows that answer each token at its own position, not"
      f" {rows.answers} of {rows.t.shape[1]} positions; use reader.name='whole_row', or"
      " context.answer_shift=0"
    )
  return rows

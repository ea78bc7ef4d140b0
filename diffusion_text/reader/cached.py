"""Reading a few tokens at a time: what the network has computed of the others is kept in slots, one
per position.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_text.core.numerics import differs, select
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import NOTHING, During, Reading, read_cost
from diffusion_text.reader.rows import (
  put_window,
  rows_of,
  visible_state,
  whole_memory,
  window,
)
from diffusion_text.types import (
  Cache,
  Cost,
  Inputs,
  Memory,
  Model,
  Params,
  Prediction,
  Query,
  Rows,
  Span,
)


@member
class Cached(Reading):
  """The network extends its cache by the tokens that are asked about.

  policy "exact": the window is read at each call, over the windows before it, whose slots are
  final. The tokens are those of `whole_row`, for contexts that finish the text unit by unit.

  policy "some": each call reads `queries` tokens of the row: first those that have changed since
  their slot was written, then those that are needed; what others see of the rest is as old as its
  slot. Every `every` calls the whole row is read. An approximation for bidirectional contexts
  (dKV-Cache, arXiv 2505.15781; Fast-dLLM, arXiv 2505.22618), whose number of queries is fixed so
  that one program serves all calls.
  """

  policy: Literal["exact", "some"] = option("exact", "which tokens are read at a call")
  queries: int = option(0, "tokens that a call reads, with policy 'some'", ge=0)
  every: int = option(
    1, "calls from one read of the whole row to the next, with policy 'some'", ge=1
  )

  def __post_init__(self):
    if self.policy == "exact" and (self.queries or self.every != 1):
      raise ValueError(
        f"policy='exact' reads the window at each call: leave queries={self.queries} and"
        f" every={self.every} at 0 and 1, or use policy='some'"
      )
    if self.policy == "some" and (self.queries < 1 or self.every < 2):
      raise ValueError(
        f"policy='some' needs queries={self.queries} of at least 1 and every={self.every} of at"
        " least 2; 32 and 8 are usual"
      )

  def check(self, model: Model) -> None:
    """Refuses policy 'exact' where nothing is finished before the whole row is."""
    if self.policy == "exact" and model.context.unit is None:
      raise ValueError(
        f"reader.policy='exact' keeps what is finished, and {model.context} finishes the row as a"
        " whole; use reader.name='whole_row', reader.policy='some', or context.name='blocks'"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """(an empty cache, the state that its slots were written for)."""
    rows = _answered_in_place(rows_of(model, params, query), query)
    cache = model.network.cache(params["network"], rows, query.t.shape[1])
    return cache, (visible_state(query)[0] if self.policy == "some" else ())

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The prediction of the window; with policy 'some', of those of its tokens that were read."""
    if self.policy == "exact":
      prediction, cache = _extended(model, params, memory[0], query, _window_index(query))
      return prediction, (cache, ())
    rows, positions = query.t.shape
    if refresh:
      index = jnp.broadcast_to(jnp.arange(positions), (rows, positions))
    else:
      index = self._chosen(memory[1], query)
    prediction, cache = _extended(model, params, memory[0], query, index)
    row = jnp.arange(rows)[:, None]
    read = jnp.zeros((rows, positions), bool).at[row, index].set(True)
    features = prediction.features
    everywhere = jnp.zeros((rows, positions, features.shape[-1]), features.dtype)
    everywhere = everywhere.at[row, index].set(features)
    cut = (query.start, query.needs.shape[1])
    prediction = dataclasses.replace(
      prediction, features=window(everywhere, *cut), fresh=window(read, *cut)
    )
    return prediction, (cache, select(read, visible_state(query)[0], memory[1]))

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The slots of the window, written once more: now the window is clean. A policy that reads the
    whole row again needs none of this.
    """
    if self.policy == "some":
      return memory
    _, cache = _extended(model, params, memory[0], query, _window_index(query))
    return cache, ()

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """Of the window over what stands before it, also once it is finished; or of `queries` tokens
    and of whole rows, over the whole row.
    """
    positions, window_size = query.t.shape[1], query.needs.shape[1]
    if during == "init":
      return NOTHING
    if self.policy == "exact":
      return read_cost(model, window_size, query.start + window_size)
    if during == "finish":
      return NOTHING
    read = positions if during == "refresh" else min(self.queries, positions)
    return read_cost(model, read, positions)

  def _chosen(self, written, query: Query) -> Int[Array, "B Q"]:
    """The tokens that a call reads: those whose slot is stale, then those that are needed, then
    from the left.
    """
    rows, positions = query.t.shape
    state, _ = visible_state(query)
    stale = differs(state, written)
    needed = put_window(jnp.zeros((rows, positions), bool), query.needs, query.start)
    urgency = 2 * stale.astype(jnp.int32) + needed
    _, index = jax.lax.top_k(urgency, min(self.queries, positions))
    return index


def _window_index(query: Query) -> Int[Array, "B u"]:
  return jnp.broadcast_to(query.start + jnp.arange(query.needs.shape[1]), query.needs.shape)


def _answered_in_place(rows: Rows, query: Query) -> Rows:
  """The rows. Raises ValueError if a token is answered elsewhere than at its own position: a slot
  would not be its own.
  """
  whole = Span(0, query.t.shape[1])
  if rows.answers != whole or rows.t.shape[1] != whole.stop:
    raise ValueError(
      "reader.name='cached' needs rows that answer each token at its own position, not"
      f" {rows.answers} of {rows.t.shape[1]} positions; use reader.name='whole_row', or"
      " context.answer_shift=0"
    )
  return rows


def _extended(
  model: Model, params: Params, cache: Cache, query: Query, index: Int[Array, "B Q"]
) -> tuple[Prediction, Cache]:
  """(the prediction of the tokens at `index`, the cache with their slots written)."""
  told = whole_memory(model, params, query)
  if told is not None:
    told = jnp.take_along_axis(told, index[..., None], axis=1)
  rows = _taken(_answered_in_place(rows_of(model, params, query), query), index)
  return model.network.extend(params["network"], rows, cache, index, memory=told)


def _taken(rows: Rows, index: Int[Array, "B Q"]) -> Rows:
  """The rows' positions `index`."""

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

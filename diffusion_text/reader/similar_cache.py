"""A cache that reads again the tokens whose first-layer values have changed most: dLLM-Cache (arXiv
2506.06295, recalled).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import offers
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import During, Reading, refreshed_cost
from diffusion_text.reader.rows import put_window, rows_of, whole_memory
from diffusion_text.reader.slots import (
  all_tokens,
  cut_to_window,
  empty_cache,
  extended,
  is_text,
  spread_to_window,
  window_tokens,
)
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query, Rows

_SAME = 1e-4  # cosine distances below this are rounding


@runtime_checkable
class ShowsFirstValues(Protocol):
  """A network that gives the attention values of its first layer. They are cheap: the values of a
  token depend on that token alone.
  """

  def first_values(
    self, params: Params, rows: Rows, *, memory: Float[Array, "B N D"] | None = None
  ) -> Float[Array, "B N F"]:
    """The values [B, N, F] of every position; memory as in `Network.apply`."""


class Similar(NamedTuple):
  """The memory of `SimilarCache`.

  Attributes:
    cache: the slots.
    values: float [B, N, F], of the first layer, when the token was read last.
    features: [B, u, D], the answer for each token of the window when it was read last.
    written: int32 [B, N], the call that read the token last, counted from the last refresh.
    call: int32 scalar, calls since the last refresh.
  """

  cache: Any
  values: Array
  features: Array
  written: Array
  call: Array


@member
class SimilarCache(Reading):
  """A cache whose calls read a share of the row: the tokens whose first-layer values have changed
  most (cosine distance) since their last read. All other tokens keep their last answer.

  Of tokens whose values are equal, needed ones come first, then those that were read longest ago.
  As in the paper, a call may commit any token by its last answer, however old. Unlike the paper,
  the tokens are chosen once, by the first layer, instead of in each layer (`layer_cache`); and
  prompt and text are refreshed together. The first-layer values of all tokens are computed at each
  call and are not counted in the cost.

  At least one token is read, however small the share.
  """

  share: float = option(0.25, "part of the row that a call reads", gt=0, le=1)
  every: int = option(
    8, "calls from one read of the whole row to the next; 1 reads whole rows always", ge=1
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for a network without `first_values`."""
    if not offers(model.network, ShowsFirstValues):
      raise ValueError(
        "reader.name='similar_cache' compares the values of the first layer, which"
        f" {type(model.network).__name__} does not tell (`first_values`); use"
        " reader.name='delayed_cache'"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """An empty cache."""
    cache = empty_cache(model, params, query)

    def asked():
      prediction, _ = extended(model, params, cache, query, window_tokens(query))
      return self._values(model, params, query), prediction.features

    empty = (jnp.zeros(each.shape, each.dtype) for each in jax.eval_shape(asked))
    return Similar(cache, *empty, jnp.zeros(query.t.shape, jnp.int32), jnp.int32(0))

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, for each token that of its last read; the memory)."""
    values = self._values(model, params, query)
    if refresh:
      prediction, cache = extended(model, params, memory.cache, query, all_tokens(query))
      prediction = cut_to_window(prediction, query)
      nothing = jnp.zeros_like(memory.written)
      return prediction, Similar(cache, values, prediction.features, nothing, jnp.int32(0))
    index, live = self._chosen(values, memory, query)
    prediction, cache = extended(model, params, memory.cache, query, index, live)
    index = jnp.where(live, index, query.t.shape[1])
    prediction, read = spread_to_window(prediction, query, index)
    features = select(prediction.fresh, prediction.features, memory.features)
    call = memory.call + 1
    memory = Similar(
      cache,
      select(read, values, memory.values),
      features,
      jnp.where(read, call, memory.written),
      call,
    )
    return dataclasses.replace(prediction, features=features, fresh=None), memory

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the whole row at a refresh, else of a share of it over the whole row."""
    return refreshed_cost(model, query, during, self._queries(query.t.shape[1]))

  def _queries(self, positions: int) -> int:
    return max(int(self.share * positions), 1)

  def _values(self, model: Model, params: Params, query: Query) -> Float[Array, "B N F"]:
    rows, told = rows_of(model, params, query), whole_memory(model, params, query)
    return model.network.first_values(params["network"], rows, memory=told)

  def _chosen(
    self, values, memory: Similar, query: Query
  ) -> tuple[Int[Array, "B Q"], Bool[Array, "B Q"]]:
    """(the positions that a call reads, True where the position is within the share of the row's
    own text).
    """
    text = is_text(query)
    unlike = 1 - _cosine(values, memory.values)
    unlike = jnp.where(unlike < _SAME, 0.0, unlike)
    needed = put_window(jnp.zeros(query.t.shape, bool), query.needs, query.start)
    order = jnp.lexsort((all_tokens(query), memory.written, ~needed, -unlike, ~text), axis=1)
    most = self._queries(query.t.shape[1])
    own = jnp.maximum(jnp.floor(self.share * jnp.sum(text, axis=1)), 1)
    return order[:, :most], jnp.arange(most)[None] < own[:, None]


def _cosine(a: Float[Array, "B N F"], b: Float[Array, "B N F"]) -> Float[Array, "B N"]:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  sizes = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
  return jnp.sum(a * b, axis=-1) / jnp.sqrt(jnp.maximum(sizes, 1e-20))

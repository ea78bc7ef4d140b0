"""A cache that chooses in every layer which tokens are computed again: dLLM-Cache (arXiv
2506.06295, recalled) as published. `similar_cache` chooses once, by the first layer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import offers
from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import NOTHING, During, Reading, refreshed_cost
from diffusion_text.reader.rows import rows_of, whole_memory
from diffusion_text.reader.slots import answered_in_place, cut_to_window, is_text
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query, Rows


@runtime_checkable
class ReadsByLayer(Protocol):
  """A network that can compute some tokens in each layer and use again what it kept of others."""

  def check_by_layer(self) -> None:
    """Raises ValueError where its options do not allow it."""

  def read_by_layer(
    self,
    params: Params,
    rows: Rows,
    kept: Any,
    choice: Mapping[str, Any],
    *,
    memory: Float[Array, "B N D"] | None = None,
  ) -> tuple[Prediction, Any]:
    """(the answers of all tokens, what is kept). kept None: every token is computed.

    choice: "most", a number of tokens per layer; "own", int32 [B], how many of these count in each
    row; "text", bool [B, N], True at text.
    """


@member
class LayerCache(Reading):
  """A cache of keys, values and the outputs of attention and MLP of every layer. Between two reads
  of the whole row a call computes the first layer of all tokens and, in each other layer, the share
  of the row whose values in that layer have changed most (cosine distance).

  Every token is answered at each call, by what is new and what is kept. Unlike in the published
  code, prompt and text are refreshed together. The values of all tokens, one linear map per layer,
  are not counted in the cost. At least one token is computed, however small the share.
  """

  share: float = option(0.25, "part of the row that a layer computes", gt=0, le=1)
  every: int = option(
    8, "calls from one read of the whole row to the next; 1 reads whole rows always", ge=1
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for a network that cannot be read layer by layer."""
    if not offers(model.network, ReadsByLayer):
      raise ValueError(
        "reader.name='layer_cache' chooses tokens in each layer, which"
        f" {type(model.network).__name__} does not offer (`read_by_layer`); use"
        " reader.name='delayed_cache'"
      )
    model.network.check_by_layer()

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """Zeros in the place of what is kept."""
    asked = functools.partial(self.read, model, refresh=True)
    kept = jax.eval_shape(asked, params, None, query)[1]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction of the window, what is kept of each layer)."""
    rows = answered_in_place(rows_of(model, params, query), query)
    told = whole_memory(model, params, query)
    kept = None if refresh else memory
    prediction, kept = model.network.read_by_layer(
      params["network"], rows, kept, self._choice(query), memory=told
    )
    return cut_to_window(prediction, query), kept

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the whole row at a refresh, else of its first layer and of a share of it in each
    other layer, over the whole row.
    """
    layers, positions = model.network.layers, query.t.shape[1]
    whole, some = (
      refreshed_cost(model, query, each, self._queries(positions)) for each in ("refresh", "read")
    )
    if during != "read":
      return whole if during == "refresh" else NOTHING
    first = whole.times(1 / layers)
    return some.times(1 - 1 / layers).plus(first)._replace(calls=1)

  def _queries(self, positions: int) -> int:
    return max(int(self.share * positions), 1)

  def _choice(self, query: Query) -> dict[str, int | Int[Array, " B"] | Bool[Array, "B N"]]:
    text = is_text(query)
    own = jnp.maximum(jnp.floor(self.share * jnp.sum(text, axis=1)), 1).astype(jnp.int32)
    return {"most": self._queries(query.t.shape[1]), "own": own, "text": text}

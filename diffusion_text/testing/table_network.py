"""A made-up network of one table, for tests of what surrounds a network: losses, readers,
samplers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.kernels.layout import visible
from diffusion_text.types import Head, InputSizes, Key, Params, Prediction, Rows


class TableNetwork:
  """Features are the embedding of what stands at a position, and of how many masks it sees.

  It is blind to everything else, to the time too. Its parameters:

    table, in  [ids, D] and [E, D], embed ids and vectors
    out        [D, V], the head
    crowd      [D], added once per visible mask
    memory     [estimate_size, D], keeps an estimate
    first      [D, V], the head of a first stage that predicts with twice the features

  Attributes:
    mask_id: the id whose number is counted; None: none is.
    stages: whether it has a first stage.
    router: a loss of its own per token, reported as "router", times the mean of its features.
    calls: what it was asked, in order: (rows, memory, key).
  """

  layers: ClassVar[int] = 1

  def __init__(self, *, mask_id: int | None = None, stages: bool = False, router: float = 0.0):
    self.mask_id = mask_id
    self.stages = stages
    self.router = router
    self.calls: list[tuple[Rows, Any, Any]] = []

  @staticmethod
  def params(
    key: Key, input_sizes: InputSizes, output_size: int, estimate_size: int, width: int = 5
  ) -> Params:
    """Standard normal parameters."""
    shapes = {
      "table": (input_sizes.ids, width),
      "in": (input_sizes.vectors, width),
      "out": (width, output_size),
      "first": (width, output_size),
      "memory": (estimate_size, width),
      "crowd": (width,),
    }
    keys = jax.random.split(key, len(shapes))
    drawn = {
      name: jax.random.normal(one, shape)
      for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return {**drawn, "crowd": drawn["crowd"] / 10}

  def apply(
    self,
    params: Params,
    rows: Rows,
    *,
    memory: Float[Array, "B N D"] | None = None,
    key: Key | None = None,
    hidden_layers: tuple[int, ...] = (),
  ) -> Prediction:
    """The answers, and what was asked is kept in `calls`."""
    self.calls.append((rows, memory, key))
    embedded = self._embed(params, rows)
    if memory is not None:
      before, after = rows.tokens.start, rows.t.shape[1] - rows.tokens.stop
      embedded = embedded + jnp.pad(memory, ((0, 0), (before, after), (0, 0)))
    features = embedded[:, rows.answers.start : rows.answers.stop]
    stages = (Prediction(2 * features, Head(params["first"])),) if self.stages else ()
    losses = {"router": self.router * jnp.mean(features)} if self.router else {}
    hidden = {layer: features for layer in hidden_layers}
    return Prediction(features, Head(params["out"]), losses, stages, hidden)

  def _embed(self, params: Params, rows: Rows) -> Array:
    inputs = rows.inputs
    if inputs.ids is None:
      return inputs.vectors @ params["in"]
    embedded = jnp.asarray(params["table"])[inputs.ids]
    if inputs.weights is not None:
      embedded = jnp.einsum("blm,blmd->bld", inputs.weights, embedded)
    if inputs.vectors is not None:
      embedded = embedded + inputs.vectors @ params["in"]
    if self.mask_id is None:
      return embedded
    masks = (inputs.ids == self.mask_id).astype(jnp.float32)
    masks = masks if inputs.weights is None else jnp.max(masks, axis=-1)
    sees = visible(rows.layout, rows.layout)
    sees = jnp.ones((1, 1, 1), bool) if sees is None else sees
    crowd = jnp.sum(jnp.where(sees, masks[:, None, :], 0.0), axis=-1)
    return embedded + crowd[..., None] * params["crowd"]

  def remember(self, params: Params, estimate: Float[Array, "n E"]) -> Float[Array, "n D"]:
    """A linear map of the estimate."""
    return estimate @ params["memory"]

  def no_memory(self, params: Params) -> Float[Array, " D"]:
    """Zeros."""
    return jnp.zeros(params["out"].shape[0])

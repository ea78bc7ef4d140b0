"""Several readers whose answers become one."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool

from diffusion_text.core.options import member, option, part
from diffusion_text.reader import READERS
from diffusion_text.reader.reading import NOTHING, During, Reading
from diffusion_text.types import Cost, Memory, MixedHead, Model, Params, Prediction, Query


def mixed(
  predictions: tuple[Prediction, ...],
  weights: tuple[float, ...],
  space: Literal["logits", "log_probabilities", "probabilities"],
) -> Prediction:
  """The prediction whose logits combine those of all `predictions`. The logits of a position are
  computed where they are asked for, and only there.
  """
  widths = tuple(prediction.features.shape[-1] for prediction in predictions)
  heads = tuple(prediction.head for prediction in predictions)
  features = jnp.concatenate([prediction.features for prediction in predictions], axis=-1)
  head = MixedHead(heads, widths, weights, space)
  return Prediction(features, head, fresh=fresh_in_all(predictions))


def fresh_in_all(predictions: tuple[Prediction, ...]) -> Bool[Array, "B u"] | None:
  """True at the positions that every reading has answered; None: all of them."""
  partial = [prediction.fresh for prediction in predictions if prediction.fresh is not None]
  return jnp.all(jnp.stack(partial), axis=0) if partial else None


@member
class Mixture(Reading):
  """Σ_k weight_k · answer_k of several readers, of one model or of several (`reader.other`)."""

  readers: tuple[Any, ...] = part(READERS, ..., "the readers that are asked")
  weights: tuple[float, ...] = option(..., "one number per reader; they need not sum to 1")
  space: Literal["logits", "log_probabilities", "probabilities"] = option(
    "log_probabilities", "what is combined"
  )

  def __post_init__(self):
    if len(self.readers) != len(self.weights) or not self.readers:
      raise ValueError(
        f"weights={self.weights} must hold one number for each of the {len(self.readers)} readers,"
        " of which there must be one"
      )

  @property
  def calls(self) -> int:
    """The calls of all readers together."""
    return sum(reader.calls for reader in self.readers)

  @property
  def every(self) -> int:
    """The smallest `every`: that of the reader that must be refreshed most often."""
    return min(reader.every for reader in self.readers)

  @property
  def unrolls(self) -> bool:
    """True if one of the readers unrolls."""
    return any(reader.unrolls for reader in self.readers)

  def check(self, model: Model) -> None:
    """Raises ValueError for a model that one of the readers refuses."""
    for reader in self.readers:
      reader.check(model)

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """One memory per reader."""
    return tuple(reader.init(model, params, query) for reader in self.readers)

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The combined prediction."""
    asked = [
      reader.read(model, params, own, query, refresh=refresh)
      for reader, own in zip(self.readers, memory, strict=True)
    ]
    predictions = tuple(prediction for prediction, _ in asked)
    return mixed(predictions, self.weights, self.space), tuple(own for _, own in asked)

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memories of all readers."""
    return tuple(
      reader.finish(model, params, own, query)
      for reader, own in zip(self.readers, memory, strict=True)
    )

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The sum of the costs of all readers."""
    memory = (None,) * len(self.readers) if memory is None else memory
    asked = zip(self.readers, memory, strict=True)
    return NOTHING.plus(*(each.cost(model, params, own, query, during) for each, own in asked))

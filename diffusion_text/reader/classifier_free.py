"""Classifier-free guidance (arXiv 2207.12598): one reading with the observed tokens, and one
without.
"""

from __future__ import annotations

from typing import Any, Literal

from diffusion_text.core.options import member, option, part
from diffusion_text.reader import READERS
from diffusion_text.reader.mixture import mixed
from diffusion_text.reader.reading import NOTHING, Around, During
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query, Reader


@member
class ClassifierFree(Around):
  """u + scale · (c - u) of the predictions c with and u without the observed tokens, which the
  second reading sees as noise at t = 1.

  It is the reading for which prompt dropout prepares a network. Each reading has a memory of its
  own: over caches, too.
  """

  reader: Any = part(READERS, ..., "how the network is asked, each time")
  scale: float = option(
    1.0,
    "1: the answer with the observed tokens alone, at one call; 0: the answer without them; 2"
    " guides. Some count from scale - 1",
    ge=0,
  )
  space: Literal["logits", "probabilities"] = option(
    "logits",
    "what is combined. Probabilities (TESS, arXiv 2305.08379) below 0 are cut off and the rest"
    " divided by its sum, so that a large scale forbids tokens that the observed ones make less"
    " likely",
  )

  @property
  def calls(self) -> int:
    """Twice those of the reader inside; once where the scale is 1."""
    return self.reader.calls * (1 if self.scale == 1 else 2)

  def unprompted(self) -> Reader:
    """The reader inside: without observed tokens both answers are one, at half the calls."""
    return self.reader

  def check(self, model: Model) -> None:
    """What the reader inside refuses."""
    self.reader.check(model)

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """One memory per reading."""
    return tuple(self.reader.init(model, params, each) for each in self._readings(query))

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The guided prediction; its head combines both answers where logits are asked for, and nowhere
    else.
    """
    readings = self._readings(query)
    asked = [
      self.reader.read(model, params, own, each, refresh=refresh)
      for own, each in zip(memory, readings, strict=True)
    ]
    predictions = tuple(prediction for prediction, _ in asked)
    kept = tuple(own for _, own in asked)
    if len(predictions) == 1:
      return predictions[0], kept
    return mixed(predictions, (self.scale, 1 - self.scale), self.space), kept

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memories of both readings."""
    readings = self._readings(query)
    return tuple(
      self.reader.finish(model, params, own, each)
      for own, each in zip(memory, readings, strict=True)
    )

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The sum of those of the readings."""
    readings = self._readings(query)
    memory = (None,) * len(readings) if memory is None else memory
    asked = zip(memory, readings, strict=True)
    return NOTHING.plus(*(self.reader.cost(model, params, *each, during) for each in asked))

  def _readings(self, query: Query) -> tuple[Query, ...]:
    """The question as it is, and as it is without its observed tokens."""
    if self.scale == 1:
      return (query,)
    observed, weights = query.batch.observed, query.batch.weights
    if observed is None:
      raise ValueError(
        f"reader.name='classifier_free' with scale={self.scale} guides by the observed tokens, and"
        " the batch has none; use the reader inside it alone"
      )
    hidden = observed if weights is None else observed & (weights > 0)
    return query, query._replace(hidden=hidden if query.hidden is None else query.hidden | hidden)

"""No cache: the whole row is read at every call."""

from __future__ import annotations

import dataclasses

from diffusion_text.core.options import member
from diffusion_text.reader.reading import Reading
from diffusion_text.reader.rows import rows_of, whole_memory, window
from diffusion_text.types import Memory, Model, Params, Prediction, Query


@member
class WholeRow(Reading):
  """The network reads whole rows and remembers nothing: the plain way, and the one that every cache
  is held to.
  """

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The window's part of the answers to the whole row."""
    rows = rows_of(model, params, query)
    told = whole_memory(model, params, query)
    prediction = model.network.apply(params["network"], rows, memory=told)
    features = window(prediction.features, query.start, query.needs.shape[1])
    return dataclasses.replace(
      prediction, features=features, losses={}, stages=(), hidden={}
    ), memory

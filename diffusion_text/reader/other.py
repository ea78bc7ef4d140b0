"""Another model, asked about the same text: a scorer, a teacher, an autoregressive partner in a
mixture.
"""

from __future__ import annotations

from typing import Any

from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import Around, During
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query


@member
class Other(Around):
  """A reader of another model, whose parameters are a group of this model's. Both models must have
  the same states: one vocabulary, one mask.
  """

  reader: Any = option(..., "how the other model is asked")
  model: Any = option(..., "the other model")
  group: str = option(
    "other", "where its parameters are: params[group] = {'network': …, 'process': …}"
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for another vocabulary or mask, and where the reader inside refuses the
    other model.
    """
    self.reader.check(self.model)
    mine, other = model.process, self.model.process
    if (mine.vocab_size, mine.mask_id) != (other.vocab_size, other.mask_id):
      raise ValueError(
        f"the other model has a vocabulary of {other.vocab_size} tokens and the mask"
        f" {other.mask_id}, this one of {mine.vocab_size} and {mine.mask_id}; use models of one"
        " tokenizer and one kind of noise"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """The memory of the reader inside."""
    return self.reader.init(self.model, params[self.group], query)

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """The other model's prediction."""
    return self.reader.read(self.model, params[self.group], memory, query, refresh=refresh)

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memory of the reader inside."""
    return self.reader.finish(self.model, params[self.group], memory, query)

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the reader inside, in layers of the other model."""
    return self.reader.cost(self.model, params[self.group], memory, query, during)

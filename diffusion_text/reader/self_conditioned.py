"""Self-conditioning while sampling: each call reads the prediction of the last call
(arXiv 2208.04202).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from diffusion_text.context.memory import remembered
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, part
from diffusion_text.reader import READERS
from diffusion_text.reader.reading import Around, During
from diffusion_text.reader.rows import visible_state, window
from diffusion_text.types import Cost, Memory, Model, Params, Prediction, Query


@member
class SelfConditioned(Around):
  """The reader inside, whose network reads its own last prediction. Each window begins without one.

  A token that needs no prediction (observed, or known by now) has no memory, as in training.
  Around `classifier_free` all readings see the guided prediction; inside it each reading sees its
  own.
  """

  reader: Any = part(READERS, ..., "how the network is asked")

  def check(self, model: Model) -> None:
    """Raises ValueError without self-conditioning, and for rows that hold no noisy token."""
    self.reader.check(model)
    if not model.context.reads_noisy:
      raise ValueError(
        f"reader.name='self_conditioned' with {model.context}, whose rows hold no token that is not"
        " known yet; use the reader inside it alone"
      )
    if not model.self_conditioning:
      raise ValueError(
        "reader.name='self_conditioned' shows a network its last answer, which"
        " train.self_conditioning=0 has not trained; use the reader inside it alone, or train with"
        " train.self_conditioning=0.5"
      )

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """(the reader's memory, what is remembered of each token of the window [B, u, D]: nothing)."""
    return self.reader.init(model, params, query), self._nothing(model, params, query)

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(the prediction, given the last one; the memory with this one)."""
    inner, last = memory
    state, t = window(visible_state(query), query.start, query.needs.shape[1])
    unknown = model.process.has_loss(params["process"], state, t)
    told = select(unknown, last, self._nothing(model, params, query))
    asked = query._replace(memory=told)
    prediction, inner = self.reader.read(model, params, inner, asked, refresh=refresh)
    answered = unknown
    if prediction.fresh is not None:
      answered = unknown & prediction.fresh
    new = remembered(model, params, prediction, state, t, answered)
    if prediction.fresh is not None:
      new = select(prediction.fresh, new, told)
    return prediction, (inner, new)

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memory for the next window, in which no prediction is remembered."""
    inner, _ = memory
    inner = self.reader.finish(model, params, inner, query)
    return inner, self._nothing(model, params, query)

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """The cost of the reader inside."""
    inner = None if memory is None else memory[0]
    return self.reader.cost(model, params, inner, query, during)

  def _nothing(self, model: Model, params: Params, query: Query):
    empty = model.network.no_memory(params["network"]).astype(jnp.float32)
    return jnp.broadcast_to(empty, (*query.needs.shape, empty.shape[0]))

"""The bound of rows that are read through masks: some tokens are hidden from those that come after
them, and all are predicted.

A claim about why diffusion models learn more from repeated text (zitian-gao/data-efficiency) is
that they read their input with tokens missing, which an autoregressive model can be made to do:

  loss = Σ over i of -log p(x_i | the tokens before i that are shown), each hidden with probability
         `rate`, by a coin of its own for each row, position and update.

For every draw of the coins that is a likelihood, of a model that reads less; what is reported as
"bound" while training is its value. Evaluation and sampling read the whole text.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, position_keys, stream
from diffusion_text.objective.bound import Bound
from diffusion_text.types import Batch, Key, Loss, Model, Params, Progress, Times, TokenCosts


@member
class MaskedInputs(Bound):
  """The bound, while the network reads noise in the place of a share of its clean tokens, prompts
  too. Needs a timing that has every token at t = 1: elsewhere hiding tokens is the process's task.
  """

  rate: float = option(
    0.3,
    "probability with which a token is hidden from those after it; 0.1 to 0.5 in the source",
    ge=0,
    lt=1,
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for times other than 0 and 1."""
    super().check(model)
    if model.timing.path != "jumps":
      raise ValueError(
        "objective.name='masked_inputs' hides clean tokens from a model that has each token at"
        f" t = 1, which {model.timing} does not promise; use timing.name='at_noise', or"
        " objective.name='bound', whose process hides tokens already"
      )

  def hidden(self, key: Key, batch: Batch, progress: Progress) -> Bool[Array, "B N"]:
    """The tokens that are read as noise."""
    keys = position_keys(stream(key, "masked inputs"), *batch.ids.shape, progress)
    return draw_uniform(keys) < self.rate

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The bound of one draw, and what each token cost."""
    hidden = self.hidden(key, batch, progress)
    if batch.dropped is not None:
      hidden = hidden | batch.dropped
    batch = dataclasses.replace(batch, dropped=hidden)
    noise = model.process.in_positions(batch).dropped
    t, network_time = (jnp.where(noise, 1.0, each) for each in (times.t, times.network_time))
    times = times._replace(t=t, network_time=network_time)
    return super().__call__(model, params, key, batch, times, progress)

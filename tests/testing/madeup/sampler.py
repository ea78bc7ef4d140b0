"""A sampler: one token per call, from right to left."""

from typing import ClassVar

import jax.numpy as jnp

from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, fold
from diffusion_text.sampler.answers import on_tokens


@member
class Backwards:
  """Tokens wait at t = 1, and the last one that waits is drawn from the posterior."""

  temperature: float = option(1.0, "divides the log-probabilities", gt=0)

  extra_calls: ClassVar[int] = 0

  def check(self, model):
    """Any model can be sampled so."""

  def init(self, model, params, canvas):
    return canvas.active

  def needs(self, model, params, canvas, state):
    place = jnp.arange(state.shape[1])
    last = jnp.max(jnp.where(state, place, -1), axis=1, keepdims=True)
    return state & (place == last)

  def times(self, model, params, canvas, state):
    return state.astype(jnp.float32)

  def network_times(self, model, params, canvas, state):
    return self.times(model, params, canvas, state)

  def step(self, model, params, canvas, state, prediction, query, needs):
    process = model.process

    def draw(of_process, output, keys, z, t):
      law = process.posterior(of_process, z, t, output) / self.temperature
      return process.clean(of_process, draw_categorical(fold(keys, 1), law))

    t = self.times(model, params, canvas, state)
    rows = canvas.keys, canvas.state, t
    drawn = on_tokens(model, params, prediction, needs, draw, *rows, few=True)
    return select(needs, drawn, canvas.state), state & ~needs

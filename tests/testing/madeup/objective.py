"""An objective: the bound, and a price on being sure."""

import jax
import jax.numpy as jnp

from diffusion_text.core.options import member, option
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading


@member
class Humble(OneReading):
  """The bound plus `price` · Σ_v p_v² of every token that has a loss."""

  price: float = option(0.1, "what a network pays that is sure of a token", ge=0)

  def __call__(self, model, params, key, batch, times, progress):
    noised = engine.read(model, params, key, batch, times, progress)

    def cost(consts, process_params, row, output, nats):
      sure = jnp.sum(jax.nn.softmax(output, axis=-1) ** 2, axis=-1)
      return nats + self.price * sure, nats / jnp.maximum(row.dt_dtau, 1e-7), {"sure": sure}

    loss, costs = engine.token_loss(model, params, batch, noised, cost)
    return engine.add_boundary(model, params, key, batch, progress, loss, minimised=True), costs

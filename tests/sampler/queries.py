"""The question that a sampler is handed when a test makes one step without the loop."""

import jax.numpy as jnp

from diffusion_text.types import Batch, Query


def query_of(canvas, t, needs):
  """The query about a canvas that is a whole row, of which no token is observed.

  Its state stands for the prior's noise too.
  """
  batch = Batch(jnp.zeros(needs.shape, jnp.int32))
  return Query(canvas.state, t, jnp.int32(0), needs, batch, canvas.state)

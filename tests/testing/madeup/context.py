"""A context: some positions of noise stand before the row, as room for the network to think."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_text.context.rows import places
from diffusion_text.core.options import member, option
from diffusion_text.types import Inputs, Layout, Rows, Span


@member
class Padded:
  """`room` positions of noise, and then the row; every token sees all of them."""

  room: int = option(2, "positions before the row", ge=1)

  unit: ClassVar[None] = None
  reads_noisy: ClassVar[bool] = True
  horizon: ClassVar[None] = None

  def check(self, model, data):
    """Nothing is refused."""

  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    return self.sampling_rows(noisy, noise, times.network_time, batch)

  def sampling_rows(self, noisy, noise, t, batch):
    rows, length = t.shape

    def before(first, rest):
      first = jnp.broadcast_to(first, (rows, self.room, *rest.shape[2:]))
      rest = jnp.broadcast_to(rest, (rows, *rest.shape[1:]))
      return jnp.concatenate([first.astype(rest.dtype), rest], axis=1)

    channels = jax.tree.map(lambda a, b: before(a[:, :1], b), self._bare(noise), self._bare(noisy))
    room = jnp.arange(-self.room, 0)[None]
    position = before(room, places(batch))
    segment = None if batch.segment is None else before(batch.segment[:, :1], batch.segment)
    weights = None if batch.weights is None else before(0.0, batch.weights)
    here = Span(self.room, self.room + length)
    inputs = Inputs(channels.ids, channels.weights, channels.vectors, position)
    return Rows(inputs, before(1.0, t), Layout(segment), weights, 1, tokens=here, answers=here)

  def positions_read(self, length):
    return length + self.room

  def _bare(self, inputs):
    return Inputs(inputs.ids, inputs.weights, inputs.vectors)

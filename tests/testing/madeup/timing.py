"""A timing: tokens at even places are lost in the first half of the clock, others after it."""

from typing import ClassVar

import jax.numpy as jnp

from diffusion_text.core.options import member, option
from diffusion_text.timing.clock import Even, low_discrepancy
from diffusion_text.types import Times


@member
class Relay(Even):
  """Each token falls along a line while the other half of the tokens waits."""

  odd_first: bool = option(True, "which tokens are found first when sampling")

  path: ClassVar[str] = "continuous"

  def draw(self, params, key, batch, progress):
    rows, length = batch.ids.shape
    tau = low_discrepancy(key, rows, progress)[:, None]
    line = self._line(tau, length)
    t = jnp.clip(line, 0.0, 1.0)
    return Times(t, jnp.where((line > 0) & (line <= 1), 2.0, 0.0), tau, t)

  def grid(self, params, clock, lengths, length):
    tau = jnp.asarray(clock, jnp.float32)[None, :, None]
    grid = jnp.clip(self._line(tau, length), 0.0, 1.0)
    return jnp.broadcast_to(grid, (lengths.shape[0], len(clock), length))

  def _line(self, tau, length):
    late = jnp.arange(length) % 2 == (1 if self.odd_first else 0)
    return 2 * tau - jnp.where(late, 1.0, 0.0)

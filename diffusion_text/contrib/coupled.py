"""Cross-entropy at two times of each row, whose masks are drawn together (RDM, arXiv 2302.05737;
arXiv 2308.12219).

  loss = (loss at t_1 + loss at t_2) / 2,   t_1 and t_2 independent, one noise for both

A process whose tokens are lost where a number u of each is below t, as masks are here, then has at
the smaller time a part of the masks of the larger one; the released code draws them so too, unless
both times are equal. The mean of the loss is that of `CrossEntropy`; two draws per row make it less
noisy, at twice the cost.
"""

from __future__ import annotations

from typing import ClassVar

import jax

from diffusion_text.core.options import member
from diffusion_text.core.prng import stream
from diffusion_text.objective import engine
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.types import Batch, Key, Loss, Model, Params, Progress, Times, TokenCosts


@member
class Coupled(CrossEntropy):
  """The mean of two losses of `CrossEntropy`, with its options; reports the mean of both bounds."""

  passes: ClassVar[float] = 2.0

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw of both times, and what each token cost at the first."""
    again = engine.draw_times(model, params, stream(key, "second times"), batch, progress)
    first, costs = super().__call__(model, params, key, batch, times, progress)
    second, _ = super().__call__(model, params, key, batch, again, progress)
    mean = jax.tree.map(_mean, first, second)
    return mean, costs


def _mean(first: jax.Array, second: jax.Array) -> jax.Array:
  return (first + second) / 2

"""Weighted cross-entropy per *noisy* token, as released by DiffuLLaMA (arXiv 2410.17891).

  loss = Σ over tokens with a loss of w(t) · CE / number of tokens with a loss

Both sums are over the whole microbatch, as in the released code, which averages these quotients
over microbatches. `CrossEntropy` divides by the number of all tokens, whose mean with w = 1/t is
the bound. Here each batch is scaled by (all tokens) / (noisy tokens): where the times of a batch
are spread evenly that is a constant, 2 under a linear schedule, plus what the draw of the masks
adds. In a batch of one row it is 1/t, so that the weight of a time is 1/t² there.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_text.core.options import member
from diffusion_text.objective import engine
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.types import Batch, Key, Loss, Model, Params, Progress, Times, TokenCosts


@member
class MaskedMean(CrossEntropy):
  """w(t) · CE with its options, as the mean over the tokens of a microbatch that have a loss;
  reports the bound of the same draw beside it.

  The loss of a row depends on its microbatch. On several devices the microbatch is the whole one;
  the released code divides on each device by the number of its own.
  """

  @property
  def costs_nll(self) -> bool:
    """False: the mean is over other tokens than those of the text."""
    return False

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    noised = engine.read(model, params, key, batch, times, progress)
    where, rows = engine.token_rows(model, params, batch, noised)
    noisy = jnp.sum(jnp.where(where, rows.weight, 0.0))
    scale = jnp.sum(rows.weight) / jnp.where(noisy > 0, noisy, 1.0)
    plain = self.token_cost(model)

    def cost(scale, process_params, row, output, nats):
      minimised, at_time, reported = plain(None, process_params, row, output, nats)
      return scale * minimised, at_time, reported

    loss, costs = engine.token_loss(model, params, batch, noised, cost, consts=scale)
    loss = engine.add_boundary(model, params, key, batch, progress, loss, minimised=False)
    return loss, costs

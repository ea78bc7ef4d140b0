"""The bound on -log p(x) in nats as a training loss: the yardstick that every process shares.

  -log p(x) <= boundary terms + E_τ[ Σ_i dt_dtau_i · nelbo_rate_i ]

(VDM, arXiv 2107.00630; MDLM, arXiv 2406.07524 eq. 10). `engine.nats` is its value for evaluation.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_text.core.numerics import TINY, cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.types import Batch, Key, Loss, Model, Params, Progress, Times, TokenCosts


def bound_cost(consts, process_params, row, output, nats):
  """The bound as it is, token by token, for `engine.token_loss`."""
  del consts, process_params, output
  return nats, nats / jnp.maximum(row.dt_dtau, TINY), {}


@member
class Bound(OneReading):
  """The bound, and λ times the cross-entropy of the clean token beside it.

  The auxiliary loss is D3PM's (arXiv 2107.03006 eq. 5): each token costs nelbo_rate + λ · CE. It
  changes only what is minimised; what is reported as "bound" is the bound.
  """

  auxiliary: float = option(
    0.0, "λ, the weight of the cross-entropy beside the bound; D3PM uses 0.01", ge=0
  )
  decode_at: float | None = option(
    None,
    "log-SNR at which tokens are decoded out of their own vectors, so that the loss counts no"
    " clearer time; None: where the path ends",
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for a process without a bound, and for `decode_at` without a log-SNR."""
    super().check(model)
    if not model.process.has_bound:
      raise ValueError(
        f"objective.name='bound' is of processes that have one, unlike {model.process}; use"
        " objective.name='cross_entropy'"
      )
    if self.decode_at is not None:
      model.process.time_of(self.decode_at)

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The bound of one draw, and what each token cost."""
    process, start = model.process, engine.start_time(model, self.decode_at)
    noised = engine.read(model, params, key, batch, times, progress)

    def cost(start, process_params, row, output, nats):
      nats = jnp.where(row.t > start, nats, 0.0)
      minimised = nats
      if self.auxiliary:
        logits = engine.posterior_logits(process, process_params, row, output)
        minimised = nats + row.dt_dtau * self.auxiliary * cross_entropy(logits, row.ids)
      return minimised, nats / jnp.maximum(row.dt_dtau, TINY), {"bound": nats}

    loss, costs = engine.token_loss(model, params, batch, noised, cost, consts=start)
    costs = costs._replace(nats=jnp.where(times.t > start, costs.nats, 0.0))
    loss = engine.add_boundary(
      model, params, key, batch, progress, loss, start=start, minimised=True
    )
    return loss, costs

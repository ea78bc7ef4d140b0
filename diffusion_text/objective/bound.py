"""The bound on -log p(x) in nats as a training loss: the yardstick that every process shares.

  -log p(x) <= boundary terms + E_τ[ Σ_i dt_dtau_i · nelbo_rate_i ]

(VDM, arXiv 2107.00630; MDLM, arXiv 2406.07524 eq. 10). `engine.nats` is its value for evaluation.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.core.numerics import TINY, cross_entropy, select
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

  The auxiliary loss is D3PM's (arXiv 2107.03006 eq. 5), in either of two scalings. With
  `auxiliary_steps` None each token that has a loss costs nelbo_rate + λ · CE. With T steps it is
  that of the released code, which adds λ times the cross-entropy of all tokens, noisy or not, to
  the divergence of one step of T: here T times as much of both,

    Σ over tokens that have a loss of nelbo_rate + λ · T · Σ over all tokens of CE,

  so that the auxiliary loss outweighs the bound where T is 1000 and λ is 0.01. CE is that of the
  posterior. It changes only what is minimised; what is reported as "bound" is the bound.
  """

  auxiliary: float = option(
    0.0, "λ, the weight of the cross-entropy beside the bound; D3PM uses 0.01", ge=0
  )
  auxiliary_steps: int | None = option(
    None,
    "T: λ weighs the cross-entropy of all tokens against the divergence of one of T steps, as"
    " released; None: that of the tokens that have a loss against the whole bound",
    ge=1,
  )
  decode_at: float | None = option(
    None,
    "log-SNR at which tokens are decoded out of their own vectors, so that the loss counts no"
    " clearer time; None: where the path ends",
    ge=-100,
    le=100,
  )
  detach_self_conditioned: bool = option(
    False,
    "whether the rows that are shown their own prediction teach the network alone: neither the"
    " process (a table of embeddings) nor a learned timing, as in Plaid",
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
    start = engine.start_time(model, self.decode_at)
    if not (self.detach_self_conditioned and model.self_conditioning):
      noised = engine.read(model, params, key, batch, times, progress)
      loss, costs = self.of_rows(model, params, batch, noised)
      loss = engine.add_boundary(
        model, params, key, batch, progress, loss, start=start, minimised=True
      )
      return loss, costs
    rows = batch.ids.shape[0]
    states = engine.corrupted(model, params, key, batch, times, progress)
    told = engine.rows_told(model, key, rows, progress)
    states = select(told, jax.lax.stop_gradient(states), states)
    noised = engine.read(model, params, key, batch, times, progress, corrupted=states)
    held = {**params, "process": jax.lax.stop_gradient(params["process"])}
    weights = jnp.ones(batch.ids.shape) if batch.weights is None else batch.weights

    def part(params, rows):
      some = dataclasses.replace(batch, weights=jnp.where(rows[:, None], weights, 0.0))
      return self.of_rows(model, params, some, noised)

    # Each row is in one of the parts, and pays for the vocabulary in that part alone.
    (loss, costs), (told_loss, told_costs) = part(params, ~told), part(held, told)
    loss = jax.tree.map(jnp.add, loss, told_loss)
    # These ask no network, so that nothing of a row that is told is left to differentiate.
    terms = engine.boundary_terms(model, params, key, batch, progress, start)
    ends = jnp.sum(jnp.where(told[:, None], jax.lax.stop_gradient(terms), terms))
    loss = loss.plus(ends)._replace(sums={**loss.sums, "bound": loss.sums["bound"] + ends})
    # The weights of `costs` are 0 where rows are told, and what they cost fits no timing.
    return loss, costs._replace(
      nats=costs.nats + told_costs.nats, loss=costs.loss + told_costs.loss
    )

  def of_rows(
    self, model: Model, params: Params, batch: Batch, noised: engine.Noised
  ) -> tuple[Loss, TokenCosts]:
    """The bound without its boundary terms of a batch that was read, and what each token cost."""
    process, start = model.process, engine.start_time(model, self.decode_at)

    def cost(start, process_params, row, output, nats):
      nats = jnp.where(row.t > start, nats, 0.0)
      minimised = nats
      if self.auxiliary:
        logits = engine.posterior_logits(process, process_params, row, output)
        weight = self.auxiliary * (self.auxiliary_steps or 1)
        minimised = nats + row.dt_dtau * weight * cross_entropy(logits, row.ids)
      return minimised, nats / jnp.maximum(row.dt_dtau, TINY), {"bound": nats}

    everywhere = bool(self.auxiliary) and self.auxiliary_steps is not None
    loss, costs = engine.token_loss(
      model, params, batch, noised, cost, consts=start, everywhere=everywhere
    )
    return loss, costs._replace(nats=jnp.where(noised.times.t > start, costs.nats, 0.0))

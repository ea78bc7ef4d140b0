"""The anchored bound of a two-stage network (ADLM, arXiv 2505.18456): the first stage is taught the
rare words of the text.

  loss = Σ_i dt_dtau_i · (rate_i(final) + anchor_weight · [x_i is rare] · rate_i(first stage))

with rate_i(p) the process's integrand of the bound for the prediction p: for masked diffusion
-alpha'_t / (1 - alpha_t) · CE at the masked positions. Both sums are bounds, so that up to the
boundary terms of the process (ANELBO, the paper's anchored bound)

  -log p(x) + anchor_weight · (-log of the first stage's probability of the rare tokens) <= E[loss].

A token is rare if its id occurs at most `threshold` times in its row, documents of a row counted
apart and padding not at all. The first sum alone is the bound of the network as a whole, and the
only one that is reported as a likelihood.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_text.core.numerics import TINY
from diffusion_text.core.options import member, option
from diffusion_text.core.segments import run_lengths
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.types import Batch, Key, Loss, Model, Params, Progress, Times, TokenCosts


def occurrences(batch: Batch) -> Int[Array, "B N"]:
  """How often each token's id occurs in its row and document; padding is counted apart."""
  weights = engine.scored_weights(dataclasses.replace(batch, observed=None))
  real = (weights > 0).astype(jnp.int32)
  segment = jnp.zeros_like(batch.ids) if batch.segment is None else batch.segment
  return run_lengths([real, segment, batch.ids])[1]


@member
class Anchored(OneReading):
  """The bound, and `anchor_weight` times the first stage's bound on the rare tokens.

  Needs a network with `model.first_stage_layers` above 0. Reports "bound", of the final prediction,
  and "anchor", the first stage's share before weighting, both in nats per token.
  """

  anchor_weight: float = option(
    3e-3, "weight of the first stage's bound on the rare tokens; 3e-3 is published", ge=0
  )
  threshold: int = option(5, "the most occurrences of a rare token; 5 is published", ge=1)

  def check(self, model: Model) -> None:
    """Raises ValueError for a process without a bound."""
    super().check(model)
    if not model.process.has_bound:
      raise ValueError(
        f"objective.name='anchored' is a bound, which {model.process} has none of; use"
        " process.name='masked'"
      )

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost. Raises ValueError, when traced, for a network
    of one stage.
    """
    process = model.process
    noised = engine.read(model, params, key, batch, times, progress)
    if not noised.prediction.stages:
      raise ValueError(
        "objective.name='anchored' needs a network of two stages; set model.first_stage_layers, to"
        " two thirds of model.layers for instance"
      )
    stage = noised.prediction.stages[0]
    rare = occurrences(process.in_positions(batch)) <= self.threshold

    def cost(head, process_params, row, output, nats):
      del output
      rare, features = row.extra
      rate = process.nelbo_rate(process_params, row.clean, row.state, row.t, head(features))
      anchored = jnp.where(rare, row.dt_dtau * rate, 0.0)
      minimised = nats + self.anchor_weight * anchored
      return minimised, nats / jnp.maximum(row.dt_dtau, TINY), {"anchor": anchored}

    extra = rare, stage.features
    loss, costs = engine.token_loss(
      model, params, batch, noised, cost, extra=extra, consts=stage.head
    )
    return engine.add_boundary(model, params, key, batch, progress, loss, minimised=True), costs

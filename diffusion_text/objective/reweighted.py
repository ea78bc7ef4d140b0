"""Weights of our choosing on the divergences that the bound is made of (GIDD, arXiv 2503.04482).

The rate of mixed noise is weight(z_t, t) · divergence(z_t, t, output), a Bregman divergence that is
0 for the right prediction. Where the weight is far larger for clean tokens than for noise (little
to learn there, much variance) training goes better with other weights; the minimum stays where it
was, since every divergence keeps its own.
"""

from __future__ import annotations

import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.capability import require
from diffusion_text.core.options import member, option
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.types import (
  Batch,
  Key,
  Loss,
  Model,
  Params,
  Progress,
  State,
  Times,
  TokenCosts,
)


@runtime_checkable
class Divergent(Protocol):
  """What `Reweighted` asks of a process beyond `Process`. Both are elementwise over positions."""

  def divergence(
    self,
    params: Params,
    clean_state: State,
    state: State,
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """Nats, at least 0: the rate without its weight."""

  def dynamic_weight(
    self, params: Params, clean_state: State, state: State, t: Float[Array, "*n"]
  ) -> Float[Array, "*n"]:
    """At least 0: the weight that is trained with."""


@member
class Reweighted(OneReading):
  """∫ clip(dynamic weight, min_weight, max_weight) · divergence dt, whatever times are drawn.

  Reports the bound of the same draw beside it.
  """

  min_weight: float = option(0.0, "the least weight of a divergence", ge=0)
  max_weight: float = option(
    math.inf,
    "the largest weight of a divergence; inf does not cut",
    gt=0,
    le=math.inf,
    allow_inf_nan=True,
  )

  def __post_init__(self):
    if self.min_weight > self.max_weight:
      raise ValueError(
        f"objective.min_weight={self.min_weight} must be at most max_weight={self.max_weight}"
      )

  def check(self, model: Model) -> None:
    """Raises ValueError for a process whose rate does not come in two factors."""
    super().check(model)
    require(
      model.process,
      Divergent,
      "objective.name='reweighted'",
      "use process.name='mixed' with mixing='peaked' in continuous time, or"
      " objective.name='cross_entropy' with a weighting",
    )
    # A process may have weights for some of its options only, and says so when it is asked.
    token = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    jax.eval_shape(functools.partial(model.process.dynamic_weight, {}), *token, time)

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    process = model.process
    noised = engine.read(model, params, key, batch, times, progress)

    def cost(consts, process_params, row, output, nats):
      del consts, nats
      token = process_params, row.clean, row.state, row.t
      weight = jnp.clip(process.dynamic_weight(*token), self.min_weight, self.max_weight)
      at_time = weight * process.divergence(*token, output)
      return row.dt_dtau * at_time, at_time, {}

    loss, costs = engine.token_loss(model, params, batch, noised, cost)
    loss = engine.add_boundary(model, params, key, batch, progress, loss, minimised=False)
    return loss, costs

"""The bound of a process whose noise is learned, with the gradient that this takes (GenMD4).

Where q_w(z | x) has parameters w, d/dw of E_z[f(z, w)] is E[df/dw + f · d/dw log q_w(z | x)]: z is
discrete, so no gradient flows through the draw itself. Two independent draws z1, z2 at the same
times are each other's baseline (leave-one-out; arXiv 2406.04329), and per row, with f summed over
its tokens and log q too,

  surrogate = (f1 + f2) / 2 + stop(f1 - f2) · (log q(z1 | x) - log q(z2 | x)) / 2

has that gradient without bias, because a score has mean 0 and is independent of the other draw's
loss.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.capability import require
from diffusion_text.core.options import member
from diffusion_text.core.prng import stream
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.objective.bound import bound_cost
from diffusion_text.types import (
  Batch,
  Key,
  Loss,
  Model,
  Params,
  Process,
  Progress,
  State,
  Times,
  TokenCosts,
)


@runtime_checkable
class LearnedNoise(Protocol):
  """What `ScoreFunction` asks of a process beyond `Process`."""

  def log_corruption(
    self, params: Params, clean_state: State, state: State, t: Float[Array, "*n"]
  ) -> Float[Array, "*n"]:
    """Nats: log q(z_t | clean state), differentiable in params."""


def score_term(advantage: Float[Array, "*n"], log_prob: Float[Array, "*n"]) -> Float[Array, ""]:
  """A scalar of value 0, whose gradient is that of Σ advantage · log_prob, advantages held constant
  (REINFORCE, Williams 1992).
  """
  score = jnp.sum(jax.lax.stop_gradient(advantage) * log_prob)
  return score - jax.lax.stop_gradient(score)


@member
class ScoreFunction(OneReading):
  """The bound with an unbiased gradient for the parameters of the corruption too.

  The value of `total` is the mean bound of two draws, for two readings of the network per step; the
  score adds to its gradient only.
  """

  passes: ClassVar[float] = 2.0
  # "noise": the parameters that the draw itself depends on, which no other objective trains.
  trains: ClassVar[frozenset[str]] = OneReading.trains | {"noise"}

  def check(self, model: Model) -> None:
    """Raises ValueError for noise that is not learned: `bound` has the same gradient there, at half
    the cost.
    """
    engine.check_readings(model)
    who, fix = "objective.name='score_function'", "use objective.name='bound'"
    require(model.process, LearnedNoise, who, fix)
    if not model.process.noise_is_learned:
      raise ValueError(
        f"{who} costs twice the network calls of 'bound', which only learned noise needs, and"
        f" {model.process} learns none; {fix}"
      )

  def log_corruption(
    self, process: Process, params: Params, clean: State, state: State, t: Float[Array, "B N"]
  ) -> Float[Array, " B"]:
    """log q(z_t | x) of each row in nats: padding counts, for the network reads it; t = 0 is
    certain.
    """
    # Both branches must have finite gradients, and log q need have none at t = 0.
    log_q = process.log_corruption(params, clean, state, jnp.where(t > 0, t, 0.5))
    return jnp.sum(jnp.where(t > 0, log_q, 0.0), axis=1)

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The mean bound of two draws, and what each token cost in them."""

    def draw(name):
      states = engine.corrupted(model, params, stream(key, name), batch, times, progress)
      noised = engine.read(model, params, key, batch, times, progress, corrupted=states)
      loss, costs = engine.token_loss(model, params, batch, noised, bound_cost)
      log_q = self.log_corruption(model.process, params["process"], *states, times.t)
      return loss, costs, log_q

    (loss1, costs1, log_q1), (loss2, costs2, log_q2) = draw("first draw"), draw("second draw")
    difference = jnp.sum(costs1.weight * (costs1.nats - costs2.nats), axis=1)
    total = (loss1.total + loss2.total) / 2 + score_term(difference / 2, log_q1 - log_q2)
    sums = {name: (loss1.sums[name] + loss2.sums[name]) / 2 for name in loss1.sums}
    loss = engine.add_boundary(
      model, params, key, batch, progress, Loss(total, loss1.count, sums), minimised=True
    )
    return loss, _mean_costs(costs1, costs2)


def _mean_costs(first: TokenCosts, second: TokenCosts) -> TokenCosts:
  """Nats as the mean of two draws, losses as the mean of those draws that have one."""
  number = first.counted.astype(jnp.float32) + second.counted
  return TokenCosts(
    nats=(first.nats + second.nats) / 2,
    loss=(first.loss + second.loss) / jnp.maximum(number, 1),
    weight=first.weight,
    counted=number > 0,
  )

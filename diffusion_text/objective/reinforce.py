"""The bound of a process whose noise is learned, with the score-function gradient that this takes (GenMD4, arXiv 2406.04329).

Where q_w(z | x) has parameters w, d/dw of E_z[f(z, w)] is E[df/dw + f · d/dw log q_w(z | x)]: z is discrete, so no gradient flows
through the draw itself. Two independent draws z1, z2 at the same times are each other's baseline (leave-one-out), and per row,
with f summed over its tokens and log q too,

  surrogate = (f1 + f2) / 2 + stop(f1 - f2) · (log q(z1 | x) - log q(z2 | x)) / 2

has that gradient without bias, because a score has mean 0 and is independent of the other draw's loss.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_text.objective.bound import (
  Chunks,
  Noised,
  corrupted,
  drawn_times,
  fit_pace,
  noise_key,
  read,
  scored_weights,
  weighted_ends,
  weighted_rates,
  with_auxiliary,
)
from diffusion_text.schedules.discrete import TINY
from diffusion_text.types import (
  Array,
  Batch,
  Key,
  LearnedNoise,
  Loss,
  Params,
  Predict,
  Process,
  Progress,
  State,
  Time,
  Timing,
)


@dataclasses.dataclass(frozen=True)
class ScoreFunction:
  """The bound with an unbiased gradient for the parameters of the corruption too. Two network calls per step.

  The value of `total` is the mean bound of the two draws; the score term adds to its gradient only. Raises ValueError for a process
  whose noise is not learned: `bound` has the same gradient there, at half the cost.
  """

  trains_noise: ClassVar[bool] = True  # what learned noise needs and other noise does not
  reads: ClassVar[int] = 2  # network calls per step

  process: Process
  timing: Timing
  chunks: Chunks = Chunks()

  def __post_init__(self):
    if not isinstance(self.process, LearnedNoise):
      raise ValueError(
        f"objective 'reinforce' needs a process with learned noise (log_corruption), not {type(self.process).__name__};"
        " use objective.name='bound'"
      )

  def log_corruption(self, params: Params, ids: Array, state: State, t: Time) -> Array:
    """float32 [B] nats: log q(z_t | ids) of each row; given tokens, and all at t = 0, are certain."""
    t = jnp.broadcast_to(t, ids.shape)
    # Both branches must have finite gradients, and log q need have none at t = 0.
    log_q = self.process.log_corruption(params, ids, state, jnp.where(t > 0, t, 0.5))
    return jnp.sum(jnp.where(t > 0, log_q, 0.0), axis=1)

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    times = drawn_times(self.process, self.timing, key, batch, progress)

    def draw(number):
      key_corrupt = jax.random.fold_in(noise_key(key, progress), number)
      state = corrupted(self.process, params, key_corrupt, batch, times.t)
      inputs = self.process.inputs(params, state, times.t)
      noise = Noised(
        state, times, read(self.process, params, key, batch.ids, state, inputs, times, predict)
      )
      rates = weighted_rates(noise, self.process, params, batch, self.chunks)
      rates = rates + fit_pace(rates, jnp.log(jnp.maximum(times.speed, TINY)))
      return (
        jnp.sum(rates, axis=1),
        self.log_corruption(params, batch.ids, state, times.t),
        noise.prediction,
      )

    (loss1, log_q1, prediction), (loss2, log_q2, _) = draw(0), draw(1)
    bound = jnp.sum(loss1 + loss2) / 2
    score = jnp.sum(jax.lax.stop_gradient(loss1 - loss2) * (log_q1 - log_q2)) / 2
    ends = jnp.sum(weighted_ends(self.process, self.timing, params, key, batch, progress, predict))
    total = bound + ends + score - jax.lax.stop_gradient(score)
    return with_auxiliary(
      Loss(total, jnp.sum(scored_weights(batch)), {"bound": bound + ends}), prediction
    )

"""Frequency-informed masking: rarer tokens of a row are noisier, and the row as a whole is as noisy
as its clock says (Kosmopoulou et al. 2025, arXiv 2509.05056).

A token's weight w in (0, 1) is its rank by frequency in the corpus, the rarest last, to the power p
(published: 0.02, which hardly differs from 1: w^p of the commonest of 1000 ranks is 0.87). With mu
the mean of w^p over the tokens of the row that are scored, at the clock τ

  t = τ · w^p / mu                              while τ < mu
  t = 1 - (1 - τ) · (1 - w^p) / (1 - mu)        after that

whose mean over the row is τ exactly (the paper's conditional scaling, eq. 2). Under a linear
schedule t is the probability of the mask. In the course of training p grows from 0, where all
tokens of a row have one time, to its value.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffusion_text.core.numerics import TINY
from diffusion_text.core.options import member, option
from diffusion_text.timing.clock import Even, low_discrepancy, scored
from diffusion_text.types import Batch, DataFacts, Key, Params, Progress, Times


def rank_weights(counts: np.ndarray) -> np.ndarray:
  """float32 [V] in (0, 1): the rank of each token's frequency from the commonest on, over one more
  than the number of ranks. Equal counts share a rank.
  """
  ranks = np.unique(-np.asarray(counts), return_inverse=True)[1] + 1
  return (ranks / (ranks.max() + 1)).astype(np.float32)


@member
class ByFrequency(Even):
  """Times of the tokens of a row by their frequency, of mean τ.

  A surrogate like `ByInformation`: each token sweeps [0, 1] once, but its times depend on what it
  and the other tokens of the row are, and the network therefore reads the clock. The grid is the
  clock, the same for all tokens. The weight of a token is that of its own time, which while τ < mu
  is the published one, of the clock: (dt/dτ) / t = 1 / τ. The process "token_masked" with
  loss_order="frequency" has a law of each token alone instead, and with it the bound.
  """

  power: float = option(0.02, "p at the end of training; 0.02 is published", ge=0, le=10)
  annealed: float = option(
    1.0,
    "the share of the updates in which p grows from 0, evenly; 0: it is full at once",
    ge=0,
    le=1,
  )

  path: ClassVar[Literal["none"]] = "none"

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"weight": float32 [V], "steps": the updates of the run}, fixed. Raises ValueError for data
    without token counts.
    """
    del key
    if facts.token_counts is None:
      raise ValueError(
        "timing 'by_frequency' needs the token counts of the training split; pass"
        " DataFacts.token_counts"
      )
    weight = jnp.asarray(rank_weights(facts.token_counts()))
    return {"weight": weight, "steps": jnp.float32(max(facts.steps, 1))}

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times by frequency about the row's clock, and the clock for the network."""
    fixed = jax.lax.stop_gradient(params)
    tau = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    share = self.power_at(fixed["steps"], progress.step)
    soft = fixed["weight"][batch.ids] ** share
    t, speed = self.times(tau, soft, scored(batch))
    return Times(t, speed, tau, network_time=tau)

  def power_at(self, steps: Float[Array, ""], step: Array | int) -> Float[Array, ""]:
    """p at an update."""
    if not self.annealed:
      return jnp.float32(self.power)
    done = jnp.asarray(step, jnp.float32) / (self.annealed * steps)
    return self.power * jnp.minimum(done, 1.0)

  def times(
    self, tau: Float[Array, "B 1"], soft: Float[Array, "B N"], counts: Bool[Array, "B N"]
  ) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """(t, dt/dτ) at clock τ of tokens of weight w^p = `soft`, of which some count for the mean."""
    number = jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(counts, soft, 0.0), axis=1, keepdims=True) / number
    mean = jnp.where(mean > 0, mean, 1.0)  # of rows in which nothing counts
    rest = jnp.maximum(1 - mean, TINY)
    early, late = soft / mean, (1 - soft) / rest
    first = tau <= mean
    t = jnp.where(first, tau * early, 1 - (1 - tau) * late)
    return jnp.clip(t, 0.0, 1.0), jnp.where(first, early, late)

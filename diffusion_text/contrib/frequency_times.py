"""Times by the frequency of a token among those of its row: the row as a whole is as noisy as its
clock says. `ByFrequency` is Frequency-informed masking (Kosmopoulou et al. 2025, arXiv 2509.05056),
`Spindle` is DiffusionBERT as released.

Frequency-informed masking: a token's weight w in (0, 1) is its rank by frequency in the corpus, the
rarest last, to the power p (published: 0.02, which hardly differs from 1: w^p of the commonest of
1000 ranks is 0.87). With mu the mean of w^p over the tokens of the row that are scored, at the
clock τ

  t = τ · w^p / mu                              while τ < mu
  t = 1 - (1 - τ) · (1 - w^p) / (1 - mu)        after that

whose mean over the row is exactly τ (the paper's conditional scaling, eq. 2). Under a linear
schedule t is the probability of the mask. During training p grows from 0, where all tokens of a row
have the same time, to its full value, with which the sampler "guessed_times" makes texts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import TINY
from diffusion_text.core.options import internal, member, option
from diffusion_text.timing.clock import Even, low_discrepancy, scored
from diffusion_text.types import Batch, DataFacts, Key, Params, Progress, Times


def rank_weights(counts: np.ndarray) -> np.ndarray:
  """float32 [V] in (0, 1): the rank of each token's frequency from the commonest on, over one more
  than the number of ranks. Equal counts share a rank.
  """
  ranks = np.unique(-np.asarray(counts), return_inverse=True)[1] + 1
  return (ranks / (ranks.max() + 1)).astype(np.float32)


def row_mean(values: Float[Array, "B N"], counts: Bool[Array, "B N"]) -> Float[Array, "B 1"]:
  """float32 [B, 1]: the mean of the values that count, 0 in rows where none counts."""
  number = jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
  return jnp.sum(jnp.where(counts, values, 0.0), axis=1, keepdims=True) / number


@member
class ByFrequency(Even):
  """Times of the tokens of a row by their frequency, of mean τ.

  A surrogate like `ByInformation`: each token sweeps [0, 1] once, but its times depend on what it
  and the other tokens of the row are, and the network therefore reads the clock. The grid is the
  clock, the same for all tokens; the sampler "guessed_times" asks for the times of the tokens that
  it guesses (`token_times`), and so walks the noise of training. The weight of a token is that of
  its own time, which while τ < mu is the published one, of the clock: (dt/dτ) / t = 1 / τ. The
  process "token_masked" with loss_order="frequency" has a law of each token alone instead, and with
  it the bound.
  """

  power: float = option(0.02, "p at the end of training; 0.02 is published", ge=0, le=10)
  annealed: float = option(
    1.0,
    "the share of the updates in which p grows from 0, evenly; 0: it is full at once",
    ge=0,
    le=1,
  )

  train_steps: int | None = internal(None)  # updates of the run

  path: ClassVar[Literal["none"]] = "none"

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"weight": float32 [V]}, fixed. Raises ValueError for data without token counts, and for an
    annealing in a run of unknown length.
    """
    del key
    if self.annealed and self.train_steps is None:
      raise ValueError(
        f"timing.annealed={self.annealed} is a share of the updates of a run: pass"
        " ByFrequency(train_steps=…), or annealed=0"
      )
    if facts.token_counts is None:
      raise ValueError(
        "timing 'by_frequency' needs the token counts of the training split; pass"
        " DataFacts.token_counts"
      )
    return {"weight": jnp.asarray(rank_weights(facts.token_counts()))}

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times by frequency about the row's clock, and the clock for the network."""
    tau = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    weight = jax.lax.stop_gradient(params["weight"])
    soft = weight[batch.ids] ** self.power_at(progress.step)
    t, speed = self.times(tau, soft, scored(batch))
    return Times(t, speed, tau, network_time=tau)

  def token_times(
    self,
    params: Params,
    ids: Int[Array, "B u"],
    tau: Float[Array, "B u"],
    counts: Bool[Array, "B u"],
  ) -> Float[Array, "B u"]:
    """The times of a row's tokens `ids` at clock τ, at the full p. (The mean of w^p is that of the
    guesses.)
    """
    return self.times(tau, params["weight"][ids] ** self.power, counts)[0]

  def power_at(self, step: Array | int) -> Float[Array, ""]:
    """p at an update."""
    if not self.annealed:
      return jnp.float32(self.power)
    done = jnp.asarray(step, jnp.float32) / (self.annealed * self.train_steps)
    return self.power * jnp.minimum(done, 1.0)

  def times(
    self, tau: Float[Array, "#B #N"], soft: Float[Array, "B N"], counts: Bool[Array, "B N"]
  ) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """(t, dt/dτ) at clock τ of tokens of weight w^p = `soft`, of which some count for the mean."""
    mean = row_mean(soft, counts)
    mean = jnp.where(mean > 0, mean, 1.0)  # of rows in which nothing counts
    rest = jnp.maximum(1 - mean, TINY)
    early, late = soft / mean, (1 - soft) / rest
    first = tau <= mean  # of the whole row
    t = jnp.where(first, tau * early, 1 - (1 - tau) * late)
    return jnp.clip(t, 0.0, 1.0), jnp.where(first, early, late)


def log_frequency(counts: np.ndarray) -> np.ndarray:
  """float32 [V] in [0, 1]: log(1 + count) of each token over the largest."""
  logs = np.log1p(np.asarray(counts, np.float64))
  return (logs / max(logs.max(), 1e-30)).astype(np.float32)


@member
class Spindle(Even):
  """Times that lead or lag the clock by how telling a token is within its row (DiffusionBERT, arXiv
  2211.15029), as its code has them:

    t = clip(τ + strength · sin(πτ) · (mean over the row of f - f), least, 1)

  With f = log(1 + count) over the largest of the vocabulary. Under a linear schedule t is the
  probability of the mask, so that rare tokens of a row are lost first, and common ones are written
  first. Row by row the mean of t is the clock, but for the clip.

  A surrogate like `ByFrequency`, and like it sampled along the guessed tokens ("guessed_times").
  The process "token_masked" with loss_order="spindle" centres over the corpus instead, where each
  token has a law of its own, and with it the bound.
  """

  strength: float = option(
    0.3, "how far tokens lead or lag; 0.3 is published. Below 1/π, no time falls", ge=0, lt=0.318
  )
  least: float = option(
    0.001, "the least noise of a token at any τ > 0; 0.001 as released, 0: none", ge=0, le=1
  )

  path: ClassVar[Literal["none"]] = "none"

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"frequency": float32 [V]}, fixed. Raises ValueError for data without token counts."""
    del key
    if facts.token_counts is None:
      raise ValueError(
        "timing 'spindle' needs the token counts of the training split; pass DataFacts.token_counts"
      )
    return {"frequency": jnp.asarray(log_frequency(facts.token_counts()))}

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times about the row's clock, and the clock for the network."""
    tau = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    frequency = jax.lax.stop_gradient(params["frequency"])[batch.ids]
    t, speed = self.times(tau, frequency, scored(batch))
    return Times(t, speed, tau, network_time=tau)

  def token_times(
    self,
    params: Params,
    ids: Int[Array, "B u"],
    tau: Float[Array, "B u"],
    counts: Bool[Array, "B u"],
  ) -> Float[Array, "B u"]:
    """The times of a row's tokens `ids` at clock τ."""
    return self.times(tau, params["frequency"][ids], counts)[0]

  def times(
    self, tau: Float[Array, "#B #N"], frequency: Float[Array, "B N"], counts: Bool[Array, "B N"]
  ) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """(t, dt/dτ) at clock τ of tokens of a frequency, of which some count for the mean."""
    lead = self.strength * (row_mean(frequency, counts) - frequency)
    line = tau + lead * jnp.sin(jnp.pi * jnp.minimum(tau, 1 - tau))  # 0 exactly at both ends
    inside = (line > self.least) & (line <= 1)
    speed = jnp.where(inside, 1 + jnp.pi * lead * jnp.cos(jnp.pi * tau), 0.0)
    return jnp.where(tau > 0, jnp.clip(line, self.least, 1.0), 0.0), speed

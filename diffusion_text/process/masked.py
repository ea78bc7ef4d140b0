"""Masked (absorbing) diffusion: a token is clean until it is lost, and then it is the mask.

MDLM (arXiv 2406.07524), MD4 (arXiv 2406.04329), LLaDA (arXiv 2502.09992), SEDD-absorb (arXiv 2310.16834), D3PM-absorbing (arXiv
2107.03006). With alpha_t the probability of being clean still (`schedules`):

  q(z_t | x)   = x with probability alpha_t, else the mask
  p(z_s | z_t) = z_t where it is clean (carry-over); where it is masked, with probability (alpha_s - alpha_t) / (1 - alpha_t)
                 a draw of the predicted clean token (never the mask: the network has no logit for it), else the mask still
  rate         = -alpha'_t / (1 - alpha_t) · CE at masked positions, 0 elsewhere          (MDLM eq. 10, MD4 eq. 4)

Discrete time (`grid` = T steps): z changes at the times k/T only, and the bound is the sum of its T divergences (D3PM eq. 2),

  rate         = T · (alpha_s - alpha_t) / (1 - alpha_t) · CE, with t rounded up to the grid and s = t - 1/T: its integral is that sum.

Scores (`prediction` = "score", SEDD): the logits are not normalised; y = log s(z, y) up to the known factor alpha / (1 - alpha) / V, and

  rate         = -alpha'_t / (1 - alpha_t) · (Σ_y e^y / V - 1 - y_x + log V)               (SEDD eq. 5, denoising score entropy)

which is the rate above plus e^N - 1 - N >= 0 for the log-normaliser N: SEDD is MDLM with a free normaliser and a price on it.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import Absorbing
from diffusion_text.schedules.discrete import Schedule, on_grid, reveal_probability, weight
from diffusion_text.types import Array, Key, Params, State, Time


def cross_entropy(logits: Array, ids: Array) -> Array:
  """-log softmax(logits)[ids] in nats: logits [..., V], ids [...] -> [...], by a gather and a log-sum-exp (no one-hot)."""
  picked = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


@dataclasses.dataclass(frozen=True)
class Masked(Absorbing):
  """Masked diffusion over `vocab_size` clean tokens. State: ids int32 [B, L], where the id V is the mask.

  *Whether* a token is revealed and *what* it becomes are drawn apart (two streams of each position's key): the first needs
  no logits, so nobody pays for logits where nothing happens, and neither draw can starve the other's tail in float32.

  prediction: what the logits are, "clean" (log-probabilities of the clean token, up to a constant) or "score" (log-scores).
  grid: T of a discrete-time process; None is continuous time.
  """

  vocab_size: int
  schedule: Schedule
  prediction: str = "clean"
  grid: int | None = None

  def __post_init__(self):
    if self.vocab_size < 1:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 1; take it from the tokenizer"
      )
    if self.prediction not in ("clean", "score"):
      raise ValueError(
        f"process.prediction={self.prediction!r} is unknown to masked diffusion; use 'clean' or 'score'"
      )
    if self.grid is not None and self.grid < 1:
      raise ValueError(
        f"process.grid={self.grid} must be at least 1 step; D3PM uses 1000, None is continuous time"
      )

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    del params
    lost = (
      jax.random.uniform(key, ids.shape) < self.schedule(on_grid(t, self.grid)).noise
    )  # never at 0, always at 1
    return jnp.where(lost, self.mask_id, ids).astype(jnp.int32)

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    cost = cross_entropy(logits, ids)
    if self.prediction == "score":
      log_sum = jax.nn.logsumexp(logits, axis=-1) - math.log(self.vocab_size)
      cost = cost + jnp.expm1(log_sum) - log_sum
    return jnp.where(self.scored(params, state, t), self._weight(t) * cost, 0.0)

  def _weight(self, t: Time) -> Array:
    """Reveals per unit time: the hazard, or on a grid the share that the step holds."""
    if self.grid is None:
      return weight(self.schedule, t)
    after = on_grid(t, self.grid)
    return self.grid * reveal_probability(
      self.schedule, after, jnp.maximum(after - 1 / self.grid, 0.0)
    )

  def moves(self, params: Params, keys: Key, state: State, t: Time, s: Time) -> Array:
    masked = self.scored(params, state, t)
    return masked & (draw_uniform(fold(keys, 0)) < reveal_probability(self.schedule, t, s))

  def step(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    moves = self.moves(params, keys, state, t, s)
    return jnp.where(moves, self.draw(params, keys, state, logits), state)

  def draw(self, params: Params, keys: Key, state: State, logits: Array) -> State:
    """A clean token at every masked position, whatever the time: what orders and event-driven decoding commit."""
    masked = state == self.mask_id
    return jnp.where(masked, draw_categorical(fold(keys, 1), logits).astype(jnp.int32), state)

  def leap(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    """Tau-leaping (arXiv 2205.14987, SEDD's Euler sampler): reveals with probability (t - s) · hazard, by the hazard at t."""
    moves = self.scored(params, state, t) & (
      draw_uniform(fold(keys, 0)) < (t - s) * weight(self.schedule, t)
    )
    return jnp.where(moves, self.draw(params, keys, state, logits), state)

  def guess(self, params: Params, keys: Key, state: State, logits: Array, t: Time) -> Array:
    """The clean tokens: those that are not masked, and a draw for each that is."""
    return self.draw(params, keys, state, logits)

  def renoise(self, params: Params, keys: Key, ids: Array, t: Time) -> State:
    """As `corrupt`, with one key per position."""
    return jnp.where(
      draw_uniform(fold(keys, 5)) < self.schedule(on_grid(t, self.grid)).noise, self.mask_id, ids
    ).astype(jnp.int32)

  def arrival(self, params: Params, keys: Key, grid: Array) -> Array:
    """The step at which each token is revealed on a sampler's grid, drawn in advance; same law as `moves` step by step.

    keys [B, L], grid float32 [S + 1, L] falling from 1 to 0 -> int32 [B, L] in 0 … S - 1. A masked token is still masked at
    time s with probability noise(s), so step k reveals it iff noise(grid[k + 1]) <= u < noise(grid[k]) for one uniform u.
    """
    del params
    noise_SxL = self.schedule(grid[1:]).noise
    u_BxL = draw_uniform(fold(keys, 0))
    steps = jax.vmap(
      lambda noise, u: jnp.searchsorted(-noise, -u, side="left"), in_axes=(1, 1), out_axes=1
    )(noise_SxL, u_BxL)
    return jnp.minimum(steps, noise_SxL.shape[0] - 1).astype(jnp.int32)

"""Masked (absorbing) diffusion: a token is clean until it is lost, and then it is the mask.

MDLM (arXiv 2406.07524), MD4 (arXiv 2406.04329), LLaDA (arXiv 2502.09992), D3PM-absorbing in continuous time (arXiv 2107.03006).
With alpha_t the probability of being clean still (`schedules`):

  q(z_t | x)   = x with probability alpha_t, else the mask
  p(z_s | z_t) = z_t where it is clean (carry-over); where it is masked, with probability (alpha_s - alpha_t) / (1 - alpha_t)
                 a draw of the predicted clean token (never the mask: the network has no logit for it), else the mask still
  rate         = -alpha'_t / (1 - alpha_t) · CE at masked positions, 0 elsewhere          (MDLM eq. 10, MD4 eq. 4)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.draws import draw_categorical, draw_uniform, fold
from diffusion_text.schedules import Schedule, reveal_probability, weight
from diffusion_text.types import Array, Denoise, Inputs, Key, Params, State, Time


def cross_entropy(logits: Array, ids: Array) -> Array:
  """-log softmax(logits)[ids] in nats: logits [..., V], ids [...] -> [...], by a gather and a log-sum-exp (no one-hot)."""
  picked = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


@dataclasses.dataclass(frozen=True)
class Masked:
  """Masked diffusion over `vocab_size` clean tokens. State: ids int32 [B, L], where the id V is the mask.

  *Whether* a token is revealed and *what* it becomes are drawn apart (two streams of each position's key): the first needs
  no logits, so nobody pays for logits where nothing happens, and neither draw can starve the other's tail in float32.
  """

  vocab_size: int
  schedule: Schedule

  def __post_init__(self):
    if self.vocab_size < 1:
      raise ValueError(f"vocab_size={self.vocab_size} must be at least 1; take it from the tokenizer")

  @property
  def mask_id(self) -> int:
    return self.vocab_size

  @property
  def input_size(self) -> int:
    return self.vocab_size + 1

  def init(self, key: Key) -> Params:
    del key  # nothing is learned
    return {}

  def prior(self, params: Params, key: Key, shape: tuple[int, ...]) -> State:
    del params, key  # all mask: no randomness
    return jnp.full(shape, self.mask_id, jnp.int32)

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    del params
    lost = jax.random.uniform(key, ids.shape) < self.schedule(t).noise  # never at noise = 0, always at noise = 1
    return jnp.where(lost, self.mask_id, ids).astype(jnp.int32)

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    del params, t
    return Inputs(ids=state)

  def scored(self, params: Params, state: State, t: Time) -> Array:
    del params, t
    return state == self.mask_id

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    masked = self.scored(params, state, t)
    return jnp.where(masked, weight(self.schedule, t) * cross_entropy(logits, ids), 0.0)

  def ends(self, params: Params, key: Key, ids: Array, denoise: Denoise) -> Array:
    del params, key, denoise
    return jnp.zeros(ids.shape, jnp.float32)  # alpha(0) = 1 and alpha(1) = 0 exactly: no reconstruction, no prior cost

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

  def arrival(self, params: Params, keys: Key, grid: Array) -> Array:
    """The step at which each token is revealed on a sampler's grid, drawn in advance; same law as `moves` step by step.

    keys [B, L], grid float32 [S + 1, L] falling from 1 to 0 -> int32 [B, L] in 0 … S - 1. A masked token is still masked at
    time s with probability noise(s), so step k reveals it iff noise(grid[k + 1]) <= u < noise(grid[k]) for one uniform u.
    """
    del params
    noise_SxL = self.schedule(grid[1:]).noise
    u_BxL = draw_uniform(fold(keys, 0))
    steps = jax.vmap(lambda noise, u: jnp.searchsorted(-noise, -u, side="left"), in_axes=(1, 1), out_axes=1)(noise_SxL, u_BxL)
    return jnp.minimum(steps, noise_SxL.shape[0] - 1).astype(jnp.int32)

  def decode(self, params: Params, state: State) -> Array:
    del params
    return state  # nothing is masked at t = 0

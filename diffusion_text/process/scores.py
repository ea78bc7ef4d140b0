"""Scores: predicted ratios of a token's probabilities at time t (SEDD, arXiv 2310.16834).

At a token z the network's output is y_v = log s_v, where s_v predicts q_t(v) / q_t(z); only
s_z = 1 is fixed. At the mask it is y_v = log(V s_v), where s_v predicts q_t(v) over the sum of q_t
of all tokens; the s_v need not sum to 1. With r_v, the same ratios given the true token, the
denoising score entropy is

  Σ_v s_v - r_v log s_v + r_v log r_v - r_v                                           (SEDD eq. 5)

It is at least 0 for any positive scores, and 0 for s = r: times the rate of arrivals it gives a
bound for any scores.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.process.discrete import is_token
from diffusion_text.process.mixture import LEAST, Shares, log_share, weighted_excess

# If the shares above the noise floor sum to less, the scores say nothing of the clean token.
_LEAST_ABOVE = 1e-6


def above(
  state: Int[Array, "*n"], scores: Float[Array, "*n V"], noise: Float[Array, "*n"]
) -> Float[Array, "*n V"]:
  """The law of the clean token by the scores: each token's share above noise / V, normalised.

  Where no share is above (a poor score near t = 1): the shares themselves.
  """
  vocab_size = scores.shape[-1]
  share = jax.nn.softmax(jnp.where(is_token(state, vocab_size), 0.0, scores), axis=-1)
  over = jnp.maximum(share - (noise / vocab_size)[..., None], 0.0)
  total = jnp.sum(over, axis=-1, keepdims=True)
  return jnp.where(total > _LEAST_ABOVE, over / jnp.maximum(total, _LEAST_ABOVE), share)


def entropy_at_token(
  shares: Shares,
  clean_state: Int[Array, "*n"],
  state: Int[Array, "*n"],
  scores: Float[Array, "*n V"],
) -> Float[Array, "*n"]:
  """The score entropy in nats, of states that are tokens."""
  vocab_size = scores.shape[-1]
  base = jnp.maximum(shares.uniform, LEAST) / vocab_size
  ratio = jnp.log1p(shares.clean / base)  # log of (the true token's share / another's)
  right = state == clean_state
  true = is_token(clean_state, vocab_size) & ~right[..., None]
  log_r = jnp.where(true, ratio[..., None], 0.0) - jnp.where(right, ratio, 0.0)[..., None]
  r = jnp.exp(log_r)
  others = ~is_token(state, vocab_size)
  # The token's own score is unconstrained: cut before exp, or its gradient may be 0 · inf.
  scores = jnp.where(others, scores, 0.0)
  return jnp.sum(jnp.where(others, jnp.exp(scores) - r + r * (log_r - scores), 0.0), axis=-1)


def entropy_at_mask(
  shares: Shares, clean_state: Int[Array, "*n"], scores: Float[Array, "*n V"]
) -> Float[Array, "*n"]:
  """The score entropy in nats, of masks. `shares` are those among tokens that are not masked:
  clean + uniform = 1.
  """
  vocab_size = scores.shape[-1]
  base = shares.uniform / vocab_size
  true = is_token(clean_state, vocab_size)
  right = jnp.maximum(shares.clean + base, LEAST)
  log_base = log_share(shares.uniform) - math.log(vocab_size)
  log_r = jnp.where(true, jnp.log(right)[..., None], log_base[..., None])
  r = jnp.where(true, right[..., None], base[..., None])
  log_s = scores - math.log(vocab_size)
  return jnp.sum(weighted_excess(r, log_s - log_r, log_s), axis=-1)

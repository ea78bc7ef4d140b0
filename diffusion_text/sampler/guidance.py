"""Guidance: transforms of the predicted distribution before a token is drawn from it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.types import Array


@dataclasses.dataclass(frozen=True)
class Guidance:
  """temperature divides the logits (0 is greedy: only the best token is left); top_p keeps the smallest set of tokens whose
  probability reaches top_p, the crossing token included (nucleus, arXiv 1904.09751). The defaults change nothing.
  """

  temperature: float = 1.0
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature >= 0:
      raise ValueError(f"temperature={self.temperature} must be >= 0; 1 samples the model's own distribution, 0 is greedy")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps every token")

  def __call__(self, logits: Array) -> Array:
    """float32 [..., V] -> [..., V]; dropped tokens get -inf."""
    if self.temperature == 0:
      best = jnp.argmax(logits, axis=-1, keepdims=True)
      return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    logits = logits / self.temperature
    if self.top_p == 1:
      return logits
    falling = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(falling, axis=-1), axis=-1) - jax.nn.softmax(falling, axis=-1)
    kept = jnp.sum(before < self.top_p, axis=-1, keepdims=True)  # tokens before which less than top_p has been gathered
    lowest = jnp.take_along_axis(falling, kept - 1, axis=-1)
    return jnp.where(logits >= lowest, logits, -jnp.inf)

"""Guidance: transforms of the predicted distribution before a token is drawn from it, and of two predictions into one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.types import Array

SPACES = ("logits", "probabilities")


@dataclasses.dataclass(frozen=True)
class Guidance:
  """temperature divides the logits (0 is greedy: only the best token is left); top_p keeps the smallest set of tokens whose
  probability reaches top_p, the crossing token included (nucleus, arXiv 1904.09751). The defaults change nothing.

  guidance_scale: w of classifier-free guidance (arXiv 2207.12598), u + w (c - u) of the network's answers c with and u without the
  given tokens: 1 is the conditional answer alone at one call, all others cost two where any token is given; 0 is the unconditional
  one. (Some count from w - 1.)
  guidance_space: what is combined, "logits" or "probabilities" (TESS, arXiv 2305.08379). Probabilities below 0, which w > 1 makes, are
  cut off and the rest divided by its sum, so large w forbids tokens that the condition makes less likely.
  """

  temperature: float = 1.0
  top_p: float = 1.0
  guidance_scale: float = 1.0
  guidance_space: str = "logits"

  def __post_init__(self):
    if not self.temperature >= 0:
      raise ValueError(
        f"temperature={self.temperature} must be >= 0; 1 samples the model's own distribution, 0 is greedy"
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps every token")
    if not self.guidance_scale >= 0:
      raise ValueError(
        f"guidance_scale={self.guidance_scale} must be >= 0; 1 is the conditional answer alone, 2 guides"
      )
    if self.guidance_space not in SPACES:
      raise ValueError(f"guidance_space={self.guidance_space!r} is unknown; use one of {SPACES}")

  def combine(self, conditional: Array, unconditional: Array) -> Array:
    """Logits float32 [..., V] of both readings -> [..., V], before temperature and top_p; -inf where no probability is left."""
    if self.guidance_space == "logits":
      return unconditional + self.guidance_scale * (conditional - unconditional)
    c, u = jax.nn.softmax(conditional, axis=-1), jax.nn.softmax(unconditional, axis=-1)
    return jax.nn.log_softmax(jnp.log(jnp.maximum(u + self.guidance_scale * (c - u), 0.0)), axis=-1)

  def __call__(self, logits: Array) -> Array:
    """float32 [..., V] -> [..., V]; dropped tokens get -inf."""
    if self.temperature == 0:
      best = jnp.argmax(logits, axis=-1, keepdims=True)
      return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    logits = logits / self.temperature
    if self.top_p == 1:
      return logits
    falling = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(falling, axis=-1), axis=-1) - jax.nn.softmax(
      falling, axis=-1
    )
    kept = jnp.sum(
      before < self.top_p, axis=-1, keepdims=True
    )  # tokens before which less than top_p has been gathered
    lowest = jnp.take_along_axis(falling, kept - 1, axis=-1)
    return jnp.where(logits >= lowest, logits, -jnp.inf)

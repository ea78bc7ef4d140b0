"""Names that tests outside of this room still import: the languages, and the evidence of masks."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.process.masked import Masked
from diffusion_text.testing.languages import Enumerable, MarkovChain

__all__ = ["Enumerable", "MarkovChain", "masked_evidence"]


def masked_evidence(ids: Int[Array, "B L"], vocab_size: int) -> Float[Array, "B L V"]:
  """log q(z_i | x_i = v) up to a constant for masked diffusion."""
  return Masked(vocab_size).evidence({}, ids, jnp.ones(ids.shape))

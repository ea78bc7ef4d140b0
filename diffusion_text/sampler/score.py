"""Scores: which waiting token is revealed first, and what a budget or a revision wants to know of a
prediction.

A score looks at the *distribution* at a position, never at the token drawn there: "the most
probable draws first" is biased at temperature > 0 even with a perfect network (tested on a toy
language). Choose, then draw.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.numerics import entropy
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_uniform
from diffusion_text.sampler.parts import Candidates, Score


@member
class Random(Score):
  """A random order, drawn once per window."""

  reads_logits: ClassVar[bool] = False

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """A uniform number of the token's own."""
    return draw_uniform(candidates.keys)


@member
class LeftToRight(Score):
  """The order of the text."""

  reads_logits: ClassVar[bool] = False

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """Minus the place."""
    return -candidates.place.astype(jnp.float32)


@member
class MaxProb(Score):
  """The probability of the best token (the confidence order of MaskGIT, arXiv 2202.04200)."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The log-probability of the best token, nats."""
    return jnp.max(candidates.log_p, axis=-1)


@member
class Margin(Score):
  """The probability of the best token minus that of the second best (arXiv 2502.06768)."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The difference of the two probabilities."""
    best_two = jnp.exp(jax.lax.top_k(candidates.log_p, 2)[0])
    return best_two[..., 0] - best_two[..., 1]


@member
class Entropy(Score):
  """Minus the entropy of the distribution (Dream, arXiv 2508.15487)."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """Minus the entropy, nats."""
    return -entropy(candidates.log_p)


@member
class Likeliest(Score):
  """The id of the likeliest token: a statistic for revisions, no order."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The id, as a float."""
    return jnp.argmax(candidates.log_p, axis=-1).astype(jnp.float32)


SCORES = {
  "random": Random,
  "left_to_right": LeftToRight,
  "max_prob": MaxProb,
  "margin": Margin,
  "entropy": Entropy,
}

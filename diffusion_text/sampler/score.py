"""Scores: which waiting token is revealed first, and what a budget or a revision wants to know of a
prediction.

A score looks at the *distribution* at a position, never at the token drawn there: "the most
probable draws first" is biased at temperature > 0 even with a perfect network (tested on a toy
language). Choose, then draw.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import entropy
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_uniform
from diffusion_text.types import Keys


class Candidates(NamedTuple):
  """What a score sees of each token, [n] or [B, u].

  Attributes:
    keys: one per token, the same at every call of a window.
    place: int32, the place of the token in its window.
    log_p: [..., V], log p(token | text), normalised, before temperature and top_p; None for a score
      that does not read it.
  """

  keys: Keys
  place: Int[Array, "*n"]
  log_p: Any


class Score(Protocol):
  """A number per token; the highest are revealed first.

  Attributes:
    reads_logits: False if `log_p` is not read, so that the order is known before the network is
      asked.
  """

  reads_logits: bool

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The score of each token."""


@member
class Random:
  """A random order, drawn once per window."""

  reads_logits: ClassVar[bool] = False

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """A uniform number of the token's own."""
    return draw_uniform(candidates.keys)


@member
class LeftToRight:
  """The order of the text."""

  reads_logits: ClassVar[bool] = False

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """Minus the place."""
    return -candidates.place.astype(jnp.float32)


@member
class MaxProb:
  """The probability of the best token (the confidence order of MaskGIT, arXiv 2202.04200)."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The log-probability of the best token, nats."""
    return jnp.max(candidates.log_p, axis=-1)


@member
class Margin:
  """The probability of the best token minus that of the second best (arXiv 2502.06768)."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The difference of the two probabilities."""
    best_two = jnp.exp(jax.lax.top_k(candidates.log_p, 2)[0])
    return best_two[..., 0] - best_two[..., 1]


@member
class Entropy:
  """Minus the entropy of the distribution (Dream, arXiv 2508.15487)."""

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """Minus the entropy, nats."""
    return -entropy(candidates.log_p)


SCORES = {
  "random": Random,
  "left_to_right": LeftToRight,
  "max_prob": MaxProb,
  "margin": Margin,
  "entropy": Entropy,
}

"""Scores: which waiting token is revealed first, and what a budget or a revision wants to know of a
prediction.

A score looks at the *distribution* at a position, never at the token drawn there: "the most
probable draws first" is biased at temperature > 0 even with a perfect network (tested on a toy
language). Choose, then draw.
"""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_text.core.numerics import LEAST, at_ids, entropy, likeliest
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform
from diffusion_text.sampler.history import Averaged, Divergence
from diffusion_text.sampler.parts import Candidates, Score
from diffusion_text.types import Model

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import View


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
    return likeliest(candidates.log_p).astype(jnp.float32)


@member
class Density(Score):
  """The probability of the best token times the density of what is known around it (d2Cache, arXiv
  2509.23094; the kernel is that of its code).

  The density of a token is the share of known tokens, weighted by exp(-distance² / 2 width²). What
  stands left of the window counts as known; what stands right of the text does where the last token
  of the text is known.
  """

  width: float = option(10.0, "standard deviation of the kernel, tokens", gt=0)

  reads_logits: ClassVar[bool] = True

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The log-probability of the best token, nats."""
    return jnp.max(candidates.log_p, axis=-1)

  def across(self, view: View, said: Any) -> Float[Array, "B u"]:
    """The logarithm of the product, nats."""
    return said + jnp.log(jnp.maximum(self.density(view), LEAST))

  def density(self, view: View) -> Float[Array, "B u"]:
    """The density of what was known before the call, between 0 and 1."""
    size = view.waiting.shape[1]
    reach = math.ceil(8 * self.width)
    kernel = np.exp(-(np.arange(size + reach + 1) ** 2) / (2 * self.width**2))
    # beyond[d]: the weight of all places behind one that is d places away.
    beyond = np.concatenate([np.cumsum(kernel[::-1])[::-1][1:], [0.0]]).astype(np.float32)
    place = np.arange(size)
    near = kernel[np.abs(place[:, None] - place)].astype(np.float32)
    lengths = view.canvas.lengths[:, None]
    known = ~view.waiting & (place < lengths)
    last = jnp.any(known & (place == lengths - 1), axis=1, keepdims=True)
    right = jnp.asarray(beyond)[jnp.clip(lengths - 1 - place, 0, size)]
    here = jnp.matmul(known.astype(jnp.float32), near, precision=jax.lax.Precision.HIGHEST)
    return (here + beyond[place] + jnp.where(last, right, 0.0)) / (2 * kernel.sum() - 1)


@member
class Calibrated(Score):
  """exp(-decay · place) · min(-p · log f, clip), where p is the probability of the best token and f
  its share of a corpus: tokens that are sure and rare first, and those on the left (PC-Sampler,
  arXiv 2508.13021; the formula is that of its code).

  The place counts from the start of the window.
  """

  decay: float = option(0.25, "per token; 0 leaves places out", ge=0)
  clip: float = option(10.0, "largest confidence, nats", gt=0)
  counts: str | None = option(
    None, "a .npy file, int or float [V]: how often each token occurs. None: all equally often"
  )

  reads_logits: ClassVar[bool] = True

  def check(self, model: Model) -> None:
    """Raises ValueError for counts that are missing or of another vocabulary."""
    if self.counts is not None and not os.path.exists(self.counts):
      raise ValueError(
        f"score.counts={self.counts!r} does not exist; save the counts of all tokens there with"
        " numpy.save, or leave it out"
      )
    if self.counts is not None and _counts(self.counts).shape != (model.process.vocab_size,):
      raise ValueError(
        f"score.counts={self.counts!r} holds {_counts(self.counts).shape} numbers, and the"
        f" vocabulary {model.process.vocab_size}; count tokens of the same tokenizer"
      )

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The score."""
    log_p = candidates.log_p
    best = likeliest(log_p)
    size = log_p.shape[-1]
    counts = np.ones(size) if self.counts is None else _counts(self.counts)
    # A token that never occurs counts once.
    surprise = -np.log(np.maximum(counts, 1) / np.sum(counts)).astype(np.float32)
    confidence = jnp.exp(at_ids(log_p, best)) * jnp.asarray(surprise)[best]
    nearness = jnp.exp(-self.decay * candidates.place.astype(jnp.float32))
    return nearness * jnp.minimum(confidence, self.clip)


@functools.cache
def _counts(path: str) -> np.ndarray:
  return np.load(path)


SCORES = {
  "random": Random,
  "left_to_right": LeftToRight,
  "max_prob": MaxProb,
  "margin": Margin,
  "entropy": Entropy,
  "kl": Divergence,
  "averaged": Averaged,
  "density": Density,
  "calibrated": Calibrated,
}

"""Scores: which waiting token is revealed first, and what a budget or a revision wants to know of a
prediction.

A score looks at the *distribution* at a position, never at the token drawn there: "the most
probable draws first" is biased at temperature > 0 even with a perfect network (tested on a toy
language). Choose, then draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import entropy, select
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_uniform
from diffusion_text.sampler.parts import Part
from diffusion_text.types import Keys

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View


class Candidates(NamedTuple):
  """What a score sees of each token, [n] or [B, u].

  Attributes:
    keys: one per token, the same at every call of a window.
    place: int32, the place of the token in its window.
    log_p: [..., V], log p(token | text), normalised, before temperature and top_p; None for a score
      that does not read it.
    told: what `Score.tells` says of the token: a tree of [n, …] or [B, u, …].
  """

  keys: Keys
  place: Int[Array, "*n"]
  log_p: Any
  told: Any = ()


class Score(Part):
  """A number per token; the highest are revealed first.

  A score is computed token by token, where the logits exist. What it must know of the row comes in
  by `tells`, what it remembers of a token goes out by `remember`, and `keep` sees all tokens again.

  Attributes:
    reads_logits: False if `log_p` is not read, so that the order is known before the network is
      asked.
  """

  reads_logits: ClassVar[bool]

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """The score of each token."""
    raise NotImplementedError

  def tells(self, view: View) -> Any:
    """What each token is told, [B, u, …]: its own memory, if nothing else is said."""
    return view.memory

  def remember(self, candidates: Candidates) -> Any:
    """What is to be remembered of each token, a tree like the memory: [n, …]."""
    return ()

  def keep(self, view: View, proposal: Proposal, remembered: Any) -> Any:
    """The memory after a call: what is `remembered` [B, u, …] of the tokens that were answered."""
    return select(view.answered, remembered, view.memory)


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


SCORES = {
  "random": Random,
  "left_to_right": LeftToRight,
  "max_prob": MaxProb,
  "margin": Margin,
  "entropy": Entropy,
}

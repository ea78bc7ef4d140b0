"""What scores, budgets and revisions have in common: a memory from call to call, and calls of their
own. And what a score is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import select
from diffusion_text.types import Canvas, Keys, Model, Params

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View


class Part:
  """The base of the parts of `Reveal`, for a part that remembers nothing and asks no network.

  The memory of a part is a pytree of arrays of fixed shapes, one entry per token [B, u, …] or per
  row [B, …]. `()` costs nothing.

  Attributes:
    extra_calls: network calls that the part makes itself at each step (a scorer, a second reading).
  """

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that the part does not work with."""

  def init(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """The memory before the first call of a window."""
    return ()


class Candidates(NamedTuple):
  """What a score sees of each token, [n] or [B, u].

  Attributes:
    keys: one per token, the same at every call of a window.
    place: int32, the place of the token in its window.
    log_p: [..., V], log p(token | text), normalised, before temperature, top_k and top_p; None for
      a score that does not read it.
    memory: the score's own memory of the token, a tree of [n, …] or [B, u, …].
  """

  keys: Keys
  place: Int[Array, "*n"]
  log_p: Any
  memory: Any = ()


class Score(Part):
  """A number per token; the highest are revealed first.

  A score is computed token by token, where the logits exist, and so is what it remembers of the
  token. `across` and `keep` see the whole window afterwards. The memory of a score has one entry
  per token.

  Attributes:
    reads_logits: False if `log_p` is not read, so that the order is known before the network is
      asked.
  """

  reads_logits: ClassVar[bool]

  def __call__(self, candidates: Candidates) -> Any:
    """The score of each token [n], or a tree of what `across` makes it of."""
    raise NotImplementedError

  def across(self, view: View, said: Any) -> Float[Array, "B u"]:
    """The score of each token, from what was said of all [B, u]; `view.memory` is the score's own.

    Zeros stand where a token was not answered.
    """
    return said

  def remember(self, candidates: Candidates) -> Any:
    """What is to be remembered of each token, a tree like the memory: [n, …]."""
    return ()

  def keep(self, view: View, proposal: Proposal, remembered: Any) -> Any:
    """The memory after a call: what is `remembered` [B, u, …] of the tokens that were answered."""
    return select(view.answered, remembered, view.memory)


def best(
  score: Float[Array, "B u"], among: Bool[Array, "B u"], count: Int[Array, " B"]
) -> Bool[Array, "B u"]:
  """True at the `count` tokens of each row that score highest among those that are; ties go to the
  left. A score that is no number counts as the lowest, so that a row is done in any case.
  """
  score = jnp.where(among & ~jnp.isnan(score), score, -jnp.inf)
  size = score.shape[1]
  rising = jnp.sort(score, axis=1)
  last = size - jnp.clip(count, 1, size)[:, None]  # the place of the least that is chosen
  least = jnp.take_along_axis(rising, last, axis=1)
  above, level = among & (score > least), among & (score == least)
  rest = count[:, None] - jnp.sum(above, axis=1, keepdims=True)
  return above | (level & (jnp.cumsum(level, axis=1) <= rest))


def at_least_one(chosen: Bool[Array, "B u"], eligible: Bool[Array, "B u"]) -> Bool[Array, "B u"]:
  """True at the chosen tokens among the eligible ones, and at the leftmost eligible token of a row
  in which none is chosen: without it, the row would never be done.
  """
  chosen = chosen & eligible
  first = eligible & (jnp.cumsum(eligible, axis=1) == 1)
  return chosen | (first & ~jnp.any(chosen, axis=1, keepdims=True))

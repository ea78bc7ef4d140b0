"""Budgets: how many of the waiting tokens, and which, become text at a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.sampler.parts import Part, Score
from diffusion_text.sampler.score import MaxProb

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View


class Budget(Part):
  """Which waiting tokens are committed; at least one in a row where any token waits, or the row is
  never done.

  Attributes:
    reads_logits: False if the choice follows from the scores alone.
    statistics: name -> what `Proposal.statistics` must hold under that name.
  """

  reads_logits: ClassVar[bool]
  statistics: ClassVar[Mapping[str, Score]] = {}

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """True where a token is committed. waiting: the tokens that wait and were answered by this
    call.
    """
    raise NotImplementedError

  def keep(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Any:
    """The memory after a call that committed these tokens; `view.memory` is the one before it."""
    return ()


def best(
  score: Float[Array, "B u"], among: Bool[Array, "B u"], count: Int[Array, " B"]
) -> Bool[Array, "B u"]:
  """True at the `count` tokens of each row that score highest among those that are; ties go to the
  left.
  """
  order = jnp.argsort(jnp.where(among, -score, jnp.inf), axis=1, stable=True)
  rank = jnp.argsort(order, axis=1)
  return among & (rank < count[:, None])


def even_share(steps: int, total: Int[Array, " B"], step: Int[Array, " B"]) -> Int[Array, " B"]:
  """The tokens of each row's `total` that an even share per call has committed once the call number
  `step` is over; what does not divide evenly goes to the first calls.
  """
  calls = jnp.maximum(jnp.minimum(steps, total), 1)
  made = jnp.minimum(step + 1, calls)
  return total // calls * made + jnp.minimum(made, total % calls)


@member
class EvenShare(Budget):
  """An even share of each row's tokens per call, so that a row is done after min(steps, tokens)
  calls. What does not divide evenly goes to the first calls, one token each (LLaDA): 10 tokens in
  4 calls are 3, 3, 2, 2.

  One token per call is exact for every score at temperature 1; more per call trades calls for
  dependence errors, and the most confident positions tend to be neighbours.
  """

  steps: int = option(64, "most calls; a row of fewer tokens makes one call per token", ge=1)

  reads_logits: ClassVar[bool] = False

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The best tokens, as many as are behind the even share."""
    target = even_share(self.steps, view.total, view.step)
    done = view.total - jnp.sum(view.waiting, axis=1)
    return best(proposal.score, waiting, jnp.maximum(target - done, 1))


@member
class Threshold(Budget):
  """All tokens whose best token is likely enough (Fast-dLLM, arXiv 2505.22618), and the best scored
  one in any case.
  """

  least: float = option(
    0.9, "probability of the best token from which on it is committed", gt=0, le=1
  )

  reads_logits: ClassVar[bool] = True
  statistics: ClassVar[Mapping[str, Score]] = {"max_prob": MaxProb()}

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The likely tokens, and the best one."""
    likely = waiting & (jnp.exp(proposal.statistics["max_prob"]) >= self.least)
    return likely | best(proposal.score, waiting, jnp.ones_like(view.total))


BUDGETS = {"even_share": EvenShare, "threshold": Threshold}

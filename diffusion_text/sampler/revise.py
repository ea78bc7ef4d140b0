"""Revisions: what becomes of tokens that are not committed at a call, or that were committed
before.

All is one action: token i becomes a draw of q(z_level | ids_i). Level 1 takes a token back to
noise, level 0 replaces it, and what lies between renoises a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, streams
from diffusion_text.sampler.parts import Part

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View


class Change(NamedTuple):
  """Where the text changes, and to what: a draw of `corrupt(clean(ids), level)`. A token at a level
  above 0 waits.

  Attributes:
    where: bool [B, u].
    ids: int32 [B, u].
    level: float32 [B, u], the time of each token after the change.
    memory: the revision's own, after the call.
  """

  where: Bool[Array, "B u"]
  ids: Int[Array, "B u"]
  level: Float[Array, "B u"]
  memory: Any = ()


class Revision(Part):
  """What happens at a call in addition to the commitment.

  Attributes:
    reads: whose candidates it reads: "committed" (of no other token), "waiting" or "active" (of
      visible tokens too).
    levels_between: True if tokens are left at levels between 0 and 1, which the network must then
      read as its times.
  """

  reads: ClassVar[Literal["committed", "waiting", "active"]]
  levels_between: ClassVar[bool]

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """The change. committed: the tokens that this call commits."""
    raise NotImplementedError


@member
class Remask(Revision):
  """Visible tokens go back to noise with a fixed probability, in the first calls only, so that the
  text ends clean.

  With a network that is right the law is kept where one token at a time is drawn and tokens are
  independent; otherwise taking tokens back repairs errors of the network and adds dependence
  errors. `Remasking` keeps the marginals of the process instead.
  """

  probability: float = option(0.05, "of each visible token, per call", ge=0, le=1)
  calls: int = option(32, "the first calls of a window, at which tokens are taken back", ge=0)

  reads: ClassVar[str] = "committed"
  levels_between: ClassVar[bool] = False

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """Some of the tokens that were visible before this call, at level 1."""
    visible = view.canvas.active & ~view.waiting
    chosen = draw_uniform(streams(view.keys, "remask")) < self.probability
    where = visible & chosen & (view.step < self.calls)[:, None]
    return Change(where, proposal.ids, jnp.ones(where.shape, jnp.float32))


@member
class RenoiseRest(Revision):
  """The tokens that wait on are noised again from their candidates, at a level that falls from call
  to call.

  So a continuous or uniform state comes nearer to the text while it waits, instead of staying at
  the prior.
  """

  steps: int = option(
    64, "calls over which the level falls from 1 to 1 / steps, where it stays", ge=2
  )

  reads: ClassVar[str] = "waiting"
  levels_between: ClassVar[bool] = True

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """Every waiting token that was answered and not committed, at the next level."""
    level = jnp.maximum(1 - (view.step + 1) / self.steps, 1 / self.steps).astype(jnp.float32)
    where = view.waiting & view.answered & ~committed
    return Change(where, proposal.ids, jnp.broadcast_to(level[:, None], where.shape))


REVISIONS = {"remask": Remask, "renoise_rest": RenoiseRest}

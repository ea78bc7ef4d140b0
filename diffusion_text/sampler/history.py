"""Scores that remember the distributions of earlier calls: their change and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import LEAST, NEVER, entropy, select
from diffusion_text.core.options import member, option
from diffusion_text.sampler.parts import Candidates, Score, best
from diffusion_text.types import Canvas, Model, Params

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View

# Scores of tokens that a rule puts behind all others; small enough that float32 keeps their order.
_BEHIND = 100.0
# Likeliest tokens of an earlier distribution that are kept.
_TOKENS = 32


class _Last(NamedTuple):
  """The distribution of the call before: log_p [B, u, V], and whether there was one [B, u]."""

  log_p: Float[Array, "*n V"]
  known: Bool[Array, "*n"]


@member
class Divergence(Score):
  """Minus the change since the last call that answered the token: KL(now ‖ before), nats, at most
  100 (KLASS, arXiv 2511.05664, from a public re-implementation).

  A token that was answered for the first time stands behind all others, by its confidence. KLASS
  itself orders by confidence and asks for stability in its budget (`stable`). Memory: B·u·V floats.
  """

  reads_logits: ClassVar[bool] = True

  def init(self, model: Model, params: Params, canvas: Canvas) -> _Last:
    """Nothing known."""
    shape = canvas.active.shape
    return _Last(jnp.zeros((*shape, model.process.vocab_size)), jnp.zeros(shape, bool))

  def __call__(self, candidates: Candidates) -> Float[Array, "*n"]:
    """Minus the divergence, nats; below -200 at the first call."""
    log_p, last = candidates.log_p, candidates.memory
    change = jnp.where(log_p > NEVER, log_p - jnp.maximum(last.log_p, NEVER), 0.0)
    divergence = jnp.sum(jnp.exp(log_p) * change, axis=-1)
    divergence = jnp.clip(divergence, 0.0, _BEHIND)
    first = -2 * _BEHIND + jnp.maximum(jnp.max(log_p, axis=-1), -_BEHIND)
    return jnp.where(last.known, -divergence, first)

  def remember(self, candidates: Candidates) -> _Last:
    """The distribution."""
    return _Last(candidates.log_p, jnp.ones(candidates.place.shape, bool))


class _Buffer(NamedTuple):
  """Earlier calls, the latest first: ids and probabilities [B, u, calls, tokens] of the likeliest
  tokens, and whether the token was among the best of that call, [B, u, calls].
  """

  ids: Int[Array, "*n calls tokens"]
  probabilities: Float[Array, "*n calls tokens"]
  held: Bool[Array, "*n calls"]


@member
class Averaged(Score):
  """Minus the entropy of the mean of a token's distributions over the last calls (CCD, arXiv
  2512.02044).

  A buffer holds, for each of the last `calls` - 1 calls, the distributions of the `highest` tokens
  that ranked best at that call. The mean is over this call and those of the buffer. If the best
  token by this call's entropy is in the buffer, tokens of the buffer are revealed first, by the
  entropy of the mean; if not, and during the first `warm_up` calls, the order is that of `entropy`.
  With calls=1 it is that of `entropy` always.

  Of earlier distributions the 32 likeliest tokens are kept, and the mean is normalised again, which
  is exact up to 32 tokens. Texts change between calls, and averaging smooths over this change: with
  an exact network it can only mislead.
  """

  calls: int = option(2, "calls that are averaged, this one included", ge=1)
  highest: int = option(4, "tokens of each call that enter the buffer", ge=1)
  warm_up: int = option(0, "first calls of a window in the order of entropy", ge=0)

  reads_logits: ClassVar[bool] = True

  def init(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """An empty buffer."""
    if self.calls == 1:
      return ()
    shape = (*canvas.active.shape, self.calls - 1)
    tokens = min(_TOKENS, model.process.vocab_size)
    wide = (*shape, tokens)
    return _Buffer(jnp.zeros(wide, jnp.int32), jnp.zeros(wide), jnp.zeros(shape, bool))

  def __call__(self, candidates: Candidates) -> Any:
    """(minus the entropy of this call, minus that of the mean), nats."""
    now = -entropy(candidates.log_p)
    if self.calls == 1:
      return now
    return now, -entropy(_mean(candidates.log_p, candidates.memory))

  def across(self, view: View, said: Any) -> Float[Array, "B u"]:
    """The order, as the class describes it."""
    if self.calls == 1:
      return said
    now, mean = said
    eligible = view.waiting & view.answered
    held = jnp.any(view.memory.held, axis=-1) & eligible
    leader = best(now, eligible, jnp.ones_like(view.total))
    applies = jnp.any(leader & held, axis=1) & (view.step >= self.warm_up)
    averaged = jnp.where(held, mean, now - _BEHIND)
    return jnp.where(applies[:, None], averaged, now)

  def remember(self, candidates: Candidates) -> Any:
    """(the buffer with this call in front, minus the entropy of this call)."""
    if self.calls == 1:
      return ()
    last = candidates.memory
    log_p, ids = jax.lax.top_k(candidates.log_p, last.ids.shape[-1])
    buffer = _Buffer(
      _pushed(ids.astype(jnp.int32), last.ids),
      _pushed(jnp.exp(log_p), last.probabilities),
      _pushed(jnp.zeros(last.held.shape[:-1], bool), last.held),
    )
    return buffer, -entropy(candidates.log_p)

  def keep(self, view: View, proposal: Proposal, remembered: Any) -> Any:
    """The buffer, in which the best tokens of this call are held; none of a committed token."""
    if self.calls == 1:
      return ()
    buffer, now = remembered
    top = best(now, view.waiting & view.answered, jnp.full_like(view.total, self.highest))
    buffer = buffer._replace(held=buffer.held.at[..., 0].set(top))
    buffer = select(view.answered, buffer, view.memory)
    return buffer._replace(held=buffer.held & view.waiting[..., None])


def _pushed(new: Array, old: Array) -> Array:
  """`old` [n, calls, …] with the new call in front and the last one dropped."""
  return jnp.concatenate([new[:, None], old[:, :-1]], axis=1)


def _mean(log_p: Float[Array, "n V"], buffer: _Buffer) -> Float[Array, "n V"]:
  """Logits of the mean of this call's distribution and of those that are held."""
  shares = jnp.where(buffer.held[..., None], buffer.probabilities, 0.0)
  rows = jnp.arange(log_p.shape[0])[:, None, None]
  total = jnp.exp(log_p).at[rows, buffer.ids].add(shares)
  return jnp.log(jnp.maximum(total, LEAST))

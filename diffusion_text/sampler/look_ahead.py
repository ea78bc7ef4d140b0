"""Look-ahead: greedy decoding of one token after the other, whose next steps are guessed and then
verified together (FreeDave, arXiv 2510.00294).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option, part
from diffusion_text.sampler.budget import BUDGETS, Count, best
from diffusion_text.sampler.reveal import Proposal, Reveal, Waiting
from diffusion_text.sampler.second_reading import read_variants
from diffusion_text.types import Canvas, Model, Params, Prediction, Query, State


class Verified(NamedTuple):
  """What one-by-one decoding would commit next.

  Attributes:
    where: bool [B, u], the tokens.
    ids: int32 [B, u].
    log_prob: float32 [B, u], of each when it is committed.
  """

  where: Bool[Array, "B u"]
  ids: Int[Array, "B u"]
  log_prob: Array


@member
class LookAhead(Reveal):
  """The text of `reveal` at one token per call and temperature 0, with fewer readings one after the
  other.

  Each step commits one token as `reveal` does. Then it guesses that the next `depth` - 1 calls
  would commit the next best tokens of this call's proposal, and reads the `depth` texts that would
  come about, as rows of one batch. Where the first of them says what the guess says, its token is
  verified and the second one is real, and so on; the first that says otherwise still gives the next
  token. So a step commits between 2 and depth + 1 tokens, at 1 + depth network calls, of which
  `depth` run side by side: it saves time where a batch of rows costs little more than one, and
  costs calls always. The tokens are those of one-by-one decoding, up to rounding where two scores
  are equal.

  The verifying readings are of whole rows, without the loop's cache or guidance.
  """

  budget: Any = part(BUDGETS, Count(), "one token per call, of which this is a faster way")
  temperature: float = option(0.0, "must be 0, as draws cannot be verified", ge=0)
  depth: int = option(4, "texts that are read to verify the guesses of a step", ge=1)

  @property
  def extra_calls(self) -> int:
    """The verifying readings."""
    return self.depth

  def check(self, model: Model) -> None:
    """Raises ValueError for anything but greedy decoding of one token per call."""
    super().check(model)
    plain = (self.temperature, self.budget, self.revise) == (0, Count(), None)
    if not plain or self.end == "late" or self.stop_at_end:
      raise ValueError(
        f"sampler.name='look_ahead' verifies greedy decoding of one token per call, and this is"
        f" {self}; leave temperature, budget, revise, end and stop_at_end unset, or use"
        " sampler.name='reveal'"
      )

  def init(self, model: Model, params: Params, canvas: Canvas) -> Waiting:
    """Every token waits. Raises ValueError for an order that remembers earlier calls."""
    state = super().init(model, params, canvas)
    if jax.tree.leaves(state.memory):
      raise ValueError(
        f"sampler.score={self.score} remembers earlier calls, which look_ahead skips; use"
        " sampler.score.name='entropy' or 'max_prob'"
      )
    return state

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Waiting,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Waiting]:
    """The token of `reveal`, and those that are verified."""
    if prediction.fresh is not None or query.memory is not None:
      raise ValueError(
        "sampler.name='look_ahead' reads rows that no cache or self-conditioning has seen; use"
        " reader.name='whole_row'"
      )
    text, after = super().step(model, params, canvas, state, prediction, query, needs)
    view = self._view(model, params, canvas, state, needs)
    view = view._replace(query=query, prediction=prediction)
    proposal = self.propose(view, self.times_of(view))
    found = self._verified(view, proposal, text, after)
    where = found.where & jnp.any(needs, axis=1, keepdims=True)
    clean = model.process.clean(params["process"], found.ids)
    after = after._replace(
      waiting=after.waiting & ~where,
      level=jnp.where(where, 0.0, after.level),
      recorded=jnp.where(where, found.log_prob, after.recorded),
    )
    return select(where, clean, text), after

  def _verified(self, view, proposal: Proposal, text: State, after: Waiting) -> Verified:
    """The tokens that one-by-one decoding commits after `text`."""
    waiting, count = after.waiting, self.depth
    guessed = select(waiting, view.model.process.clean(view.params["process"], proposal.ids), text)
    firsts = [best(proposal.score, waiting, jnp.full_like(view.total, k)) for k in range(count + 1)]
    shown = jnp.stack(firsts[:-1])
    texts = jax.vmap(lambda known: select(known, guessed, text))(shown)
    rows, t = read_variants(view, texts, waiting & ~shown, jnp.where(shown, 0.0, after.level[None]))
    said = self.propose(rows, t)
    picked = best(said.score, rows.waiting, jnp.ones_like(rows.total))
    answers = (picked, said.ids, said.log_prob)
    picked, ids, log_prob = (leaf.reshape(count, *waiting.shape) for leaf in answers)
    going = jnp.ones(waiting.shape[:1], bool)
    found = Verified(jnp.zeros_like(waiting), jnp.zeros_like(ids[0]), jnp.zeros_like(log_prob[0]))
    for k in range(count):
      where = picked[k] & going[:, None]
      found = Verified(
        found.where | where,
        jnp.where(where, ids[k], found.ids),
        jnp.where(where, log_prob[k], found.log_prob),
      )
      guess = firsts[k + 1] & ~firsts[k]
      right = (picked[k] == guess) & (~guess | (ids[k] == proposal.ids))
      going &= jnp.all(right, axis=1)
    return found

"""Revisions: what becomes of tokens that are not committed at a call, or that were committed
before.

All is one action: token i becomes a draw of q(z_level | ids_i). Level 1 takes a token back to
noise, level 0 replaces it, and what lies between renoises a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import at_ids, select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, streams
from diffusion_text.reader.rows import window
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.budget import best, even_share
from diffusion_text.sampler.parts import Part
from diffusion_text.sampler.score import Entropy, Likeliest, MaxProb, Score
from diffusion_text.sampler.second_reading import read_variants
from diffusion_text.types import Canvas, Model, Params

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
    statistics: name -> what `Proposal.statistics` must hold under that name.
    visible_time: the time at which the network reads visible tokens, with `reads` "active". Most
      networks are trained at times above 0 only.
  """

  reads: ClassVar[Literal["committed", "waiting", "active"]]
  levels_between: ClassVar[bool] = False
  statistics: ClassVar[Mapping[str, Score]] = {}
  visible_time: ClassVar[float] = 0.0

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """The change. committed: the tokens that this call commits."""
    raise NotImplementedError

  def goes_on(self, memory: Any) -> Bool[Array, " B"] | bool:
    """True for rows that need another call although no token waits, with `reads` "active"."""
    return False


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


@member
class RunningConfidence(Revision):
  """The tokens of a row that were least sure when they were committed go back to noise, so that
  after each of `steps` calls an even share is visible (RCR, arXiv 2508.13148).

  With a budget that commits every waiting token (sampler.budget.name='even_share', steps=1) each
  call fills the whole window, and only what has been surest so far stays. The confidence is the
  probability of the token that was drawn, so the order seeks modes above temperature 0: on a chain
  at 8 calls texts are invalid 0.262 ± 0.019 of the time, where `confidence` has 0.809 ± 0.018, and
  their token entropy is half that of the data (`python -m experiments.decoders --chain=branchy`).
  """

  steps: int = option(64, "calls after which everything stays", ge=1)

  reads: ClassVar[str] = "committed"

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """The least sure of the visible tokens, at level 1."""
    visible = view.canvas.active & (~view.waiting | committed)
    recorded = jnp.where(committed, proposal.log_prob, view.recorded)
    kept = even_share(self.steps, view.total, view.step)
    excess = jnp.maximum(jnp.sum(visible, axis=1) - kept, 0)
    where = best(-recorded, visible, excess)
    return Change(where, proposal.ids, jnp.ones(where.shape, jnp.float32))


@member
class Edit(Revision):
  """Visible tokens are replaced where the network, reading all others, is sure of another token
  (the token-to-token edits of LLaDA 2.1).

  The network must have learned about wrong tokens (noise that is not all masks, or training on
  edits). When no token waits, a row goes on while its last call committed or edited something, for
  at most `calls` calls: the edits of a call do not see each other and may go back and forth.
  """

  least: float = option(0.9, "probability of another token from which on it is taken", gt=0, le=1)
  calls: int = option(16, "most calls of a window after its last token was committed", ge=0)
  read_at: float = option(0.01, "the time at which visible tokens are read", ge=0, le=1)

  reads: ClassVar[str] = "active"
  statistics: ClassVar[Mapping[str, Score]] = {"likeliest": Likeliest(), "max_prob": MaxProb()}

  @property
  def visible_time(self) -> float:
    """The option."""
    return self.read_at

  def init(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """(calls that each row has made with nothing waiting, whether its last call changed it)."""
    return jnp.zeros_like(canvas.call), jnp.zeros(canvas.call.shape, bool)

  def goes_on(self, memory: Any) -> Bool[Array, " B"]:
    """True while calls change something and some are left."""
    made, changed = memory
    return changed & (made < self.calls)

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """The visible tokens that are replaced, at level 0."""
    visible = view.canvas.active & ~view.waiting & view.answered
    shown = view.model.process.decode(view.params["process"], view.canvas.state)
    likeliest = proposal.statistics["likeliest"].astype(jnp.int32)
    sure = proposal.statistics["max_prob"] >= math.log(self.least)
    where = visible & (likeliest != shown) & sure
    finished = ~jnp.any(view.waiting, axis=1) & jnp.any(view.answered, axis=1)
    memory = (view.memory[0] + finished, jnp.any(where | committed, axis=1))
    return Change(where, likeliest, jnp.zeros(where.shape, jnp.float32), memory)


@member
class Verify(Revision):
  """Visible tokens go back to noise where a second reading, without the token itself, gives it too
  little probability (the narrow-out half of WINO, arXiv 2507.18578).

  The `checks` tokens that were least sure when they were committed are read again, each in a copy
  of the row in which it alone is noise: `checks` network calls per step. (The published system
  reads all tokens of a block at once by shadow positions that see everything but one token, which
  the layouts here cannot say.) At most one token fewer than were committed goes back, so that each
  call makes progress.
  """

  least: float = option(0.9, "probability below which a token goes back", gt=0, le=1)
  checks: int = option(4, "tokens that are read again at each call", ge=1)

  reads: ClassVar[str] = "committed"

  @property
  def extra_calls(self) -> int:
    """One for each token that is read again."""
    return self.checks

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """The tokens that did not pass, at level 1."""
    process, of_process, canvas = view.model.process, view.params["process"], view.canvas
    clean = process.clean(of_process, proposal.ids)
    text = select(committed, clean, canvas.state)
    recorded = jnp.where(committed, proposal.log_prob, view.recorded)
    waiting = view.waiting & ~committed
    level = jnp.where(committed, 0.0, view.level)
    visible = canvas.active & ~waiting
    noise = window(view.query.noise, view.query.start, waiting.shape[1])
    doubtful = jnp.argsort(jnp.where(visible, recorded, jnp.inf), axis=1, stable=True)
    place = jnp.arange(waiting.shape[1])
    count = min(self.checks, waiting.shape[1])
    one = jnp.stack([doubtful[:, k, None] == place for k in range(count)]) & visible
    texts = jax.vmap(lambda hidden: select(hidden, noise, text))(one)
    rows, t = read_variants(view, texts, waiting | one, jnp.where(one, 1.0, level))
    hidden = one.reshape(-1, one.shape[-1])
    ids = process.decode(of_process, jnp.concatenate([text] * count))

    def chance(of_process, output, state, t, ids):
      return at_ids(process.posterior(of_process, state, t, output), ids)

    leaves = (rows.canvas.state, t, ids)
    said = on_tokens(view.model, view.params, rows.prediction, hidden, chance, *leaves, few=True)
    said = jnp.sum(jnp.where(one, said.reshape(one.shape), 0.0), axis=0)
    failed = jnp.any(one, axis=0) & (said < math.log(self.least))
    most = jnp.maximum(jnp.sum(committed, axis=1) - 1, 0)
    where = best(-said, failed, most)
    return Change(where, proposal.ids, jnp.ones(where.shape, jnp.float32))


@member
class Reselect(Revision):
  """At every call the budget chooses anew among all tokens of the window: what it chooses shows its
  draw, all else becomes noise again (the sampler of DiffusionGemma, for uniform noise; its budget
  is 'entropy_bound').

  A row is done when the mean entropy of its predictions is below `settled` and the likeliest tokens
  are those of the call before, or after `steps` calls; then each token is the likeliest one. With
  masks in place of uniform noise the network is asked about visible tokens, too.
  """

  steps: int = option(48, "most calls", ge=1)
  settled: float = option(0.005, "mean entropy below which a row may be done, nats", ge=0)
  read_at: float = option(0.01, "the time at which visible tokens are read", ge=0, le=1)

  reads: ClassVar[str] = "active"
  statistics: ClassVar[Mapping[str, Score]] = {"entropy": Entropy(), "likeliest": Likeliest()}

  @property
  def visible_time(self) -> float:
    """The option."""
    return self.read_at

  def init(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """The likeliest tokens of the call before; none yet."""
    return jnp.full(canvas.active.shape, -1, jnp.int32)

  def __call__(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Change:
    """Every token of the window: at level 0 if it was chosen, at level 1 otherwise."""
    active = view.canvas.active & view.answered
    likeliest = proposal.statistics["likeliest"].astype(jnp.int32)
    total = jnp.sum(jnp.where(active, -proposal.statistics["entropy"], 0.0), axis=1)
    sure = total < self.settled * jnp.maximum(jnp.sum(active, axis=1), 1)
    same = jnp.all((likeliest == view.memory) | ~active, axis=1)
    last = ((sure & same) | (view.step >= self.steps - 1))[:, None]
    budget = view.sampler.budget
    if jax.tree.leaves(budget.init(view.model, view.params, view.canvas)):
      raise ValueError(
        f"sampler.revise.name='reselect' asks {budget} about tokens that were committed, and it"
        " remembers earlier calls; use budget.name='entropy_bound' or 'threshold'"
      )
    chosen = budget(view._replace(memory=()), proposal, active)
    ids = jnp.where(last, likeliest, proposal.ids)
    level = jnp.where(chosen | last, 0.0, 1.0)
    return Change(active, ids, level, jnp.where(active, likeliest, view.memory))


REVISIONS = {
  "remask": Remask,
  "renoise_rest": RenoiseRest,
  "running_confidence": RunningConfidence,
  "edit": Edit,
  "verify": Verify,
  "reselect": Reselect,
}

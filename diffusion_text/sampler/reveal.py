"""Revealing: tokens wait until a score and a budget choose them, then they are drawn; a revision
may send them back.

  score    (each token's distribution) -> a number; the highest are revealed first
  budget   (view, proposal, waiting) -> bool [B, u]: the tokens that are committed at this call
  draw     bans, temperature, top_k and top_p of the draw
  avoid    pairs of neighbours that are not written
  revise   (view, proposal, committed) -> Change: what becomes of other tokens
  end      which ends of text may be committed, and whether a row stops behind one

Scores, budgets and revisions may remember what they like from call to call (`sampler.parts`).

Which tokens wait, and at which level of noise, lives in the sampler's own state: the text itself
shows that for masks only. So one sampler serves every process. The logits of a token are computed
once per call, and where neither score nor budget reads them, only for the tokens that are
committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import at_ids, likeliest, select
from diffusion_text.core.options import member, option, part
from diffusion_text.core.prng import draw_categorical, fold, streams
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.avoided import AVOIDED
from diffusion_text.sampler.budget import BUDGETS, EvenShare
from diffusion_text.sampler.ends import behind_end, may_end
from diffusion_text.sampler.lost_tokens import need_schedule
from diffusion_text.sampler.parts import Candidates, Part, Score, at_least_one
from diffusion_text.sampler.revise import REVISIONS
from diffusion_text.sampler.score import SCORES, Entropy
from diffusion_text.sampler.transform import LogitsTransform, without, without_own
from diffusion_text.schedules.discrete import time_of
from diffusion_text.types import Canvas, Keys, Model, Params, Prediction, Process, Query, State


class Memory(NamedTuple):
  """What the parts remember from call to call: `()` for each that remembers nothing.

  Attributes:
    scores: one entry per distinct score among the order and the statistics of the budget.
    budget, revise: of these parts.
  """

  scores: tuple[Any, ...]
  budget: Any
  revise: Any


class Waiting(NamedTuple):
  """The state of `Reveal`.

  Attributes:
    waiting: bool [B, u], tokens that are not committed.
    level: float32 [B, u], the time at which each token stands: 0 where it is committed.
    total: int32 [B], the tokens that are to be generated.
    step: int32 [B], the sampler's own steps so far.
    recorded: float32 [B, u], the log-probability of each committed token when it was committed,
      before temperature and top_p; 0 of others.
    memory: of the parts.
  """

  waiting: Bool[Array, "B u"]
  level: Float[Array, "B u"]
  total: Int[Array, " B"]
  step: Int[Array, " B"]
  recorded: Float[Array, "B u"]
  memory: Memory


class Proposal(NamedTuple):
  """What one pass over the logits says of the tokens that were answered; zeros elsewhere.

  Attributes:
    score: float32 [B, u].
    ids: int32 [B, u], a draw for each token; the likeliest one for the budget, where no part reads
      draws of tokens that are not committed (`Reveal.draws_all`).
    log_prob: float32 [B, u], its log-probability before temperature, top_k and top_p.
    statistics: name -> [B, u], what budget and revision have asked for.
    remembered: one tree [B, u, …] per distinct score, what it wants to remember of each token.
  """

  score: Float[Array, "B u"]
  ids: Int[Array, "B u"]
  log_prob: Float[Array, "B u"]
  statistics: Mapping[str, Any]
  remembered: tuple[Any, ...] = ()


class View(NamedTuple):
  """What a budget and a revision see in addition to the proposal.

  Attributes:
    sampler: the `Reveal` that asks.
    model, params: the model, for those that ask a network themselves or noise tokens.
    canvas: the window, before the step.
    keys: [B, u], keys of this step.
    waiting: bool [B, u], tokens that were waiting before the step.
    answered: bool [B, u], tokens whose candidates are known.
    level: float32 [B, u], the time of each token before the step.
    total: int32 [B], the tokens that are to be generated.
    step: int32 [B], the number of the step.
    recorded: float32 [B, u], the log-probability of each committed token when it was committed; 0
      of others.
    memory: of the part that is asked.
    query, prediction: the question and its answer; None where the choice is made before the network
      is asked.
  """

  sampler: Reveal
  model: Model
  params: Params
  canvas: Canvas
  keys: Keys
  waiting: Bool[Array, "B u"]
  answered: Bool[Array, "B u"]
  level: Float[Array, "B u"]
  total: Int[Array, " B"]
  step: Int[Array, " B"]
  recorded: Float[Array, "B u"]
  memory: Any = ()
  query: Query | None = None
  prediction: Prediction | None = None


@member
class Reveal:
  """Score, budget, draw, revision (MaskGIT, arXiv 2202.04200; LLaDA, arXiv 2502.09992; and most
  decoders since).
  """

  score: Any = part(SCORES, Entropy(), "which tokens are revealed first")
  budget: Any = part(BUDGETS, EvenShare(), "how many are revealed at a call")
  temperature: float = option(1.0, "of the draw; 0 takes the likeliest token", ge=0)
  cooling: tuple[float, int] | None = option(
    None,
    "(temperature, calls): the temperature falls evenly to this one over so many calls of a window,"
    " and stays; DiffusionGemma goes from 0.8 to 0.4 over 48. None: it stays as it is",
  )
  top_p: float = option(1.0, "share of the probability that is kept; 1 keeps all", gt=0, le=1)
  top_k: int | None = option(None, "likeliest tokens that are kept; None keeps all", ge=1)
  banned: tuple[int, ...] = option((), "ids that are never drawn, such as those of special tokens")
  repetition_penalty: float = option(
    0.0, "taken from the log-probability of the left neighbour's id, where it is known; nats", ge=0
  )
  avoid: Any = part(AVOIDED, None, "pairs of neighbours that are not written; None: any are")
  revise: Any = part(REVISIONS, None, "what becomes of other tokens; None: nothing")
  end_id: int | None = option(None, "the id of the end of text, where an option asks for it", ge=0)
  end: Literal["free", "banned", "late"] = option(
    "free",
    "'free': an end of text is a token like any other; 'banned': it is never drawn; 'late': it is"
    " committed only where nothing before it waits",
  )
  stop_at_end: bool = option(
    False,
    "whether a row is done once an end of text and all before it are committed; the rest of the"
    " window is then filled with it",
  )
  told: Literal["shared", "own"] | None = option(
    None,
    "the times that the network reads: 'shared', for every token the time at which as many tokens"
    " wait; 'own', its own level for each. None: 'shared' with a mask, 'own' without",
  )

  @property
  def extra_calls(self) -> int:
    """Those of its parts."""
    return sum(each.extra_calls for each in self._parts)

  def check(self, model: Model) -> None:
    """Raises ValueError where the network could not read the times that it needs, and where a part
    does not work with the model.
    """
    for each in self._parts:
      each.check(model)
    self._check_ids(model.process.vocab_size)
    if self.cooling is not None and not (
      self.temperature > 0 and self.cooling[0] > 0 and self.cooling[1] >= 1
    ):
      raise ValueError(
        f"sampler.cooling={self.cooling} from temperature={self.temperature} needs temperatures"
        " above 0 and a call at least; (0.4, 48) from 0.8 is usual"
      )
    if not self._own_times(model):
      if self.revise is not None and self.revise.levels_between:
        raise ValueError(
          f"sampler.told='shared' hides the levels that {type(self.revise).__name__} leaves tokens"
          " at; use sampler.told='own'"
        )
      need_schedule(model.process, "sampler.told='shared'", "use sampler.told='own'")

  def _check_ids(self, vocab_size: int) -> None:
    """Raises ValueError for ids that the vocabulary does not have, or leaves nothing to draw."""
    asked = self.end != "free" or self.stop_at_end
    if asked and self.end_id is None:
      raise ValueError(
        f"sampler.end={self.end!r} and stop_at_end={self.stop_at_end} need the id of the end of"
        " text; set sampler.end_id"
      )
    wrong = [id for id in (*self.banned, *self._ends) if not 0 <= id < vocab_size]
    if wrong:
      raise ValueError(
        f"sampler.banned={self.banned}, end_id={self.end_id}: {wrong[0]} is no id of a vocabulary"
        f" of {vocab_size}; a mask needs no ban, as it is never drawn"
      )
    if len(set(self._bans)) >= vocab_size:
      raise ValueError(f"sampler.banned={self.banned} bans all {vocab_size} tokens; leave one")
    if self.stop_at_end and self._reads == "active":
      raise ValueError(
        f"sampler.stop_at_end fills the rest of a window, which {self.revise} would edit again;"
        " leave it out and end rows by --stop_at_end, or sample(…, end_id=…)"
      )
    if self.end == "late" and self.end_id in self.banned:
      raise ValueError(
        f"sampler.end='late' waits for the id {self.end_id}, which is banned; use end='banned'"
      )

  def init(self, model: Model, params: Params, canvas: Canvas) -> Waiting:
    """Every token waits, at the level of the prior."""
    active = canvas.active
    memory = Memory(
      scores=tuple(score.init(model, params, canvas) for score in self._scores),
      budget=self.budget.init(model, params, canvas),
      revise=() if self.revise is None else self.revise.init(model, params, canvas),
    )
    return Waiting(
      waiting=active,
      level=active.astype(jnp.float32),
      total=jnp.sum(active, axis=1),
      step=jnp.zeros_like(canvas.call),
      recorded=jnp.zeros(active.shape, jnp.float32),
      memory=memory,
    )

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Waiting
  ) -> Bool[Array, "B u"]:
    """The waiting tokens; those alone that will be committed where they are known beforehand."""
    if self._reads == "active":
      open_row = jnp.any(state.waiting, axis=1) | self.revise.goes_on(state.memory.revise)
      return canvas.active & open_row[:, None]
    if self._reads == "waiting":
      return state.waiting
    view = self._view(model, params, canvas, state, state.waiting)
    of_score = view._replace(memory=state.memory.scores[0])
    seen = self._candidates(canvas)._replace(memory=of_score.memory)
    score = self.score.across(of_score, self.score(seen))
    nothing = jnp.zeros(score.shape, jnp.int32)
    view = view._replace(memory=state.memory.budget)
    chosen = self.budget(view, Proposal(score, nothing, score, {}), state.waiting)
    return at_least_one(chosen, state.waiting)

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Waiting
  ) -> Float[Array, "B u"]:
    """The times that the network reads (the option `told`)."""
    return self.times_of(self._view(model, params, canvas, state, state.waiting))

  def times_of(self, view: View) -> Float[Array, "B u"]:
    """The times that the network reads of a window as the view describes it."""
    least = 0.0 if self._reads != "active" else self.revise.visible_time
    rounded = view.model.process.round_time
    if self._own_times(view.model):
      return rounded(jnp.maximum(view.level, least))
    share = jnp.sum(view.waiting, axis=1) / jnp.maximum(view.total, 1)
    t = jnp.maximum(time_of(view.model.process.schedule, 1 - share), least)
    return jnp.broadcast_to(rounded(t)[:, None], view.level.shape)

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Waiting
  ) -> Float[Array, "B u"]:
    """Those of `times`."""
    return self.times(model, params, canvas, state)

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
    """Commits what the budget chooses, then revises."""
    answered = needs if prediction.fresh is None else needs & prediction.fresh
    view = self._view(model, params, canvas, state, answered)
    view = view._replace(query=query, prediction=prediction)
    t = self.times(model, params, canvas, state)
    proposal = self.propose(view, t)
    eligible = state.waiting & answered
    if self.end == "late":
      eligible &= may_end(proposal.ids, self.end_id, state.waiting, canvas.segment)
    of_budget = view._replace(memory=state.memory.budget)
    committed = at_least_one(self.budget(of_budget, proposal, eligible), eligible)
    if not self.draws_all:
      ids, log_prob = self._drawn(view, t, committed)
      proposal = proposal._replace(ids=ids, log_prob=log_prob)
    if self.avoid is not None:
      committed &= ~self.avoid.taken_back(view, proposal.ids, proposal.log_prob, committed)
    text = select(committed, model.process.clean(params["process"], proposal.ids), canvas.state)
    state = state._replace(
      waiting=state.waiting & ~committed,
      level=jnp.where(committed, 0.0, state.level),
      step=state.step + jnp.any(needs, axis=1),
      recorded=jnp.where(committed, proposal.log_prob, state.recorded),
      memory=state.memory._replace(
        scores=self._keep(view, proposal), budget=self.budget.keep(of_budget, proposal, committed)
      ),
    )
    if self.revise is not None:
      view = view._replace(memory=state.memory.revise)
      text, state = self._revised(view, proposal, committed, text, state)
    return self._ended(view, text, state) if self.stop_at_end else (text, state)

  def _ended(self, view: View, text: State, state: Waiting) -> tuple[State, Waiting]:
    """The text and the state, with ends of text behind one that closes its row."""
    process, of_process, canvas = view.model.process, view.params["process"], view.canvas
    ids = process.decode(of_process, text)
    rest = behind_end(ids, self.end_id, state.waiting, canvas.active, canvas.segment)
    ends = process.clean(of_process, jnp.full_like(ids, self.end_id))
    state = state._replace(waiting=state.waiting & ~rest, level=jnp.where(rest, 0.0, state.level))
    return select(rest, ends, text), state

  def _revised(self, view: View, proposal, committed, text, state) -> tuple[State, Waiting]:
    """The text and the state after the revision."""
    process, of_process = view.model.process, view.params["process"]
    change = self.revise(view, proposal, committed)
    where = change.where & view.canvas.active & jnp.any(view.answered, axis=1, keepdims=True)
    clean = process.clean(of_process, change.ids)
    noised = process.corrupt(of_process, streams(view.keys, "revise"), clean, change.level)
    waits = change.level > 0
    state = state._replace(
      waiting=jnp.where(where, waits, state.waiting),
      level=jnp.where(where, change.level, state.level),
      recorded=jnp.where(where, jnp.where(waits, 0.0, proposal.log_prob), state.recorded),
      memory=state.memory._replace(revise=change.memory),
    )
    return select(where, noised, text), state

  def propose(self, view: View, t: Float[Array, "B u"]) -> Proposal:
    """The proposal for the answered tokens, which the network read at the times t, by one pass over
    their logits. `view.memory` is that of the scores.

    A visible token is predicted from all others (the leave-one-out law), as it would otherwise
    propose itself.
    """
    canvas, scores = view.canvas, self._scores
    law, draw = self._law(view.model.process), self._draw

    def one(of_process, output, of_law, of_draw, seen, memories):
      log_p = law(of_process, output, *of_law)
      ids = draw(log_p, *of_draw) if self.draws_all else likeliest(log_p)
      each = [seen._replace(log_p=log_p, memory=memory) for memory in memories]
      said = tuple(score(own) for score, own in zip(scores, each, strict=True))
      remembered = tuple(score.remember(own) for score, own in zip(scores, each, strict=True))
      return ids, at_ids(log_p, ids), said, remembered

    rows = (*self._leaves(view, t), self._candidates(canvas), view.memory)
    few = self._reads == "committed"
    ids, log_prob, said, remembered = on_tokens(
      view.model, view.params, view.prediction, view.answered, one, *rows, few=few
    )
    each = zip(self._each_score(view), said, strict=True)
    value = {score: score.across(own, what) for (score, own), what in each}
    statistics = {name: value[score] for name, score in self._statistics.items()}
    return Proposal(value[self.score], ids, log_prob, statistics, remembered)

  def _drawn(
    self, view: View, t: Float[Array, "B u"], where: Bool[Array, "B u"]
  ) -> tuple[Int[Array, "B u"], Float[Array, "B u"]]:
    """(the draws of the tokens in question, their log-probabilities); zeros elsewhere."""
    law, draw = self._law(view.model.process), self._draw

    def one(of_process, output, of_law, of_draw):
      log_p = law(of_process, output, *of_law)
      ids = draw(log_p, *of_draw)
      return ids, at_ids(log_p, ids)

    rows = self._leaves(view, t)
    return on_tokens(view.model, view.params, view.prediction, where, one, *rows, few=True)

  def _law(self, process: Process) -> Callable[..., Float[Array, "n V"]]:
    """(process params, output, state, t, left neighbour, ids that it must not be) ->
    log-probabilities [n, V] of tokens.
    """
    predicted = process.leave_one_out if self._reads == "active" else process.posterior

    def law(of_process, output, state, t, left, avoided):
      log_p = predicted(of_process, state, t, output)
      log_p = without(log_p, self._bans, self.repetition_penalty, left)
      return log_p if avoided is None else without_own(log_p, avoided)

    return law

  def _draw(
    self, log_p: Float[Array, "n V"], keys: Keys, heat: Float[Array, " n"] | None
  ) -> Int[Array, " n"]:
    """A draw of each token, int32 [n]."""
    if self.temperature == 0:  # a draw among one token would cost a random number for each of V
      return likeliest(log_p)
    temperature = self.temperature
    if heat is not None:
      log_p, temperature = log_p / heat[:, None], 1.0
    transform = LogitsTransform(temperature, self.top_p, self.top_k)
    return draw_categorical(streams(keys, "token"), transform(log_p))

  def _leaves(self, view: View, t: Float[Array, "B u"]) -> tuple[Any, Any]:
    """(what the law reads of each token, what its draw reads)."""
    left = self._left(view) if self.repetition_penalty else None
    avoided = None if self.avoid is None else self.avoid.ids(view)
    heat = self.heat(view) if self.cooling is not None else None
    return (view.canvas.state, t, left, avoided), (view.keys, heat)

  @property
  def draws_all(self) -> bool:
    """Whether every answered token is drawn before the budget chooses, as where something reads the
    draws of tokens that are not committed. Otherwise `Proposal.ids` are the likeliest tokens until
    the choice is made, and the committed tokens alone are drawn: V random numbers for each.
    """
    revises = self.revise is not None and self.revise.reads != "committed"
    read = revises or self.budget.reads_draws or self.end == "late"
    return read or self.temperature == 0 or self._reads == "committed"

  def heat(self, view: View) -> Float[Array, "B u"]:
    """The temperature of each token's draw at this call, with `cooling`."""
    last, calls = self.cooling
    share = jnp.minimum(view.step / max(calls - 1, 1), 1.0)
    heat = self.temperature + (last - self.temperature) * share
    return jnp.broadcast_to(heat[:, None], view.waiting.shape)

  def _left(self, view: View) -> Int[Array, "B u"]:
    """The id of each token's left neighbour in its document; -1 where it waits or is none."""
    process, canvas, query = view.model.process, view.canvas, view.query
    ids = process.decode(view.params["process"], canvas.state)
    ids = jnp.where(view.waiting, -1, ids)
    before = process.decode(view.params["process"], query.state)
    before = jnp.take(before, jnp.maximum(query.start - 1, 0), axis=1)
    before = jnp.where(query.start > 0, before, -1)
    left = jnp.concatenate([before[:, None], ids[:, :-1]], axis=1)
    if canvas.segment is None:
      return left
    # What stands before the window is of the first token's document, or the neighbour is not known.
    same = canvas.segment[:, 1:] == canvas.segment[:, :-1]
    return jnp.where(jnp.pad(same, ((0, 0), (1, 0))), left, -1)

  def _keep(self, view: View, proposal: Proposal) -> tuple[Any, ...]:
    """What the scores remember after the call."""
    each = zip(self._each_score(view), proposal.remembered, strict=True)
    return tuple(score.keep(own, proposal, remembered) for (score, own), remembered in each)

  def _each_score(self, view: View) -> list[tuple[Score, View]]:
    """Each distinct score, and the view with its memory."""
    each = zip(self._scores, view.memory, strict=True)
    return [(score, view._replace(memory=memory)) for score, memory in each]

  @property
  def _scores(self) -> tuple[Score, ...]:
    """The distinct scores: that of the order, then those that budget and revision ask for."""
    return tuple(dict.fromkeys([self.score, *self._statistics.values()]))

  @property
  def _statistics(self) -> Mapping[str, Score]:
    """What budget and revision want to know of each token."""
    return {**self.budget.statistics, **({} if self.revise is None else self.revise.statistics)}

  @property
  def _ends(self) -> tuple[int, ...]:
    return () if self.end_id is None else (self.end_id,)

  @property
  def _bans(self) -> tuple[int, ...]:
    """The ids that are never drawn."""
    return (*self.banned, *self._ends) if self.end == "banned" else self.banned

  @property
  def _parts(self) -> list[Part]:
    parts = [*self._scores, self.budget, self.avoid, self.revise]
    return [each for each in parts if each is not None]

  @property
  def _reads(self) -> Literal["committed", "waiting", "active"]:
    """Whose logits are read."""
    needs_logits = self.score.reads_logits or self.budget.reads_logits
    ahead = not (needs_logits or self.end == "late")
    of_choice = "committed" if ahead else "waiting"
    if self.revise is None or self.revise.reads == "committed":
      return of_choice
    return self.revise.reads

  def _own_times(self, model: Model) -> bool:
    if self.told is None:
      return model.process.mask_id is None
    return self.told == "own"

  def _candidates(self, canvas: Canvas) -> Candidates:
    """What is known of each token before the network is asked."""
    place = jnp.broadcast_to(jnp.arange(canvas.active.shape[1]), canvas.active.shape)
    return Candidates(streams(canvas.keys, "order"), place, None)

  def _view(self, model, params, canvas, state: Waiting, answered) -> View:
    keys = fold(streams(canvas.keys, "step"), state.step[:, None])
    tokens = (keys, state.waiting, answered, state.level, state.total, state.step, state.recorded)
    return View(self, model, params, canvas, *tokens, memory=state.memory.scores)

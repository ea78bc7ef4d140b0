"""Budgets: how many of the waiting tokens, and which, become text at a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option, part
from diffusion_text.sampler.history import Divergence
from diffusion_text.sampler.parts import Part, Score, best
from diffusion_text.sampler.score import Entropy, Likeliest, MaxProb
from diffusion_text.types import Canvas, Model, Params

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View


class Budget(Part):
  """Which waiting tokens are committed. In a row for which a budget chooses none, the leftmost
  token that waits and was answered is committed, so that every row is done in the end.

  Attributes:
    reads_logits: False if the choice follows from the scores alone.
    statistics: name -> what `Proposal.statistics` must hold under that name.
    reads_draws: True if the choice depends on `Proposal.ids` or `Proposal.log_prob`, so that every
      waiting token must be drawn.
  """

  reads_logits: ClassVar[bool]
  reads_draws: ClassVar[bool] = False
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


@member
class Count(Budget):
  """A fixed number of tokens per call: the best scored ones."""

  tokens: int = option(1, "tokens per call", ge=1)

  reads_logits: ClassVar[bool] = False

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The best tokens."""
    return best(proposal.score, waiting, jnp.full_like(view.total, self.tokens))


# The share of the tokens that wait after a share r of the calls (MaskGIT, arXiv 2202.04200,
# section 4.2, whose names these are).
_CURVES = {
  "cosine": lambda r: jnp.cos(jnp.pi / 2 * r),
  "linear": lambda r: 1 - r,
  "square": lambda r: 1 - r**2,
  "cubic": lambda r: 1 - r**3,
  "square_root": lambda r: 1 - jnp.sqrt(r),
}


@member
class Quota(Budget):
  """A number of tokens per call that follows a curve: concave ones (cosine, square, cubic) commit
  little at first, when little is known.

  A row is done after exactly min(steps, tokens) calls: each call commits one token at least and
  leaves one for each call that follows.
  """

  steps: int = option(64, "most calls; a row of fewer tokens makes one call per token", ge=1)
  curve: Literal["cosine", "linear", "square", "cubic", "square_root"] = option(
    "cosine", "the share of tokens that wait after each share of the calls"
  )

  reads_logits: ClassVar[bool] = False

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The best tokens, as many as are behind the curve."""
    calls = jnp.maximum(jnp.minimum(self.steps, view.total), 1)
    made = jnp.minimum(view.step + 1, calls)
    share = _CURVES[self.curve](made / calls)
    # Rounded up, but for what rounding in float32 adds.
    rest = jnp.ceil(share * view.total - 1e-3).astype(jnp.int32)
    target = view.total - jnp.maximum(rest, calls - made)
    done = view.total - jnp.sum(view.waiting, axis=1)
    return best(proposal.score, waiting, jnp.maximum(target - done, 1))


def _falling(
  value: Float[Array, "B u"], by: Float[Array, "B u"], among: Bool[Array, "B u"]
) -> Float[Array, "B u"]:
  """`value` of each row's tokens in falling order of `by`; those that are not among them last."""
  order = jnp.argsort(jnp.where(among, -by, jnp.inf), axis=1, stable=True)
  return jnp.take_along_axis(value, order, axis=1)


@member
class Factor(Budget):
  """The n most confident tokens for the largest n with (n + 1) · (1 - c_n) < factor, where c_n is
  the confidence of the last of them (Fast-dLLM, arXiv 2505.22618); the best scored one in any case.

  Its bound: where all n marginals are that sure, the likeliest tokens together are the likeliest
  text. For greedy draws.
  """

  factor: float = option(1.0, "larger commits more per call", gt=0)

  reads_logits: ClassVar[bool] = True
  statistics: ClassVar[Mapping[str, Score]] = {"max_prob": MaxProb()}

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The confident tokens, and the best one."""
    sure = proposal.statistics["max_prob"]
    number = jnp.arange(1, sure.shape[1] + 1)
    doubt = 1 - jnp.exp(_falling(sure, sure, waiting))
    enough = ((number + 1) * doubt < self.factor) & (number <= jnp.sum(waiting, 1, keepdims=True))
    confident = best(sure, waiting, jnp.sum(enough, axis=1))
    return confident | best(proposal.score, waiting, jnp.ones_like(view.total))


@member
class EntropyBound(Budget):
  """The largest number of best scored tokens whose entropies add up to at most `gamma` when the
  largest of them is left out; always one (EB sampler, arXiv 2505.24857).

  The sum bounds what drawing them independently costs: the mutual information of the tokens is at
  most the sum of their entropies less the largest. It is a bound per call, with a network that is
  right. Tokens without entropy come for nothing, together with one that has some. The order is
  usually 'entropy'; others are its "error proxies".
  """

  gamma: float = option(
    0.1, "nats per call; 0 commits tokens that are certain, and one more; below 0 always one"
  )

  reads_logits: ClassVar[bool] = True
  statistics: ClassVar[Mapping[str, Score]] = {"entropy": Entropy()}

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The tokens within the bound."""
    if self.gamma < 0:
      return best(proposal.score, waiting, jnp.ones_like(view.total))
    entropy = jnp.maximum(-proposal.statistics["entropy"], 0.0)
    falling = _falling(jnp.where(waiting, entropy, 0.0), proposal.score, waiting)
    largest = jax.lax.cummax(falling, axis=1)
    within = jnp.cumsum(falling, axis=1) - largest <= self.gamma
    # The sum never falls, so what is within the bound is a prefix, up to rounding.
    within = jax.lax.cummin(within.astype(jnp.int32), axis=1)
    return best(proposal.score, waiting, jnp.maximum(jnp.sum(within, axis=1), 1))


@member
class PerRun(Budget):
  """The best scored token of each run of waiting neighbours, if it is sure enough, and the best of
  all (the hierarchical decoder of dInfer, arXiv 2510.08666).

  Tokens of one call are then apart, where they depend less on each other. With `any_of` and
  `threshold` it is dInfer's decoder.
  """

  least: float = option(0.4, "probability of the best token that a run's token needs", ge=0, le=1)

  reads_logits: ClassVar[bool] = True
  statistics: ClassVar[Mapping[str, Score]] = {"max_prob": MaxProb()}

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """One token per run, and the best one."""
    leads = _leads(proposal.score, waiting, _runs(view))
    sure = jnp.exp(proposal.statistics["max_prob"]) >= self.least
    return (leads & sure) | best(proposal.score, waiting, jnp.ones_like(view.total))


def _runs(view: View) -> Int[Array, "B u"]:
  """The number of the run of waiting neighbours that each token belongs to; runs end with their
  document.
  """
  before = jnp.pad(view.waiting, ((0, 0), (1, 0)))[:, :-1]
  starts = view.waiting & ~before
  if view.canvas.segment is not None:
    segment = view.canvas.segment
    new = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))
    starts = starts | (view.waiting & new)
  return jnp.maximum(jnp.cumsum(starts, axis=1) - 1, 0)


def _leads(
  score: Float[Array, "B u"], among: Bool[Array, "B u"], runs: Int[Array, "B u"]
) -> Bool[Array, "B u"]:
  """True at the best scored token of each run, of those that are `among`; ties go to the left."""
  rows, size = score.shape
  number = (runs + size * jnp.arange(rows)[:, None]).reshape(-1)

  def of_run(fold, value):
    return fold(value.reshape(-1), number, rows * size)[number].reshape(rows, size)

  highest = of_run(jax.ops.segment_max, jnp.where(among, score, -jnp.inf))
  leads = among & (score >= highest)
  place = jnp.where(leads, jnp.arange(size), size)
  return leads & (place == of_run(jax.ops.segment_min, place))


@member
class Stable(Budget):
  """The tokens whose distribution has stood still over the last calls and that are sure; where
  there is none, the best scored ones (KLASS, arXiv 2511.05664, from a public re-implementation).

  The order of KLASS is 'max_prob'. The change at the first call is not known, so no token is stable
  before call `calls` + 1.
  """

  below: float = option(0.01, "largest KL(now ‖ before) of a token that stands still, nats", gt=0)
  calls: int = option(2, "calls in a row", ge=1)
  least: float = option(0.9, "probability of the best token", ge=0, le=1)
  otherwise: int = option(1, "tokens that are committed where none is stable", ge=1)

  reads_logits: ClassVar[bool] = True
  statistics: ClassVar[Mapping[str, Score]] = {"max_prob": MaxProb(), "kl": Divergence()}

  def init(self, model: Model, params: Params, canvas: Canvas) -> Int[Array, "B u"]:
    """How many calls in a row each token has stood still: none."""
    return jnp.zeros(canvas.active.shape, jnp.int32)

  def keep(
    self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]
  ) -> Int[Array, "B u"]:
    """The number of calls, this one included."""
    still = -proposal.statistics["kl"] < self.below
    return jnp.where(view.answered, jnp.where(still, view.memory + 1, 0), view.memory)

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The stable and sure tokens, or the best ones."""
    stable = self.keep(view, proposal, waiting) >= self.calls
    sure = jnp.exp(proposal.statistics["max_prob"]) >= self.least
    chosen = waiting & stable & sure
    others = best(proposal.score, waiting, jnp.full_like(view.total, self.otherwise))
    return jnp.where(jnp.any(chosen, axis=1, keepdims=True), chosen, others)


@member
class Consistent(Budget):
  """Every token that is among the best of this call and of the one before, with the same likeliest
  token at both; where these are fewer than `tokens`, the best `tokens` (CCD-DS, arXiv 2512.02044,
  as its code has it).

  The order of CCD-DS is 'entropy'. Its code starts after 5 calls and takes `highest` as
  (1 + 4) · tokens. The code also shrinks the buffer when a tenth of the masks is left, which is
  left out here.
  """

  highest: int = option(5, "best tokens of each call that are compared", ge=1)
  tokens: int = option(1, "tokens that are committed where too few agree", ge=1)
  warm_up: int = option(5, "first calls of a window that commit `tokens`", ge=0)

  reads_logits: ClassVar[bool] = True
  statistics: ClassVar[Mapping[str, Score]] = {"likeliest": Likeliest()}

  def init(self, model: Model, params: Params, canvas: Canvas) -> Float[Array, "B u"]:
    """The likeliest token of those that were among the best of the call before; -1 elsewhere."""
    return jnp.full(canvas.active.shape, -1.0)

  def keep(
    self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]
  ) -> Float[Array, "B u"]:
    """The likeliest tokens of the best of this call."""
    now = jnp.where(self._top(view, proposal), proposal.statistics["likeliest"], -1.0)
    return select(jnp.any(view.answered, axis=1), now, view.memory)

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """The tokens that agree, or the best ones."""
    same = proposal.statistics["likeliest"] == view.memory
    agree = waiting & self._top(view, proposal) & same
    enough = (jnp.sum(agree, axis=1) >= self.tokens) & (view.step >= self.warm_up)
    usual = best(proposal.score, waiting, jnp.full_like(view.total, self.tokens))
    return jnp.where(enough[:, None], agree, usual)

  def _top(self, view: View, proposal: Proposal) -> Bool[Array, "B u"]:
    """The best of this call."""
    among = view.waiting & view.answered
    return best(proposal.score, among, jnp.full_like(view.total, self.highest))


class _Several(Budget):
  """What several budgets together have: their memories, their statistics, their calls."""

  budgets: tuple[Any, ...]

  def __post_init__(self):
    if not self.budgets:
      raise ValueError("budgets=() is empty; name one budget or more")
    asked = [item for one in self.budgets for item in one.statistics.items()]
    for name, score in asked:
      if self.statistics[name] != score:
        raise ValueError(
          f"two budgets mean different scores by the statistic {name!r}: {score} and"
          f" {self.statistics[name]}; rename one of them"
        )

  @property
  def reads_logits(self) -> bool:
    """True if any of them does."""
    return any(one.reads_logits for one in self.budgets)

  @property
  def statistics(self) -> Mapping[str, Score]:
    """Those of all."""
    return {name: score for one in self.budgets for name, score in one.statistics.items()}

  @property
  def reads_draws(self) -> bool:
    """True if any of them does."""
    return any(one.reads_draws for one in self.budgets)

  @property
  def extra_calls(self) -> int:
    """The calls of all."""
    return sum(one.extra_calls for one in self.budgets)

  def check(self, model: Model) -> None:
    """Raises ValueError where one of them does."""
    for one in self.budgets:
      one.check(model)

  def init(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """The memory of each."""
    return tuple(one.init(model, params, canvas) for one in self.budgets)

  def keep(self, view: View, proposal: Proposal, committed: Bool[Array, "B u"]) -> Any:
    """The memory of each; all are told what was committed in the end."""
    return tuple(one.keep(own, proposal, committed) for one, own in self._each(view))

  def _choices(self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]) -> Array:
    """What each of them chooses, [budgets, B, u]."""
    return jnp.stack([one(own, proposal, waiting) for one, own in self._each(view)])

  def _each(self, view: View) -> list[tuple[Budget, View]]:
    """Each budget, and the view with its memory."""
    memories = view.memory or ((),) * len(self.budgets)
    return [(one, view._replace(memory=m)) for one, m in zip(self.budgets, memories, strict=True)]


@member
class AnyOf(_Several):
  """The tokens that any of the budgets chooses."""

  budgets: tuple[Any, ...] = part(lambda: BUDGETS, ..., "the budgets")

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """Their union."""
    return jnp.any(self._choices(view, proposal, waiting), axis=0)


@member
class AllOf(_Several):
  """The tokens that all of the budgets choose; the best scored one where there is none."""

  budgets: tuple[Any, ...] = part(lambda: BUDGETS, ..., "the budgets")

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """Their intersection, or the best token."""
    common = jnp.all(self._choices(view, proposal, waiting), axis=0)
    one = best(proposal.score, waiting, jnp.ones_like(view.total))
    return jnp.where(jnp.any(common, axis=1, keepdims=True), common, one)


BUDGETS = {
  "even_share": EvenShare,
  "count": Count,
  "quota": Quota,
  "threshold": Threshold,
  "factor": Factor,
  "entropy_bound": EntropyBound,
  "per_run": PerRun,
  "stable": Stable,
  "consistent": Consistent,
  "any_of": AnyOf,
  "all_of": AllOf,
}

"""Budgets: each is its definition, written as a loop over one row; and what it does with an exact
network.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.sampler.budget import (
  BUDGETS,
  AllOf,
  AnyOf,
  Budget,
  Consistent,
  Count,
  EntropyBound,
  EvenShare,
  Factor,
  PerRun,
  Quota,
  Stable,
  Threshold,
)
from diffusion_text.sampler.history import Divergence
from diffusion_text.sampler.parts import best
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Entropy, LeftToRight, MaxProb
from tests.sampler.chains import BRANCHY, PHRASE, bigram_distance, draw, invalid, nats
from tests.sampler.windows import candidates_of, drawn, proposal_of, view_of

# --- each budget is a loop over a row -----------------------------------------------------------


def ranked(values, waiting):
  """The waiting places, the highest value first."""
  return sorted(np.flatnonzero(waiting), key=lambda i: -values[i])


def by_threshold(order, p, waiting, least):
  return {i for i in np.flatnonzero(waiting) if p[i].max() >= least} | {ranked(order, waiting)[0]}


def by_factor(order, p, waiting, factor, ahead=1):
  chosen = {ranked(order, waiting)[0]}
  for n, i in enumerate(ranked(p.max(-1), waiting), start=1):
    if (n + ahead) * (1 - p[i].max()) >= factor:
      break
    chosen.add(i)
  return chosen


def by_entropy_bound(order, p, waiting, gamma, spared=max):
  chosen, seen = set(), []
  for i in ranked(order, waiting):
    seen.append(-(p[i] * np.log(p[i])).sum())
    if chosen and sum(seen) - spared(seen) > gamma:
      break
    chosen.add(i)
  return chosen


def by_run(order, p, waiting, least, apart=True):
  chosen, run = {ranked(order, waiting)[0]}, []
  for i in range(len(waiting) + 1):
    if i < len(waiting) and waiting[i]:
      run.append(i)
    elif run and (apart or i == len(waiting)):
      leader = max(run, key=lambda i: order[i])
      chosen |= {leader} if p[leader].max() >= least else set()
      run = []
  return chosen


def by_count(order, p, waiting, tokens):
  return set(ranked(order, waiting)[:tokens])


def test_the_best_are_so_many_with_ties_to_the_left():
  """Scores of many ties, and scores that are no number or -inf, which come last."""
  rng = np.random.default_rng(0)
  score = rng.integers(0, 3, (64, 12)).astype(np.float32)
  score[rng.random(score.shape) < 0.2] = -np.inf
  score[rng.random(score.shape) < 0.1] = np.nan
  waiting, count = rng.random(score.shape) < 0.6, rng.integers(0, 14, 64)
  got = jax.jit(best)(score, waiting, count)
  for row in range(64):
    order = ranked(np.nan_to_num(score[row], nan=-np.inf, neginf=-np.inf), waiting[row])
    assert set(np.flatnonzero(got[row])) == set(order[: count[row]])


LOOPS = {
  "threshold": (Threshold(least=0.8), functools.partial(by_threshold, least=0.8)),
  "factor": (Factor(factor=0.9), functools.partial(by_factor, factor=0.9)),
  "entropy_bound": (EntropyBound(gamma=0.4), functools.partial(by_entropy_bound, gamma=0.4)),
  "per_run": (PerRun(least=0.6), functools.partial(by_run, least=0.6)),
  "count": (Count(tokens=3), functools.partial(by_count, tokens=3)),
}


def check_loop(budget, loop):
  for seed in range(4):
    log_p, order, waiting = drawn(seed)
    view = view_of(waiting)
    got = budget(view, proposal_of(view, order, log_p, budget.statistics), view.waiting)
    for row, chosen in enumerate(np.asarray(got)):
      want = loop(order[row], np.exp(np.float64(log_p[row])), waiting[row])
      assert set(np.flatnonzero(chosen)) == want, f"seed {seed}, row {row}"


@pytest.mark.parametrize("name", LOOPS)
def test_a_budget_is_a_loop(name):
  check_loop(*LOOPS[name])


WRONG = {
  "factor with n in place of n + 1": ("factor", functools.partial(by_factor, factor=0.9, ahead=0)),
  "the entropies of all, none left out": (
    "entropy_bound",
    functools.partial(by_entropy_bound, gamma=0.4, spared=lambda seen: 0.0),
  ),
  "the last one left out, not the largest": (
    "entropy_bound",
    functools.partial(by_entropy_bound, gamma=0.4, spared=lambda seen: seen[-1]),
  ),
  "runs that do not end": ("per_run", functools.partial(by_run, least=0.6, apart=False)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_rule_would_be_noticed(wrong):
  name, loop = WRONG[wrong]
  with pytest.raises(AssertionError, match="row"):
    check_loop(LOOPS[name][0], loop)


def test_runs_end_with_their_document():
  waiting = np.ones((1, 6), bool)
  order, log_p = np.float32([[3, 2, 1, 6, 5, 4]]), np.zeros((1, 6, 6), np.float32)
  for segment, want in ((None, [3]), ([[0, 0, 0, 1, 1, 1]], [0, 3])):
    view = view_of(waiting, segment=segment)
    budget = PerRun(least=0.0)
    got = budget(view, proposal_of(view, order, log_p, budget.statistics), view.waiting)
    assert list(np.flatnonzero(got[0])) == want


def test_a_token_that_was_not_answered_is_still_part_of_its_run():
  order, log_p = np.float32([[3, 2, 9, 6, 5]]), np.zeros((1, 5, 6), np.float32)
  answered = np.array([[True, True, False, True, True]])
  view = view_of(np.ones((1, 5), bool), answered=answered)
  budget = PerRun(least=0.0)
  got = budget(view, proposal_of(view, order, log_p, budget.statistics), jnp.asarray(answered))
  assert list(np.flatnonzero(got[0])) == [3]


# --- budgets that count calls -------------------------------------------------------------------

TOTALS = np.arange(1, 14)


def spend(budget):
  """How many tokens each call commits, [calls, rows], until nothing waits."""
  waiting = np.arange(13) < TOTALS[:, None]
  log_p, order, _ = drawn(0, rows=len(TOTALS))
  start, spent = view_of(waiting), []
  memory = budget.init(start.model, {}, start.canvas)
  memories = {"kl": Divergence().init(start.model, {}, start.canvas)}
  while waiting.any():
    view = view_of(waiting, step=len(spent), total=TOTALS, memory=memory)
    proposal = proposal_of(view, order, log_p, budget.statistics, memories)
    chosen = np.asarray(budget(view, proposal, view.waiting))
    memory = budget.keep(view, proposal, jnp.asarray(chosen))
    assert not (chosen & ~waiting).any() and chosen[waiting.any(1)].any(1).all()
    waiting = waiting & ~chosen
    spent.append(chosen.sum(1))
  return np.stack(spent)


EVERY = {name: kind() for name, kind in BUDGETS.items() if name not in ("any_of", "all_of")}
EVERY["any_of"] = AnyOf((PerRun(), Stable()))
EVERY["all_of"] = AllOf((Factor(), Consistent(warm_up=0)))


@pytest.mark.parametrize("name", BUDGETS)
def test_every_budget_empties_every_row(name):
  assert (spend(EVERY[name]).sum(0) == TOTALS).all()


CURVES = {
  "cosine": lambda r: np.cos(np.pi / 2 * r),
  "linear": lambda r: 1 - r,
  "square": lambda r: 1 - r**2,
  "cubic": lambda r: 1 - r**3,
  "square_root": lambda r: 1 - np.sqrt(r),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_a_quota_makes_its_calls_and_follows_its_curve(curve, steps):
  spent = spend(Quota(steps=steps, curve=curve))
  calls = np.minimum(steps, TOTALS)
  np.testing.assert_array_equal((spent > 0).sum(0), calls)
  for total, count, column in zip(TOTALS, calls, spent.T, strict=True):
    done = np.cumsum(column[:count])
    made = np.arange(1, count + 1)
    wanted = total - np.ceil(CURVES[curve](made / count) * total - 1e-3)
    wanted = np.clip(wanted, made, total - (count - made))
    np.testing.assert_array_equal(done, np.maximum.accumulate(wanted))


def test_a_concave_quota_commits_little_at_first():
  few = {curve: spend(Quota(steps=4, curve=curve))[0, -1] for curve in CURVES}
  assert few["cubic"] <= few["square"] < few["linear"] < few["square_root"]
  assert few["cosine"] < few["linear"] == spend(EvenShare(steps=4))[0, -1] - 1


# --- budgets that remember ----------------------------------------------------------------------


def calls_of(budget, seed=0, calls=6):
  """(order, p, waiting, chosen) of each call of rows whose distributions change now and then."""
  log_p, order, waiting = drawn(seed)
  generator = np.random.default_rng(seed)
  view = view_of(waiting)
  last = Divergence().init(view.model, {}, view.canvas)
  memory = budget.init(view.model, {}, view.canvas)
  for step in range(calls):
    answered = waiting & (generator.random(waiting.shape) < 0.9)
    answered[:, 5] = True
    view = view_of(waiting, answered=answered, step=step, memory=memory)
    proposal = proposal_of(view, order, log_p, budget.statistics, {"kl": last})
    chosen = budget(view, proposal, view.waiting & view.answered)
    yield order.copy(), np.exp(np.float64(log_p)), answered, np.asarray(chosen)
    memory = budget.keep(view, proposal, chosen)
    new = Divergence().remember(candidates_of(view, log_p, last))
    last = Divergence().keep(view._replace(memory=last), proposal, new)
    moved = generator.random(waiting.shape) < 0.3
    other, other_order, _ = drawn(100 * seed + step + 1)
    log_p = np.where(moved[..., None], other, log_p)
    order = np.where(moved, other_order, order)


def check_stable(budget, calls=2, below=0.01, least=0.5):
  past = {}
  for order, p, answered, chosen in calls_of(budget):
    for row in range(len(p)):
      stable = set()
      for i in np.flatnonzero(answered[row]):
        seen, still = past.get((row, i), (None, 0))
        now = p[row, i]
        moved = np.inf if seen is None else (now * np.log(now / seen)).sum()
        still = still + 1 if moved < below else 0
        past[row, i] = (now, still)
        if still >= calls and now.max() >= least:
          stable.add(i)
      want = stable or set(ranked(order[row], answered[row])[:2])
      assert set(np.flatnonzero(chosen[row])) == want, f"row {row}"


def check_consistent(budget, highest=4, tokens=2, warm_up=1):
  past = {}
  for step, (order, p, answered, chosen) in enumerate(calls_of(budget)):
    for row in range(len(p)):
      top = {i: p[row, i].argmax() for i in ranked(order[row], answered[row])[:highest]}
      agree = {i for i in top if past.get(row, {}).get(i) == top[i]}
      past[row] = top
      usual = set(ranked(order[row], answered[row])[:tokens])
      want = agree if step >= warm_up and len(agree) >= tokens else usual
      assert set(np.flatnonzero(chosen[row])) == want, f"row {row}"


STABLE = Stable(below=0.01, calls=2, least=0.5, otherwise=2)
CONSISTENT = Consistent(highest=4, tokens=2, warm_up=1)


def test_stability_over_calls():
  check_stable(STABLE)
  for wrong in ({"calls": 1}, {"below": 5.0}, {"least": 0.9}):
    with pytest.raises(AssertionError, match="row"):
      check_stable(STABLE, **wrong)


def test_agreement_of_two_calls():
  check_consistent(CONSISTENT)
  for wrong in ({"highest": 9}, {"warm_up": 3}, {"tokens": 1}):
    with pytest.raises(AssertionError, match="row"):
      check_consistent(CONSISTENT, **wrong)


# --- several budgets ----------------------------------------------------------------------------


def choice(budget, log_p, order, waiting):
  view = view_of(waiting)
  memory = budget.init(view.model, {}, view.canvas)
  memories = {"kl": Divergence().init(view.model, {}, view.canvas)}
  view = view._replace(memory=memory)
  return np.asarray(
    budget(view, proposal_of(view, order, log_p, budget.statistics, memories), view.waiting)
  )


def test_unions_and_intersections():
  """An empty intersection commits the best token."""
  log_p, order, waiting = drawn(3)
  one, two = Threshold(least=0.9), Count(tokens=4)
  each = [choice(budget, log_p, order, waiting) for budget in (one, two)]
  np.testing.assert_array_equal(choice(AnyOf((one, two)), log_p, order, waiting), each[0] | each[1])
  both = choice(AllOf((one, two)), log_p, order, waiting)
  np.testing.assert_array_equal(both, each[0] & each[1])
  disjoint = AllOf((Takes(place=5), Takes(place=6)))
  best = choice(Count(tokens=1), log_p, order, waiting)
  np.testing.assert_array_equal(choice(disjoint, log_p, order, waiting), best)


def test_each_of_several_has_its_own_memory():
  union = AnyOf((STABLE, CONSISTENT))
  for together, one, two in zip(*map(calls_of, (union, STABLE, CONSISTENT)), strict=True):
    np.testing.assert_array_equal(together[-1], one[-1] | two[-1])


class Takes(Budget):
  """The token at a place."""

  reads_logits = False

  def __init__(self, place):
    self.place = place

  def __call__(self, view, proposal, waiting):
    return waiting & (jnp.arange(waiting.shape[1]) == self.place)


def test_what_several_budgets_ask_for():
  many = AnyOf((PerRun(), AllOf((Stable(), EntropyBound()))))
  assert many.reads_logits and set(many.statistics) == {"max_prob", "kl", "entropy"}
  assert not AnyOf((Count(), Quota())).reads_logits

  class Other(Threshold):
    statistics: ClassVar = {"max_prob": Entropy()}

  with pytest.raises(ValueError, match=r"max_prob.*rename"):
    AnyOf((Threshold(), Other()))
  with pytest.raises(ValueError, match="empty"):
    AllOf(())


def test_budgets_of_budgets_in_a_config():
  from diffusion_text.experiment.registry import construct

  section = {
    "name": "reveal",
    "score": "max_prob",
    "budget": {"name": "any_of", "budgets": ["per_run", {"name": "threshold", "least": 0.8}]},
  }
  want = Reveal(score=MaxProb(), budget=AnyOf((PerRun(), Threshold(least=0.8))))
  assert construct("sampler", section) == want


# --- with an exact network ----------------------------------------------------------------------


def check_few_calls(budget, rows):
  """A quarter of the calls, all texts possible, the entropy of the language within 1 %."""
  result = draw(Reveal(score=Entropy(), budget=budget), PHRASE, rows)
  assert result.row_calls.mean() <= 0.25 * PHRASE.length
  assert invalid(result.ids, PHRASE) == 0
  mean, error = nats(result.ids, PHRASE)
  assert abs(mean - PHRASE.entropy) < 0.01 * PHRASE.entropy + 2 * error
  assert bigram_distance(result.ids, PHRASE) < 0.02


def test_an_entropy_bound_needs_few_calls_where_much_is_certain():
  check_few_calls(EntropyBound(gamma=0.001), 384)


def test_a_wrong_bound_would_be_noticed():
  """Without the largest entropy left out there are more calls; with a loose bound, bad texts."""
  for wrong in (Threshold(least=0.999), EntropyBound(gamma=1.0)):
    with pytest.raises(AssertionError):
      check_few_calls(wrong, 64)


def test_below_zero_one_token_at_a_time():
  bound = draw(Reveal(score=Entropy(), budget=EntropyBound(gamma=-1.0)), BRANCHY, 64)
  plain = draw(Reveal(score=Entropy(), budget=Count(tokens=1)), BRANCHY, 64)
  np.testing.assert_array_equal(bound.ids, plain.ids)
  np.testing.assert_array_equal(bound.committed, plain.committed)
  assert (bound.row_calls == BRANCHY.length).all()


def test_near_zero_certain_tokens_are_batched():
  result = draw(Reveal(score=LeftToRight(), budget=EntropyBound(gamma=1e-5)), PHRASE, 32)
  assert result.row_calls.max() < 0.5 * PHRASE.length

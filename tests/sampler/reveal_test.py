"""Revealing against exact laws: one token at a time is exact, whatever the order and the process;
budgets, revisions, and mutants.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import EvenShare, Threshold
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Proposal, Reveal, View
from diffusion_text.sampler.revise import Change, Remask, RenoiseRest, Revision
from diffusion_text.sampler.score import SCORES, Entropy, LeftToRight, Margin, MaxProb, Random
from diffusion_text.schedules.discrete import Cosine
from diffusion_text.testing import (
  Enumerable,
  ExactNetwork,
  check_sampler,
  exact_model,
  exact_params,
)
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Canvas, Head, Model, pytree

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
ROWS = 8_000
MASKED, UNIFORM = Masked(vocab_size=3), Uniform(vocab_size=3)
ONE_BY_ONE = EvenShare(steps=4)


def model_of(process, chunk=8192):
  return Model(ExactNetwork(process), process, Shared(), Full(), chunk=chunk)


def draw(sampler, process=MASKED, rows=ROWS, seed=0, **options):
  model = options.pop("model", model_of(process))
  language = options.pop("language", TOY)
  keys = row_keys(seed, rows)
  shape = {} if "batch" in options else {"rows": rows, "length": 4}
  result = sample(model, exact_params(language), sampler, keys, **shape, **options)
  return jax.tree.map(np.asarray, result)


def distance(ids, language=TOY):
  """Total variation to the language over what chance alone would give; below 1.25: the same law."""
  return language.total_variation(language.histogram(ids)) / language.chance_distance(len(ids))


def exact_law(ids, shown):
  """log p(x_i | the tokens shown), [B, L, V] in numpy: by adding up the language."""
  agrees = (TOY.sequences[None] == ids[:, None]) | ~shown[:, None]
  weight = np.where(agrees.all(-1), TOY.probabilities, 0.0)
  law = np.einsum("bm,mlv->blv", weight, np.eye(3)[TOY.sequences])
  return np.log(np.maximum(law / law.sum(-1, keepdims=True), 1e-30))


def calls_of(result):
  """(call, tokens shown before it, tokens it committed, exact law before it), for each call."""
  for call in range(int(result.calls)):
    shown = result.committed < call
    yield call, shown, result.committed == call, exact_law(result.ids, shown)


# --- the laws of every sampler -------------------------------------------------------------------


def test_the_laws_of_every_sampler():
  """Observed tokens stay, a row is its own, the host's loop is the compiled one, log p adds up."""
  sampler = Reveal(score=Entropy(), budget=ONE_BY_ONE)
  check_sampler(sampler, *exact_model(MASKED, TOY), TOY, one_per_call=True, calls=4, slack=0.0)


# --- one token at a time is exact ---------------------------------------------------------------


@functools.cache
def in_order(name):
  return draw(Reveal(score=SCORES[name](), budget=ONE_BY_ONE), trace=True)


@pytest.mark.parametrize("name", SCORES)
def test_one_token_per_call_is_exact_in_any_order(name):
  """Choose the position by the distribution, then draw; the log-probabilities of the trace are
  those of the text.
  """
  result = in_order(name)
  assert result.calls == 4 and (result.row_calls == 4).all()
  assert distance(result.ids) < 1.25
  np.testing.assert_allclose(result.log_prob.sum(1), TOY.log_likelihood(result.ids), atol=1e-4)


WANTED = {
  "max_prob": lambda law: law.max(-1),
  "margin": lambda law: np.diff(np.sort(np.exp(law), -1)[..., -2:])[..., 0],
  "entropy": lambda law: (np.exp(law) * law).sum(-1),
  "left_to_right": lambda law: np.broadcast_to(-np.arange(4.0), law.shape[:2]),
}


def check_order(result, name):
  for _, shown, chosen, law in calls_of(result):
    value = np.where(shown, -np.inf, WANTED[name](law))
    assert (value[chosen] >= value.max(1) - 1e-5).all()


@pytest.mark.parametrize("name", WANTED)
def test_the_best_is_revealed_first(name):
  check_order(in_order(name), name)


def test_another_order_would_be_noticed():
  for name, other in (("entropy", "random"), ("margin", "left_to_right"), ("max_prob", "random")):
    with pytest.raises(AssertionError):
      check_order(in_order(other), name)
  firsts = np.bincount(np.argmin(in_order("random").committed, 1), minlength=4) / ROWS
  np.testing.assert_allclose(firsts, 0.25, atol=0.02)


class ScoresTheDraw(Reveal):
  """The published rule: the score is that of the token that was drawn."""

  draws_all = True

  def propose(self, view, t):
    proposal = super().propose(view, t)
    return proposal._replace(score=proposal.log_prob)


def test_the_order_of_drawn_tokens_is_biased():
  """Total variation 0.43: the test of exactness sees it."""
  result = draw(ScoresTheDraw(score=MaxProb(), budget=ONE_BY_ONE))
  assert TOY.total_variation(TOY.histogram(result.ids)) > 0.3


EMBEDDING = Embedding(vocab_size=3, width=4)


@pytest.mark.parametrize("process,score", [(UNIFORM, Entropy()), (EMBEDDING, MaxProb())], ids=repr)
def test_a_text_that_does_not_show_what_waits(process, score):
  """Where noise looks like text, or like nothing, the sampler alone knows what waits.

  The network is told by the time of each token.
  """
  model, params = exact_model(process, TOY)
  sampler = Reveal(score=score, budget=ONE_BY_ONE)
  model = model._replace(chunk=8192)
  result = sample(model, params, sampler, row_keys(0, ROWS), rows=ROWS, length=4)
  assert result.calls == 4 and distance(np.asarray(result.ids)) < 1.25


def test_one_time_for_all_tokens_of_uniform_noise_would_be_noticed():
  result = draw(Reveal(score=Entropy(), budget=ONE_BY_ONE, told="shared"), UNIFORM)
  assert distance(result.ids) > 2


def test_times_that_are_told():
  """Shared: the time at which the schedule has as many tokens waiting; own: each token's level."""
  process = Masked(vocab_size=3, schedule=Cosine())
  model = model_of(process)
  sampler = Reveal()
  canvas = canvas_of(np.ones((3, 4), bool))
  state = sampler.init(model, {}, canvas)
  waiting = np.arange(4) < np.array([4, 2, 0])[:, None]
  state = state._replace(waiting=jnp.asarray(waiting))
  t = sampler.times(model, {}, canvas, state)
  np.testing.assert_allclose(
    process.schedule(t).noise, waiting.mean(1)[:, None] + np.zeros((3, 4)), atol=1e-5
  )
  own = Reveal(told="own").times(model, {}, canvas, state._replace(level=jnp.full((3, 4), 0.3)))
  np.testing.assert_allclose(own, 0.3)


# --- greedy, temperature and nucleus -------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "entropy"])
def test_greedy_takes_the_likeliest_in_whatever_order(name):
  """At temperature 0 the order alone is random: every token is the likeliest, given what was
  revealed before it.
  """
  greedy = Reveal(score=SCORES[name](), budget=EvenShare(steps=2), temperature=0.0)
  result = draw(greedy, rows=300)
  assert result.calls == 2
  for _, _, chosen, law in calls_of(result):
    np.testing.assert_array_equal(result.ids[chosen], law.argmax(-1)[chosen])
  assert len(np.unique(result.ids, axis=0)) == 1 or name == "random"


def test_nucleus():
  result = draw(Reveal(score=LeftToRight(), budget=ONE_BY_ONE, top_p=0.6), rows=2000)
  for _, _, chosen, law in calls_of(result):
    p = np.sort(np.exp(law), -1)[..., ::-1]
    kept = np.where(np.cumsum(p, -1) - p < 0.6 - 1e-6, p, np.inf).min(-1)
    drawn = np.take_along_axis(np.exp(law), result.ids[..., None], -1)[..., 0]
    assert (drawn >= kept - 1e-6)[chosen].all()


# --- budgets -------------------------------------------------------------------------------------


def canvas_of(active):
  rows, length = active.shape
  keys = token_keys(row_keys(0, rows), length)
  zeros = jnp.zeros(rows, jnp.int32)
  return Canvas(
    jnp.zeros((rows, length), jnp.int32), jnp.asarray(active), keys, zeros, zeros + length
  )


def view_of(waiting, total, step):
  waiting = jnp.asarray(waiting)
  level = waiting.astype(jnp.float32)
  canvas = canvas_of(np.ones(waiting.shape, bool))
  step = jnp.full(waiting.shape[0], step, jnp.int32)
  model, total = model_of(MASKED), jnp.asarray(total)
  recorded = jnp.zeros(waiting.shape)
  return View(
    Reveal(), model, {}, canvas, canvas.keys, waiting, waiting, level, total, step, recorded
  )


def spend(budget, total, width):
  """How many tokens each call commits, [calls, rows], until nothing waits."""
  waiting = np.arange(width) < total[:, None]
  score = jnp.asarray(np.random.default_rng(0).random(waiting.shape), jnp.float32)
  ids, max_prob = jnp.zeros(score.shape, jnp.int32), jnp.full(score.shape, -9.0)
  spent = []
  while waiting.any():
    view = view_of(waiting, total, len(spent))
    proposal = Proposal(score, ids, max_prob, {"max_prob": max_prob})
    chosen = np.asarray(budget(view, proposal, view.waiting))
    assert not (chosen & ~waiting).any() and len(spent) < 100
    lowest = np.where(chosen, score, np.inf).min(1, keepdims=True)
    left = waiting & ~chosen
    assert (np.where(left, score, -np.inf).max(1, keepdims=True) <= lowest).all()
    waiting = left
    spent.append(chosen.sum(1))
  return np.stack(spent)


TOTALS = np.arange(1, 13)


def check_even(budget, steps):
  """For every number of tokens the shares add up, remainders first, and no call is wasted."""
  spent = spend(budget, TOTALS, 12)
  calls = np.minimum(steps, TOTALS)
  np.testing.assert_array_equal((spent > 0).sum(0), calls)
  for column, total, count in zip(spent.T, TOTALS, calls, strict=True):
    want = total // count + (np.arange(count) < total % count)
    np.testing.assert_array_equal(column[:count], want)


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 40])
def test_even_share(steps):
  check_even(EvenShare(steps=steps), steps)


def test_the_share_of_a_published_decoder():
  """LLaDA's get_num_transfer_tokens: 10 tokens in 4 calls."""
  spent = spend(EvenShare(steps=4), np.array([10]), 10)
  np.testing.assert_array_equal(spent[:, 0], [3, 3, 2, 2])


class RoundsUp(EvenShare):
  def __call__(self, view, proposal, waiting):
    return super().__call__(view._replace(step=view.step + 1), proposal, waiting)


def test_an_uneven_share_fails():
  with pytest.raises(AssertionError):
    check_even(RoundsUp(steps=5), 5)


def test_observed_tokens_count_for_nothing():
  observed = np.arange(4) < np.array([0, 1, 2, 3])[:, None]
  batch = Batch(np.tile(TOY.sequences[40], (4, 1)), observed=observed)
  result = draw(Reveal(budget=EvenShare(steps=3)), rows=4, batch=batch)
  np.testing.assert_array_equal(result.row_calls, [3, 3, 2, 1])


@pytest.mark.parametrize("least", [0.5, 1.0])
def test_threshold(least):
  """What is likely enough goes together, and the best one in any case; at 1 that is one at a time,
  which is exact.
  """
  result = draw(Reveal(score=MaxProb(), budget=Threshold(least=least)))
  for call, shown, chosen, law in calls_of(result):
    best = np.where(shown, -np.inf, law.max(-1))
    likely = ~shown & (np.exp(best) >= least)
    sure = likely | (best == best.max(1, keepdims=True)) & ~shown
    clear = (np.abs(np.exp(best) - least) > 1e-5).all(1) & (call < result.row_calls)
    np.testing.assert_array_equal(chosen[clear], sure[clear])
  assert (distance(result.ids) < 1.25) == (least == 1.0)


# --- one pass over the logits, of those that are needed ------------------------------------------


@pytree()
class CountingHead:
  """A head that tells how many rows of logits it makes."""

  head: Head

  def __call__(self, features):
    jax.debug.callback(lambda: MADE.append(features.shape[0]))
    return self.head(features)


MADE = []


@member
class Counting(ExactNetwork):
  def apply(self, params, rows, **options):
    prediction = super().apply(params, rows, **options)
    return dataclasses.replace(prediction, head=CountingHead(prediction.head))


def logits_made(sampler, rows=2):
  MADE.clear()
  network = Counting(MASKED)
  model = Model(network, MASKED, Shared(), Full(), chunk=1)
  draw(sampler, rows=rows, model=model)
  jax.effects_barrier()
  return sum(MADE)


class LooksTwice(Reveal):
  def propose(self, view, t):
    twice = super().propose(view, t), super().propose(view, t)
    return jax.tree.map(jnp.maximum, *twice)


def test_logits_are_made_only_where_they_are_read():
  """4 tokens one by one: 4 + 3 + 2 + 1 rows of logits where the order reads them, and 4 more for
  the draws, unless they are greedy; 4 where the order does not read them.
  """
  assert logits_made(Reveal(score=Entropy(), budget=ONE_BY_ONE)) == 2 * 14
  assert logits_made(Reveal(score=Entropy(), budget=ONE_BY_ONE, temperature=0.0)) == 2 * 10
  assert logits_made(Reveal(score=Random(), budget=ONE_BY_ONE)) == 2 * 4
  assert logits_made(LooksTwice(score=Entropy(), budget=ONE_BY_ONE)) == 2 * 24


class DrawsAll(Reveal):
  """Every waiting token is drawn before the choice."""

  draws_all = True


@pytest.mark.parametrize("budget", [ONE_BY_ONE, Threshold(least=0.5)], ids=str)
def test_tokens_that_are_drawn_after_the_choice_are_the_same(budget):
  """Their keys are those of their places, so that it does not matter when they are drawn."""
  late = draw(Reveal(score=MaxProb(), budget=budget), rows=200, trace=True)
  early = draw(DrawsAll(score=MaxProb(), budget=budget), rows=200, trace=True)
  assert not Reveal(score=MaxProb(), budget=budget).draws_all
  jax.tree.map(np.testing.assert_array_equal, late, early)


# --- readers that answer some of the positions ---------------------------------------------------


@member
class AnswersHalf(WholeRow):
  """Answers every other place, in turns; the features elsewhere are nonsense."""

  lies: bool = False

  def init(self, model, params, query):
    return jnp.int32(0)

  def read(self, model, params, memory, query, *, refresh=True):
    prediction, _ = super().read(model, params, (), query, refresh=refresh)
    fresh = jnp.broadcast_to((jnp.arange(4) + memory) % 2 == 0, query.needs.shape)
    features = jnp.where(fresh[..., None], prediction.features, 0.0)
    told = None if self.lies else fresh
    return dataclasses.replace(prediction, features=features, fresh=told), memory + 1


@pytest.mark.parametrize("score", [Entropy(), Random()], ids=repr)
def test_tokens_that_were_not_answered_wait(score):
  result = draw(Reveal(score=score, budget=ONE_BY_ONE), reader=AnswersHalf())
  assert (result.ids < 3).all() and result.calls < 12
  assert distance(result.ids) < 1.25


def test_reading_what_was_not_answered_would_be_noticed():
  result = draw(Reveal(score=Random(), budget=ONE_BY_ONE), reader=AnswersHalf(lies=True))
  assert distance(result.ids) > 2


# --- revisions -----------------------------------------------------------------------------------


def test_remasking_takes_back_visible_tokens_in_the_first_calls():
  waiting = np.arange(400)[None] % 2 == np.zeros((50, 1))
  view = view_of(waiting, np.full(50, 400), 2)
  score = jnp.zeros(waiting.shape)
  proposal = Proposal(score, jnp.zeros(waiting.shape, jnp.int32), score, {})
  change = Remask(probability=0.2, calls=3)(view, proposal, view.waiting)
  assert not (np.asarray(change.where) & waiting).any() and (np.asarray(change.level) == 1).all()
  assert np.asarray(change.where)[~waiting].mean() == pytest.approx(0.2, abs=0.02)
  assert not Remask(probability=0.2, calls=2)(view, proposal, view.waiting).where.any()


# Tokens that are independent, so that drawing several at a time is exact, and drawing them again is
# too.
ONE = np.array([0.6, 0.3, 0.1])
INDEPENDENT = Enumerable(TOY.sequences, ONE[TOY.sequences].prod(1), 3)


def test_what_is_taken_back_is_drawn_again():
  sampler = Reveal(
    score=Random(), budget=EvenShare(steps=2), revise=Remask(probability=0.5, calls=6)
  )
  result = draw(sampler, language=INDEPENDENT)
  assert (result.ids < 3).all() and distance(result.ids, INDEPENDENT) < 1.25
  assert 4 < result.calls <= 8, "nothing was taken back"
  assert result.row_calls.min() == 2, "a row that is done is left alone"


RENOISING = Reveal(score=Random(), budget=ONE_BY_ONE, revise=RenoiseRest(steps=24))


def test_renoising_what_waits():
  """The levels of 4 calls out of 24 stay near noise: little of the candidates is seen, and the law
  is nearly exact.
  """
  assert distance(draw(RENOISING, UNIFORM).ids) < 1.5


class SaysLess(Reveal):
  def times(self, model, params, canvas, state):
    return super().times(model, params, canvas, state) * 0.5


def test_renoising_at_another_level_than_the_network_is_told_fails():
  fields = {f.name: getattr(RENOISING, f.name) for f in dataclasses.fields(Reveal)}
  assert distance(draw(SaysLess(**fields), UNIFORM).ids) > 2


@member
class Restart(Revision):
  """A made-up revision that reads visible tokens: they are replaced by the tokens 'one more' than
  their candidates, once.
  """

  reads = "active"
  levels_between = False

  def __call__(self, view, proposal, committed):
    visible = view.canvas.active & ~view.waiting & view.answered
    where = visible & (view.step == 3)[:, None]
    return Change(where, (proposal.ids + 1) % 3, jnp.zeros(where.shape))


def test_a_revision_may_edit_visible_tokens():
  """A visible mask-free token is its own candidate; an edit (level 0) replaces it and does not
  wait.
  """
  plain = draw(Reveal(score=LeftToRight(), budget=ONE_BY_ONE), rows=100)
  edited = draw(Reveal(score=LeftToRight(), budget=ONE_BY_ONE, revise=Restart()), rows=100)
  assert edited.calls == 4
  np.testing.assert_array_equal(edited.ids[:, :3], (plain.ids[:, :3] + 1) % 3)
  np.testing.assert_array_equal(edited.ids[:, 3], plain.ids[:, 3])


# --- what is refused -----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"told='shared'.*RenoiseRest.*told='own'"):
    Reveal(revise=RenoiseRest()).check(model_of(MASKED))
  Reveal(revise=RenoiseRest(), told="own").check(model_of(MASKED))
  for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"told": "all"}):
    with pytest.raises(ValueError, match=next(iter(bad))):
      Reveal(**bad)
  for make in (
    lambda: EvenShare(steps=0),
    lambda: Threshold(least=0.0),
    lambda: Remask(probability=2.0),
  ):
    with pytest.raises(ValueError):
      make()


def test_equal_choices_are_equal():
  a, b = Reveal(), Reveal(score=Entropy(), budget=EvenShare(steps=64))
  assert a == b and hash(a) == hash(b) and a != Reveal(score=Random())


def test_nested_members_of_a_config():
  from diffusion_text.experiment.registry import construct

  section = {
    "name": "reveal",
    "score": {"name": "margin"},
    "budget": {"name": "even_share", "steps": 32},
    "revise": {"name": "remask", "probability": 0.1},
    "temperature": 0.5,
  }
  want = Reveal(
    score=Margin(), budget=EvenShare(steps=32), revise=Remask(probability=0.1), temperature=0.5
  )
  assert construct("sampler", section) == want
  with pytest.raises(ValueError, match=r"budget.*stepz.*steps"):
    construct("sampler", {"name": "reveal", "budget": {"name": "even_share", "stepz": 3}})


# --- cooling -------------------------------------------------------------------------------------


def test_the_temperature_falls_from_call_to_call():
  """From 2 to 0.5 over four calls: the law of a token is that of its call's temperature."""
  alone = Enumerable(
    np.indices((3,) * 4).reshape(4, -1).T,
    np.prod(np.array([0.6, 0.3, 0.1])[np.indices((3,) * 4).reshape(4, -1)], 0),
    3,
  )
  sampler = Reveal(
    score=LeftToRight(), budget=EvenShare(steps=4), temperature=2.0, cooling=(0.5, 4)
  )
  ids = draw(sampler, language=alone).ids
  for place, temperature in enumerate((2.0, 1.5, 1.0, 0.5)):
    want = np.array([0.6, 0.3, 0.1]) ** (1 / temperature)
    got = np.bincount(ids[:, place], minlength=3) / len(ids)
    np.testing.assert_allclose(got, want / want.sum(), atol=4.5 * 0.5 / len(ids) ** 0.5)
  constant = draw(Reveal(score=LeftToRight(), budget=ONE_BY_ONE, cooling=(1.0, 9)), rows=50)
  plain = draw(Reveal(score=LeftToRight(), budget=ONE_BY_ONE), rows=50)
  np.testing.assert_array_equal(constant.ids, plain.ids)
  for bad in ({"temperature": 0.0, "cooling": (0.5, 4)}, {"cooling": (0.0, 4)}):
    with pytest.raises(ValueError, match="cooling"):
      Reveal(**bad).check(model_of(MASKED))

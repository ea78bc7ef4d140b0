"""Speculative sampling has the law of one token after the other, for any network that is asked in
order, at fewer calls; mutants and networks that are not do not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.context.rows import joined, places
from diffusion_text.contrib.any_order import AnyOrder
from diffusion_text.contrib.context_bigrams import ContextBigrams, Known, Unread
from diffusion_text.contrib.speculative import Speculative, residual
from diffusion_text.core.options import member
from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.reader.cached import Cached
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import LeftToRight
from diffusion_text.testing import Enumerable, check_sampler, exact_model
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, InputSizes, Layout, Model, Progress, Rows, Span

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)
ROWS = 8_000
ONE_BY_ONE = Reveal(score=LeftToRight(), budget=EvenShare(steps=4))


@member
class AlwaysAccepts(Speculative):
  """All drafts are kept."""

  def verdict(self, *args):
    """Whatever the check says."""
    accepted, other = super().verdict(*args)
    return accepted | True, other


@member
class DrawsFromTheCheck(Speculative):
  """A token that is not accepted is drawn from q, not from what q has more than p."""

  def verdict(self, model, params, drafts, head, checked):
    """The other token is what a draft of the check would be."""
    accepted, _ = super().verdict(model, params, drafts, head, checked)
    again = drafts._replace(features=0 * drafts.features)  # p is flat: the residual is nearly q
    _, other = super().verdict(model, params, again, head, checked)
    return accepted, other


@member
class AllAtOnce(AnyOrder):
  """A masked network that is not an any-order one: whatever is shown is seen, drafts and masks
  alike, so that a check depends on later drafts and on the draft that it checks.
  """

  def sampling_rows(self, noisy, noise, t, batch):
    """Bidirectional rows."""
    return Full().sampling_rows(noisy, noise, t, batch)

  def query_rows(self, content, noise, t, index, batch):
    """The bidirectional rows of the filled text, asked where the drafts stand."""
    rows = Full().sampling_rows(content, noise, t, batch)
    take = jnp.take_along_axis
    ids = take(content.ids, index, axis=1)
    position = jnp.broadcast_to(places(batch), t.shape)
    both = jnp.concatenate([take(position, index, axis=1), position], axis=1)
    queries = type(content)(ids=ids)
    return Rows(
      joined(queries, rows.inputs, position=both),
      jnp.concatenate([take(t, index, axis=1), t], axis=1),
      Layout(),
      None,
      1,
      Span(0, 0),
      Span(0, index.shape[1]),
    )


@functools.cache
def exact():
  return exact_model(MASKED, TOY, timing=AtNoise(), context=AnyOrder())


@functools.cache
def any_network(context=None):
  """(a model whose parameters are anything, its parameters)."""
  sizes = {"input_sizes": InputSizes(4), "output_size": 3}
  network = small_transformer(**sizes, layers=2, width=16, heads=2, mlp_width=16)
  params = {"network": noisy_parameters(network, scale=0.4, seed=2), "process": {}, "timing": {}}
  return Model(network, MASKED, AtNoise(), context or AnyOrder(), chunk=8192), params


def draw(model, params, sampler, rows=ROWS, reader=None, batch=None):
  shape = {"rows": rows, "length": 4} if batch is None else {"batch": batch}
  key = jax.random.key(3)
  return jax.device_get(sample(model, params, sampler, key, reader=reader, **shape))


def distance(ids, law):
  """Total variation to a law over all texts, over what chance alone would give."""
  chance = 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * len(ids))).sum()
  return 0.5 * np.abs(TOY.histogram(ids) - law).sum() / chance


def law_in_order(model, params):
  """The law of one token after the other, by what training rows cost."""
  cost = jax.jit(engine.nats, static_argnums=0)
  nats = cost(model, params, jax.random.key(0), Batch(TOY.sequences), Progress())
  return np.exp(-np.asarray(nats).sum(1))


def test_the_laws_of_every_sampler():
  check_sampler(Speculative(drafts=3), *exact(), TOY, slack=0.0)


@pytest.mark.parametrize("drafts", [1, 2, 5])
def test_any_network_that_is_asked_in_order_keeps_its_law(drafts):
  """Random parameters, whose drafts are far from the checks."""
  model, params = any_network()
  result = draw(model, params, Speculative(drafts=drafts))
  law = law_in_order(model, params)
  assert law.sum() == pytest.approx(1, abs=1e-4)
  assert distance(result.ids, law) < 1.3
  steps = result.row_calls / 2
  if drafts == 1:
    assert (steps == 4).all()
  else:
    assert (steps <= 2).all()  # two tokens at least
    assert (steps == 1).any() == (drafts > 4)  # all four at once, if they are drafted


@member
class SaysAnotherLaw(ContextBigrams):
  """Drafts are judged as if all tokens had been equally likely."""

  def draft_law(self, model, of_process, keys, output):
    """Flat."""
    return jnp.full(output.shape, -np.log(output.shape[-1]))


def test_drafts_of_bigrams_keep_the_law_at_one_call_per_step():
  """Whether or not the reader's answer, which nobody uses, is made and charged."""
  model, params = any_network()
  law = law_in_order(model, params)
  result = draw(model, params, ContextBigrams(drafts=3), reader=Unread())
  assert distance(result.ids, law) < 1.3
  assert result.row_calls.max() == 4 and result.row_calls.min() == 2  # three tokens and one
  read = draw(model, params, ContextBigrams(drafts=3))
  np.testing.assert_array_equal(read.ids, result.ids)
  np.testing.assert_array_equal(read.row_calls, 2 * result.row_calls)
  other = draw(model, params, SaysAnotherLaw(drafts=3), reader=Unread())
  assert distance(other.ids, law) > 2


def test_the_law_of_bigrams_counts_known_pairs():
  """Before places 2 (a draft, 1), 5 (known, 1) and 0 (nothing): pairs 10, 12; a document ends."""
  ids = np.array([[1, 0, 1, 2, 0, 1, 0, 0]])
  where = np.array([[1, 1, 1, 1, 1, 1, 0, 0]], bool)
  known = where & (np.arange(8) != 0)  # the first token is a draft
  pairs = known[:, :-1] & known[:, 1:] & (np.arange(7) != 4)[None]  # 0 | 1 are two documents
  shares = np.array([[0.5, 0.25, 0.25]])
  of = Known(*(jnp.asarray(each) for each in (ids, where, pairs, shares)))
  sampler = ContextBigrams(smoothing=0.5)

  def law(place):
    return np.asarray(sampler.bigram_law(of, jnp.array([place])))[0]

  one_of_12 = (np.array([0, 0, 1]) + 0.5 * shares[0]) / 1.5  # 1 is followed by 2
  for place, want in ((1, one_of_12), (6, one_of_12), (0, shares[0]), (7, shares[0])):
    np.testing.assert_allclose(law(place), want, rtol=1e-6)
  two = (np.array([0, 1, 0]) + 0.5 * shares[0]) / 1.5  # 0 is followed by 1
  np.testing.assert_allclose(law(2), two, rtol=1e-6)


def test_greedy_bigrams_are_the_greedy_text():
  model, params = any_network()
  greedy = Reveal(score=LeftToRight(), budget=EvenShare(steps=4), temperature=0.0)
  want = draw(model, params, greedy, rows=2).ids
  got = draw(model, params, ContextBigrams(drafts=2, temperature=0.0), rows=2)
  np.testing.assert_array_equal(got.ids, want)


@pytest.mark.parametrize("mutant", [AlwaysAccepts, DrawsFromTheCheck])
def test_wrong_verdicts_have_another_law(mutant):
  model, params = any_network()
  assert distance(draw(model, params, mutant(drafts=4)).ids, law_in_order(model, params)) > 2


def test_a_masked_network_that_is_no_any_order_one_has_another_law():
  """The negative control: what it does one token after the other is not what is drawn here."""
  model, params = any_network(AllAtOnce())
  law = TOY.histogram(draw(model, params, ONE_BY_ONE).ids)
  assert distance(draw(model, params, Speculative(drafts=4)).ids, law) > 4  # 1.4: chance of both


def test_one_token_per_call_has_the_law_that_training_rows_cost():
  model, params = any_network()
  assert distance(draw(model, params, ONE_BY_ONE).ids, law_in_order(model, params)) < 1.3


def test_a_hole_before_what_is_observed():
  """The rest has its conditional law, with an odd number of tokens left at most a call more."""
  model, params = exact()
  ids = np.full((ROWS, 4), 1, np.int32)
  observed = np.broadcast_to(np.arange(4) == 2, ids.shape)
  result = draw(model, params, Speculative(drafts=2), batch=Batch(ids, observed))
  p = np.where(TOY.sequences[:, 2] == 1, TOY.probabilities, 0.0)
  assert distance(result.ids, p / p.sum()) < 1.3
  assert (result.row_calls == 4).all()  # 3 tokens: two, and then the last one


def test_greedy_drafts_are_the_greedy_text():
  """At temperature 0 the tokens are those of one per call."""
  model, params = any_network()
  greedy = Reveal(score=LeftToRight(), budget=EvenShare(steps=4), temperature=0.0)
  want = draw(model, params, greedy, rows=2).ids
  got = draw(model, params, Speculative(drafts=3, temperature=0.0), rows=2)
  np.testing.assert_array_equal(got.ids, want)


def test_the_residual_is_what_the_check_has_more():
  log_p, log_q = (
    np.log([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]),
    np.log([[0.2, 0.4, 0.4], [0.2, 0.3, 0.5]]),
  )
  got = jax.nn.softmax(residual(log_p, log_q))
  np.testing.assert_allclose(got[0], [0, 1 / 3, 2 / 3], atol=1e-6)
  np.testing.assert_allclose(got[1], [0.2, 0.3, 0.5], atol=1e-6)  # nothing is left: q itself


def test_what_does_not_fit_is_refused():
  model, params = exact()
  with pytest.raises(ValueError, match=r"needs query_rows.*use context\.name='any_order'"):
    Speculative().check(model._replace(context=Full()))
  slow = Cached(policy="some", queries=1, every=2)
  with pytest.raises(ValueError, match="answered for some tokens only"):
    draw(model, params, Speculative(), batch=Batch(np.zeros((2, 4), np.int32)), reader=slow)

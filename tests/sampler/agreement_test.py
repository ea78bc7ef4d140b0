"""Guided diffusion against a loop in numpy; a scorer that never agrees leaves one token per call
from left to right; common noise.
"""

import functools

import jax
import numpy as np
import pytest

from diffusion_text.context import Full, NextToken
from diffusion_text.core.options import member
from diffusion_text.core.prng import fold
from diffusion_text.process.masked import Masked
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.agreement import Agreement
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Proposal, Reveal, View
from diffusion_text.sampler.score import LeftToRight
from diffusion_text.testing import Enumerable, MarkovChain, check_sampler, exact_model
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch

V = 4  # the last token occurs in no text
SMALL = Enumerable.dirichlet(0, 0.5, 3, 4)
TOY = Enumerable(SMALL.sequences, SMALL.probabilities, V)
ALL_LAST = Enumerable(np.full((1, 4), V - 1, np.int32), np.ones(1), V)
MASKED = Masked(vocab_size=V)


@functools.cache
def paired(language, of_scorer):
  """(model, its parameters with those of the scorer, the scorer), exact in these languages."""
  model, params = exact_model(MASKED, language)
  exact = exact_model(MASKED, of_scorer, timing=AtNoise(), context=NextToken(), answer_shift=1)
  return model, {**params, "ar": exact[1]}, Other(reader=WholeRow(), model=exact[0], group="ar")


def batch_of(language):
  """Of each text one token is observed, or none."""
  ids = language.sequences
  rows = np.arange(len(ids))
  observed = np.arange(4)[None] == np.where(rows % 5 < 4, rows % 5, 9)[:, None]
  return Batch(ids, observed)


def guided(language, scorer, batch):
  """(ids, the call that committed each token), in numpy."""

  def likeliest(of, text, place, shown):
    fits = (of.sequences[:, shown] == text[shown]).all(1) * of.probabilities
    return np.bincount(of.sequences[:, place], weights=fits, minlength=V).argmax()

  ids, committed = batch.ids.copy(), np.full(batch.ids.shape, -1)
  for text, known, when in zip(ids, np.array(batch.observed), committed, strict=True):
    call = 0
    while not known.all():
      holes = np.flatnonzero(~known)
      filled = text.copy()
      filled[holes] = [likeliest(language, text, place, known) for place in holes]
      for number, place in enumerate(holes):
        agrees = likeliest(scorer, filled, place, np.arange(4) < place) == filled[place]
        if agrees or number == 0:
          text[place], known[place], when[place] = filled[place], True, call
        if not agrees:
          break
      call += 1
  return ids, committed


def draw(paired, sampler, **options):
  model, params, _ = paired
  return jax.device_get(sample(model, params, sampler, jax.random.key(0), **options))


@pytest.mark.parametrize("seed", [0, 1])
def test_tokens_and_calls_are_those_of_a_plain_loop(seed):
  """With a scorer of the same language, and of another one."""
  other = Enumerable.dirichlet(seed, 0.5, 3, 4)
  other = Enumerable(other.sequences, other.probabilities, V)
  parts = paired(TOY, other)
  batch = batch_of(TOY)
  result = draw(parts, Reveal(budget=Agreement(scorer=parts[2]), temperature=0.0), batch=batch)
  ids, committed = guided(TOY, other, batch)
  np.testing.assert_array_equal(result.ids, ids)
  np.testing.assert_array_equal(result.committed, committed)
  np.testing.assert_array_equal(result.row_calls, 2 * (committed.max(1) + 1))
  several = (~np.asarray(batch.observed)).sum(1) > committed.max(1) + 1
  assert several.mean() > (0.3 if seed == 0 else 0.03)


def test_a_scorer_that_never_agrees_leaves_one_token_per_call_from_left_to_right():
  """The negative control: as many calls as tokens, and as many of the scorer."""
  parts = paired(TOY, ALL_LAST)
  batch = batch_of(TOY)
  got = draw(parts, Reveal(budget=Agreement(scorer=parts[2]), temperature=0.0), batch=batch)
  plain = Reveal(score=LeftToRight(), budget=EvenShare(steps=4), temperature=0.0)
  want = draw(parts, plain, batch=batch)
  np.testing.assert_array_equal(got.ids, want.ids)
  np.testing.assert_array_equal(got.committed, want.committed)
  np.testing.assert_array_equal(got.row_calls, 2 * want.row_calls)


def test_text_that_follows_from_itself_is_written_in_runs():
  """Of a chain that is certain but for its first token, all is written at once or after one."""
  transition = np.roll(np.eye(V), 1, axis=1)
  chain = MarkovChain(np.array([0.4, 0.3, 0.2, 0.1]), transition, 12)
  parts = paired(chain, chain)
  for share in (0.0, 0.5):
    budget = Agreement(scorer=parts[2], share=share)
    result = draw(parts, Reveal(budget=budget, temperature=0.0), rows=4, length=12)
    assert (result.row_calls == 2).all()
    np.testing.assert_array_equal(result.ids, np.tile(np.arange(12) % V, (4, 1)))


@member
class OtherNoise(Agreement):
  """The target is drawn with noise of its own."""

  def wanted(self, view, proposal, waiting):
    """With keys of its own."""
    return super().wanted(view._replace(keys=fold(view.keys, 1)), proposal, waiting)


def test_both_draws_have_the_same_noise():
  """A target that is the diffusion model itself then agrees with every proposal."""
  parts = paired(TOY, ALL_LAST)
  same, other = (
    draw(parts, Reveal(budget=kind(scorer=parts[2], share=1.0)), rows=256, length=4)
    for kind in (Agreement, OtherNoise)
  )
  assert (same.row_calls == 2).all()
  assert other.row_calls.mean() > 4


def test_more_of_the_diffusion_model_accepts_more():
  """From the scorer alone to the proposal itself."""
  other = Enumerable.dirichlet(1, 0.5, 3, 4)
  parts = paired(TOY, Enumerable(other.sequences, other.probabilities, V))

  def calls(share):
    sampler = Reveal(budget=Agreement(scorer=parts[2], share=share))
    return draw(parts, sampler, rows=1024, length=4).row_calls.mean()

  found = [calls(share) for share in (0.0, 0.5, 1.0)]
  assert found[0] > found[1] + 0.3 > found[2] + 0.6 and found[2] == 2


def test_the_laws_of_every_sampler():
  """But for the law of the texts: nothing makes up for what agreement prefers."""
  model, params = exact_model(Masked(vocab_size=3), SMALL)
  scorer = exact_model(
    Masked(vocab_size=3), SMALL, timing=AtNoise(), context=NextToken(), answer_shift=1
  )
  other = Other(reader=WholeRow(), model=scorer[0], group="ar")
  sampler = Reveal(budget=Agreement(scorer=other))
  check_sampler(sampler, model, {**params, "ar": scorer[1]}, SMALL, exact_law=False)


@member
class SaysYes(Agreement):
  """A target that is the proposal."""

  def wanted(self, view, proposal, waiting):
    """Without asking anybody."""
    return proposal.ids


def test_a_token_without_an_answer_ends_the_run():
  """A reader may answer for some tokens only; known tokens on the way do not end it."""
  waiting = np.array([[False, True, False, True, True], [True, True, True, True, True]])
  answered = np.array([[True, True, True, True, True], [False, True, False, True, True]])
  names = dict.fromkeys(View._fields)
  view = View(**{**names, "waiting": waiting})
  proposal = Proposal(None, np.zeros(waiting.shape, np.int32), None, {})
  got = SaysYes(scorer=paired(TOY, TOY)[2])(view, proposal, waiting & answered)
  np.testing.assert_array_equal(got, [[0, 1, 0, 1, 1], [0, 1, 0, 0, 0]])


def test_what_does_not_fit_is_refused():
  model, _, scorer = paired(TOY, TOY)
  Reveal(budget=Agreement(scorer=scorer)).check(model)
  bidirectional = Other(reader=WholeRow(), model=model._replace(context=Full()))
  with pytest.raises(ValueError, match="show each token to its own answer"):
    Reveal(budget=Agreement(scorer=bidirectional)).check(model)

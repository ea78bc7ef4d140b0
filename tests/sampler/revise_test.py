"""Revisions, call by call, against the law of a language that is known exactly; and mutants."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler import revise
from diffusion_text.sampler.budget import EvenShare, Stable, Threshold
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.revise import Edit, Reselect, RunningConfidence, Verify
from diffusion_text.sampler.score import MaxProb
from diffusion_text.testing import (
  Enumerable,
  ExactNetwork,
  check_sampler,
  exact_model,
  exact_params,
)
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED, UNIFORM = Masked(vocab_size=3), Uniform(vocab_size=3, prediction="leave_one_out")
MASK, ROWS = 3, 64
ALL = EvenShare(steps=1)


class Film(NamedTuple):
  """What happened: texts and waiting [calls, B, L] after each call, row_calls [B]."""

  texts: np.ndarray
  waiting: np.ndarray
  row_calls: np.ndarray


@functools.cache
def film(process, sampler, rows=ROWS):
  """The film of a sampler at work."""
  loop = Loop(model_of(process), sampler, WholeRow())
  params, batch = exact_params(TOY), Batch(jnp.zeros((rows, 4), jnp.int32))
  fixed = loop.fixed(params, row_keys(3, rows), batch)
  carry = loop.start(params, fixed)
  advance = jax.jit(loop.advance)
  texts, waiting = [], []
  while np.asarray(loop.needs(params, fixed, carry)).any():
    carry = advance(params, fixed, carry)
    texts.append(np.asarray(carry.state))
    waiting.append(np.asarray(carry.sampler.waiting))
  calls = np.asarray(loop.finish(params, fixed, carry).row_calls)
  return Film(np.stack(texts), np.stack(waiting), calls)


def model_of(process):
  return Model(ExactNetwork(process), process, Shared(), Full(), chunk=8192)


def law(texts, hidden):
  """p(x_i = v | the tokens of each text that are not hidden), [B, L, V]."""
  agrees = ((TOY.sequences[None] == texts[:, None]) | hidden[:, None]).all(-1)
  weight = np.where(agrees, TOY.probabilities, 0.0)
  found = np.einsum("bm,mlv->blv", weight, np.eye(3)[TOY.sequences])
  return found / found.sum(-1, keepdims=True)


def leave_one_out(texts):
  """p(x_i = v | all other tokens), [B, L, V]."""
  places = [law(texts, np.arange(4)[None] == place)[:, place] for place in range(4)]
  return np.stack(places, axis=1)


# --- running confidence --------------------------------------------------------------------------

FILLING = Reveal(score=MaxProb(), budget=ALL, revise=RunningConfidence(steps=4))


def check_running_confidence(texts, steps=4):
  """Each call fills what was masked; one token more stays, the surest so far."""
  masked = np.ones(texts[0].shape, bool)
  sure = np.zeros(texts[0].shape)
  before = np.full(texts[0].shape, MASK)
  for call, after in enumerate(texts):
    chance = law(before, masked)
    left = after == MASK
    assert ((~left).sum(1) == call + 1).all()
    kept = ~left & masked
    shown = np.take_along_axis(chance, np.minimum(after, 2)[..., None], -1)[..., 0]
    sure = np.where(kept, shown, sure)
    assert (after == before)[~left & ~masked].all()
    if call + 1 < steps:
      surest_gone = np.where(left & ~masked, sure, 0.0).max(1)
      least_kept = np.where(~left, sure, 2.0).min(1)
      assert (surest_gone <= least_kept + 1e-5).all()
    sure, before, masked = np.where(left, 0.0, sure), after, left


def test_running_confidence_keeps_the_surest():
  texts, _, calls = film(MASKED, FILLING)
  assert len(texts) == 4 and (calls == 4).all()
  check_running_confidence(texts)


@member
class TheSurestGo(RunningConfidence):
  """The wrong way round."""

  def __call__(self, view, proposal, committed):
    """Signs are swapped."""
    swapped = proposal._replace(log_prob=-1 / (proposal.log_prob - 1e-3))
    return super().__call__(view, swapped, committed)


def test_taking_back_the_surest_would_be_noticed():
  texts, *_ = film(MASKED, Reveal(score=MaxProb(), budget=ALL, revise=TheSurestGo(steps=4)))
  with pytest.raises(AssertionError):
    check_running_confidence(texts)


def test_running_confidence_of_one_call_is_the_budget():
  once = film(MASKED, Reveal(budget=ALL, revise=RunningConfidence(steps=1)))
  plain = film(MASKED, Reveal(budget=ALL))
  np.testing.assert_array_equal(once[0], plain[0])


# --- edits ---------------------------------------------------------------------------------------

EDITING = Reveal(budget=ALL, revise=Edit(least=0.5, calls=6, read_at=0.0))


def check_edits(texts, least=0.5):
  """Where another token is surer than `least` by all others it is taken; nothing else changes."""
  for before, after in itertools.pairwise(texts):
    chance = leave_one_out(before)
    best = chance.argmax(-1)
    wanted = np.where((best != before) & (chance.max(-1) >= least), best, before)
    going = (wanted != before).any(1)
    np.testing.assert_array_equal(after[going], wanted[going])
    np.testing.assert_array_equal(after[~going], before[~going])


def test_edits_take_what_all_others_say():
  texts, _, calls = film(UNIFORM, EDITING)
  check_edits(texts)
  edited = (texts[0] != texts).any((0, 2))
  assert edited.mean() > 0.05 and calls.max() <= 1 + 6
  # One call finds that there is nothing to edit.
  assert (calls[~edited] == 2).all()


@member
class Voting(Uniform):
  """A token at which the others are not asked."""

  def leave_one_out(self, params, state, t, output):
    """The token itself, once it is visible."""
    own = 60.0 * jax.nn.one_hot(state, 3) * (t == 0)[..., None]
    return super().leave_one_out(params, state, t, output + own)


def test_a_token_that_votes_for_itself_is_never_edited():
  """The posterior of a visible token is the token: the leave-one-out law is needed."""
  texts, *_ = film(Voting(vocab_size=3, prediction="leave_one_out"), EDITING)
  assert (texts[0] == texts[-1]).all()


def test_edits_of_masks_go_on_after_the_last_mask():
  """A network of masks that answers at visible tokens too, as one trained on edits does."""
  model, params = exact_model(MASKED, TOY)
  sampler = Reveal(revise=Edit(least=0.5, calls=6))
  result = sample(model, params, sampler, row_keys(0, 8), rows=8, length=4)
  assert (np.asarray(result.row_calls) >= 4).all() and (np.asarray(result.ids) < 3).all()


# --- a second reading ----------------------------------------------------------------------------

CHECKED = Reveal(budget=Threshold(least=0.4), revise=Verify(least=0.6, checks=2))


def check_second_reading(texts, least=0.6, checks=2):
  """What goes back had too little chance without itself; one token less than was committed goes."""
  gone = 0
  before = np.full(texts[0].shape, MASK)
  for after in texts:
    chances = law(before, before == MASK)
    entropy = -(chances * np.log(np.maximum(chances, 1e-30))).sum(-1)
    best = np.where(before == MASK, entropy, np.inf).argmin(1)[:, None] == np.arange(4)
    committed = (before == MASK) & (best | (chances.max(-1) >= 0.4))
    back = (before != MASK) & (after == MASK)
    new = (before == MASK) & (after != MASK)
    assert (back.sum(1) <= checks).all()
    live = (before == MASK).any(1)
    assert ((after != MASK).sum(1) > (before != MASK).sum(1))[live].all()
    assert (before[~live] == after[~live]).all() and (new.any(1) | ~live).all()
    rows, places = np.nonzero(back)
    # Where nothing else went back, the other tokens are what the second reading saw.
    for row, place in zip(rows, places, strict=True):
      if back[row].sum() == 1 and (new[row] == committed[row]).all():
        text = np.where(np.arange(4) == place, MASK, after[row])[None]
        chance = law(text, text == MASK)[0, place, before[row, place]]
        assert chance < least
        gone += 1
    before = after
  return gone


def test_a_second_reading_takes_back_what_the_others_deny():
  texts, _, calls = film(MASKED, CHECKED, rows=1024)
  assert check_second_reading(texts) > 5
  assert CHECKED.extra_calls == 2
  np.testing.assert_array_equal(calls % 3, 0)


def test_reading_the_token_itself_would_be_noticed():
  """Without hiding the token nothing ever goes back."""
  reads = revise.read_variants

  def shown(view, texts, waiting, level):
    everything = jnp.broadcast_to(texts.max(0) % MASK, texts.shape)
    return reads(view, everything, waiting, level)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(revise, "read_variants", shown)
    sampler = Reveal(budget=Threshold(least=0.4), revise=Verify(least=0.61, checks=2))
    texts, *_ = film(MASKED, sampler, rows=1024)
  with pytest.raises(AssertionError):
    assert check_second_reading(texts, least=0.61) > 5


# --- a new choice at every call ------------------------------------------------------------------

RESELECT = Reveal(budget=Threshold(least=0.45), revise=Reselect(steps=5, read_at=0.0))


def reselected_law(texts, waiting):
  """p(x_i = v | the tokens that do not wait, but for token i), [B, L, V]."""
  places = [law(texts, waiting | (np.arange(4) == place))[:, place] for place in range(4)]
  return np.stack(places, axis=1)


def check_reselect(texts, waiting, least=0.45, last=4):
  """Tokens that are likely enough, and the surest one, show; at the end all do, the likeliest."""
  seen = np.ones(texts[0].shape, bool)
  for call in range(1, len(texts)):
    chance = reselected_law(texts[call - 1], waiting[call - 1])
    live = waiting[call - 1].any(1)
    entropy = -(chance * np.log(np.maximum(chance, 1e-30))).sum(-1)
    best = np.arange(4) == entropy.argmin(1)[:, None]
    chosen = best | (chance.max(-1) >= least - 1e-5)
    ended = live & ~waiting[call].any(1) & ~chosen.all(1)
    if call == last:
      np.testing.assert_array_equal(texts[call][live], chance.argmax(-1)[live])
      assert not waiting[call].any()
    else:
      assert not ended.any()
      np.testing.assert_array_equal(~waiting[call][live], chosen[live])
  return seen


def test_every_call_chooses_among_all_tokens():
  texts, waiting, calls = film(UNIFORM, RESELECT)
  check_reselect(texts, waiting)
  assert calls.max() == 5 and (np.diff(waiting.sum(-1), axis=0) > 0).any()


@member
class OnlyWhatWaits(Reselect):
  """Tokens that were chosen once stay."""

  def __call__(self, view, proposal, committed):
    """As it should be, but for visible tokens."""
    change = super().__call__(view, proposal, committed)
    return change._replace(where=change.where & view.waiting)


def test_tokens_that_stay_would_be_noticed():
  sampler = Reveal(budget=Threshold(least=0.45), revise=OnlyWhatWaits(steps=5, read_at=0.0))
  texts, waiting, _ = film(UNIFORM, sampler)
  with pytest.raises(AssertionError):
    check_reselect(texts, waiting)


def test_a_row_that_is_settled_ends():
  """Once no entropy is left and nothing moves, the row is done before its last call."""
  certain = Enumerable(np.array([[0, 1, 2, 0]]), np.ones(1), 3)
  sampler = Reveal(budget=Threshold(least=1.0), revise=Reselect(steps=9))
  model, params = exact_model(UNIFORM, certain)
  result = sample(model, params, sampler, row_keys(0, 4), rows=4, length=4)
  np.testing.assert_array_equal(result.ids, np.tile([0, 1, 2, 0], (4, 1)))
  assert (np.asarray(result.row_calls) <= 2).all()


# --- of all --------------------------------------------------------------------------------------

EACH = {
  "verify": (MASKED, CHECKED),
  "reselect": (UNIFORM, RESELECT),
}


@pytest.mark.parametrize("name", ["verify", "reselect"])
def test_the_laws_of_every_sampler(name):
  """Observed tokens stay, a row is its own, the host's loop is the compiled one."""
  process, sampler = EACH[name]
  laws = ("options", "fits", "tokens", "alone", "host")
  check_sampler(sampler, *exact_model(process, TOY), TOY, exact_law=False, rows=64, only=laws)


def test_what_does_not_go_together_is_refused():
  model, params = exact_model(UNIFORM, TOY)
  with pytest.raises(ValueError, match=r"stop_at_end.*Edit.*end_id"):
    Reveal(revise=Edit(), end_id=1, stop_at_end=True).check(model)
  forgetful = Reveal(budget=Stable(), revise=Reselect())
  with pytest.raises(ValueError, match=r"reselect.*Stable.*remembers.*entropy_bound"):
    sample(model, params, forgetful, row_keys(0, 2), rows=2, length=4)

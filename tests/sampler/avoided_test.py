"""Pairs of the source that are not written again: in any order, several tokens at a call, against
the exact law; each half of the rule has a mutant without it.
"""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.avoided import NOBODY, SourcePairs
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import LeftToRight, Random
from diffusion_text.sampler.transform import without_own
from diffusion_text.testing import Enumerable, exact_model
from diffusion_text.types import Batch

LANGUAGE = Enumerable.dirichlet(0, 0.7, 3, 6)
MODEL, PARAMS = exact_model(Masked(vocab_size=3), LANGUAGE)
SOURCE = (0, 1, 0)  # the pairs 0 1 and 1 0
ROWS = 2000


@member
class OnlyToTheRight(SourcePairs):
  """A mutant: what stands to the right of a token is not looked at."""

  def ids(self, view):
    """The first half."""
    found = super().ids(view)
    return found[..., : found.shape[-1] // 2]


@member
class TakesNothingBack(SourcePairs):
  """A mutant: tokens of one call do not see one another."""

  def taken_back(self, view, ids, log_prob, committed):
    """None."""
    return jnp.zeros_like(committed)


def drawn(avoid, score=None, steps=3):
  """Rows of 6 tokens that begin with the source."""
  ids = np.tile(np.array([*SOURCE, 0, 0, 0], np.int32), (ROWS, 1))
  batch = Batch(ids, np.tile(np.arange(6) < 3, (ROWS, 1)))
  sampler = Reveal(score=score or Random(), budget=EvenShare(steps=steps), avoid=avoid)
  return jax.tree.map(np.asarray, sample(MODEL, PARAMS, sampler, row_keys(0, ROWS), batch=batch))


def blocked(ids):
  """bool [B, 3]: where a pair of the source is written again."""
  pairs = set(itertools.pairwise(SOURCE))
  return np.array([[each in pairs for each in itertools.pairwise(row[2:])] for row in ids.tolist()])


@pytest.mark.parametrize(("steps", "mutant"), [(3, OnlyToTheRight), (1, TakesNothingBack)])
def test_no_pair_of_the_source_is_written_in_any_order_and_at_once(steps, mutant):
  result = drawn(SourcePairs(share=1.0), steps=steps)
  assert not blocked(result.ids).any() and (result.ids[:, :3] == SOURCE).all()
  assert blocked(drawn(mutant(share=1.0), steps=steps).ids).mean() > 0.02
  if steps == 1:  # what is taken back is drawn at a later call, and each call commits a token
    assert 1 < result.calls <= 3


def test_from_left_to_right_the_law_is_that_of_each_next_token_without_the_blocked_ones():
  """Mutant: the language itself among the rows without such a pair, which looks ahead."""
  result = drawn(SourcePairs(share=1.0), LeftToRight())
  of_source = (LANGUAGE.sequences[:, :3] == SOURCE).all(1)
  rows, weights = LANGUAGE.sequences[of_source], LANGUAGE.probabilities[of_source]
  law, allowed = np.ones(len(rows)), ~blocked(rows)
  for place in range(3, 6):
    prefix = rows[:, None, :place] == rows[None, :, :place]
    same = prefix.all(-1)
    ok = allowed[:, place - 3]
    next_token = same & (rows[:, place][:, None] == rows[:, place][None])
    law *= ok * (next_token @ weights) / np.maximum(same @ (weights * ok), 1e-30)
  place = {tuple(row): number for number, row in enumerate(rows.tolist())}
  counted = np.bincount([place[tuple(row)] for row in result.ids.tolist()], minlength=len(rows))
  error = 4 * np.sqrt(law * (1 - law) / ROWS) + 1e-9
  assert law.sum() == pytest.approx(1) and (np.abs(counted / ROWS - law) <= error).all()
  mutant = weights * allowed.all(1) / (weights * allowed.all(1)).sum()
  assert (np.abs(counted / ROWS - mutant) > error).any()


def test_a_share_of_the_pairs_is_blocked_and_free_ids_are_not():
  """Each row draws its own, once. What is written, padding and ids that are free are in no pair."""
  canvas = types.SimpleNamespace(
    state=np.array([[0, 1, 2, 1, 0, 1]] * 400),
    active=np.array([[False] * 3 + [True] + [False] * 2] * 400),
    lengths=np.full(400, 5),
    keys=token_keys(row_keys(0, 400), 6),
    segment=None,
  )
  view = types.SimpleNamespace(canvas=canvas, model=MODEL, params=PARAMS)
  which = [SourcePairs(share=1.0), SourcePairs(share=0.5), SourcePairs(share=1.0, free=(0,))]
  whole, half, free = jax.jit(lambda: [each.pairs(view) for each in which])()
  assert whole.first[0].tolist() == [0, 1, *[NOBODY] * 4]
  assert whole.second[0].tolist() == [1, 2, *[NOBODY] * 4]
  half = np.asarray(half.first)[:, :2] != NOBODY
  assert (np.abs(half.mean(0) - 0.5) < 0.1).all() and 0.15 < half.all(1).mean() < 0.35
  assert free.first[0].tolist() == [NOBODY, 1, *[NOBODY] * 4]


def test_a_token_is_never_one_of_its_own_ids():
  log_p = np.log(np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], np.float32))
  ids = np.array([[2, NOBODY, 2], [NOBODY, NOBODY, NOBODY]])
  found = jax.jit(lambda p: without_own(p, ids))(log_p)
  np.testing.assert_allclose(np.exp(found), [[0.4, 0.6, 0], [0.2, 0.3, 0.5]], atol=1e-6)


def test_windows_without_the_source_are_refused():
  with pytest.raises(ValueError, match="sampled in windows of 2; use a context of whole rows"):
    Reveal(avoid=SourcePairs()).check(MODEL._replace(context=Blocks(size=2)))

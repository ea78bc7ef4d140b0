"""Guidance that stops where answers agree, and guidance away from a negative prompt; what each row
pays.
"""

import functools

import jax
import numpy as np
import pytest

from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.reader.classifier_free import ClassifierFree
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.reader.window_cache import WindowCache
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Random
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import Batch

V, L, ROWS = 3, 5, 128
ONE_PER_CALL = Reveal(score=Random(), budget=EvenShare(steps=L))
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)


def agreeing():
  """A language whose first token tells the second, and nothing of the others."""
  rest = Enumerable.dirichlet(1, 1.0, V, L - 2)
  ids, p = [], []
  for token in range(V):
    ids.append(np.concatenate([np.full((len(rest.sequences), 2), token), rest.sequences], axis=1))
    p.append(rest.probabilities / V)
  return Enumerable(np.concatenate(ids).astype(np.int32), np.concatenate(p), V)


@functools.cache
def model_of(name="any"):
  language = LANGUAGE if name == "any" else agreeing()
  return language, *exact_model(Masked(vocab_size=V), language)


def drawn(reader, name="any", observed=None, block=None, negative=None):
  language, model, params = model_of(name)
  ids = language.sample(np.random.default_rng(0), ROWS)
  observed = np.arange(L) < 1 if observed is None else observed
  extras = {} if negative is None else {"negative": negative(ids)}
  batch = Batch(ids, np.broadcast_to(observed, ids.shape), extras=extras)
  keys = jax.random.split(jax.random.key(0), ROWS)
  how = {"batch": batch, "reader": reader, "block": block, "trace": True}
  reader.check(model)
  return jax.tree.map(np.asarray, sample(model, params, ONE_PER_CALL, keys, **how)), batch


FULL = ClassifierFree(WholeRow(), 2.0)


def test_answers_that_agree_are_not_asked_for_again():
  """Once the second token is drawn, the prompt says nothing more: tokens and log-probabilities are
  those of full guidance, and each row pays for two answers up to that call, its own.
  """
  full, batch = drawn(FULL, "agreeing")
  adaptive = ClassifierFree(WholeRow(), 2.0, agree=0.001)
  assert adaptive.calls == 2
  got, _ = drawn(adaptive, "agreeing")
  np.testing.assert_array_equal(got.ids, full.ids)
  np.testing.assert_allclose(got.log_prob, full.log_prob, atol=1e-4)
  told = got.committed[:, 1]  # the call at which the second token was drawn
  np.testing.assert_array_equal(got.row_calls, (L - 1) + np.minimum(told + 2, L - 1))
  np.testing.assert_array_equal(got.token_layers, got.row_calls * L)
  assert (full.row_calls == 2 * (L - 1)).all() and got.row_calls.min() < got.row_calls.max()
  assert got.calls == got.row_calls.max()
  # A row is its own, whatever the others still ask for, and the host says the same.
  _, model, params = model_of("agreeing")
  which = np.argsort(got.row_calls)[:3]
  keys = jax.random.split(jax.random.key(0), ROWS)[which]
  few = jax.tree.map(lambda leaf: leaf[which], batch)
  steps = host_sample(model, params, ONE_PER_CALL, keys, batch=few, reader=adaptive, trace=True)
  while True:
    try:
      next(steps)
    except StopIteration as stop:
      alone = stop.value
      break
  for field in ("ids", "committed", "row_calls", "log_prob"):
    np.testing.assert_allclose(getattr(alone, field), getattr(got, field)[which], atol=1e-4)
  assert alone.calls < got.calls


def test_answers_that_differ_are_always_asked_for():
  full, _ = drawn(FULL)
  got, _ = drawn(ClassifierFree(WholeRow(), 2.0, agree=0.0))
  np.testing.assert_array_equal(got.ids, full.ids)
  np.testing.assert_array_equal(got.row_calls, full.row_calls)


def test_whatever_agrees_serves_alone_until_the_window_is_done():
  """Two answers at the first call of each window, and one at each other; over caches, too."""
  generous = ClassifierFree(WholeRow(), 2.0, agree=1.0)
  got, _ = drawn(generous, block=2)
  windows, calls = 3, L - 1
  assert (got.row_calls == windows + calls).all() and got.calls == windows + calls
  cached, _ = drawn(ClassifierFree(WindowCache(), 2.0, agree=1.0), block=2)
  np.testing.assert_array_equal(cached.ids, got.ids)
  np.testing.assert_array_equal(cached.row_calls, got.row_calls)
  full, _ = drawn(FULL, block=2)
  first = got.committed == 0
  np.testing.assert_array_equal(got.ids[first], full.ids[first])
  assert (got.ids != full.ids).any()


def test_no_branch_surrounds_a_cache():
  """A branch would copy the cache at every call, which a loop of one turn or none does not."""
  _, model, params = model_of()
  ids = np.zeros((2, L), np.int32)
  batch = Batch(ids, np.broadcast_to(np.arange(L) < 1, ids.shape))
  guided = Loop(model, ONE_PER_CALL, ClassifierFree(WindowCache(), 2.0, agree=0.1), block=2)
  program = jax.jit(guided).lower(params, row_keys(0, 2), batch).as_text()
  assert "stablehlo.while" in program and "stablehlo.case" not in program


@member
class ForgetsToCompare(ClassifierFree):
  """Takes every row for one whose answers agree."""

  def _agree(self, model, params, query, one, other):
    return query.needs.any(axis=1)


def test_rows_that_do_not_agree_would_be_noticed():
  full, _ = drawn(FULL)
  got, _ = drawn(ForgetsToCompare(WholeRow(), 2.0, agree=0.0))
  assert (got.ids != full.ids).any() and (got.row_calls < full.row_calls).all()


# Negative prompts.


def same(ids):
  return ids


def other(ids):
  return (ids + 1) % V


def test_away_from_the_prompt_itself_is_less_guidance():
  """u + 3 (c - u) - 1 (c - u) = u + 2 (c - u), by three readings."""
  reader = ClassifierFree(WholeRow(), 3.0, away=1.0)
  assert reader.calls == 3
  got, _ = drawn(reader, negative=same)
  want, _ = drawn(FULL)
  np.testing.assert_array_equal(got.ids, want.ids)
  np.testing.assert_allclose(got.log_prob, want.log_prob, atol=1e-3)
  assert got.calls == 3 * (L - 1)
  moved, _ = drawn(reader, negative=other)
  assert (moved.ids != got.ids).any()


@member
class Towards(ClassifierFree):
  """Of the wrong sign."""

  @property
  def _weights(self):
    return {"seen": self.scale, "unseen": 1 - self.scale - self.away, "negative": self.away}


def test_the_wrong_sign_would_be_noticed():
  got, _ = drawn(Towards(WholeRow(), 3.0, away=1.0), negative=same)
  want, _ = drawn(FULL)
  assert (got.ids != want.ids).any()


def test_a_prompt_against_another_one_is_two_readings():
  """At scale 2 and away 1 what the prompt makes likelier than the negative one is likelier still:
  p(x | c)² / p(x | n), by hand; in windows whose last one is cut by the end of the row, too.
  """
  reader = ClassifierFree(WholeRow(), 2.0, away=1.0)
  assert reader.calls == 2
  observed = np.arange(L) < L - 1
  got, batch = drawn(reader, observed=observed, negative=other)
  law = {}
  for sequence, p in zip(LANGUAGE.sequences, LANGUAGE.probabilities, strict=True):
    law.setdefault(tuple(sequence[:-1]), np.zeros(V))[sequence[-1]] = p
  seen, negative = (
    np.stack([law[tuple(row[:-1])] for row in ids]) for ids in (batch.ids, other(batch.ids))
  )
  seen, negative = (each / each.sum(1, keepdims=True) for each in (seen, negative))
  want = seen**2 / negative
  want = np.log(want / want.sum(1, keepdims=True))
  found = got.log_prob[:, -1]
  np.testing.assert_allclose(found, want[np.arange(ROWS), got.ids[:, -1]], atol=1e-3)
  windows, _ = drawn(reader, observed=observed, negative=other, block=2)
  np.testing.assert_array_equal(windows.ids, got.ids)


def test_bad_choices_are_refused():
  with pytest.raises(ValueError, match=r"needs batch\.extras\['negative'\].* not None"):
    drawn(ClassifierFree(WholeRow(), 2.0, away=1.0))
  with pytest.raises(ValueError, match=r"not \(128, 4\)"):
    drawn(ClassifierFree(WholeRow(), 2.0, away=1.0), negative=lambda ids: ids[:, :-1])
  with pytest.raises(ValueError, match="agree"):
    ClassifierFree(WholeRow(), 2.0, agree=1.5)

"""A second model's log-probabilities of filled rows: those of the language, where it knows the
language.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full, NextToken
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.scorer import check_scorer, score_tokens, token_log_probs
from diffusion_text.testing import Enumerable, exact_model
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, Query

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)


def scored_by(language=TOY, process=MASKED, context=None, chunk=8192):
  """(model, its parameters with those of the scorer, the scorer), both exact."""
  model, params = exact_model(process, TOY, context=context)
  exact = exact_model(process, language, timing=AtNoise(), context=NextToken(), answer_shift=1)
  other = Other(reader=WholeRow(), model=exact[0], group="other")
  return model._replace(chunk=chunk), {**params, "other": exact[1]}, other


def query_of(ids, unit=4, start=0, process=MASKED, **batch):
  """The question about a window of noise; what stands before it is clean."""
  keys = jax.random.split(jax.random.key(0), ids.shape)
  noise = process.prior({}, keys)
  known = jnp.arange(ids.shape[1]) < start
  state = jnp.where(known, ids, noise)
  t = jnp.broadcast_to(jnp.where(known, 0.0, 1.0), ids.shape)
  needs = jnp.ones((ids.shape[0], unit), bool)
  return Query(state, t, jnp.int32(start), needs, Batch(ids, **batch), noise)


ask = functools.partial(jax.jit, static_argnums=(0, 1))(score_tokens)


def marginal_chain(language, ids):
  """(log p(x_i | x_<i), its argmax), by adding up the language."""
  sequences, p = language.sequences, language.probabilities
  log_prob, best = np.zeros(ids.shape), np.zeros(ids.shape, int)
  for row, text in enumerate(ids):
    for place in range(len(text)):
      fits = (sequences[:, :place] == text[:place]).all(1) * p
      law = np.array([fits[sequences[:, place] == v].sum() for v in range(3)])
      log_prob[row, place] = np.log(law[text[place]] / law.sum())
      best[row, place] = law.argmax()
  return log_prob, best


@pytest.mark.parametrize("process,chunk", [(MASKED, 64), (Uniform(vocab_size=3), 8192)], ids=str)
def test_the_rows_add_up_to_the_likelihood(process, chunk):
  """Of each token, of its best rival, and of whole rows; also a few logits at a time."""
  model, params, scorer = scored_by(process=process, chunk=chunk)
  ids = TOY.sequences
  got = jax.device_get(ask(scorer, model, params, query_of(ids, process=process), ids))
  log_prob, best = marginal_chain(TOY, ids)
  np.testing.assert_allclose(got.log_prob, log_prob, atol=1e-4)
  np.testing.assert_array_equal(got.best, best)
  np.testing.assert_allclose(got.log_prob.sum(1), TOY.log_likelihood(ids), atol=1e-4)


def test_another_language_would_be_noticed():
  """The parameters are those of the group, not the model's own."""
  other = Enumerable.dirichlet(1, 0.5, 3, 4)
  model, params, scorer = scored_by(other)
  got = np.asarray(ask(scorer, model, params, query_of(TOY.sequences), TOY.sequences).log_prob)
  np.testing.assert_allclose(got.sum(1), other.log_likelihood(TOY.sequences), atol=1e-4)
  assert np.abs(got.sum(1) - TOY.log_likelihood(TOY.sequences)).max() > 1


def test_a_window_behind_clean_tokens_and_a_row_with_padding():
  """The second block of a row is scored given the first; padding costs nothing."""
  ids = TOY.sequences
  log_prob, _ = marginal_chain(TOY, ids)
  for process in (Uniform(vocab_size=3), MASKED):
    model, params, scorer = scored_by(process=process, context=Blocks(size=2))
    query = query_of(ids, unit=2, start=2, process=process)
    got = np.asarray(ask(scorer, model, params, query, ids[:, 2:]).log_prob)
    np.testing.assert_allclose(got, log_prob[:, 2:], atol=1e-4)
  padding = np.broadcast_to(np.arange(4) == 3, ids.shape)
  batch = {"weights": np.float32(~padding), "segment": padding.astype(np.int32)}
  got = np.asarray(ask(scorer, model, params, query_of(ids, **batch), ids).log_prob)
  np.testing.assert_allclose(got[:, :3], log_prob[:, :3], atol=1e-4)
  np.testing.assert_array_equal(got[:, 3], 0)


def test_what_cannot_score_is_refused():
  model, params, scorer = scored_by()
  full, _ = exact_model(MASKED, TOY, context=Full())
  check_scorer(scorer, model, "a test")
  with pytest.raises(ValueError, match="show each token to its own answer"):
    check_scorer(Other(reader=WholeRow(), model=full), model, "a test")
  larger, _ = exact_model(Masked(4), Enumerable.independent(4, 2), context=NextToken())
  with pytest.raises(ValueError, match="vocabulary of 4"):
    check_scorer(Other(reader=WholeRow(), model=larger), model, "a test")
  cached = Other(reader=Cached(), model=scorer.model)
  with pytest.raises(ValueError, match="keeps a memory"):
    token_log_probs(cached, model, params, query_of(TOY.sequences), TOY.sequences)

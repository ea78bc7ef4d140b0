"""Windows: positions that are sampled together, from left to right, where the context would finish
the row as a whole.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.core.options import member
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import Batch

V, L, ROWS = 3, 5, 8
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
MASKED = Masked(vocab_size=V)
ONE_PER_CALL = Reveal(budget=EvenShare(steps=L))


@functools.cache
def model_of(process=MASKED):
  return exact_model(process, LANGUAGE)


def drawn(sampler, block, *, rows=ROWS, batch=None, process=MASKED, reader=None, seed=0):
  model, params = model_of(process)
  keys = jax.random.split(jax.random.key(seed), rows)
  shape = {"rows": rows, "length": L} if batch is None else {"batch": batch}
  result = sample(model, params, sampler, keys, **shape, block=block, reader=reader, trace=True)
  return jax.tree.map(np.asarray, result)


def ragged(seed=0):
  """Tokens are observed at the start, in the middle and at the end; some rows are shorter."""
  rng = np.random.default_rng(seed)
  length = np.array([L, L - 1, L, L - 2, L, L, L, L - 1])[:, None]
  padding = np.arange(L) >= length
  observed = rng.random((ROWS, L)) < 0.35
  ids = LANGUAGE.sample(rng, ROWS)
  return Batch(ids, observed, weights=np.float32(~padding), segment=np.int32(padding))


@member
class SeesNothingAhead(WholeRow):
  """Hides what is observed behind the window."""

  def read(self, model, params, memory, query, *, refresh):
    """With everything behind the window as noise."""
    behind = jnp.arange(query.t.shape[1]) >= query.start + query.needs.shape[1]
    query = query._replace(hidden=jnp.broadcast_to(behind, query.t.shape))
    return WholeRow.read(self, model, params, memory, query, refresh=refresh)


def distance(sampler, block, rows=4096):
  result = drawn(sampler, block, rows=rows)
  return LANGUAGE.total_variation(LANGUAGE.histogram(result.ids)), result


def test_one_token_per_call_keeps_the_law():
  """Window after window, of which the last is cut by the end of the row; two tokens per call do
  not.
  """
  chance = LANGUAGE.chance_distance(4096)
  exact, result = distance(ONE_PER_CALL, 2)
  assert exact < 1.5 * chance + 0.01
  assert result.calls == L and (result.row_calls == L).all()
  first, second, third = result.committed[:, :2], result.committed[:, 2:4], result.committed[:, 4:]
  assert first.max() < second.min() and second.max() < third.min()
  said = result.log_prob.sum(1)
  np.testing.assert_allclose(said, LANGUAGE.log_likelihood(result.ids), atol=1e-3)
  both, _ = distance(Reveal(budget=EvenShare(steps=1)), 2)
  assert both > exact + 0.05


@pytest.mark.parametrize(
  "process,sampler", [(MASKED, ONE_PER_CALL), (Uniform(vocab_size=V), Grid(steps=3))]
)
def test_one_window_is_the_whole_row(process, sampler):
  """And so is one that is longer than the row."""
  plain = drawn(sampler, None, batch=ragged(), process=process)
  for block in (L, L + 3):
    jax.tree.map(
      np.testing.assert_array_equal, drawn(sampler, block, batch=ragged(), process=process), plain
    )
  assert (drawn(sampler, 2, batch=ragged(), process=process).committed != plain.committed).any()


def test_rows_of_any_length_with_tokens_observed_anywhere():
  """They stay; a row is its own; the host's loop gives the same; what stands behind a window is
  seen.
  """
  batch = ragged()
  result = drawn(ONE_PER_CALL, 2, batch=batch)
  kept = batch.observed | (batch.weights == 0)
  np.testing.assert_array_equal(result.ids[kept], batch.ids[kept])
  assert (result.ids < V).all() and (result.committed[~kept] >= 0).all()
  np.testing.assert_array_equal(result.row_calls, (~kept).sum(1))
  which = np.array([5, 0, 3])
  model, params = model_of()
  keys = jax.random.split(jax.random.key(0), ROWS)[which]
  few = jax.tree.map(lambda leaf: leaf[which], batch)
  alone = sample(model, params, ONE_PER_CALL, keys, batch=few, block=2, trace=True)
  for field in ("ids", "committed", "row_calls", "log_prob"):
    np.testing.assert_allclose(getattr(alone, field), getattr(result, field)[which], atol=1e-5)
  steps = host_sample(model, params, ONE_PER_CALL, keys, batch=few, block=2, trace=True)
  canvases = []
  while True:
    try:
      canvases.append(next(steps))
    except StopIteration as stop:
      hosted = stop.value
      break
  assert len(canvases) == hosted.calls and canvases[0].state.shape == (3, 2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, hosted)
  blind = drawn(ONE_PER_CALL, 2, batch=batch, reader=SeesNothingAhead())
  assert np.abs(blind.log_prob - result.log_prob).max() > 0.05


def test_a_window_that_the_context_does_not_allow_is_refused():
  model, params = exact_model(MASKED, LANGUAGE, context=Blocks(size=2))
  with pytest.raises(ValueError, match=r"block=3, and Blocks\(size=2.*\) finishes 2 positions"):
    sample(model, params, Grid(steps=1), jax.random.key(0), rows=2, length=4, block=3)
  with pytest.raises(ValueError, match="block=0 must be at least 1"):
    sample(*model_of(), Grid(steps=1), jax.random.key(0), rows=2, length=L, block=0)
  how = {"rows": 2, "length": 4}
  same = [
    sample(model, params, Grid(steps=2), jax.random.key(0), **how, block=block)
    for block in (None, 2)
  ]
  np.testing.assert_array_equal(same[0].ids, same[1].ids)
  assert Full().unit is None

"""The loop's own laws, with samplers and readers that ask much of it; and samplers that break them,
which must be noticed.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Causal, Full, NextToken
from diffusion_text.core.options import member
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.cached import Cached
from diffusion_text.sampler import host, loop, padding
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import NOT_DRAWN, sample
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.sampler.tau_leaping import TauLeaping
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.exact_network import ExactNetwork
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import AtNoise, Slanted
from diffusion_text.types import Batch

V, L, ROWS = 3, 5, 6
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
CALLS = []


@member
class Counted(ExactNetwork):
  """Tells of each time that it is asked."""

  asked: ClassVar[list] = CALLS

  def apply(self, params, rows, **options):
    """As it is."""
    jax.debug.callback(lambda t: CALLS.append(np.asarray(t)), rows.t)
    return ExactNetwork.apply(self, params, rows, **options)


def model_of(process, **options):
  """Blocks of 2, which do not divide the 5 tokens of a row, and a network that counts."""
  options = {"context": Blocks(size=2), "timing": Slanted(spread=1.0), **options}
  model, params = exact_model(process, LANGUAGE, **options)
  fields = {f.name: getattr(model.network, f.name) for f in dataclasses.fields(model.network)}
  return model._replace(network=Counted(**fields)), params


def batch_of(seed):
  """(row keys, a batch with observed tokens and, in some rows, padding in a segment of its own).

  Tokens are observed at the start and, in some rows, behind a hole within its block.
  """
  rng = np.random.default_rng(seed)
  place = np.arange(L)
  start = rng.integers(0, 4, (ROWS, 1))
  lengths = np.array([L, L - 1, L, L - 2, L, L])[:, None]
  batch = Batch(
    ids=LANGUAGE.sample(rng, ROWS),
    observed=(place < start) | ((place == start + 1) & (start % 2 == 0)),
    weights=np.float32(place < lengths),
    segment=np.int32(place >= lengths),
  )
  return jax.random.split(jax.random.key(seed), ROWS), batch


def spliced(row, one, other):
  """`other` with the row of `one`: the same row among other mates."""

  def put(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      return b.at[row].set(a[row])
    return np.where((np.arange(ROWS) == row).reshape(-1, *(1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(put, one, other)


def drawn(model, params, sampler, keys, batch, **options):
  """(the sample, how often the network was asked)."""
  CALLS.clear()
  result = sample(model, params, sampler, keys, batch=batch, trace=True, features=True, **options)
  jax.effects_barrier()
  return jax.tree.map(np.asarray, result), len(CALLS)


def exhausted(generator):
  """(the canvases, what the generator returns)."""
  canvases = []
  while True:
    try:
      canvases.append(next(generator))
    except StopIteration as stop:
      return canvases, stop.value


def check_loop(process, sampler):
  """What holds for every sampler."""
  model, params = model_of(process)
  keys, batch = batch_of(0)
  result, asked = drawn(model, params, sampler, keys, batch)
  kept = batch.observed | (batch.weights == 0)
  np.testing.assert_array_equal(result.ids[kept], batch.ids[kept])
  assert result.ids.shape == result.committed.shape == result.log_prob.shape == (ROWS, L)
  assert (result.committed[kept] == NOT_DRAWN).all() and (result.committed[~kept] >= 0).all()
  assert (result.ids < V).all() and (result.ids >= 0).all()
  assert (result.committed < result.row_calls[:, None]).all()
  assert result.calls == asked >= result.row_calls.max()
  mates = spliced(3, (keys, batch), batch_of(1))
  again, _ = drawn(model, params, sampler, *mates)
  assert (again.ids != result.ids).any()
  for field in ("ids", "committed", "row_calls", "log_prob", "features"):
    np.testing.assert_allclose(getattr(again, field)[3], getattr(result, field)[3], atol=1e-5)
  return model, params, (keys, batch), result


PSI = Grid(steps=3, skip=True, kappa=0.7)


@pytest.mark.parametrize(
  "process,sampler",
  [
    (Uniform(vocab_size=V), TauLeaping(steps=3)),
    (Embedding(vocab_size=V, width=4), Multistep(steps=3)),
    (Embedding(vocab_size=V, width=4), GaussianGrid(steps=3, rho=1.0, projection="sample")),
  ],
  ids=lambda x: type(x).__name__,
)
def test_every_sampler(process, sampler):
  """Observed tokens and padding stay, calls are counted, a row is its own."""
  *_, result = check_loop(process, sampler)
  assert result.calls == 9  # three blocks of three steps, the last one half padding


def test_the_host_loop_gives_the_same():
  """And the sampler that skips, noises again and walks slanted times keeps the laws of all."""
  model, params, (keys, batch), result = check_loop(Masked(vocab_size=V), PSI)
  before = host._advance._cache_size()
  canvases, hosted = exhausted(
    host_sample(model, params, PSI, keys, batch=batch, trace=True, features=True)
  )
  assert len(canvases) == result.calls
  assert all(np.asarray(canvas.state).shape == (ROWS, 2) for canvas in canvases)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, hosted)
  # Equal choices compile once, here and in the compiled loop.
  sizes = loop._sample._cache_size(), host._advance._cache_size()
  assert sizes[1] == before + 1
  twin, _ = model_of(Masked(vocab_size=V))
  drawn(twin, params, Grid(steps=3, skip=True, kappa=0.7), keys, batch)
  assert (loop._sample._cache_size(), host._advance._cache_size()) == sizes


@member
class Meddles(Grid):
  """Writes over every token at every call, also where it may not."""

  def step(self, model, params, canvas, state, prediction, query, needs):
    """All tokens become 1 in the end."""
    text, state = Grid.step(self, model, params, canvas, state, prediction, query, needs)
    return jnp.ones_like(text), state


@member
class AsksItsMates(Grid):
  """A decision that depends on the other rows of the batch."""

  def turn(self, canvas, state):
    """The keys of a row change with what its mates show."""
    turn = Grid.turn(self, canvas, state)
    mates = jnp.sum(jnp.where(canvas.active, canvas.state, 0))
    keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, mates)))(turn.keys)
    return turn._replace(keys=keys)


def test_what_may_not_change_is_frozen_whatever_a_sampler_does():
  """And all that may change has: 1 everywhere."""
  *_, (_, batch), result = check_loop(Masked(vocab_size=V), Meddles(steps=2))
  kept = batch.observed | (batch.weights == 0)
  assert (result.ids[~kept] == 1).all()


def test_a_row_that_depends_on_its_mates_would_be_noticed():
  with pytest.raises(AssertionError):
    check_loop(Uniform(vocab_size=V), AsksItsMates(steps=2))


def test_a_trace_adds_up_to_the_likelihood():
  """At one token per call, and by the model itself, whatever the temperature of the draws."""
  language = Enumerable.dirichlet(0, 0.5, V, 4)
  model, params = exact_model(
    Masked(vocab_size=V), language, context=NextToken(), timing=AtNoise(), answer_shift=1
  )
  sampler = Grid(steps=1, temperature=0.7, top_p=0.95)
  result = sample(model, params, sampler, jax.random.key(0), rows=64, length=4, trace=True)
  want = language.log_likelihood(np.asarray(result.ids))
  np.testing.assert_allclose(np.sum(result.log_prob, axis=1), want, rtol=1e-4)
  np.testing.assert_array_equal(result.committed, np.tile(np.arange(4), (64, 1)))
  assert int(result.calls) == 4 and result.features is None


def test_rows_may_come_without_a_batch():
  model, params = model_of(Masked(vocab_size=V))
  with pytest.raises(ValueError, match="rows=None, length=8"):
    sample(model, params, PSI, jax.random.key(0), length=8)
  with pytest.raises(ValueError, match="policy='exact'"):
    whole = exact_model(Masked(vocab_size=V), LANGUAGE)[0]
    sample(whole, params, PSI, jax.random.key(0), rows=2, length=L, reader=Cached())


def test_padding_is_a_segment_of_its_own():
  batch = Batch(np.zeros((2, 3), np.int32), segment=np.array([[0, 0, 0], [0, 4, 4]]))
  padded = padding.pad_rows(batch, 2)
  np.testing.assert_array_equal(padded.segment, [[0, 0, 0, 1, 1], [0, 4, 4, 5, 5]])
  np.testing.assert_array_equal(padded.weights, [[1, 1, 1, 0, 0]] * 2)
  np.testing.assert_array_equal(padded.observed, [[0, 0, 0, 1, 1]] * 2)
  assert padding.pad_rows(batch, 0) is batch


def test_a_prior_that_shows_the_token_already_counts_as_drawn():
  """Uniform noise may be the token from the start: committed at call 0, not left out."""
  model, params = model_of(Uniform(vocab_size=V))
  result, _ = drawn(model, params, TauLeaping(steps=3), *batch_of(0))

  assert (result.committed == 0).any()


def refusal(context, observed, **fields):
  """What `sample` says of the batch, "" if it takes it; nothing is computed."""
  observed = np.array([[False] * L, observed])
  batch = Batch(np.zeros(observed.shape, np.int32), observed=observed, **fields)
  timing = AtNoise() if context == NextToken() else Slanted()
  model, params = model_of(Masked(vocab_size=V), context=context, timing=timing)
  try:
    jax.eval_shape(lambda: sample(model, params, PSI, jax.random.key(0), batch=batch))
  except ValueError as error:
    with pytest.raises(ValueError) as again:
      next(host_sample(model, params, PSI, jax.random.key(0), batch=batch))
    assert str(again.value) == str(error)
    return str(error)
  return ""


@pytest.mark.parametrize("context", [NextToken(), Causal(), Blocks(size=1), Blocks(size=2)])
def test_text_behind_a_hole_that_cannot_see_it_is_refused(context):
  """It would be kept, and the hole filled as if it were not there."""
  said = refusal(context, [True, False, False, False, True])
  assert said.startswith(
    "row 1: the observed token at position 4 stands after the hole at position"
  )
  assert "position 1, which cannot see it" in said and str(context) in said
  assert ("within the group of 2" in said) == (context == Blocks(size=2))


def test_text_that_its_hole_sees_is_not_refused():
  """In its block, at the start, in a bidirectional row, in another document, and padding."""
  segment = np.repeat([[0, 0, 0, 0, 1]], 2, axis=0)
  behind = [True, False, False, False, True]
  assert refusal(Blocks(size=2), [True, True, False, True, False]) == ""
  assert refusal(NextToken(), [True, True, False, False, False]) == ""
  assert refusal(NextToken(), [True] * L) == ""
  assert refusal(Full(), behind) == ""
  assert refusal(NextToken(), behind, segment=segment) == ""
  assert refusal(NextToken(), behind, weights=np.float32(1 - segment)) == ""

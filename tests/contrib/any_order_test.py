"""Any-order rows: who sees whom, what is given, what is a bound and what is none; rows of sampling
are those of training.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.contrib.any_order import AnyOrder, Given
from diffusion_text.kernels.layout import visible
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Random
from diffusion_text.testing import (
  Enumerable,
  check_context,
  check_sampler,
  check_timing,
  exact_model,
  excess_of_bound,
)
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import AtNoise, ExactCount, Shared
from diffusion_text.types import Batch, Inputs, InputSizes, Model, Progress, Times

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)
GIVEN = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
N = GIVEN.shape[1]


def rows_of(context, key=0, **batch):
  """Training rows of three texts, of which some tokens are given."""
  ids = jnp.zeros(GIVEN.shape, jnp.int32)
  t = jnp.float32(~GIVEN)
  mask = Inputs(ids=ids + 3)
  args = mask, Inputs(ids=ids), mask, Times(t, t, t[:, :1], t)
  return context.training_rows(jax.random.key(key), *args, Batch(ids, **batch), Progress())


def sees(rows):
  """bool [B, L', L']."""
  shape = (len(GIVEN), rows.t.shape[1], rows.t.shape[1])
  return np.broadcast_to(np.asarray(visible(rows.layout, rows.layout)), shape)


def check_streams(context):
  """A query sees the given tokens, the remaining ones before it and itself; the clean copy of a
  token sees the same and the copy itself.
  """
  got = sees(rows_of(context))
  for row, given in enumerate(GIVEN):
    for i in range(N):
      known = given | (np.arange(N) < i)
      known[i] = False
      if not given[i]:
        np.testing.assert_array_equal(got[row, i, N:], known, f"query {i}")
        np.testing.assert_array_equal(got[row, i, :N], np.arange(N) == i, f"query {i}, queries")
      clean = np.where(given[i], given, known | (np.arange(N) == i))
      np.testing.assert_array_equal(got[row, N + i, N:], clean, f"clean copy {i}")
      assert not got[row, N + i, :N].any()


def test_who_sees_whom():
  check_streams(AnyOrder())
  rows = rows_of(AnyOrder())
  np.testing.assert_array_equal(rows.inputs.position, np.tile(np.arange(N), (3, 2)))
  np.testing.assert_array_equal(rows.inputs.ids, np.tile(np.repeat([3, 0], N), (3, 1)))
  np.testing.assert_array_equal(rows.t, np.tile(np.repeat([1.0, 0.0], N), (3, 1)))
  assert (rows.answers.start, rows.answers.stop, rows.copies) == (0, N, 2)


@pytest.mark.parametrize("mutant", [AnyOrder(drafts=1.0), AnyOrder(order="random")], ids=str)
def test_other_ranks_would_be_noticed(mutant):
  with pytest.raises(AssertionError):
    check_streams(mutant)


def test_drafts_see_the_given_tokens_alone_and_random_orders_all_that_came_before():
  got = sees(rows_of(AnyOrder(drafts=1.0)))
  for row, given in enumerate(GIVEN):
    np.testing.assert_array_equal(got[row, :N, N:][~given], np.tile(given, (sum(~given), 1)))
  got = sees(rows_of(AnyOrder(order="random")))
  for row, given in enumerate(GIVEN):
    counts = got[row, :N, N:][~given].sum(1)  # of known tokens: one more for each that came
    np.testing.assert_array_equal(np.sort(counts), given.sum() + np.arange((~given).sum()))
  shares = [sees(rows_of(AnyOrder(drafts=0.5), key))[1, N - 1, N:].any() for key in range(64)]
  assert 16 < sum(shares) < 48


def test_the_laws_of_contexts():
  """Sampling rows answer for another question, as masks do not see those before them."""
  laws = ("options", "spans", "no_answer_shown", "horizon", "dropped", "bound", "packed")
  check_context(AnyOrder(), only=laws)


@functools.cache
def exact(timing=None, context=None):
  return exact_model(MASKED, TOY, timing=timing or AtNoise(), context=context or AnyOrder())


nats = functools.partial(jax.jit, static_argnums=0)(engine.nats)


def test_with_nothing_given_every_row_costs_its_likelihood():
  """Exactly, from left to right; a random order costs the same with an exact network."""
  batch = Batch(TOY.sequences)
  for context in (AnyOrder(), AnyOrder(order="random")):
    got = nats(*exact(context=context), jax.random.key(0), batch, Progress()).sum(1)
    np.testing.assert_allclose(got, -TOY.log_likelihood(TOY.sequences), atol=2e-4)


def test_observed_tokens_are_given():
  """Also behind the others: the rest of the row costs its conditional likelihood."""
  place, token = 2, 1
  fits = TOY.sequences[:, place] == token
  rest = TOY.probabilities[fits] / TOY.probabilities[fits].sum()
  ids = TOY.sequences[fits]
  observed = np.broadcast_to(np.arange(4) == place, ids.shape)
  got = nats(*exact(), jax.random.key(0), Batch(ids, observed), Progress()).sum(1)
  np.testing.assert_allclose(got, -np.log(rest), atol=2e-4)


def test_given_tokens_make_no_bound():
  """Of k remaining tokens the mean cost rises with k: even counted as n / k it is below the
  entropy, so that such times are refused, and those of "given" are called a surrogate.
  """
  model, params = exact(ExactCount())
  found = excess_of_bound(model, params, TOY, rows=512, draws=4)
  assert found.mean < -10 * found.error < -0.05
  with pytest.raises(ValueError, match=r"would be none; use timing\.name='given'"):
    AnyOrder().check(model, None)
  assert engine.is_bound(model, Bound())  # which the check is there for
  for timing, bound in ((Given(), False), (AtNoise(), True)):
    AnyOrder().check(model._replace(timing=timing), None)
    assert engine.is_bound(model._replace(timing=timing), Bound()) == bound


def test_the_loss_is_that_of_the_remaining_tokens():
  """-log p(remaining | given), in the mean over subsets: added up in numpy."""
  model, params = exact(Given())
  p, sequences = TOY.probabilities, TOY.sequences
  expected = []
  for k in range(1, 5):
    subsets = [s for s in range(16) if bin(s).count("1") == 4 - k]  # what is given
    costs = []
    for subset in subsets:
      given = [place for place in range(4) if subset >> place & 1]
      code = (sequences[:, given] * 3 ** np.arange(len(given))).sum(1)
      mass = np.bincount(code, weights=p)[code]
      costs.append(-(p * np.log(p / mass)).sum())
    expected.append(np.mean(costs))
  draws = []
  for key in range(12):
    batch = Batch(TOY.systematic(1024, key))
    draws.append(float(nats(model, params, jax.random.key(key), batch, Progress()).sum(1).mean()))
  error = np.std(draws, ddof=1) / len(draws) ** 0.5
  assert abs(np.mean(draws) - np.mean(expected)) < 4 * error + 1e-3 and error < 0.02


def test_the_number_of_given_tokens_is_uniform():
  check_timing(Given())
  ids, weights = np.zeros((6000, 4), np.int32), np.ones((6000, 4), np.float32)
  weights[:, 3] = 0
  batch = Batch(ids, weights=weights)
  times = jax.jit(lambda key: Given().draw({}, key, batch, Progress()))(jax.random.key(0))
  remaining = np.asarray(times.t)
  assert (remaining[:, 3] == 0).all()
  share = np.bincount(remaining.sum(1).astype(int), minlength=4) / len(ids)
  np.testing.assert_allclose(share, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.001)
  np.testing.assert_allclose(remaining[:, :3].mean(0), 2 / 3, atol=0.02)
  np.testing.assert_array_equal(times.dt_dtau, times.t)


@functools.cache
def any_network(context=None):
  """(a model whose parameters are anything, its parameters)."""
  sizes = {"input_sizes": InputSizes(4), "output_size": 3}
  network = small_transformer(**sizes, layers=2, width=16, heads=2, mlp_width=16)
  params = {"network": noisy_parameters(network, scale=0.5), "process": {}, "timing": {}}
  return Model(network, MASKED, AtNoise(), context or AnyOrder()), params


def check_same_answers(context):
  """For any network: what is asked one token at a time, from left to right around an observed
  token, is what training rows answer for all of them.
  """
  model, params = any_network(context)
  ids = TOY.sequences[::8]
  observed = np.broadcast_to(np.arange(4) == 2, ids.shape)
  batch = Batch(ids, observed)
  mask = Inputs(ids=jnp.full(ids.shape, 3))
  t = jnp.float32(~observed)
  args = mask, Inputs(ids=jnp.asarray(ids)), mask, Times(t, t, t[:, :1], t)
  rows = context.training_rows(jax.random.key(0), *args, batch, Progress())

  @jax.jit
  def ask(rows):
    return jax.nn.log_softmax(model.network.apply(params["network"], rows).logits)

  want = np.asarray(ask(rows))
  for place in (0, 1, 3):
    known = observed | (np.arange(4) < place)
    noisy = Inputs(ids=jnp.where(known, ids, 3))
    t = jnp.where(known & (np.arange(4) > 0), 0.0, 0.7)  # on a grid, a known token may have t > 0
    got = np.asarray(ask(context.sampling_rows(noisy, mask, t, batch)))
    np.testing.assert_allclose(got[:, place], want[:, place], atol=1e-5)


def test_sampling_reads_what_training_reads():
  check_same_answers(AnyOrder())


def test_rows_of_drafts_would_be_noticed():
  with pytest.raises(AssertionError):
    check_same_answers(AnyOrder(drafts=1.0))


@pytest.mark.parametrize(
  "sampler",
  [Reveal(score=Random(), budget=EvenShare(steps=4)), Grid(steps=64)],
  ids=["one", "grid"],
)
def test_other_samplers_see_all_that_is_known(sampler):
  """An exact network does not mind the order."""
  check_sampler(sampler, *exact(), TOY, only=("tokens", "law"), slack=0.03)


def test_what_does_not_fit_is_refused():
  model, _ = exact()
  for timing in (Shared(), ExactCount()):
    with pytest.raises(ValueError, match=r"use timing\.name='given'"):
      AnyOrder().check(model._replace(timing=timing), None)
  with pytest.raises(ValueError, match=r"use process\.name='masked'"):
    AnyOrder().check(model._replace(process=Uniform(vocab_size=3)), None)
  with pytest.raises(ValueError, match=r"use train\.self_conditioning=0"):
    AnyOrder().check(model._replace(self_conditioning=0.5), None)

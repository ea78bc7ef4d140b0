"""Duo's curriculum: the coupling of Gaussian and uniform noise, the law of its draws, and what is
left of it when it is over.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full, NextToken
from diffusion_text.contrib import gaussian_curriculum as curriculum
from diffusion_text.contrib.gaussian_curriculum import (
  GaussianCurriculum,
  distinct_ids,
  largest_normals,
  level_table,
  signal,
)
from diffusion_text.core.prng import draw_integer, fold, row_keys, stream
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Level
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress

V, B, L = 6, 8, 12
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
OBSERVED = RNG.random((B, L)) < 0.2
REAL = np.broadcast_to((np.arange(L) < 10).astype(np.float32), (B, L))
BATCH = Batch(IDS, observed=OBSERVED, weights=REAL)
NET = jax.tree.map(np.asarray, TableNetwork.params(jax.random.key(1), InputSizes(ids=V), V, V))
PROCESS = Uniform(vocab_size=V)


def upper_tail(x):
  return np.array([math.erfc(v / math.sqrt(2)) / 2 for v in np.ravel(x)])


# The table of levels.


def test_two_tokens_in_closed_form():
  """V = 2: P = Phi(nu / sqrt 2), and 1 - P to full relative precision."""
  nu, alpha, clarity = level_table(2)
  noise = 2 * upper_tail(nu / math.sqrt(2))
  np.testing.assert_allclose(alpha, 1 - noise, atol=1e-14)
  np.testing.assert_allclose(np.exp(-clarity), noise, rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [3, 27, 50257, 200_000])
def test_level_against_monte_carlo(vocab_size):
  """P = E[Phi(nu - m)], where m, the largest of V - 1 normals, is drawn by the inverse of its law
  in float64.
  """
  rng, rows = np.random.default_rng(0), 2000
  log_u = -rng.exponential(size=rows) / (vocab_size - 1)
  low, high = np.full(rows, -9.0), np.full(rows, 12.0)
  for _ in range(45):  # Phi(m) = u, by bisection of its upper tail
    middle = (low + high) / 2
    above = upper_tail(middle) < -np.expm1(log_u)
    low, high = np.where(above, low, middle), np.where(above, middle, high)
  nu, alpha, clarity = level_table(vocab_size)
  np.testing.assert_allclose(1 - np.exp(-clarity[::200]), alpha[::200], atol=1e-12)
  for k in (300, 700, 1000, 1300, 1600):
    chance = upper_tail(low - nu[k])
    want, error = chance.mean(), chance.std() / rows**0.5
    got = (alpha[k] * (vocab_size - 1) + 1) / vocab_size
    assert abs(got - want) < 4 * error + 1e-12, (nu[k], got, want)


@pytest.mark.parametrize("vocab_size", [3, 27, 50257, 200_000])
def test_signal_inverts_the_table(vocab_size):
  """In float32, for alpha near 0 and 1 - alpha near 0 alike, between the nodes."""
  nu, alpha, clarity = level_table(vocab_size)
  middle = (nu[1:] + nu[:-1]) / 2
  alphas, noises = np.interp(middle, nu, alpha), np.exp(-np.interp(middle, nu, clarity))
  keep = noises > 1e-6
  level = Level(np.float32([*alphas[keep], 0.0]), np.float32([*noises[keep], 1.0]))
  got = np.asarray(jax.jit(signal, static_argnums=0)(vocab_size, level))
  np.testing.assert_allclose(got[:-1], middle[keep], atol=2e-4)
  assert got[-1] == 0


def test_window_of_the_paper():
  """Log noise-to-signal in [-3.55, -1.85] at V = 50257, as the docstring says."""
  nu, alpha, _ = level_table(50257)
  got = [float(np.interp(math.exp(-gamma / 2), nu, alpha)) for gamma in (-1.85, -3.55)]
  np.testing.assert_allclose(got, [0.049, 0.945], atol=6e-4)


# The draws.


@pytest.mark.parametrize("number,count", [(1, 1), (5, 5), (6, 3), (50256, 3)])
def test_largest_normals_are_order_statistics(number, count):
  """They fall, and each, through its distribution function, has the mean of its beta law. All of
  them are all the normals.
  """
  rows = 10_000
  draw = jax.jit(largest_normals, static_argnums=(1, 2))
  z = np.asarray(draw(row_keys(1, rows), number, count), np.float64)
  assert np.isfinite(z).all() and (np.diff(z, axis=1) <= 0).all()
  tails = upper_tail(z).reshape(z.shape)
  for k in range(1, count + 1):
    want = k / (number + 1)
    error = math.sqrt(k * (number + 1 - k) / (number + 1) ** 2 / (number + 2) / rows)
    assert abs(tails[:, k - 1].mean() - want) < 4 * error
  if number == count:
    of = rows * number
    assert abs(z.mean()) < 4 / of**0.5 and abs((z**2).mean() - 1) < 4 * (2 / of) ** 0.5


def check_distinct(draw):
  """Every ordered choice of 3 of the 4 other ids is as likely: chi-square over all 24."""
  rows = 24_000
  ids = jax.jit(draw, static_argnums=(2, 3))(row_keys(2, rows), jnp.full((rows,), 2), 5, 4)
  ids = np.asarray(ids)
  assert (ids[:, 0] == 2).all() and ids.min() >= 0 and ids.max() < 5
  assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
  counts = np.unique(ids[:, 1] * 25 + ids[:, 2] * 5 + ids[:, 3], return_counts=True)[1]
  assert len(counts) == 24
  assert ((counts - rows / 24) ** 2).sum() / (rows / 24) < 23 + 4 * 46**0.5


def in_floyds_order(keys, first, vocab_size, count):
  """Mutant: Floyd's algorithm gives a uniform set, but not in random order: the last ids never come
  first.
  """
  chosen = first[..., None] * 0 + vocab_size  # no id
  for j, last in enumerate(range(vocab_size - count, vocab_size - 1)):
    pick = draw_integer(fold(keys, j), last + 1)
    pick = jnp.where((chosen == pick[..., None]).any(-1), last, pick)
    chosen = jnp.concatenate([chosen, pick[..., None]], axis=-1)
  others = chosen[..., 1:] + (chosen[..., 1:] >= first[..., None])
  return jnp.concatenate([first[..., None], others], axis=-1)


def test_ids_are_distinct_and_in_random_order():
  check_distinct(distinct_ids)
  with pytest.raises(AssertionError):
    check_distinct(in_floyds_order)


def objective_of(**options):
  options = {"train_steps": 200, "temperature": 0.2, "final_temperature": 0.2} | options
  return GaussianCurriculum(**options)


def draws(candidates, vocab_size, alphas, rows=20_000, temperature=0.2):
  """(state, ids, weights), [number of alphas, rows, …] each, of a clean token V // 2."""
  objective = objective_of(candidates=candidates)

  def draw(alpha):
    level = Level(alpha, 1 - alpha)
    ids = jnp.full((rows,), vocab_size // 2)
    state, inputs = objective.soften(row_keys(4, rows), ids, level, temperature, vocab_size)
    return state, inputs.ids, inputs.weights

  alphas = jnp.float32(alphas)
  return [np.asarray(x) for x in jax.jit(lambda alphas: jax.lax.map(draw, alphas))(alphas)]


def check_marginals(vocab_size, candidates, alphas=(0.05, 0.5, 0.9)):
  """argmax z has the law of uniform-state diffusion: chi-square over the vocabulary."""
  for alpha, state, ids, weights in zip(
    alphas, *draws(candidates, vocab_size, alphas), strict=True
  ):
    counts = np.bincount(state, minlength=vocab_size)
    clean = np.arange(vocab_size) == vocab_size // 2
    want = len(state) * (alpha * clean + (1 - alpha) / vocab_size)
    statistic = ((counts - want) ** 2 / want).sum()
    print(f"V={vocab_size} alpha={alpha}: chi-square {statistic:.1f} of {vocab_size - 1}")
    assert statistic < vocab_size - 1 + 4 * (2 * (vocab_size - 1)) ** 0.5
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    best = np.take_along_axis(ids, weights.argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(best, state)


@pytest.mark.parametrize("vocab_size,candidates", [(2, 2), (6, 6), (50, 3)])
def test_marginals(vocab_size, candidates):
  check_marginals(vocab_size, candidates)


def signal_of_one_more(vocab_size, level):
  return signal(vocab_size + 1, level)


def one_normal_too_many(keys, number, count):
  return largest_normals(keys, number + 1, count)


@pytest.mark.parametrize(
  "name,mutant", [("signal", signal_of_one_more), ("largest_normals", one_normal_too_many)]
)
def test_a_table_for_another_vocabulary_fails(monkeypatch, name, mutant):
  """Mutants: nu of V + 1 tokens; and one of V others instead of V - 1."""
  monkeypatch.setattr(curriculum, name, mutant)
  with pytest.raises(AssertionError):
    check_marginals(3, 3, [0.5])


def test_soft_tokens_have_the_moments_of_the_full_softmax():
  """For V = 6 mean and second moments of every token's weight equal those of a softmax over a
  Gaussian in R^V.
  """
  rows, alphas = 20_000, (0.1, 0.7)
  for alpha, _, ids, some in zip(alphas, *draws(V, V, alphas, rows, 0.3), strict=True):
    weights = np.zeros((rows, V))
    np.put_along_axis(weights, ids, some, axis=1)
    nu = float(np.interp(alpha, *reversed(level_table(V)[:2])))
    z = nu * (np.arange(V) == V // 2) + np.random.default_rng(0).normal(size=(rows, V))
    z = z / math.sqrt(1 + nu**2) / 0.3
    full = np.exp(z - z.max(1, keepdims=True))
    full /= full.sum(1, keepdims=True)
    for moment in (
      lambda w: w,
      lambda w: w**2,
      lambda w: w[:, [3, 0]] * w[:, [1, 2]],
    ):
      ours, theirs = moment(weights), moment(full)
      error = np.sqrt((ours.var(0) + theirs.var(0)) / rows)
      np.testing.assert_array_less(np.abs(ours.mean(0) - theirs.mean(0)), 4 * error)


def test_few_candidates_hold_nearly_all_of_the_softmax():
  """For V = 10 and a temperature far above the paper's, M = 5 of 10 against all, in the weight of
  the largest.
  """
  few, all_of_them = (draws(M, 10, [0.5], 4000, 0.05)[2].max(-1).mean() for M in (5, 10))
  assert abs(few - all_of_them) < 0.01


# The objective.


def model_of(network=None, context=None, timing=None, process=PROCESS):
  network = TableNetwork() if network is None else network
  timing = Shared() if timing is None else timing
  return Model(network, process, timing, Full() if context is None else context, chunk=64)


def loss_of(objective, model, network, batch, step=0, key=9):
  params, key = {"network": network, "process": {}, "timing": {}}, jax.random.key(key)
  progress = Progress(step)
  times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
  return objective(model, params, key, batch, times, progress)


@pytest.mark.parametrize("context", [Full(), Blocks(size=4)], ids=["full", "blocks"])
def test_after_the_curriculum_the_loss_is_the_bound(context):
  """Value and gradient are those of the bound, for the same key; before the end they differ, and
  nothing is called a bound at any step. A timing is fitted afterwards only.
  """
  model = model_of(context=context)

  def total(network, objective, step):
    loss, costs = loss_of(objective, model, network, BATCH, step)
    return loss.total, (loss.sums, costs.weight)

  @jit
  def both(step):
    grad = jax.value_and_grad(total, has_aux=True)
    return [grad(NET, objective, step) for objective in (objective_of(candidates=3), Bound())]

  ((ours, (sums, weight)), slope), ((bound, _), bound_slope) = both(100)
  assert float(ours) == pytest.approx(float(bound), rel=1e-5)
  for name in ("table", "out"):
    np.testing.assert_allclose(slope[name], bound_slope[name], rtol=1e-4, atol=1e-5)
  assert set(sums) == {"surrogate"}
  np.testing.assert_array_equal(weight, REAL * ~OBSERVED)
  ((ours, (_, weight)), _), ((bound, _), _) = both(99)
  assert abs(float(ours) / float(bound) - 1) > 0.01
  assert not np.asarray(weight).any()


def test_soft_tokens_harden():
  """The temperature falls log-linearly; at a temperature of nearly zero the network reads the
  state, in the window of times.
  """
  network = TableNetwork()
  objective = objective_of(candidates=3, temperature=1.0, final_temperature=1e-6, low=0.2, high=0.6)

  @jit
  def read(step):
    loss_of(objective, model_of(network), NET, BATCH, step)
    rows = network.calls[-1][0]
    return rows.inputs, rows.t

  seen = [read(step) for step in (0, 50, 99, 100)]
  sharp = [np.asarray(inputs.weights).max(-1)[~OBSERVED].mean() for inputs, _ in seen]
  assert sharp[0] < 0.8 < 0.99 < sharp[1] < 1 and abs(sharp[2] - 1) < 1e-3 and sharp[3] == 1
  for inputs, t in seen:
    assert (np.asarray(t)[OBSERVED] == 0).all()
    best = np.asarray(inputs.weights).argmax(-1)[..., None]
    hard = np.take_along_axis(np.asarray(inputs.ids), best, -1)[..., 0]
    np.testing.assert_array_equal(hard[OBSERVED], IDS[OBSERVED])
  for _, t in seen[:3]:
    free = np.asarray(t)[~OBSERVED]
    assert free.min() >= 0.2 and free.max() <= 0.6
  assert np.asarray(seen[3][1])[~OBSERVED].max() > 0.7


def test_cold_tokens_cost_what_hard_ones_do():
  """At temperature zero the expected loss is that of the same process with hard tokens, over the
  same window.
  """
  ids = np.random.default_rng(5).integers(0, V, (1024, 8)).astype(np.int32)
  cold = objective_of(candidates=3, temperature=1e-7, final_temperature=1e-7, low=0.3, high=0.8)

  class Window(Shared):
    """Times in [0.3, 0.8]."""

    def draw(self, *args):
      times = super().draw(*args)
      t = 0.3 + 0.5 * times.t
      return times._replace(t=t, network_time=t, dt_dtau=0.5 * times.dt_dtau)

  def cost(objective, timing):
    model = model_of(timing=timing)._replace(chunk=ids.size)
    return lambda key: loss_of(objective, model, NET, Batch(ids), key=key)[0].total / ids.size

  @jit
  def costs(keys):
    return [jax.lax.map(of, keys) for of in (cost(cold, Shared()), cost(Bound(), Window()))]

  drawn = np.asarray(costs(jnp.arange(12)))
  (a, b), error = drawn.mean(1), np.sqrt((drawn.var(1) / drawn.shape[1]).sum())
  print(f"cold {a:.4f}, hard {b:.4f}, error {error:.4f}")
  assert error < 0.015 * b and abs(a - b) < 3 * error


def check(objective, **options):
  objective.check(model_of(**options))


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: objective_of(curriculum=0.0), "curriculum"),
    (lambda: objective_of(temperature=0.0), "temperature"),
    (lambda: objective_of(low=0.9, high=0.1), r"low=0\.9 must be below high=0\.1"),
    (lambda: check(objective_of(), process=Masked(vocab_size=V)), "shares, which Masked"),
    (lambda: check(objective_of(), process=Mixed(vocab_size=V)), "uniform noise.* has a mask"),
    (
      lambda: check(objective_of(candidates=3), context=NextToken()),
      "NextToken.*clean tokens only",
    ),
    (lambda: check(objective_of(candidates=8)), "candidates=8.*vocab_size=6"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


def test_what_fits_is_not_refused():
  check(objective_of(candidates=3))
  assert hash(objective_of()) == hash(dataclasses.replace(objective_of()))

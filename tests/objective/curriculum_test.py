"""Duo's curriculum: the coupling of Gaussian and uniform noise, the law of its draws, and what is left of it when it is over."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.objective import curriculum
from diffusion_text.objective.bound import Bound
from diffusion_text.objective.curriculum import (
  GaussianCurriculum,
  distinct_ids,
  largest_normals,
  level_table,
  signal,
)
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Level, Linear
from diffusion_text.timing import PerBlock, Shared
from diffusion_text.types import Batch, Prediction, Progress

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IDS = jax.random.randint(jax.random.key(0), (8, 12), 0, 6)


def upper_tail(x):
  return np.array([math.erfc(v / math.sqrt(2)) / 2 for v in np.ravel(x)])


def test_two_tokens_in_closed_form():
  """V = 2: P = Phi(nu / sqrt 2), and 1 - P to full relative precision."""
  nu, alpha, clarity = level_table(2)
  noise = 2 * upper_tail(nu / math.sqrt(2))
  np.testing.assert_allclose(alpha, 1 - noise, atol=1e-14)
  np.testing.assert_allclose(np.exp(-clarity), noise, rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [3, 27, 50257, 200_000])
def test_level_against_monte_carlo(vocab_size):
  """m, the largest of V - 1 normals, drawn by the inverse of its law in float64; then P = E[Phi(nu - m)]."""
  rng, rows = np.random.default_rng(0), 4000
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
  got = np.asarray(signal(vocab_size, Level(jnp.float32(alphas[keep]), jnp.float32(noises[keep]))))
  np.testing.assert_allclose(got, middle[keep], atol=2e-4)
  assert float(signal(vocab_size, Level(jnp.float32(0), jnp.float32(1)))) == 0


def test_window_of_the_paper():
  """Log noise-to-signal in [-3.55, -1.85] at V = 50257, as the docstring says."""
  nu, alpha, _ = level_table(50257)
  got = [float(np.interp(math.exp(-gamma / 2), nu, alpha)) for gamma in (-1.85, -3.55)]
  np.testing.assert_allclose(got, [0.049, 0.945], atol=6e-4)


@pytest.mark.parametrize("number,count", [(1, 1), (5, 5), (6, 3), (50256, 3)])
def test_largest_normals_are_order_statistics(number, count):
  """Falling; and each, through its distribution function, has the mean of its beta law. All of them are all the normals."""
  z = np.asarray(largest_normals(jax.random.key(1), (20_000,), number, count), np.float64)
  assert np.isfinite(z).all() and (np.diff(z, axis=1) <= 0).all()
  tails = upper_tail(z).reshape(z.shape)
  for k in range(1, count + 1):
    want, error = (
      k / (number + 1),
      math.sqrt(k * (number + 1 - k) / (number + 1) ** 2 / (number + 2) / 20_000),
    )
    assert abs(tails[:, k - 1].mean() - want) < 4 * error
  if number == count:
    assert (
      abs(z.mean()) < 4 / (20_000 * number) ** 0.5
      and abs((z**2).mean() - 1) < 4 * (2 / (20_000 * number)) ** 0.5
    )


def check_distinct(draw):
  """Every ordered choice of 3 of the 4 other ids is as likely: chi-square over all 24."""
  rows = 24_000
  ids = np.asarray(draw(jax.random.key(2), jnp.full((rows,), 2), 5, 4))
  assert (
    (ids[:, 0] == 2).all()
    and (np.sort(ids, 1)[:, 1:] != np.sort(ids, 1)[:, :-1]).all()
    and ids.min() >= 0
    and ids.max() < 5
  )
  counts = np.unique(ids[:, 1] * 25 + ids[:, 2] * 5 + ids[:, 3], return_counts=True)[1]
  assert len(counts) == 24 and ((counts - rows / 24) ** 2).sum() / (rows / 24) < 23 + 4 * 46**0.5


def in_floyds_order(key, first, vocab_size, count):
  """Mutant: Floyd's algorithm gives a uniform set, but not in random order (the last ids never come first)."""
  chosen = first[..., None] * 0 + vocab_size  # no id
  for j, last in enumerate(range(vocab_size - count, vocab_size - 1)):
    pick = jax.random.randint(jax.random.fold_in(key, j), first.shape, 0, last + 1)
    pick = jnp.where((chosen == pick[..., None]).any(-1), last, pick)
    chosen = jnp.concatenate([chosen, pick[..., None]], axis=-1)
  others = chosen[..., 1:] + (chosen[..., 1:] >= first[..., None])
  return jnp.concatenate([first[..., None], others], axis=-1)


def test_ids_are_distinct_and_in_random_order():
  check_distinct(distinct_ids)
  with pytest.raises(AssertionError):
    check_distinct(in_floyds_order)


def objective_of(vocab_size, **options):
  options = {"train_steps": 200, "temperature": 0.2, "final_temperature": 0.2} | options
  return GaussianCurriculum(Uniform(vocab_size, Linear()), Shared(), **options)


def draw(objective, alpha, rows=40_000, temperature=0.2):
  ids = jnp.full((rows, 1), objective.process.vocab_size // 2)
  level = Level(jnp.float32(alpha), jnp.float32(1 - alpha))
  return jax.jit(lambda key: objective.soften(key, ids, level, temperature))(jax.random.key(4))


def check_marginals(objective, alphas=(0.05, 0.5, 0.9)):
  """argmax z has the law of uniform-state diffusion: chi-square over the vocabulary."""
  V = objective.process.vocab_size
  for alpha in alphas:
    state, inputs = draw(objective, alpha)
    counts = np.bincount(np.asarray(state)[:, 0], minlength=V)
    want = len(state) * (alpha * (np.arange(V) == V // 2) + (1 - alpha) / V)
    statistic = ((counts - want) ** 2 / want).sum()
    print(f"V={V} alpha={alpha}: chi-square {statistic:.1f} of {V - 1}")
    assert statistic < V - 1 + 4 * (2 * (V - 1)) ** 0.5
    np.testing.assert_allclose(inputs.weights.sum(-1), 1, rtol=1e-5)
    best = np.take_along_axis(
      np.asarray(inputs.ids), np.asarray(inputs.weights).argmax(-1)[..., None], -1
    )[..., 0]
    np.testing.assert_array_equal(best, state)


@pytest.mark.parametrize("vocab_size,candidates", [(2, 2), (6, 6), (60, 4), (50, 2)])
def test_marginals(vocab_size, candidates):
  check_marginals(objective_of(vocab_size, candidates=candidates))


def test_a_table_for_another_vocabulary_fails(monkeypatch):
  """Mutants: nu of V + 1 tokens; and one of V others instead of V - 1."""
  check_marginals(objective_of(3, candidates=3), [0.5])
  with monkeypatch.context() as patch, pytest.raises(AssertionError):
    patch.setattr(curriculum, "signal", lambda V, level: signal(V + 1, level))
    check_marginals(objective_of(3, candidates=3), [0.5])
  with monkeypatch.context() as patch, pytest.raises(AssertionError):
    patch.setattr(
      curriculum,
      "largest_normals",
      lambda key, shape, n, count: largest_normals(key, shape, n + 1, count),
    )
    check_marginals(objective_of(3, candidates=3), [0.5])


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_soft_tokens_have_the_moments_of_the_full_softmax(alpha):
  """V = 6: mean and second moments of every token's weight equal those of a softmax over a Gaussian in R^V."""
  V, rows = 6, 40_000
  _, inputs = draw(objective_of(V, candidates=V), alpha, rows, 0.3)
  weights = np.zeros((rows, V))
  np.put_along_axis(weights, np.asarray(inputs.ids)[:, 0], np.asarray(inputs.weights)[:, 0], axis=1)
  nu = float(signal(V, Level(jnp.float32(alpha), jnp.float32(1 - alpha))))
  z = (
    (nu * (np.arange(V) == V // 2) + np.random.default_rng(0).normal(size=(rows, V)))
    / math.sqrt(1 + nu**2)
    / 0.3
  )
  full = np.exp(z - z.max(1, keepdims=True))
  full /= full.sum(1, keepdims=True)
  for moment in (lambda w: w, lambda w: w**2, lambda w: w[:, [3, 0]] * w[:, [1, 2]]):
    ours, theirs = moment(weights), moment(full)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / rows)
    np.testing.assert_array_less(np.abs(ours.mean(0) - theirs.mean(0)), 4 * error)


def test_few_candidates_hold_nearly_all_of_the_softmax():
  """V = 16 and a temperature far above the paper's: M = 6 of 16 against all, in the weight of the largest."""
  largest = [
    np.asarray(draw(objective_of(16, candidates=M), 0.5, 4000, 0.05)[1].weights).max(-1).mean()
    for M in (6, 16)
  ]
  assert abs(largest[0] - largest[1]) < 0.01


def predict_with(params, seen=None):
  def predict(inputs, t, layout):
    if seen is not None:
      seen.append((inputs, t))
    embedded = params["table"][inputs.ids]
    if inputs.weights is not None:
      embedded = jnp.einsum("blm,blmd->bld", inputs.weights, embedded)
    return Prediction(embedded + t[..., None], lambda features: features @ params["out"])

  return predict


PARAMS = {
  "table": jax.random.normal(jax.random.key(1), (6, 5)),
  "out": jax.random.normal(jax.random.key(2), (5, 6)),
}
BATCH = Batch(
  IDS,
  given=jax.random.bernoulli(jax.random.key(3), 0.2, IDS.shape),
  weights=jnp.ones(IDS.shape).at[:, 10:].set(0),
)


@pytest.mark.parametrize("timing", [Shared(), PerBlock(4)], ids=repr)
def test_after_the_curriculum_the_loss_is_the_bound(timing):
  """Value and gradient, for the same key; before it they differ, and nothing is called a bound at any step."""
  objective = dataclasses.replace(objective_of(6, candidates=3), timing=timing)
  both = lambda o: jit(
    jax.value_and_grad(
      lambda p, step: o({}, jax.random.key(9), BATCH, Progress(step), predict_with(p)).total
    )
  )
  ours, theirs = both(objective), both(Bound(objective.process, timing))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    ours(PARAMS, 100),
    theirs(PARAMS, 100),
  )
  assert abs(float(ours(PARAMS, 99)[0]) / float(theirs(PARAMS, 99)[0]) - 1) > 0.01
  assert set(objective({}, jax.random.key(9), BATCH, Progress(100), predict_with(PARAMS)).sums) == {
    "surrogate"
  }


def test_soft_tokens_harden():
  """The temperature falls log-linearly; at a temperature of nearly zero the network reads the state, in the window of times."""
  objective, seen = (
    objective_of(6, candidates=3, temperature=1.0, final_temperature=1e-6, low=0.2, high=0.6),
    [],
  )
  for step in (0, 50, 99, 100):
    objective({}, jax.random.key(9), BATCH, Progress(step), predict_with(PARAMS, seen))
  sharp = [
    np.asarray(inputs.weights.max(-1))[~np.asarray(BATCH.given)].mean() for inputs, _ in seen
  ]
  assert sharp[0] < 0.8 < 0.99 < sharp[1] < 1 and abs(sharp[2] - 1) < 1e-3 and sharp[3] == 1
  given = np.asarray(BATCH.given)
  for inputs, t in seen:
    assert (np.asarray(t)[given] == 0).all()
    hard = np.take_along_axis(
      np.asarray(inputs.ids), np.asarray(inputs.weights).argmax(-1)[..., None], -1
    )[..., 0]
    np.testing.assert_array_equal(hard[given], np.asarray(IDS)[given])
  for _, t in seen[:3]:
    assert np.asarray(t)[~given].min() >= 0.2 and np.asarray(t)[~given].max() <= 0.6
  assert np.asarray(seen[3][1])[~given].max() > 0.7


def test_cold_tokens_cost_what_hard_ones_do():
  """At temperature zero the expected loss is that of the same process with hard tokens, over the same window."""
  ids = jax.random.randint(jax.random.key(5), (2048, 8), 0, 6)
  cold = objective_of(6, candidates=3, temperature=1e-7, final_temperature=1e-7, low=0.3, high=0.8)

  class Window(Shared):
    def draw(self, key, batch, progress):
      times = super().draw(key, batch, progress)
      return times._replace(t=0.3 + 0.5 * times.t, speed=0.5 * times.speed)

  cost = lambda o: jit(
    lambda key: o({}, key, Batch(ids), Progress(0), predict_with(PARAMS)).total / ids.size
  )
  draws = [
    [float(f(jax.random.key(s))) for s in range(8)]
    for f in (cost(cold), cost(Bound(cold.process, Window())))
  ]
  (a, b), error = np.mean(draws, axis=1), np.sqrt((np.var(draws, axis=1) / 8).sum())
  print(f"cold {a:.4f}, hard {b:.4f}, error {error:.4f}")
  assert error < 0.01 * b and abs(a - b) < 3 * error

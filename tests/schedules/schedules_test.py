"""Schedules: exact ends, full relative precision at both of them, closed-form weights; and paths that are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_text.objective.bound import Bound
from diffusion_text.process.embedding import Embedding
from diffusion_text.schedules.discrete import (
  SCHEDULES,
  Cosine,
  Geometric,
  Linear,
  Polynomial,
  reveal_probability,
  weight,
)
from diffusion_text.schedules.gaussian import Learned
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Prediction, Progress

ROWS = [
  Linear(),
  Cosine(),
  Polynomial(1.5),
  Polynomial(3.0),
  Geometric(),
  Geometric(0.05, 4.0),
  Geometric(1e-3, 100.0),
]
every_row = pytest.mark.parametrize("schedule", ROWS, ids=repr)


def exact(schedule, t):
  """(alpha, 1 - alpha) in float64, from the published formulas, normalised to reach 1 and 0."""
  if isinstance(schedule, Geometric):
    sigma = schedule.sigma_min ** (1 - t) * schedule.sigma_max**t
    total = -np.expm1(schedule.sigma_min - schedule.sigma_max)
    rise = schedule.sigma_min * np.expm1(t * np.log(schedule.sigma_max / schedule.sigma_min))
    return (
      np.exp(schedule.sigma_min - sigma) - np.exp(schedule.sigma_min - schedule.sigma_max)
    ) / total, -np.expm1(-rise) / total
  if isinstance(schedule, Cosine):
    return 1 - np.cos(np.pi / 2 * (1 - t)), np.sin(np.pi / 2 * t)
  power = getattr(schedule, "power", 1.0)
  return 1 - t**power, t**power


@every_row
def test_ends_are_exact(schedule):
  assert float(schedule(jnp.float32(0)).noise) == 0.0
  assert float(schedule(jnp.float32(1)).noise) >= 1 - 1.2e-7
  assert abs(float(schedule(jnp.float32(1)).alpha)) < 1e-7


@every_row
def test_both_levels_keep_their_relative_precision(schedule):
  """1 - alpha formed in float32 has a relative error of 1e-1 at t = 1e-6; ours must not."""
  t = np.array([1e-6, 1e-4, 0.01, 0.3, 0.7, 0.99], np.float32)
  level = schedule(jnp.asarray(t))
  alpha, noise = exact(schedule, t.astype(np.float64))
  np.testing.assert_allclose(level.noise, noise, rtol=5e-6)
  np.testing.assert_allclose(level.alpha[:-1], alpha[:-1], rtol=5e-6)


@every_row
def test_falls(schedule):
  level = schedule(jnp.linspace(0, 1, 1001))
  assert (jnp.diff(level.noise) >= 0).all() and (jnp.diff(level.noise)[:500] > 0).all()


@pytest.mark.parametrize(
  "schedule,closed",
  [
    (Linear(), lambda t: 1 / t),
    (Polynomial(3.0), lambda t: 3 / t),
    (Cosine(), lambda t: np.pi / 2 / np.tan(np.pi / 2 * t)),
  ],
  ids=["linear", "polynomial", "cosine"],
)
def test_weight_has_its_closed_form(schedule, closed):
  t = np.array([1e-5, 0.01, 0.2, 0.5, 0.9], np.float32)
  np.testing.assert_allclose(
    weight(schedule, jnp.asarray(t)), closed(t.astype(np.float64)), rtol=2e-5
  )


@every_row
def test_weight_is_finite_and_not_negative(schedule):
  w = weight(schedule, jnp.array([0.0, 1e-30, 1e-7, 1.0]))
  assert jnp.isfinite(w).all() and (w >= -1e-3).all()


@every_row
def test_reveal_probabilities_compose(schedule):
  """Revealed by s, or not by m and then by s: the two roads agree (Chapman-Kolmogorov)."""
  t, m, s = 0.9, 0.5, 0.2
  one = reveal_probability(schedule, jnp.float32(t), jnp.float32(s))
  first = reveal_probability(schedule, jnp.float32(t), jnp.float32(m))
  two = first + (1 - first) * reveal_probability(schedule, jnp.float32(m), jnp.float32(s))
  assert float(one) == pytest.approx(float(two), abs=1e-6)
  assert float(reveal_probability(schedule, jnp.float32(t), jnp.float32(0))) == 1.0


@every_row
def test_gradients_are_finite(schedule):
  for t in (0.0, 1e-7, 0.5, 1.0):
    assert jnp.isfinite(jax.grad(lambda t: schedule(t).noise)(jnp.float32(t)))


@pytest.mark.parametrize(
  "bad", [lambda: Polynomial(0.0), lambda: Geometric(1.0, 0.5), lambda: Geometric(0.0, 1.0)]
)
def test_bad_options_are_refused(bad):
  with pytest.raises(ValueError, match=r"power=|sigma_min"):
    bad()


def test_table():
  assert set(SCHEDULES) == {"linear", "cosine", "polynomial", "geometric"}


# --- learned paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_learned_path_goes_where_the_cost_is(power):
  """Costs per unit of log-SNR c with E[c^power]^(1/power) known: the shares of the time tend to it, above the floor."""
  path = Learned(bins=8, floor=0.02, power=power)
  mean, chance = (
    jnp.array([0.1, 0.1, 0.4, 1.0, 2.0, 1.0, 0.3, 0.1]),
    jnp.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 0.25, 1.0]),
  )
  width = 20 / 8

  def loss(params, key):
    t = (jnp.arange(2048) + jax.random.uniform(key)) / 2048
    piece = jnp.clip((10 - path.bind(params).log_snr(t)) / width, 0, 7).astype(jnp.int32)
    paid = jax.random.bernoulli(
      jax.random.fold_in(key, 1), chance[piece]
    )  # seldom and dear, or always and cheap
    rate = (
      jnp.where(paid, mean[piece] / chance[piece], 0.0)
      * width
      / path.shares(jax.lax.stop_gradient(params))[piece]
    )
    return jnp.mean(path.fit(params, t, rate, 8.0))

  optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 300))

  @jax.jit
  def train(params):
    def step(carry, number):
      params, moments = carry
      value, slope = jax.value_and_grad(loss)(params, jax.random.fold_in(jax.random.key(0), number))
      updates, moments = optimizer.update(slope, moments)
      return (optax.apply_updates(params, updates), moments), value

    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(300))

  (params, _), values = train(path.init())
  assert not values.any(), "what is fitted adds nothing to the loss"
  want = mean * chance ** (1 / power - 1)
  np.testing.assert_allclose(path.shares(params), want / want.sum(), rtol=0.12, atol=0.004)


def test_only_the_fit_reaches_a_learned_path():
  """The bound has no gradient in the path: not through the noise, the rate or the ends; and the fit moves time to where it is paid."""
  process = Embedding(4, Learned(bins=4), width=3)
  params, ids = process.init(jax.random.key(0)), jnp.array([[1, 3], [0, 2]] * 8)
  network = lambda inputs, t, layout: Prediction(
    inputs.vectors, lambda features: jnp.pad(features, ((0, 0), (0, 1)))
  )
  bound = Bound(process, Shared())
  nats = lambda params: bound.nats(params, jax.random.key(1), Batch(ids), Progress(), network).sum()
  loss = lambda params: bound(params, jax.random.key(1), Batch(ids), Progress(), network).total
  (plain, alone), (total, slope) = (jax.jit(jax.value_and_grad(fn))(params) for fn in (nats, loss))
  assert float(plain) == pytest.approx(float(total), rel=1e-5)
  assert not alone["schedule"]["levels"].any() and alone["embedding"].any()
  np.testing.assert_allclose(alone["embedding"], slope["embedding"], rtol=1e-3, atol=1e-4)
  levels = np.asarray(slope["schedule"]["levels"])
  assert abs(levels.sum()) < 1e-3 * np.abs(levels).max() and levels[:2].min() < 0, (
    "a softmax: what one bin gains others lose"
  )

"""Schedules: exact ends, full relative precision at both of them, closed-form weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.schedules import SCHEDULES, Cosine, Geometric, Linear, Polynomial, reveal_probability, weight

ROWS = [Linear(), Cosine(), Polynomial(1.5), Polynomial(3.0), Geometric(), Geometric(0.05, 4.0), Geometric(1e-3, 100.0)]
every_row = pytest.mark.parametrize("schedule", ROWS, ids=repr)


def exact(schedule, t):
  """(alpha, 1 - alpha) in float64, from the published formulas, normalised to reach 1 and 0."""
  if isinstance(schedule, Geometric):
    sigma = schedule.sigma_min ** (1 - t) * schedule.sigma_max**t
    total = -np.expm1(schedule.sigma_min - schedule.sigma_max)
    rise = schedule.sigma_min * np.expm1(t * np.log(schedule.sigma_max / schedule.sigma_min))
    return (np.exp(schedule.sigma_min - sigma) - np.exp(schedule.sigma_min - schedule.sigma_max)) / total, -np.expm1(
      -rise
    ) / total
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
  np.testing.assert_allclose(weight(schedule, jnp.asarray(t)), closed(t.astype(np.float64)), rtol=2e-5)


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


@pytest.mark.parametrize("bad", [lambda: Polynomial(0.0), lambda: Geometric(1.0, 0.5), lambda: Geometric(0.0, 1.0)])
def test_bad_options_are_refused(bad):
  with pytest.raises(ValueError, match=r"power=|sigma_min"):
    bad()


def test_table():
  assert set(SCHEDULES) == {"linear", "cosine", "polynomial", "geometric"}

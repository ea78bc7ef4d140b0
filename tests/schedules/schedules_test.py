"""Schedules and paths: exact ends, relative precision at both, closed forms, published numbers."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.schedules.discrete import (
  SCHEDULES,
  Cosine,
  Geometric,
  Linear,
  Polynomial,
  on_grid,
  reveal_probability,
  time_of,
  weight,
)
from diffusion_text.schedules.gaussian import (
  PATHS,
  Arctangent,
  Flow,
  LogSNR,
  Noisier,
  SquareRoot,
  Table,
  Tangent,
  VPCosine,
)

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
    low, high = schedule.sigma_min, schedule.sigma_max
    total = -np.expm1(low - high)
    alpha = (np.exp(low - low ** (1 - t) * high**t) - np.exp(low - high)) / total
    return alpha, -np.expm1(-low * np.expm1(t * np.log(high / low))) / total
  if isinstance(schedule, Cosine):
    return 1 - np.cos(np.pi / 2 * (1 - t)), np.sin(np.pi / 2 * t)
  power = schedule.power if isinstance(schedule, Polynomial) else 1.0
  return 1 - t**power, t**power


@every_row
def test_levels(schedule):
  """Exact ends, falling between, and both levels of full relative precision.

  1 - alpha formed in float32 has a relative error of 1e-1 at t = 1e-6; ours must not.
  """
  ends = schedule(jnp.float32([0, 1]))
  assert ends.noise[0] == 0 and ends.noise[1] >= 1 - 1.2e-7 and abs(ends.alpha[1]) < 1e-7
  t = np.float32([1e-6, 1e-4, 0.01, 0.3, 0.7, 0.99])
  level = schedule(jnp.asarray(t))
  alpha, noise = exact(schedule, t.astype(np.float64))
  np.testing.assert_allclose(level.noise, noise, rtol=5e-6)
  np.testing.assert_allclose(level.alpha[:-1], alpha[:-1], rtol=5e-6)
  rise = np.diff(schedule(jnp.linspace(0, 1, 1001)).noise)
  assert (rise >= 0).all() and (rise[:500] > 0).all()


CLOSED = {
  "linear": (Linear(), lambda t: 1 / t),
  "polynomial": (Polynomial(3.0), lambda t: 3 / t),
  "cosine": (Cosine(), lambda t: np.pi / 2 / np.tan(np.pi / 2 * t)),
}


@pytest.mark.parametrize("schedule,closed", CLOSED.values(), ids=CLOSED.keys())
def test_weight_has_its_closed_form(schedule, closed):
  t = np.float32([1e-5, 0.01, 0.2, 0.5, 0.9])
  want = closed(t.astype(np.float64))
  np.testing.assert_allclose(weight(schedule, jnp.asarray(t)), want, rtol=2e-5)


@every_row
def test_weights_and_gradients_are_finite(schedule):
  t = jnp.float32([0.0, 1e-30, 1e-7, 0.5, 1.0])
  found = np.asarray(weight(schedule, t))
  assert np.isfinite(found).all() and (found >= -1e-3).all()
  gradient = jax.grad(lambda t: schedule(t).noise.sum())(t)
  assert np.isfinite(gradient).all()


@every_row
def test_reveal_probabilities_compose(schedule):
  """Revealed by s, or not by m and then by s: the two roads agree (Chapman-Kolmogorov)."""
  t, m, s, zero = jnp.float32([0.9]), jnp.float32([0.5]), jnp.float32([0.2]), jnp.float32([0.0])
  one = reveal_probability(schedule, t, s)
  first = reveal_probability(schedule, t, m)
  two = first + (1 - first) * reveal_probability(schedule, m, s)
  np.testing.assert_allclose(one, two, atol=1e-6)
  assert reveal_probability(schedule, t, zero) == 1


def test_alpha_falls_as_its_closed_form_says_near_text():
  """-alpha' of 1 - t² is 2 t; with a slope of e^x - 1 that is taken as a sum it is 1 % off."""
  t = jnp.float32([1e-3, 1e-2, 0.5])
  _, slope = jax.jvp(Polynomial(power=2.0), (t,), (jnp.ones_like(t),))
  np.testing.assert_allclose(-slope.alpha, 2 * t, rtol=3e-6)


def test_which_schedules_are_linear():
  """The hazard at t = 1 is 1 where a schedule says that it is linear."""
  linear = [schedule for schedule in (*ROWS, Polynomial(1.0)) if schedule.is_linear]
  assert linear == [Linear(), Polynomial(1.0)]
  for schedule in linear:
    assert weight(schedule, jnp.ones(1)) == pytest.approx(1.0)


def test_times_on_a_grid_and_of_a_level():
  np.testing.assert_allclose(on_grid(jnp.float32([0, 0.2, 0.25, 0.9]), 4), [0, 0.25, 0.25, 1])
  assert on_grid(jnp.float32(0.3), None) == jnp.float32(0.3)


def plain_grid(t, steps):
  """As it was before: the product as it is."""
  return jnp.ceil(t * steps) / steps


def check_times_of_the_grid_stay(rounded):
  for steps in (7, 20, 49, 50, 100, 1000, 4000):
    k = np.arange(steps + 1)
    t = jnp.asarray(k / steps, jnp.float32)
    once = jax.jit(rounded, static_argnums=1)(t, steps)
    np.testing.assert_array_equal(np.round(np.asarray(once, np.float64) * steps), k)
    np.testing.assert_array_equal(jax.jit(rounded, static_argnums=1)(once, steps), once)
    above = jax.jit(rounded, static_argnums=1)(t[:-1] + jnp.float32(0.01 / steps), steps)
    np.testing.assert_array_equal(np.round(np.asarray(above, np.float64) * steps), k[1:])


def test_times_of_the_grid_are_not_rounded_to_the_next():
  check_times_of_the_grid_stay(on_grid)
  k = np.arange(1000)
  moved = np.rint(1000 * np.asarray(plain_grid(jnp.float32(k / 1000), 1000))) != k
  assert moved.sum() == 5  # which the docstring names
  with pytest.raises(AssertionError):
    check_times_of_the_grid_stay(plain_grid)
  alpha = jnp.float32([0.9, 0.3, 1e-3])
  np.testing.assert_allclose(Cosine()(time_of(Cosine(), alpha)).alpha, alpha, rtol=1e-3, atol=1e-7)


BAD = {
  "power": (lambda: Polynomial(power=0.0), "power"),
  "order": (lambda: Geometric(1.0, 0.5), r"sigma_min=1\.0"),
  "sigma": (lambda: Geometric(sigma_min=0.0), "sigma_min"),
  "slope of Arctangent": (lambda: Arctangent(slope=0.0), "slope"),
  "ratio": (lambda: Arctangent(ratio=10.0), r"ratio=10\.0 ends at log-SNR -9\.2"),
  "one level": (lambda: Table(levels=(1.0,)), "levels"),
  "rising levels": (lambda: Table(levels=(1.0, 2.0)), "must be log-SNRs that fall"),
  "short table": (lambda: Table(levels=(1.0, -20.0)), "levels run from"),
  "window": (lambda: VPCosine(log_snr_max=-20.0), r"log_snr_min=-10\.0 must be below"),
  "offset": (lambda: VPCosine(offset=-1.0), "offset"),
  "root's offset": (lambda: SquareRoot(offset=0.0), "offset"),
  "slope of Flow": (lambda: Flow(slope=0.0), "slope"),
  "slope of Tangent": (lambda: Tangent(slope=0.0), "slope"),
  "factor": (lambda: Noisier(factor=0.5), "factor"),
  "growth": (lambda: Noisier(LogSNR(), growth=-0.5), "growth"),
}


@pytest.mark.parametrize("make,word", BAD.values(), ids=BAD.keys())
def test_bad_options_are_refused(make, word):
  with pytest.raises(ValueError, match=word):
    make()


def test_tables():
  assert set(SCHEDULES) == {"linear", "cosine", "polynomial", "geometric"}
  for schedule in (*ROWS, *(path() for path in BUILT.values())):
    assert hash(schedule) == hash(type(schedule)(**vars(schedule)))


# Paths.

LEVELS = tuple(12.0 - 24 * (i / 30) ** 1.5 for i in range(31))
BUILT = {**PATHS, "table": functools.partial(Table, levels=LEVELS)}  # with the options they need


@pytest.mark.parametrize("name", [name for name in BUILT if name != "noisier"])
def test_paths(name):
  """The window is met at both ends, the log-SNR falls, the gain has it, the rate is its slope."""
  path = BUILT[name](log_snr_max=7.0, log_snr_min=-9.0)
  alpha, sigma, log_snr = (np.asarray(x) for x in path(jnp.linspace(0.0, 1.0, 400)))
  assert log_snr[0] == pytest.approx(7.0, abs=1e-4)
  assert log_snr[-1] == pytest.approx(-9.0, abs=2e-3)
  assert (np.diff(log_snr) < 0).all()
  np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, atol=1e-4)
  if name == "linear":
    np.testing.assert_allclose(alpha + sigma, 1.0, rtol=1e-6)
  elif name != "exploding":
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
  middle, step = np.linspace(0.1, 0.9, 9, dtype=np.float32), 1e-2
  shifts = np.float32([-step, -step / 2, step / 2, step])
  snr = np.exp(np.asarray(path.log_snr(jnp.asarray(middle + shifts[:, None])), np.float64))
  third = (8 * (snr[2] - snr[1]) - (snr[3] - snr[0])) / (6 * step)
  # A table is piecewise linear: differences see its corners.
  tolerance = 0.5 if name == "table" else 5e-3
  np.testing.assert_allclose(path.snr_rate(jnp.asarray(middle)), -third, rtol=tolerance)
  for level in (6.5, -8.9):
    np.testing.assert_allclose(path.log_snr(path.time_of(level)), level, atol=2e-3)
  assert path.time_of(99.0) == 0
  with pytest.raises(ValueError, match=r"log-SNR -12\.0 must be above the path's end, log-SNR -9"):
    path.time_of(-12.0)


def signal(path, u):
  """alpha² of the published curve at u, before any window."""
  return float(jax.nn.sigmoid(path.at(jnp.float32(u), jnp.float32(path.last - u))))


def noise(path, u):
  return float(jax.nn.sigmoid(-path.at(jnp.float32(u), jnp.float32(path.last - u))))


def test_golden_paths():
  """A chain's ᾱ[i] is at u = (i + 1) / T, of TESS at i / T; its last step is cut to β = 0.999."""
  sqrt, cosine, tess = SquareRoot(), VPCosine(), VPCosine(offset=1e-4)
  assert signal(sqrt, 1 / 2000) == pytest.approx(0.9853586895, rel=1e-6)
  assert noise(sqrt, 1 / 2000) == pytest.approx(0.0146413105, rel=1e-5)
  assert math.sqrt(noise(sqrt, 1 / 2000)) == pytest.approx(0.1210013, rel=1e-6)
  assert signal(sqrt, 1000 / 2000) == pytest.approx(0.2957803148, rel=1e-6)
  assert 1e-3 * signal(sqrt, 1999 / 2000) == pytest.approx(2.02040e-7, rel=1e-5)
  assert noise(cosine, 1 / 1000) == pytest.approx(1 - 0.9999587158, rel=1e-5)
  assert signal(cosine, 500 / 1000) == pytest.approx(0.4938435904, rel=1e-6)
  assert 1e-3 * signal(cosine, 999 / 1000) == pytest.approx(2.42877e-9, rel=1e-5)
  assert noise(tess, 1 / 5000) == pytest.approx(1 - 0.9999998026, rel=1e-3)
  assert signal(tess, 2500 / 5000) == pytest.approx(0.4999214804, rel=1e-6)
  assert signal(tess, 4999 / 5000) == pytest.approx(9.8676e-8, rel=1e-5)
  for u, want in ((0.1, 0.574302), (0.5, 0.110432), (0.9, 0.0175955)):
    assert math.sqrt(signal(Tangent(), u)) == pytest.approx(want, rel=1e-5)
  for u, want in ((0.9, -5.7807), (0.5, -1.3863), (0.1, 3.0082)):  # their t = 1 - u
    found = Flow(slope=2.0).at(jnp.float32(u), jnp.float32(1 - u))
    assert float(found) == pytest.approx(want, abs=1e-4)


def test_golden_arctangent():
  """Smoothie: alpha = 1 / w² of its own formula, at its d = 9 and σ from 1.5 to 200."""
  path = Arctangent(log_snr_min=-19.5)
  for u in (0.01, 0.3, 0.9):
    width = 1 + (200 / 1.5 - 1) * 2 / math.pi * math.atan(math.sqrt(u / (1 - u)) / 9)
    assert signal(path, u) == pytest.approx(width**-4, rel=1e-4)
    level = float(path.at(jnp.float32(u), jnp.float32(1 - u)))
    assert path.when(level) == pytest.approx(u, rel=1e-4)


def test_golden_noise_factor():
  """F = 4 takes ᾱ = 0.9 to 0.36, an SNR of 1/16; F that grows is a line in t."""
  level = jnp.float32((10 - math.log(9)) / 20)  # where LogSNR() has ᾱ = 0.9
  gain = Noisier(LogSNR(), 4.0)(level)
  assert float(gain.alpha) ** 2 == pytest.approx(0.36, rel=1e-5)
  assert float(jnp.exp(LogSNR().log_snr(level) - gain.log_snr)) == pytest.approx(16, rel=1e-5)
  grown = Noisier(LogSNR(), factor=3.0, growth=1.5)
  t = jnp.float32([0.0, 0.5, 1.0])
  shift = np.asarray(LogSNR().log_snr(t) - grown.log_snr(t))
  np.testing.assert_allclose(shift, 2 * np.log([3.0, 3.75, 4.5]), rtol=1e-5)
  slope = (grown.log_snr(t + 1e-2) - grown.log_snr(t - 1e-2)) / 2e-2
  np.testing.assert_allclose(grown.snr_rate(t), -slope * jnp.exp(grown.log_snr(t)), rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in PATHS if name != "table"])
def test_no_path_divides_by_zero(name):
  """sigma is above 0 at t = 0 and alpha at t = 1, so that scores and gradients are finite."""
  path, ends = PATHS[name](), jnp.float32([0.0, 1.0])
  gain = path(ends)
  assert gain.sigma[0] > 0 and gain.alpha[1] > 0 and np.isfinite(gain.log_snr).all()
  assert np.isfinite(path.snr_rate(ends)).all()

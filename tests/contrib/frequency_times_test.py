"""Times by frequency against the published scaling, its mean, and mutants that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.contrib.frequency_times import ByFrequency, rank_weights
from diffusion_text.types import Batch, DataFacts, Progress

COUNTS = np.array([50, 20, 20, 3, 0])
FACTS = DataFacts(6, 5, token_counts=lambda: COUNTS, steps=100)
IDS = np.random.default_rng(0).integers(0, 5, (400, 6)).astype(np.int32)
REAL = np.broadcast_to((np.arange(6) < 4).astype(np.float32), IDS.shape)


def drawn(timing, batch, step=100):
  """Times of a batch, in numpy."""
  params = timing.init(jax.random.key(0), FACTS)
  run = jax.jit(lambda step: timing.draw(params, jax.random.key(1), batch, Progress(step=step)))
  return jax.device_get(run(step))


def published(weights, rate):
  """w · n / mu if mu > n, else 1 - (1 - w) (1 - n) / (1 - mu): of one row."""
  mean = weights.mean()
  if mean > rate:
    return weights * rate / mean
  return 1 - (1 - weights) * (1 - rate) / (1 - mean)


def test_ranks():
  """Of four frequencies, over five; equal ones share a rank."""
  np.testing.assert_allclose(rank_weights(COUNTS), [0.2, 0.4, 0.4, 0.6, 0.8], rtol=1e-6)


def check_scaling(cls):
  """The published probabilities of every row at its clock, whose mean is the clock."""
  for power, batch in ((0.02, Batch(IDS)), (1.0, Batch(IDS, weights=REAL))):
    times = drawn(cls(power=power), batch)
    soft, real = rank_weights(COUNTS)[IDS].astype(np.float64) ** power, batch.weights is None
    width = 6 if real else 4
    tau = times.tau[:, 0].astype(np.float64)
    want = np.stack([published(w[:width], n) for w, n in zip(soft, tau, strict=True)])
    np.testing.assert_allclose(times.t[:, :width], want, atol=2e-5)
    np.testing.assert_allclose(times.t[:, :width].mean(1), tau, atol=1e-5)
    np.testing.assert_array_equal(
      np.broadcast_to(times.network_time, tau[:, None].shape), times.tau
    )


class UnitMean(ByFrequency):
  """Leaves the rate to the tokens: w^p · τ."""

  def times(self, tau, soft, counts):
    return tau * soft, soft


class WithPadding(ByFrequency):
  def times(self, tau, soft, counts):
    return super().times(tau, soft, jnp.ones_like(counts))


class AtOnce(ByFrequency):
  def power_at(self, steps, step):
    return jnp.float32(self.power)


def test_probabilities_are_the_published_ones():
  check_scaling(ByFrequency)
  for mutant in (UnitMean, WithPadding):
    with pytest.raises(AssertionError):
      check_scaling(mutant)


def test_speed_is_the_derivative_and_the_weight_is_of_the_clock():
  """A token at both sides of the bend; before it a token weighs 1 / τ, as all of its row."""
  row = np.broadcast_to(np.array([0, 3, 4, 1, 1, 0], np.int32), (4000, 6))
  times = drawn(ByFrequency(power=1.0), Batch(row))
  order = np.argsort(times.tau[:, 0])
  tau, t, speed = (x[order] for x in (times.tau, times.t, times.dt_dtau))
  np.testing.assert_allclose(np.diff(t, axis=0), speed[1:] * np.diff(tau, axis=0), atol=1e-3)
  assert t[0].max() < 1e-3 and t[-1].min() > 1 - 1e-3
  early = tau[:, 0] < rank_weights(COUNTS)[row[0]].mean() - 1e-3
  weight = (speed / t)[early]
  np.testing.assert_allclose(weight, np.broadcast_to(1 / tau[early], weight.shape), rtol=1e-4)


def check_annealing(cls):
  """p · step / steps: none at first, where all tokens share the clock."""
  timing = cls(power=0.5, annealed=0.5)
  for step, power in ((0, 0.0), (25, 0.25), (50, 0.5), (90, 0.5)):
    found = drawn(timing, Batch(IDS), step)
    want = drawn(cls(power=power, annealed=0.0), Batch(IDS), step)
    np.testing.assert_allclose(found.t, want.t, atol=1e-5)
  first = drawn(timing, Batch(IDS), 0)
  np.testing.assert_allclose(first.t, np.broadcast_to(first.tau, first.t.shape), atol=1e-6)
  np.testing.assert_allclose(first.dt_dtau, 1.0, atol=1e-6)


def test_the_power_grows_in_the_course_of_training():
  check_annealing(ByFrequency)
  with pytest.raises(AssertionError):
    check_annealing(AtOnce)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="needs the token counts of the training split"):
    ByFrequency().init(jax.random.key(0), DataFacts(3, 4))
  for options in ({"power": -1.0}, {"annealed": 2.0}):
    with pytest.raises(ValueError, match=next(iter(options))):
      ByFrequency(**options)

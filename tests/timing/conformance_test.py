"""Every timing × every property of a timing, and mutants that must fail. To add a timing: one line in ROWS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.timing import (
  TIMINGS,
  ByInformation,
  ByPosition,
  Counted,
  Hyperschedule,
  Independent,
  LeftToRight,
  Paced,
  PerBlock,
  Poisson,
  Predicted,
  Shared,
  Slanted,
)
from diffusion_text.types import Batch, Progress, Times

LENGTH, ROWS_PER_PART, PARTS = 12, 16, 4
COUNTS = lambda: np.array([8, 4, 2, 0])  # of a vocabulary of 4, all of which every row has
PACES = jax.nn.softmax(jax.random.normal(jax.random.key(1), (LENGTH, 5)), axis=-1)
ROWS = [
  Shared(),
  Shared(2.0),
  Shared(0.5),
  Independent(),
  Counted(),
  Slanted(0.0),
  Slanted(1.0),
  Slanted(7.0),
  Hyperschedule("wave", 1),
  Hyperschedule("wave", 5, "causal"),
  Hyperschedule("wave", 100),
  Hyperschedule("blocks", 1),
  Hyperschedule("blocks", 5, "causal"),
  Poisson(100, 0.2),
  Predicted(
    50, 0.2
  ),  # its draws and its grid, which are those of Poisson; tests/timing_predicted_test.py has the rest
  ByInformation(2.0, counts=COUNTS),
  ByInformation(0.5, informative_first=False, counts=COUNTS),
  ByPosition(LENGTH),
  Paced(PACES),
  PerBlock(1, spread=3.0),
  PerBlock(4),
  PerBlock(4, spread=2.0),
  LeftToRight(),
]

every_row = pytest.mark.parametrize("timing", ROWS, ids=repr)


@functools.cache
def drawn(timing, seeds=250) -> tuple[np.ndarray, np.ndarray]:
  """(t, speed), [seeds, PARTS · rows, L]: whole steps of several microbatches, under jit."""
  batch = Batch(jnp.broadcast_to(jnp.arange(LENGTH) % 4, (ROWS_PER_PART, LENGTH)))

  @jax.jit
  def step(key, part):
    times = timing.draw(key, batch, Progress(part=part, parts=PARTS))
    return jnp.stack([jnp.broadcast_to(x, batch.ids.shape) for x in (times.t, times.speed)])

  draws = [
    step(key, part) for key in jax.random.split(jax.random.key(0), seeds) for part in range(PARTS)
  ]
  t, speed = np.moveaxis(np.stack(draws).reshape(seeds, PARTS, 2, ROWS_PER_PART, LENGTH), 2, 0)
  return t.reshape(seeds, -1, LENGTH), speed.reshape(seeds, -1, LENGTH)


def check_ranges(timing):
  t, speed = drawn(timing)
  assert t.dtype == speed.dtype == np.float32
  assert (t >= 0).all() and (t <= 1).all() and (speed >= 0).all() and np.isfinite(speed).all()
  assert (t[speed > 0] > 0).all(), "a weight is formed at t = 0"


def check_grid(timing):
  for steps in (1, 3, 64) if timing.sampled_in_blocks is None else (12, 24):
    grid = np.asarray(timing.grid(steps, LENGTH))
    assert grid.shape == (steps + 1, LENGTH) and grid.dtype == np.float32
    assert (grid[0] == 1).all() and (grid[-1] == 0).all() and (np.diff(grid, axis=0) <= 0).all()


def check_every_token_sweeps_the_interval(timing):
  """E[speed · f(t)] = ∫ f dt for each token; for clipped timings, whose cost is that of t = 1, E[speed] = 1.

  Poisson times do not, and do not claim to."""
  if isinstance(timing, Poisson):
    assert timing.scoring() == Shared()
    return
  t, speed = drawn(timing)
  for power in (0,) if timing.clipped else (0, 1, 2):
    values = (speed * t**power).mean(1)  # of whole steps, [seeds, L]
    error = values.std(0) / len(values) ** 0.5
    np.testing.assert_array_less(np.abs(values.mean(0) - 1 / (power + 1)), 4.5 * error + 1e-5)


def check_spread_over_the_step(timing):
  """The mean over a step's microbatches varies far less than that of as many rows drawn each for itself."""
  row_means = drawn(timing)[0].mean(2)
  alone = row_means.std() / row_means.shape[1] ** 0.5
  assert row_means.mean(1).std() <= 0.35 * alone


CHECKS = [
  check_ranges,
  check_grid,
  check_every_token_sweeps_the_interval,
  check_spread_over_the_step,
]


@every_row
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(timing, check):
  check(timing)


def test_the_table_has_every_timing():
  assert {type(timing) for timing in ROWS} - {Paced} == set(
    TIMINGS.values()
  )  # a learned one, bound


def test_independent_times_are_independent_within_a_row_and_spread_at_each_position():
  t, _ = drawn(Independent())
  correlation = np.corrcoef(t.reshape(-1, LENGTH).T) - np.eye(LENGTH)
  assert np.abs(correlation).max() < 5 / len(t.reshape(-1, LENGTH)) ** 0.5
  gaps = np.diff(np.sort(t, axis=1), axis=1)
  np.testing.assert_allclose(gaps, 1 / t.shape[1], atol=2e-6)


def check_exact_counts(timing):
  """speed = n / k at exactly k of the n scored tokens; every k of a step equally often; given tokens and padding count for nothing."""
  rng = np.random.default_rng(0)
  rows, length = 64, 10
  given, weights = rng.random((rows, length)) < 0.3, np.ones((rows, length), np.float32)
  weights[:, 7:] = rng.random((rows, 1)) < 0.5
  given[0], weights[1] = True, 0.0  # rows in which nothing is scored
  batch = Batch(
    jnp.zeros((rows, length), jnp.int32), given=jnp.asarray(given), weights=jnp.asarray(weights)
  )
  times = jax.jit(timing.draw)(jax.random.key(0), batch, Progress(part=1, parts=2))
  t, speed, scored = np.asarray(times.t), np.asarray(times.speed), ~given & (weights > 0)
  assert set(np.unique(t)) == {0.0, 1.0} and not t[~scored].any() and not speed[t == 0].any()
  number, count = scored.sum(1), t.sum(1)
  assert not count[number == 0].any() and (count[number > 0] > 0).all()
  np.testing.assert_allclose((speed.max(1) * count)[number > 0], number[number > 0], rtol=1e-6)
  whole, _ = drawn(timing)
  counts = np.bincount(whole[0].sum(1).astype(int), minlength=LENGTH + 1)[1:]
  assert counts.sum() == ROWS_PER_PART * PARTS and np.ptp(counts) <= 2, counts


def check_subsets_are_uniform(timing):
  """Each token is among the chosen equally often at every k, and microbatches choose differently."""
  t, _ = drawn(timing)
  rows = t.reshape(-1, LENGTH)
  for count in (1, 6, 11):
    share = rows[rows.sum(1) == count].mean(0)
    error = (count / LENGTH * (1 - count / LENGTH) / (rows.sum(1) == count).sum()) ** 0.5
    assert np.abs(share - count / LENGTH).max() < 4.5 * error
  first, second = t[:, :ROWS_PER_PART], t[:, ROWS_PER_PART : 2 * ROWS_PER_PART]
  assert (first == second).mean() < 0.7


def test_exact_counts():
  check_exact_counts(Counted())
  check_subsets_are_uniform(Counted())


class SpeedForgotten(Shared):
  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    return times._replace(speed=jnp.ones_like(times.t))


class WaveWithoutSpeed(Hyperschedule):
  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    return times._replace(speed=jnp.ones_like(times.t))


class WaveWithoutEnds(Hyperschedule):
  def grid(self, steps, length):
    return self.times(1 - jnp.arange(1, steps + 2)[:, None] / (steps + 2), length)[0]


class RisingGrid(Shared):
  def grid(self, steps, length):
    return super().grid(steps, length)[::-1]


class ClockBelowZero(Shared):
  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    return times._replace(t=times.t - 0.1)


class EveryMicrobatchTheSame(Shared):
  def draw(self, key, batch, progress):
    return super().draw(key, batch, Progress())


class EachRowForItself(Independent):
  def draw(self, key, batch, progress):
    t = 1 - jax.random.uniform(jax.random.fold_in(key, progress.part), batch.ids.shape)
    return super().draw(key, batch, progress)._replace(t=t)


class OneTooMany(Counted):
  """Masks k + 1 tokens at the weight of k."""

  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    first = jnp.arange(batch.ids.shape[1]) == jnp.argmin(times.t, axis=1)[:, None]
    speed = jnp.max(times.speed, axis=1, keepdims=True)
    return times._replace(
      t=jnp.where(first, 1.0, times.t), speed=jnp.where(first, speed, times.speed)
    )


class Binomial(Counted):
  """Each token is masked with probability k / n: right on average, and no exact count."""

  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    share = jnp.mean(times.t, axis=1, keepdims=True)
    chosen = jax.random.uniform(jax.random.fold_in(key, progress.part), batch.ids.shape) < share
    return Times(chosen.astype(jnp.float32), chosen / share, times.layout)


class FirstTokens(Counted):
  """The first k tokens instead of any k."""

  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    count = jnp.sum(times.t, axis=1, keepdims=True)
    first = jnp.arange(batch.ids.shape[1]) < count
    return times._replace(
      t=first.astype(jnp.float32), speed=jnp.where(first, batch.ids.shape[1] / count, 0.0)
    )


class BlocksWithoutSpeed(PerBlock):
  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    return times._replace(speed=jnp.ones_like(times.t))


class PacesWithoutSpeed(Paced):
  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    return times._replace(speed=jnp.ones_like(times.t))


MUTANTS = [
  (PacesWithoutSpeed(PACES), check_every_token_sweeps_the_interval),
  (SpeedForgotten(2.0), check_every_token_sweeps_the_interval),
  (WaveWithoutSpeed("wave", 3), check_every_token_sweeps_the_interval),
  (BlocksWithoutSpeed(4, spread=2.0), check_every_token_sweeps_the_interval),
  (OneTooMany(), check_every_token_sweeps_the_interval),
  (FirstTokens(), check_every_token_sweeps_the_interval),
  (WaveWithoutEnds("wave", 3), check_grid),
  (RisingGrid(), check_grid),
  (ClockBelowZero(), check_ranges),
  (EveryMicrobatchTheSame(), check_spread_over_the_step),
  (EachRowForItself(), check_spread_over_the_step),
  (OneTooMany(), check_exact_counts),
  (Binomial(), check_exact_counts),
  (FirstTokens(), check_subsets_are_uniform),
]


@pytest.mark.parametrize(
  "mutant,check", MUTANTS, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant)

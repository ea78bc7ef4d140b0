"""Every timing × every property of a timing, and mutants that must fail. A new timing is one line.

All draws of a table come from one compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.contrib.frequency_times import ByFrequency
from diffusion_text.timing import (
  TIMINGS,
  AtNoise,
  ByInformation,
  ByPosition,
  Converging,
  ExactCount,
  Hyperschedule,
  Independent,
  Learned,
  Poisson,
  Shared,
  Slanted,
  Tilted,
  low_discrepancy,
)
from diffusion_text.timing.clock import clock_of_steps
from diffusion_text.types import Batch, DataFacts, Progress

LENGTH, ROWS_PER_PART, PARTS, SEEDS = 12, 16, 4, 100
FACTS = DataFacts(LENGTH, 4, token_counts=lambda: np.array([8, 4, 2, 0]))


def learned(timing, bins, shape=()):
  """The timing, and levels that are drawn at random."""
  return timing, {"levels": jax.random.normal(jax.random.key(1), (*shape, bins))}


def fresh(timing):
  """The timing, and its first parameters."""
  return timing, timing.init(jax.random.key(0), FACTS)


# name -> ((timing, params), units of a row)
ROWS = {
  "shared": (fresh(Shared()), 1),
  "shared, power 2": (fresh(Shared(power=2.0)), 1),
  "shared, power 1/2": (fresh(Shared(power=0.5)), 1),
  "shared, a part": (fresh(Shared(low=0.3, high=0.8)), 1),
  "independent": (fresh(Independent()), 1),
  "independent, a slope": (fresh(Independent(width=4)), 1),
  "exact_count": (fresh(ExactCount()), 1),
  "slanted 0": (fresh(Slanted(spread=0.0)), 1),
  "slanted 1": (fresh(Slanted(spread=1.0)), 1),
  "slanted 7": (fresh(Slanted(spread=7.0)), 1),
  "wave 1": (fresh(Hyperschedule(kind="wave", width=1)), 1),
  "wave 5": (fresh(Hyperschedule(kind="wave", width=5)), 1),
  "wave 100": (fresh(Hyperschedule(kind="wave", width=100)), 1),
  "blocks 1": (fresh(Hyperschedule(kind="blocks", width=1)), 1),
  "blocks 5": (fresh(Hyperschedule(kind="blocks", width=5)), 1),
  "tilted": (fresh(Tilted()), 1),
  "tilted, most": (fresh(Tilted(ratio=0.01)), 1),
  "converging": (fresh(Converging(levels=20)), 1),
  "poisson": (fresh(Poisson(spread=0.2)), 1),
  "by_information": (fresh(ByInformation(spread=2.0)), 1),
  "by_information, common first": (fresh(ByInformation(spread=0.5, informative_first=False)), 1),
  "by_frequency": (fresh(ByFrequency(power=2.0, annealed=0.0)), 1),
  "learned, fresh": (fresh(Learned()), 1),
  "learned": (learned(Learned(bins=5), 5), 1),
  "by_position, fresh": (fresh(ByPosition(bins=3)), 1),
  "by_position": (learned(ByPosition(bins=5), 5, (LENGTH,)), 1),
  "at_noise, units of 1": (fresh(AtNoise()), LENGTH),
  "shared, units of 4": (fresh(Shared()), 3),
  "slanted, units of 4": (fresh(Slanted(spread=2.0)), 3),
  "tilted, units of 4": (fresh(Tilted()), 3),
  "exact_count, units of 4": (fresh(ExactCount()), 3),
  "by_position, units of 4": (learned(ByPosition(bins=5), 5, (LENGTH // 3,)), 3),
}


class WithoutSpeed:
  """dt/dτ forgotten."""

  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(dt_dtau=jnp.ones_like(times.t))


class SharedWithoutSpeed(WithoutSpeed, Shared):
  pass


class WaveWithoutSpeed(WithoutSpeed, Hyperschedule):
  pass


class SlantedWithoutSpeed(WithoutSpeed, Slanted):
  pass


class TiltedWithoutSpeed(WithoutSpeed, Tilted):
  pass


class ConvergingWithoutSpeed(WithoutSpeed, Converging):
  pass


class PositionsWithoutSpeed(WithoutSpeed, ByPosition):
  pass


class BelowZero(Shared):
  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(t=times.t - 0.1)


class EveryMicrobatchTheSame(Shared):
  def draw(self, params, key, batch, progress):
    return super().draw(params, key, batch, Progress(units=progress.units))


class InRuns(Shared):
  """Each microbatch is one run of rows, as if the trainer did not interleave them."""

  def draw(self, params, key, batch, progress):
    rows = batch.ids.shape[0]
    points = low_discrepancy(key, rows * progress.parts, Progress())
    tau = jax.lax.dynamic_slice_in_dim(points, progress.part * rows, rows)[:, None]
    times = super().draw(params, key, batch, progress)
    return times._replace(t=jnp.broadcast_to(tau, times.t.shape), tau=tau)


class UnitsIgnored(Slanted):
  """Numbers units as if each were a row of the batch."""

  def draw(self, params, key, batch, progress):
    one = Progress(part=progress.part, parts=progress.parts)
    return super().draw(params, key, batch, one)


class EachRowForItself(Independent):
  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(t=1 - jax.random.uniform(key, batch.ids.shape))


class OneTooMany(ExactCount):
  """k + 1 tokens are noise, at the weight of k."""

  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    first = jnp.arange(batch.ids.shape[1]) == jnp.argmin(times.t, axis=1)[:, None]
    speed = jnp.max(times.dt_dtau, axis=1, keepdims=True)
    t = jnp.where(first, 1.0, times.t)
    return times._replace(t=t, dt_dtau=jnp.where(first, speed, times.dt_dtau), network_time=t)


class Binomial(ExactCount):
  """Each token is noise with probability k / n: right on average, and no exact count."""

  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    share = jnp.mean(times.t, axis=1, keepdims=True)
    chosen = jax.random.uniform(jax.random.fold_in(key, progress.part), batch.ids.shape) < share
    return times._replace(t=chosen.astype(jnp.float32), dt_dtau=chosen / share)


class FirstTokens(ExactCount):
  """The first k tokens instead of any k."""

  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    count = jnp.sum(times.t, axis=1, keepdims=True)
    first = jnp.arange(batch.ids.shape[1]) < count
    speed = jnp.where(first, batch.ids.shape[1] / count, 0.0)
    return times._replace(t=first.astype(jnp.float32), dt_dtau=speed)


class TimesOfTheClock(Slanted):
  """The network is told another time than the token has, for no reason."""

  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(network_time=jnp.broadcast_to(times.tau, times.t.shape))


class TellsTheToken(ByInformation):
  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(network_time=times.t)


class WaveWithoutEnds(Hyperschedule):
  def grid(self, params, clock, lengths, length):
    return super().grid(params, clock_of_steps(len(clock) + 1), lengths, length)[:, 1:-1]


class RisingGrid(Shared):
  def grid(self, params, clock, lengths, length):
    return super().grid(params, clock, lengths, length)[:, ::-1]


class LengthOfTheBatch(Slanted):
  """Padding on the right changes a row's schedule."""

  def grid(self, params, clock, lengths, length):
    return super().grid(params, clock, jnp.full_like(lengths, length), length)


BENT = {"levels": ROWS["by_position"][0][1]["levels"]}
MUTANTS = {
  "speed forgotten": ((SharedWithoutSpeed(power=2.0), {}), 1),
  "speed of a wave forgotten": ((WaveWithoutSpeed(kind="wave", width=3), {}), 1),
  "speed in units forgotten": ((SlantedWithoutSpeed(spread=2.0), {}), 3),
  "speed of odds forgotten": ((TiltedWithoutSpeed(), {}), 1),
  "speed of lines forgotten": ((ConvergingWithoutSpeed(levels=20), {}), 1),
  "speed of positions forgotten": ((PositionsWithoutSpeed(bins=5), BENT), 1),
  "below zero": ((BelowZero(), {}), 1),
  "every microbatch the same": ((EveryMicrobatchTheSame(), {}), 1),
  "microbatches in runs": ((InRuns(), {}), 1),
  "units ignored": ((UnitsIgnored(spread=2.0), {}), 3),
  "each row for itself": ((EachRowForItself(), {}), 1),
  "one too many": ((OneTooMany(), {}), 1),
  "binomial": ((Binomial(), {}), 1),
  "first tokens": ((FirstTokens(), {}), 1),
  "another time is told": ((TimesOfTheClock(spread=2.0), {}), 1),
  "times tell the token": ((TellsTheToken(spread=2.0), ROWS["by_information"][0][1]), 1),
  "grid without ends": ((WaveWithoutEnds(kind="wave", width=3), {}), 1),
  "rising grid": ((RisingGrid(), {}), 1),
  "length of the batch": ((LengthOfTheBatch(spread=2.0), {}), 1),
}
ALL = {**ROWS, **MUTANTS}
GRIDS = {"grid without ends", "rising grid", "length of the batch"}  # what is wrong is their grid


def step_of(name, rows, key, part, parts):
  """One draw of `rows` rows, in the units of the timing: `Times`."""
  (timing, params), units = ALL[name]
  ids = jnp.broadcast_to(jnp.arange(LENGTH) % 4, (rows, LENGTH))
  batch = Batch(ids.reshape(rows * units, LENGTH // units))
  times = timing.draw(params, key, batch, Progress(part=part, parts=parts, units=units))
  return times._replace(tau=jnp.broadcast_to(times.tau, times.t.shape))


@pytest.fixture(scope="module")
def drawn():
  """name -> (Times of parts [SEEDS, PARTS, R, u], Times of whole batches [2, PARTS · R, u])."""
  keys = jax.random.split(jax.random.key(0), SEEDS)

  def parts(name):
    def one(key, part):
      return step_of(name, ROWS_PER_PART, key, part, PARTS)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(keys, jnp.arange(PARTS))

  def whole(name):
    return jax.vmap(lambda key: step_of(name, ROWS_PER_PART * PARTS, key, 0, 1))(keys[:2])

  def everything():
    asked = {*ROWS, *(name for name, check in WRONG if check is check_parts_are_the_whole)}
    in_parts = {name: parts(name) for name in ALL if name in ROWS or name not in GRIDS}
    return in_parts, {name: whole(name) for name in ALL if name in asked}

  in_parts, in_one = jax.tree.map(np.asarray, jax.jit(everything)())
  return {name: (times, in_one.get(name)) for name, times in in_parts.items()}


@pytest.fixture(scope="module")
def grids():
  """name -> (grids by steps, of rows of LENGTH, 5 and 1 tokens; grid of 3 steps of 5 tokens)."""
  lengths = jnp.array([LENGTH, 5, 1])

  def everything():
    found = {}
    for name, ((timing, params), units) in ALL.items():
      if units == 1:
        steps = {n: timing.grid(params, clock_of_steps(n), lengths, LENGTH) for n in (1, 3, 64)}
        found[name] = steps, timing.grid(params, clock_of_steps(3), jnp.array([5]), 5)
    return found

  return jax.tree.map(np.asarray, jax.jit(everything)())


def steps_of(times):
  """Every leaf as [SEEDS, rows of a whole step, u]."""
  return jax.tree.map(lambda leaf: leaf.reshape(SEEDS, -1, leaf.shape[-1]), times)


def check_ranges(name, drawn, grids):
  times = steps_of(drawn[name][0])
  assert all(leaf.dtype == np.float32 for leaf in times)
  assert (times.t >= 0).all() and (times.t <= 1).all()
  assert (times.dt_dtau >= 0).all() and np.isfinite(times.dt_dtau).all()
  assert (times.t[times.dt_dtau > 0] > 0).all(), "a weight is formed at t = 0"
  assert (times.tau > 0).all() and (times.tau <= 1).all()


def check_grid(name, drawn, grids):
  by_steps, _ = grids.get(name, ({}, None))
  for steps, grid in by_steps.items():
    assert grid.shape == (3, steps + 1, LENGTH) and grid.dtype == np.float32
    assert (grid[:, 0] == 1).all() and (grid[:, -1] == 0).all()
    assert (np.diff(grid, axis=1) <= 0).all()


def check_rows_have_schedules_of_their_own(name, drawn, grids):
  """A row of 5 tokens falls as a batch of length 5 does, whatever stands on its right."""
  if name in grids:
    by_steps, alone = grids[name]
    np.testing.assert_allclose(by_steps[3][1][:, :5], alone[0], atol=1e-6)


def check_sweep(name, drawn, grids):
  """E[dt/dτ · f(t)] = ∫ f dt for each token; where times jump, E[dt/dτ] = 1."""
  timing = ALL[name][0][0]
  times = steps_of(drawn[name][0])
  if timing.path == "none":
    return
  for power in (0,) if timing.path == "jumps" else (0, 1, 2):
    values = (times.dt_dtau * times.t**power).mean(1)  # of whole steps, [SEEDS, u]
    error = values.std(0) / len(values) ** 0.5
    np.testing.assert_array_less(
      np.abs(values.mean(0) - 1 / (power + 1)), 4.5 * error + 1e-5, err_msg=f"power {power}"
    )


def check_spread(name, drawn, grids):
  """The mean over a step varies far less than that of as many rows drawn each for itself."""
  row_means = steps_of(drawn[name][0]).t.mean(2)
  alone = row_means.std() / row_means.shape[1] ** 0.5
  assert row_means.mean(1).std() <= 0.35 * alone


def check_parts_are_the_whole(name, drawn, grids):
  """Row j of microbatch p is row j · PARTS + p of the whole batch."""
  units = ALL[name][1]
  parts, whole = drawn[name]
  for part, all_rows in zip(parts, whole, strict=True):
    u = part.shape[-1]
    cut = part[:2].reshape(2, PARTS, ROWS_PER_PART, units, u)
    joined = np.moveaxis(cut, 1, 2).reshape(2, -1, u)
    np.testing.assert_allclose(joined, all_rows, rtol=1e-5, atol=1e-6)


def check_network_time(name, drawn, grids):
  """The time of the token, unless that would tell the token; then the clock."""
  times = steps_of(drawn[name][0])
  tells = issubclass(type(ALL[name][0][0]), (ByInformation, ByFrequency))
  told = np.broadcast_to(times.network_time, times.t.shape)
  np.testing.assert_allclose(told, times.tau if tells else times.t, rtol=1e-5, atol=1e-6)


CHECKS = [
  check_ranges,
  check_grid,
  check_rows_have_schedules_of_their_own,
  check_sweep,
  check_spread,
  check_parts_are_the_whole,
  check_network_time,
]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(name, check, drawn, grids):
  check(name, drawn, grids)


def test_the_table_has_every_timing():
  assert {type(timing) for (timing, _), _ in ROWS.values()} == {*TIMINGS.values(), ByFrequency}


def test_members_are_values():
  for (timing, _), _ in ROWS.values():
    assert hash(timing) == hash(type(timing)(**vars(timing)))


def test_independent_times_are_independent_within_a_row_and_spread_at_each_position(drawn):
  t = steps_of(drawn["independent"][0]).t
  correlation = np.corrcoef(t.reshape(-1, LENGTH).T) - np.eye(LENGTH)
  assert np.abs(correlation).max() < 5 / len(t.reshape(-1, LENGTH)) ** 0.5
  gaps = np.diff(np.sort(t, axis=1), axis=1)
  np.testing.assert_allclose(gaps, 1 / t.shape[1], atol=2e-6)


def check_subsets(name, drawn, grids=None):
  """k of a step equally often; each token among the chosen equally often; parts choose anew."""
  t = steps_of(drawn[name][0]).t
  counts = np.bincount(t[0].sum(1).astype(int), minlength=LENGTH + 1)[1:]
  assert counts.sum() == ROWS_PER_PART * PARTS and np.ptp(counts) <= 2, counts
  rows = t.reshape(-1, LENGTH)
  for count in (1, 6, 11):
    chosen = rows[rows.sum(1) == count]
    error = (count / LENGTH * (1 - count / LENGTH) / len(chosen)) ** 0.5
    assert np.abs(chosen.mean(0) - count / LENGTH).max() < 4.5 * error
  first, second = drawn[name][0].t[:, 0], drawn[name][0].t[:, 1]
  assert (first == second).mean() < 0.7


def check_exact_counts(timing):
  """dt/dτ = n / k at exactly k of the n scored tokens; what is not scored counts for nothing."""
  rng = np.random.default_rng(0)
  rows, length = ROWS_PER_PART * PARTS, LENGTH
  observed, weights = rng.random((rows, length)) < 0.3, np.ones((rows, length), np.float32)
  weights[:, 7:] = rng.random((rows, 1)) < 0.5
  observed[0], weights[1] = True, 0.0  # rows in which nothing is scored
  batch = Batch(np.zeros((rows, length), np.int32), observed=observed, weights=weights)
  times = jax.jit(timing.draw)({}, jax.random.key(0), batch, Progress())
  t, speed, scored = np.asarray(times.t), np.asarray(times.dt_dtau), ~observed & (weights > 0)
  assert set(np.unique(t)) == {0.0, 1.0} and not t[~scored].any() and not speed[t == 0].any()
  number, count = scored.sum(1), t.sum(1)
  assert not count[number == 0].any() and (count[number > 0] > 0).all()
  weighed = (speed.max(1) * count)[number > 0]
  np.testing.assert_allclose(weighed, number[number > 0], rtol=1e-6)


def test_exact_counts(drawn):
  check_exact_counts(ExactCount())
  check_subsets("exact_count", drawn)


WRONG = [
  ("speed forgotten", check_sweep),
  ("speed of a wave forgotten", check_sweep),
  ("speed in units forgotten", check_sweep),
  ("speed of odds forgotten", check_sweep),
  ("speed of lines forgotten", check_sweep),
  ("speed of positions forgotten", check_sweep),
  ("one too many", check_sweep),
  ("first tokens", check_sweep),
  ("grid without ends", check_grid),
  ("rising grid", check_grid),
  ("length of the batch", check_rows_have_schedules_of_their_own),
  ("below zero", check_ranges),
  ("every microbatch the same", check_spread),
  ("each row for itself", check_spread),
  ("every microbatch the same", check_parts_are_the_whole),
  ("microbatches in runs", check_parts_are_the_whole),
  ("units ignored", check_parts_are_the_whole),
  ("each row for itself", check_parts_are_the_whole),
  ("another time is told", check_network_time),
  ("times tell the token", check_network_time),
  ("first tokens", check_subsets),
]  # fmt: skip


@pytest.mark.parametrize("name, check", WRONG)
def test_mutants_fail(name, check, drawn, grids):
  with pytest.raises(AssertionError):
    check(name, drawn, grids)


@pytest.mark.parametrize("name", ["one too many", "binomial"])
def test_mutants_of_counts_fail(name):
  with pytest.raises(AssertionError):
    check_exact_counts(MUTANTS[name][0][0])

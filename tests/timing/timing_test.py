"""Times that are spread evenly over the batch, exact grids, lengths of rows, what is refused."""

import jax
import numpy as np
import pytest

from diffusion_text.timing import (
  AtNoise,
  ByPosition,
  Converging,
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
from diffusion_text.types import Batch, Progress

KEY = jax.random.key(3)


def drawn(timing, batch):
  """Times of a batch, in numpy."""
  return jax.device_get(jax.jit(lambda: timing.draw({}, KEY, batch, Progress()))())


def grid(timing, steps, length, lengths=None, spacing="even"):
  """[rows, steps + 1, length], of one row of that length unless `lengths` says otherwise."""
  lengths = np.array([length] if lengths is None else lengths)
  clock = clock_of_steps(steps, spacing)
  return np.asarray(jax.jit(lambda n: timing.grid({}, clock, n, length))(lengths))


@pytest.mark.parametrize("rows, parts", [(1, 1), (49, 1), (98, 1), (103, 1), (49, 4)])
def test_times_are_spread_over_the_whole_batch(rows, parts):
  """At 49, 98 and 103 arange(0, 1, 1/n) has one element too many in a public codebase."""

  def one(part):
    return low_discrepancy(KEY, rows, Progress(part=part, parts=parts))

  draws = np.asarray(jax.jit(jax.vmap(one))(np.arange(parts)))
  assert draws.shape == (parts, rows)
  t = np.sort(draws.reshape(-1))
  assert (t > 0).all() and (t <= 1).all()
  np.testing.assert_allclose(np.diff(t), 1 / (rows * parts), atol=2e-6)


def test_one_point_is_uniform():
  keys = jax.random.split(KEY, 300)
  draws = jax.jit(jax.vmap(lambda key: low_discrepancy(key, 8, Progress())))(keys)
  t = np.asarray(draws)[:, 3]
  assert abs(t.mean() - 0.5) < 4 / np.sqrt(12 * 300)
  assert np.histogram(t, 4, (0, 1))[0].min() / 300 > 0.05


@pytest.mark.parametrize("spread", [0.0, 5.0])
def test_speed_is_the_derivative_of_the_time(spread):
  """Along the draws of one large batch, in the order of the clock; left tokens are cleaner."""
  times = drawn(Slanted(spread=spread), Batch(np.zeros((4000, 6), np.int32)))
  order = np.argsort(times.tau[:, 0])
  tau, t, speed = (x[order] for x in (times.tau, times.t, times.dt_dtau))
  change = speed[1:] * np.diff(tau, axis=0)
  np.testing.assert_allclose(np.diff(t, axis=0), change, atol=(1 + spread) * 3e-4)
  assert (np.diff(t, axis=1) >= 0).all()


def test_shared_times():
  """power = 1 changes no bit of the clock; power = 3 moves the same clock; a part is a part."""
  batch = Batch(np.zeros((16, 6), np.int32))
  clock = jax.jit(lambda: low_discrepancy(KEY, 16, Progress()))()
  clock = np.repeat(np.asarray(clock)[:, None], 6, axis=1)
  plain, cubed, part, both = (
    drawn(timing, batch)
    for timing in (
      Shared(),
      Shared(power=3.0),
      Shared(low=0.3, high=0.8),
      Shared(power=2.0, low=0.3, high=0.8),
    )
  )
  np.testing.assert_array_equal(plain.t, clock)
  np.testing.assert_array_equal(plain.dt_dtau, np.ones((16, 6)))
  np.testing.assert_allclose(cubed.t, clock**3, rtol=1e-6)
  np.testing.assert_allclose(cubed.dt_dtau, 3 * clock**2, rtol=1e-6)
  np.testing.assert_allclose(part.t, 0.3 + 0.5 * clock, rtol=1e-6)
  assert (part.dt_dtau == 1).all()
  assert np.min(both.t) > 0.3 and np.max(both.t) < 0.8 and np.ptp(both.t) > 0.4
  np.testing.assert_allclose(both.dt_dtau, 2 * np.sqrt(both.t), rtol=1e-5)
  assert grid(Shared(power=3.0), 4, 2)[0, 1, 0] == 0.75


WAVE = [
  [4, 4, 4, 4],
  [2, 4, 4, 4],
  [0, 2, 4, 4],
  [0, 0, 2, 4],
  [0, 0, 0, 2],
  [0, 0, 0, 0],
]  # quarters
BLOCKS = [[4, 4, 4, 4], [2, 2, 4, 4], [0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 0, 0]]
ONE_BY_ONE = [[4, 4, 4, 4], [0, 4, 4, 4], [0, 0, 4, 4], [0, 0, 0, 4], [0, 0, 0, 0]]
MATRICES = [
  (Hyperschedule(kind="wave", width=2), WAVE),
  (Hyperschedule(kind="blocks", width=2), BLOCKS),
  (Hyperschedule(kind="wave", width=1), ONE_BY_ONE),
  (Hyperschedule(kind="blocks", width=1), ONE_BY_ONE),
]


@pytest.mark.parametrize("timing, want", MATRICES, ids=repr)
def test_matrix_of_times(timing, want):
  """The integer levels of the published hyperschedules; waves of one token are left to right.

  A row of 4 tokens that stands before padding has the same levels.
  """
  np.testing.assert_array_equal(4 * grid(timing, len(want) - 1, 4)[0], want)
  padded = grid(timing, len(want) - 1, 7, lengths=[7, 4])
  np.testing.assert_array_equal(4 * padded[1, :, :4], want)


@pytest.mark.parametrize("levels, slope, length", [(4, 1, 4), (6, 2, 5), (5, 5, 7), (8, 1, 3)])
def test_the_pyramid(levels, slope, length):
  """The published matrix: level clip(K - m + s · i, 0, K) of position i at call m."""
  steps = levels + slope * (length - 1)
  call, place = np.arange(steps + 1)[:, None], np.arange(length)
  want = np.clip(levels - call + slope * place, 0, levels)
  timing = Independent(width=levels // slope)
  np.testing.assert_allclose(levels * grid(timing, steps, length)[0], want, atol=1e-5)
  assert np.abs(levels * grid(Independent(), steps, length)[0] - want).max() >= slope / 2


def test_a_row_is_trained_as_it_is_sampled():
  """Times of 3 tokens before padding are those of a row of 3 tokens, at the same clock."""
  weights = np.ones((64, 6), np.float32)
  weights[:, 3:] = 0
  for timing in (Slanted(spread=2.0), Hyperschedule(kind="wave", width=2)):
    padded = drawn(timing, Batch(np.zeros((64, 6), np.int32), weights=weights))
    alone = drawn(timing, Batch(np.zeros((64, 3), np.int32)))
    np.testing.assert_allclose(padded.t[:, :3], alone.t, atol=1e-6)
    np.testing.assert_allclose(padded.dt_dtau[:, :3], alone.dt_dtau, atol=1e-6)


@pytest.mark.parametrize("kind, width", [("wave", 1), ("blocks", 8)])
def test_one_piece_moves_at_a_time_in_long_rows(kind, width):
  """Exactly clean on the left, exactly noise on the right, although 1024 / 8 is no power of ten."""
  times = grid(Hyperschedule(kind=kind, width=width), 3 * 1024 // width, 1024)[0]
  moving = (times > 0) & (times < 1)
  assert (moving.sum(1) <= width).all() and moving.any()


def test_a_wide_wave_is_shared_and_a_wave_is_slanted():
  wide, shared = (
    grid(timing, 16, 10) for timing in (Hyperschedule(kind="wave", width=10**6), Shared())
  )
  np.testing.assert_allclose(wide, shared, atol=2e-5)
  wave, slanted = (
    grid(timing, 16, 10) for timing in (Hyperschedule(kind="wave", width=3), Slanted(spread=3.0))
  )
  np.testing.assert_allclose(wave, slanted, atol=1e-6)


@pytest.mark.parametrize("steps", [41, 47, 55])
def test_grids_end_in_0_exactly_under_jit(steps):
  """Steps at which 1 - k / steps, rounded once, misses 0."""
  for timing in (Shared(), AtNoise(), Independent()):
    np.testing.assert_array_equal(grid(timing, steps, 2)[0, -1], [0.0, 0.0])


def check_odds(cls):
  """exp(-β L) = 0.1: the odds of neighbours differ by 10^((1 - τ) / L), those of both ends of 16
  tokens by 8.66 as τ goes to 0, and their geometric mean is that of the clock.
  """
  t = grid(cls(), 64, 16)[0, 1:-1].astype(np.float64)
  odds, clock = np.log(t / (1 - t)), 1 - np.arange(1, 64) / 64
  want = np.log(10) / 16 * (1 - clock)
  np.testing.assert_allclose(np.diff(odds, axis=1), np.tile(want[:, None], 15), atol=2e-5)
  np.testing.assert_allclose(odds.mean(1), np.log(clock / (1 - clock)), atol=1e-5)
  least = grid(cls(), 10**4, 16)[0, -2].astype(np.float64)
  assert least[-1] / least[0] == pytest.approx(10 ** (15 / 16), rel=1e-3)


class NeverFades(Tilted):
  """Tilts as much at all times."""

  def curve(self, tau, lengths, length):
    place = np.arange(length) - (length - 1) / 2
    odds = tau * self.ratio ** (-place / length)
    return odds / (1 - tau + odds), np.ones(length)


def test_later_tokens_of_a_block_are_masked_by_the_published_odds():
  check_odds(Tilted)
  with pytest.raises(AssertionError):
    check_odds(NeverFades)
  np.testing.assert_allclose(grid(Tilted(ratio=1.0), 8, 5), grid(Shared(), 8, 5), atol=1e-7)


def published_lines(length, levels):
  """The levels of AR-Diffusion's code, int [length + levels - 1, length]."""
  rows, place = [], np.arange(length)
  for s in range(length + levels - 1):
    start, height = max(length - 1 - s, 0), max(s - (length - 1), 0)
    slope = (levels - 1 - height) / (2 * length - start)
    line = np.round(height + slope * (place - start))
    rows.append(np.clip(line, 0, levels - 1))
  return np.array(rows)


@pytest.mark.parametrize("length, levels", [(6, 20), (50, 200)])
def test_lines_meet_at_twice_the_length(length, levels):
  """The published integer levels, at each of their clocks; parallel lines are not these."""
  want = published_lines(length, levels)
  steps = length + levels - 2
  ours = (levels - 1) * grid(Converging(levels=levels), steps, length)[0][::-1]
  assert np.abs(ours - want).max() <= 0.5 + 1e-3
  # Of 6 places, when the first one begins to rise: 5 / 12 of 19 levels at the last one.
  assert ours[length - 1, -1] == pytest.approx((levels - 1) * (length - 1) / (2 * length), rel=1e-5)
  parallel = (levels - 1) * grid(Slanted(spread=0.5), steps, length)[0][::-1]
  assert np.abs(parallel - want).max() > 1


def test_speeds_of_curves_are_their_derivatives():
  for timing in (Tilted(ratio=0.02), Converging(levels=9)):
    times = drawn(timing, Batch(np.zeros((4000, 6), np.int32)))
    order = np.argsort(times.tau[:, 0])
    tau, t, speed = (x[order] for x in (times.tau, times.t, times.dt_dtau))
    np.testing.assert_allclose(np.diff(t, axis=0), speed[1:] * np.diff(tau, axis=0), atol=6e-4)
    assert (np.diff(t, axis=1) >= -1e-6).all()


def test_what_says_that_it_is_a_path():
  continuous = [Shared(), Shared(power=2.0), Slanted(), Learned(), ByPosition()]
  continuous += [Tilted(), Converging()]
  assert {timing.path for timing in continuous} == {"continuous"}
  assert {timing.path for timing in (Shared(high=0.5), Independent(), Poisson())} == {"none"}


BAD = [
  (lambda: grid(Shared(), 0, 4), "steps=0"),
  (lambda: grid(Hyperschedule(kind="wave", width=2), 0, 4), "steps=0"),
  (lambda: Shared(power=0.0), "power"),
  (lambda: Shared(low=0.9, high=0.8), "low=0.9 must not exceed high=0.8"),
  (lambda: Shared(high=0.0), "high"),
  (lambda: Slanted(spread=-1.0), "spread"),
  (lambda: Independent(width=0), "width"),
  (lambda: Hyperschedule(kind="waves", width=2), "kind"),
  (lambda: Hyperschedule(kind="wave", width=0), "width"),
  (lambda: Tilted(ratio=0.001), "ratio"),
  (lambda: Converging(levels=1), "levels"),
  (lambda: Converging(reach=0.5), "reach"),
  (lambda: Poisson(levels=1), "levels"),
  (lambda: Poisson(spread=-1.0), "spread"),
  (lambda: Learned(bins=1), "bins"),
  (lambda: Learned(floor=0.0), "floor"),
  (lambda: Learned(power=2.5), "power"),
  (lambda: ByPosition(by="loss", power=2.0), "use power=1.0 with by='loss'"),
]


@pytest.mark.parametrize("make, match", BAD)
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


# 1, cos(π/8), cos(π/4), cos(3π/8), 0: MD4's times of 4 steps on its cosine grid.
COSINE = [1.0, 0.9238795, 0.7071068, 0.3826834, 0.0]


def test_the_clock_of_steps():
  """Both ends are exact; steps of the cosine are small where little is known."""
  np.testing.assert_allclose(clock_of_steps(4, "cosine"), COSINE, atol=1e-7)
  np.testing.assert_array_equal(clock_of_steps(4), [1.0, 0.75, 0.5, 0.25, 0.0])
  for steps in (1, 41, 1000):
    clock = clock_of_steps(steps, "cosine")
    assert clock[0] == 1 and clock[-1] == 0 and (np.diff(clock, 2) <= 1e-12).all()


def test_a_cosine_grid_stays_on_the_path_of_the_timing():
  """Training never shows a network the times of a path whose tokens are bent one by one."""
  np.testing.assert_allclose(grid(Shared(), 4, 1, spacing="cosine")[0, :, 0], COSINE, atol=1e-7)
  timing, tau = Slanted(spread=1.0), np.array(COSINE)[:, None]
  want = np.clip(2 * tau - (1 - np.arange(5) / 4), 0, 1)
  np.testing.assert_allclose(grid(timing, 4, 5, spacing="cosine")[0], want, atol=1e-6)
  bent = np.sin(np.pi / 2 * grid(timing, 4, 5)[0])
  assert np.abs(bent - want).max() > 0.1

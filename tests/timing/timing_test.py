"""Timings: evenly spread over the whole batch, exact grids, and speeds that sweep every token once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.kernels.layout import visible
from diffusion_text.timing import (
  TIMINGS,
  Counted,
  Hyperschedule,
  Independent,
  LeftToRight,
  PerBlock,
  Shared,
  Slanted,
  low_discrepancy,
)
from diffusion_text.types import Batch, Inputs, Progress


@pytest.mark.parametrize("rows", [1, 2, 49, 98, 103, 128])
@pytest.mark.parametrize("parts", [1, 4])
def test_times_are_spread_over_the_whole_batch(rows, parts):
  """49, 98 and 103 are batch sizes at which arange(0, 1, 1/n) has one element too many in a public codebase."""
  key = jax.random.key(rows)
  draws = [low_discrepancy(key, rows, Progress(part=part, parts=parts)) for part in range(parts)]
  assert all(draw.shape == (rows,) for draw in draws)
  t = np.sort(np.concatenate(draws))
  assert (t > 0).all() and (t <= 1).all()
  np.testing.assert_allclose(np.diff(t), 1 / (rows * parts), atol=2e-6)


def test_one_point_is_uniform():
  t = np.array([low_discrepancy(jax.random.key(seed), 8, Progress())[3] for seed in range(300)])
  assert abs(t.mean() - 0.5) < 4 / np.sqrt(12 * 300)
  assert np.histogram(t, 4, (0, 1))[0].min() / 300 > 0.05


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_speed_is_the_derivative_of_the_time(spread):
  timing = Slanted(spread)
  clock = jnp.linspace(0.001, 1, 4001)[:, None]
  t, speed = timing.times(clock, 6)
  steps = np.diff(np.asarray(t), axis=0)
  np.testing.assert_allclose(
    steps, np.asarray(speed)[1:] * np.diff(np.asarray(clock), axis=0), atol=(1 + spread) * 3e-4
  )
  assert (np.diff(np.asarray(t)[2000]) >= 0).all(), "left tokens are cleaner"


def test_drawn_shapes_and_layout():
  batch = Batch(jnp.zeros((4, 6), jnp.int32), segment=jnp.ones((4, 6), jnp.int32))
  shared = Shared().draw(jax.random.key(0), batch, Progress())
  slanted = Slanted().draw(jax.random.key(0), batch, Progress())
  assert shared.t.shape == (4, 1) and slanted.t.shape == slanted.speed.shape == (4, 6)
  assert shared.layout.segment is batch.segment


def test_shared_times_are_what_they_always_were():
  """power = 1 changes no bit; power = 3 moves the same clock."""
  batch = Batch(jnp.zeros((16, 6), jnp.int32))
  clock = low_discrepancy(jax.random.key(3), 16, Progress())[:, None]
  plain, cubed = (Shared(power).draw(jax.random.key(3), batch, Progress()) for power in (1.0, 3.0))
  np.testing.assert_array_equal(plain.t, clock)
  np.testing.assert_array_equal(plain.speed, np.ones((16, 1)))
  np.testing.assert_allclose(cubed.t, clock**3, rtol=1e-6)
  np.testing.assert_allclose(cubed.speed, 3 * clock**2, rtol=1e-6)
  assert Shared() == Shared(1.0) and np.asarray(Shared(3.0).grid(4, 2))[1, 0] == 0.75


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
  (Hyperschedule("wave", 2), WAVE),
  (Hyperschedule("blocks", 2), BLOCKS),
  (Hyperschedule("wave", 1), ONE_BY_ONE),
  (Hyperschedule("blocks", 1, "causal"), ONE_BY_ONE),
  (PerBlock(2), BLOCKS),
  (PerBlock(1), ONE_BY_ONE),
  (LeftToRight(), ONE_BY_ONE),
]


@pytest.mark.parametrize("timing,want", MATRICES, ids=repr)
def test_matrix_of_times(timing, want):
  """The integer levels of the published hyperschedules, and that blocks and waves of one token are left to right."""
  np.testing.assert_array_equal(4 * np.asarray(timing.grid(len(want) - 1, 4)), want)


@pytest.mark.parametrize("timing", [Hyperschedule("wave", 1), Hyperschedule("blocks", 8)], ids=repr)
def test_one_piece_moves_at_a_time_in_long_rows(timing):
  """Exactly clean on the left and exactly noise on the right of what moves, although 1024 / 8 is no power of ten."""
  grid = np.asarray(timing.grid(3 * 1024 // timing.width, 1024))
  moving = (grid > 0) & (grid < 1)
  assert (moving.sum(1) <= timing.width).all() and moving.any()


def test_a_wide_wave_is_shared_and_a_wave_is_slanted():
  wide, shared = (
    np.asarray(timing.grid(16, 10)) for timing in (Hyperschedule("wave", 10**6), Shared())
  )
  np.testing.assert_allclose(wide, shared, atol=2e-5)
  wave, slanted = (
    np.asarray(timing.grid(16, 10)) for timing in (Hyperschedule("wave", 3), Slanted(9 / 3))
  )
  np.testing.assert_allclose(wave, slanted, atol=1e-6)


def seen_by(denoiser, segment=None):
  """The layout under which a sampler would read a row of 4."""
  layouts = []
  denoise = denoiser(lambda inputs, t, layout: layouts.append(layout), segment, None)
  denoise(Inputs(jnp.zeros((1, 4), jnp.int32)), jnp.ones((1, 4)))
  return layouts[0]


def test_context_of_a_hyperschedule():
  """Training and sampling see alike; causal: each token itself and those on its left, of its own document."""
  batch = Batch(jnp.zeros((1, 4), jnp.int32))
  full, causal = (Hyperschedule("wave", 2, context) for context in ("full", "causal"))
  for timing, want in ((full, None), (causal, np.tril(np.ones((4, 4), bool)))):
    for layout in (
      timing.draw(jax.random.key(0), batch, Progress()).layout,
      seen_by(timing.denoiser),
    ):
      mask = visible(layout, layout)
      assert mask is want is None or (np.asarray(mask)[0] == want).all()
  segment = jnp.array([[0, 0, 1, 1]])
  layout = seen_by(causal.denoiser, segment)
  documents = np.asarray(segment[0][:, None] == segment[0])
  np.testing.assert_array_equal(
    np.asarray(visible(layout, layout))[0], documents & np.tril(np.ones((4, 4), bool))
  )


def test_within_a_block_later_tokens_are_noisier():
  batch = Batch(jnp.zeros((8, 12), jnp.int32))
  times = PerBlock(4, spread=2.0).draw(jax.random.key(0), batch, Progress())
  t, speed = np.asarray(times.t).reshape(-1, 4), np.asarray(times.speed).reshape(-1, 4)
  assert (np.diff(t, axis=1) >= 0).all() and (t[:, 0] < t[:, 3]).any()
  assert set(np.unique(speed)) == {0.0, 3.0}
  plain = PerBlock(4).draw(jax.random.key(0), batch, Progress())
  assert (
    np.asarray(plain.t).reshape(-1, 4) == np.asarray(plain.t).reshape(-1, 4)[:, :1]
  ).all() and (plain.speed == 1).all()


def test_the_timing_of_one_block():
  assert (
    PerBlock(4).within_block()
    == LeftToRight().within_block()
    == PerBlock(1, spread=2.0).within_block()
    == Shared()
  )
  assert PerBlock(4, 0.3, 0.8, spread=2.0).within_block() == Slanted(2.0)
  for timing in (Shared(2.0), Slanted(), Independent(), Counted(), Hyperschedule("wave", 2)):
    assert timing.within_block() == timing and timing.sampled_in_blocks is None
  within = np.asarray(Slanted(2.0).grid(4, 4))
  grid = np.asarray(PerBlock(4, spread=2.0).grid(8, 8))
  np.testing.assert_array_equal(grid[:5, :4], within)
  np.testing.assert_array_equal(grid[4:, 4:], within)


def test_what_the_bound_is_reported_under():
  assert Independent().scoring() == Shared()
  assert PerBlock(4, 0.3, 0.8, spread=1.0).scoring() == PerBlock(4, spread=1.0)
  for timing in (Shared(2.0), Slanted(), Counted(), Hyperschedule("blocks", 2)):
    assert timing.scoring() == timing
  assert [name for name, timing in TIMINGS.items() if timing.clipped is True] == [
    "counted",
    "left_to_right",
  ]


BAD = [
  (lambda: Shared().grid(0, 4), "steps=0"),
  (lambda: Hyperschedule("wave", 2).grid(0, 4), "steps=0"),
  (lambda: Shared(0.0), r"power=0\.0"),
  (lambda: Slanted(-1.0), r"spread=-1\.0"),
  (lambda: PerBlock(4, spread=-1.0), r"spread=-1\.0"),
  (lambda: Hyperschedule("waves", 2), "kind='waves'"),
  (lambda: Hyperschedule("wave", 0), "width=0"),
  (lambda: Hyperschedule("wave", 2, "right"), "context='right'"),
]


@pytest.mark.parametrize("make,match", BAD)
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()

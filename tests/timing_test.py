"""Timings: evenly spread over the whole batch, exact grids, and speeds that sweep every token once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.timing import TIMINGS, Shared, Slanted, low_discrepancy
from diffusion_text.types import Batch, Progress


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


@pytest.mark.parametrize("timing", [Shared(), Slanted(0.0), Slanted(1.0), Slanted(0.3), Slanted(7.0)], ids=repr)
@pytest.mark.parametrize("steps", [1, 3, 64])
def test_grid_falls_from_one_to_zero_exactly(timing, steps):
  grid = np.asarray(timing.grid(steps, 10))
  assert grid.shape == (steps + 1, 10)
  assert (grid[0] == 1).all() and (grid[-1] == 0).all() and (np.diff(grid, axis=0) <= 0).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_speed_is_the_derivative_of_the_time(spread):
  timing = Slanted(spread)
  clock = jnp.linspace(0.001, 1, 4001)[:, None]
  t, speed = timing._times(clock, 6)
  steps = np.diff(np.asarray(t), axis=0)
  np.testing.assert_allclose(steps, np.asarray(speed)[1:] * np.diff(np.asarray(clock), axis=0), atol=(1 + spread) * 3e-4)
  assert (np.diff(np.asarray(t)[2000]) >= 0).all(), "left tokens are cleaner"


def test_drawn_shapes_and_layout():
  batch = Batch(jnp.zeros((4, 6), jnp.int32), segment=jnp.ones((4, 6), jnp.int32))
  shared = Shared().draw(jax.random.key(0), batch, Progress())
  slanted = Slanted().draw(jax.random.key(0), batch, Progress())
  assert shared.t.shape == (4, 1) and slanted.t.shape == slanted.speed.shape == (4, 6)
  assert shared.layout.segment is batch.segment


def test_bad_options_are_refused():
  with pytest.raises(ValueError, match="steps=0"):
    Shared().grid(0, 4)
  with pytest.raises(ValueError, match=r"spread=-1\.0"):
    Slanted(-1.0)
  assert set(TIMINGS) == {"shared", "slanted", "per_block", "left_to_right"}

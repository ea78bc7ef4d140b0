"""`check_timing`: the laws that every timing obeys, without a network."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.testing.exact_model import facts_of
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import check_equal_options, expect, expect_same, run
from diffusion_text.timing.clock import clock_of_steps
from diffusion_text.types import Batch, Params, Progress, Times, Timing, TokenCosts

_BINS = 4  # stretches of [0, 1], in each of which a token has to spend its time


def check_timing(
  timing: Timing,
  *,
  params: Params | None = None,
  language: Enumerable | None = None,
  length: int = 4,
  rows: int = 2048,
  steps: int = 8,
  only: Collection[str] | None = None,
) -> None:
  """Raises AssertionError, with what was found and expected, for a law that the timing breaks.

  In the order in which they are tried: "options", "shapes", "sweep" (each token goes through
  [0, 1] once, or costs its one jump once, as `path` says), "one_path" (the clock alone says how
  noisy each token is; of continuous paths), "microbatches", "grid", "lengths" (a row's grid is its
  own), "fit".

  Args:
    timing: any.
    params: its parameters; None: those of a fresh timing.
    language: of the tokens that it is shown; None: one of 3 tokens.
    length: tokens of a unit.
    rows: rows of a draw; a few are enough for what is drawn evenly over the batch.
    steps: steps of the grid.
    only: names of the laws to try; None: all.
  """
  language = Enumerable.independent(3, length) if language is None else language
  facts = facts_of(language, language.length)
  params = timing.init(jax.random.key(1), facts) if params is None else params

  @functools.cache
  def drawn():
    # All rows are the same text: what differs between them is the clock.
    ids = np.broadcast_to(language.systematic(1), (rows, language.length))
    draw = jax.jit(lambda key: timing.draw(params, key, Batch(ids), Progress()))
    return [jax.device_get(draw(jax.random.key(number))) for number in range(2)]

  leave_out = {"continuous": set(), "jumps": {"one_path"}, "none": {"sweep", "one_path"}}
  run(
    {
      "options": lambda: check_equal_options(timing),
      "shapes": lambda: _check_shapes(timing, drawn()),
      "sweep": lambda: _check_sweep(timing, drawn()[0]),
      "one_path": lambda: _check_one_path(timing, drawn()[0]),
      "microbatches": lambda: _check_microbatches(timing, params, language),
      "grid": lambda: _check_grid(timing, params, language.length, steps),
      "lengths": lambda: _check_lengths(timing, params, language.length, steps),
      "fit": lambda: _check_fit(timing, params, drawn()[0]),
    },
    only,
    leave_out[timing.path],
  )


def _check_shapes(timing: Timing, draws: list[Times]) -> None:
  """Times are in [0, 1], speeds are not negative, and another key gives other times."""
  times = draws[0]
  shape = times.t.shape
  fields = times._asdict()
  for name in ("t", "dt_dtau", "network_time"):
    field = fields[name]
    allowed = (shape, (shape[0], 1)) if name == "network_time" else (shape,)
    expect(field.shape in allowed, f"shape of {name}, of {timing}", field.shape, shape)
    expect(np.isfinite(field), f"{name} is finite, of {timing}", field, "numbers")
  for name in ("t", "tau", "network_time"):
    field = fields[name]
    inside = (field >= 0) & (field <= 1)
    expect(inside, f"{name}, of {timing}", (field.min(), field.max()), "within [0, 1]")
  expect(times.tau.shape[0] == shape[0], f"tau, of {timing}", times.tau.shape, "one row per row")
  expect(times.dt_dtau >= 0, f"dt_dtau, of {timing}", times.dt_dtau.min(), "at least 0")
  if not (times.t == 1).all():
    other = (draws[1].t != times.t).any() or (draws[1].dt_dtau != times.dt_dtau).any()
    expect(other, f"another key gives other times, of {timing}", "the same", "others")


def _check_sweep(timing: Timing, times: Times) -> None:
  """E[dt_dtau · 1{t in a stretch}] is the length of the stretch, for every token.

  Of jumps, t is 0 or 1 and E[dt_dtau · t] is 1: each token is lost once.
  """
  rows = len(times.t)
  if timing.path == "jumps":
    jumps = (times.t == 0) | (times.t == 1)
    expect(jumps, f"t of a path that jumps, of {timing}", np.unique(times.t)[:5], "0 or 1")
    parts, want = [times.dt_dtau * times.t], 1.0
  else:
    stretch = np.ceil(times.t * _BINS)
    parts = [times.dt_dtau * (stretch == number + 1) for number in range(_BINS)]
    want = 1 / _BINS
  for number, part in enumerate(parts):
    found = part.mean(0)
    limit = 4 * part.std(0) / rows**0.5 + 1e-3
    law = f"each token sweeps [0, 1] once, stretch {number + 1} of {len(parts)}, of {timing}"
    worst = int(np.argmax(np.abs(found - want) - limit))
    near = np.abs(found - want) < limit
    expect(near, f"{law}, token {worst}", f"{found[worst]:.4f}", f"{want} ± {limit[worst]:.4f}")


def _check_one_path(timing: Timing, times: Times) -> None:
  """Later on the clock no token is clearer, as rates add up to a bound along one path only."""
  order = np.argsort(times.tau[:, 0])
  falls = np.diff(times.t[order], axis=0).min()
  expect(falls > -1e-6, f"t rises with tau, of {timing}", f"a fall by {-falls:.4f}", "none")


def _check_microbatches(timing: Timing, params: Params, language: Enumerable) -> None:
  """Two microbatches hold the rows of the whole batch, times included; units count as rows."""
  units, rows = 2, 8
  ids = language.systematic(rows * units)

  def draw(rows_of_batch, part, parts):
    progress = Progress(step=3, part=part, parts=parts, units=units)
    return timing.draw(params, jax.random.key(2), Batch(rows_of_batch), progress)

  jitted = jax.jit(draw, static_argnums=2)
  whole = jitted(ids, 0, 1)
  number = np.arange(rows * units) // units
  for part in range(2):
    mine = number % 2 == part
    found = jitted(ids[mine], part, 2)
    expected = jax.tree.map(lambda leaf, mine=mine: leaf[mine], whole)
    law = f"microbatch {part} of 2 is its part of the whole batch, of {timing}"
    expect_same(found, expected, law, 1e-6)


def _grid(timing: Timing, params: Params, steps: int, length: int) -> Any:
  clock = clock_of_steps(steps)
  return jax.jit(lambda lengths: timing.grid(params, clock, lengths, length))


def _check_grid(timing: Timing, params: Params, length: int, steps: int) -> None:
  """A grid falls from 1 to 0 exactly, in the steps that were asked for."""
  lengths = np.full(3, length)
  grid = np.asarray(_grid(timing, params, steps, length)(lengths))
  want = (3, steps + 1, length)
  expect(grid.shape == want, f"shape of the grid, of {timing}", grid.shape, want)
  expect(grid[:, 0] == 1, f"the grid begins at 1, of {timing}", grid[:, 0], 1.0)
  expect(grid[:, -1] == 0, f"the grid ends at 0, of {timing}", grid[:, -1], 0.0)
  expect(np.diff(grid, axis=1) <= 0, f"the grid falls, of {timing}", grid[0, :, 0], "no rise")


def _check_lengths(timing: Timing, params: Params, length: int, steps: int) -> None:
  """The grid of a row depends on its own length alone."""
  grid = _grid(timing, params, steps, length)
  mixed = np.asarray(grid(np.array([length, 1, max(length - 1, 1)])))
  for row, size in enumerate((length, 1, max(length - 1, 1))):
    same = np.asarray(grid(np.full(3, size)))
    law = f"grid of a row of {size} tokens beside others, of {timing}"
    expect_same(mixed[row, :, :size], same[0, :, :size], law, 1e-6)


def _check_fit(timing: Timing, params: Params, times: Times) -> None:
  """What trains a timing has the value 0, and a finite gradient in its parameters."""
  shape = times.t.shape
  nats = np.random.default_rng(0).exponential(size=shape).astype(np.float32)
  costs = TokenCosts(nats, nats, np.ones(shape, np.float32), times.t > 0)

  def fit(params):
    return jnp.asarray(timing.fit(params, times, costs), jnp.float32)

  value, gradient = jax.jit(jax.value_and_grad(fit))(params)
  expect(value.shape == (), f"shape of what is fitted, of {timing}", value.shape, ())
  expect(abs(value) < 1e-3, f"value of what is fitted, of {timing}", value, 0.0)
  for leaf in jax.tree.leaves(gradient):
    expect(np.isfinite(leaf), f"gradient of the timing, of {timing}", leaf, "finite numbers")

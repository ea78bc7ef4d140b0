"""A learned timing: its times are any pace's, its levels follow what time costs, in every objective, and a sampler walks them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_text import train
from diffusion_text.build import make_policy
from diffusion_text.draws import row_keys
from diffusion_text.objective.bound import Rows, fit_times, noised, scored_weights, weighted_rates
from diffusion_text.process.masked import Masked
from diffusion_text.schedules import Linear
from diffusion_text.timing import ByPosition, Paced, bind_times
from diffusion_text.types import Batch, LearnedTimes
from tests.build_test import AnyTokenizer, build, sized
from tests.objective.surrogates_test import BATCHES, PARAMS, ROWS, START, L, jit, predict_with

BINS = 4
LEVELS = jax.random.normal(jax.random.key(8), (L, BINS))
TIMING = ByPosition(L, BINS)


def test_speed_is_the_slope_of_the_times():
  """By finite differences, away from the kinks; and the start is the clock itself."""
  paced, width = TIMING.bind({"levels": LEVELS}), 1e-3
  clock = jnp.linspace(0.01, 0.99, 333)[:, None]
  (before, speed), (after, later) = paced.times(clock - width / 2, L), paced.times(clock + width / 2, L)
  smooth = np.asarray(speed == later)
  assert smooth.mean() > 0.97
  np.testing.assert_allclose(((after - before) / width)[smooth], speed[smooth], rtol=2e-3)
  np.testing.assert_allclose(TIMING.bind(TIMING.init()).times(clock, L)[0], jnp.broadcast_to(clock, (333, L)), atol=1e-6)
  np.testing.assert_array_equal(paced.grid(8, 5), paced.grid(8, L)[:, :5])


def test_levels_follow_the_cost_of_each_stretch():
  """Of rates that are known and constant within a stretch: the shares become the costs, at every position, the floor permitting."""
  rates = jnp.array([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
  timing, clock = ByPosition(3, BINS, floor=0.2), jnp.linspace(1 / 999, 1, 999)[:, None]

  def loss(levels):
    t, speed = timing.bind({"levels": levels}).times(clock, 3)
    cost = speed * rates[jnp.arange(3), jnp.clip(jnp.ceil(t * BINS).astype(int) - 1, 0, BINS - 1)]
    flat = [x.reshape(-1) for x in (t, speed)]
    rows = Rows(None, None, None, flat[0], flat[1], jnp.ones_like(flat[0]), jnp.log(flat[1]))
    return jnp.sum(fit_times(Masked(4, Linear()), {}, rows, cost.reshape(-1))) / len(clock)

  optimizer = optax.adam(0.03)
  step = jax.jit(lambda levels, state: optimizer.update(jax.grad(loss)(levels), state))
  levels = timing.init()["levels"]
  assert float(loss(levels)) == 0
  state = optimizer.init(levels)
  for _ in range(300):
    change, state = step(levels, state)
    levels = levels + change
  np.testing.assert_allclose(timing.bind({"levels": levels}).shares, rates / rates.sum(1, keepdims=True), atol=0.01)


@pytest.mark.parametrize("name", ROWS)
def test_every_objective_fits_levels_and_nothing_else_changes(name):
  """The gradient of the levels is that of Σ weight · cost · log speed; value and gradient of the network are those of fixed times."""
  batch, objective = BATCHES["both"], dataclasses.replace(ROWS[name], timing=TIMING)
  process = objective.process.init(jax.random.key(0))

  def total(levels, params, learned):
    timing = TIMING.bind({"levels": levels})
    timing = timing if learned else Paced(jax.lax.stop_gradient(timing.shares))
    return dataclasses.replace(objective, timing=timing)(process, jax.random.key(9), batch, START, predict_with(params)).total

  value_and_grad = jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnums=2)
  (value, (levels, network)), (fixed, (none, same)) = (value_and_grad(LEVELS, PARAMS, learned) for learned in (True, False))
  assert float(value) == float(fixed) and not none.any() and np.abs(levels).max() > 1e-3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), network, same)
  if name in ("gaussian_curriculum", "reinforce"):
    return  # they draw more than once, or other times

  def reference(levels):
    timing = TIMING.bind({"levels": levels})
    noise = noised(objective.process, timing, process, jax.random.key(9), batch, START, predict_with(PARAMS))
    nats = jax.lax.stop_gradient(weighted_rates(noise, objective.process, process, batch, objective.chunks))
    assert nats.shape == scored_weights(batch).shape
    return jnp.sum(nats * jnp.log(noise.times.speed))

  np.testing.assert_allclose(levels, jax.grad(reference)(LEVELS), rtol=1e-4, atol=1e-5)


def test_an_objective_that_does_not_fit_would_be_noticed():
  class Unfitted(type(ROWS["bound"])):
    def __call__(self, params, key, batch, progress, predict):
      timing = dataclasses.replace(self.timing, shares=jax.lax.stop_gradient(self.timing.shares))
      return super(Unfitted, dataclasses.replace(self, timing=timing)).__call__(params, key, batch, progress, predict)

  bound = Unfitted(Masked(7, Linear()), TIMING)
  loss = lambda levels: bind_times(bound, {"timing": {"levels": levels}})(
    {}, jax.random.key(9), BATCHES["plain"], START, predict_with(PARAMS)
  )
  assert not jax.grad(lambda levels: loss(levels).total)(LEVELS).any()


def test_bind_times_reaches_what_is_inside_and_leaves_the_rest():
  objective = dataclasses.replace(ROWS["bound"], timing=TIMING)

  @dataclasses.dataclass(frozen=True)
  class Outer:
    inner: object
    other: tuple = ()

  bound = bind_times(Outer(objective), {"timing": {"levels": LEVELS}})
  assert isinstance(bound.inner.timing, Paced) and not isinstance(bound.inner.timing, LearnedTimes)
  assert bind_times(ROWS["bound"], {}) is ROWS["bound"]


def test_a_run_learns_levels_and_samples_by_them():
  """Training moves the levels; a sampler of two steps reveals early what its levels say falls early; longer rows are refused."""
  config = sized(length=8, batch_size=8, steps=4)
  config.timing.update({"name": "by_position", "bins": 2})
  experiment = build(config, tokenizer=AnyTokenizer(16), devices=jax.devices()[:1])
  state = experiment.fresh_state()
  assert state.params["timing"]["levels"].shape == (8, 2)
  step, rng = experiment.jitted_step(experiment.loss_fn(1.0)), np.random.default_rng(0)
  with jax.set_mesh(experiment.mesh):
    for _ in range(3):
      batch = Batch(rng.integers(0, 16, (8, 8)).astype(np.int32))
      state, metrics = step(state, train.global_batch(batch, experiment.mesh))
  assert np.abs(state.params["timing"]["levels"]).min() > 0 and np.isfinite(metrics["loss"])

  early = jnp.array(
    [[9.0, 0.0]] + [[0.0, 9.0]] * 7
  )  # position 0 spends the clock at small times: it is likely clean by half of it
  params = {**state.params, "timing": {"levels": early}}
  policy = make_policy({**config.sampler.to_dict(), "steps": 2}, experiment.timing)
  rows = Batch(jnp.zeros((256, 8), jnp.int32), given=jnp.zeros((256, 8), bool))
  first = np.asarray(experiment.sample_fn(policy)(params, row_keys(0, 256), rows).committed == 0).mean(0)
  want = 1 - np.asarray(experiment.timing.bind({"levels": early}).grid(2, 8)[1])
  assert want[0] > 0.7 and want[1] < 0.3
  np.testing.assert_allclose(first, want, atol=4 * 0.5 / 16)
  with pytest.raises(ValueError, match="learned 8 positions, and the row has 9"):
    experiment.timing.grid(2, 9)


@pytest.mark.parametrize("options,says", [({"bins": 1}, "timing.bins=1"), ({"floor": 0.0}, "timing.floor=0.0")])
def test_values_out_of_range_are_refused(options, says):
  with pytest.raises(ValueError, match=says):
    ByPosition(8, **options)

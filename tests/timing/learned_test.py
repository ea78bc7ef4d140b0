"""A learned timing: its times are any pace's, its levels follow what time costs, in every objective, and a sampler walks them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_text import train
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.build import make_policy
from diffusion_text.objective import OBJECTIVES, Bound
from diffusion_text.objective.anchored import Anchored
from diffusion_text.objective.bound import (
  Noised,
  Rows,
  corrupted,
  fit_level,
  fit_times,
  noise_key,
  noised,
  scored_weights,
  weighted_rates,
)
from diffusion_text.objective.conditioning import TwoReadings
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.objective.reinforced import ReinforcedConditioning
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked, cross_entropy
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import Learned, VPCosine
from diffusion_text.timing import ByPosition, Paced, bind_times
from diffusion_text.types import Batch, Layout, LearnedTimes, Prediction
from tests.experiment.build_test import AnyTokenizer, build, sized
from tests.objective.surrogates_test import BATCHES, PARAMS, ROWS, START, L, jit, predict_with

BINS = 4
LEVELS = jax.random.normal(jax.random.key(8), (L, BINS))
LEARNED = {"levels": LEVELS, "size": jnp.linspace(-0.1, 0.2, L)}
TIMING = ByPosition(L, BINS)


def test_speed_is_the_slope_of_the_times():
  """By finite differences, away from the kinks; and the start is the clock itself."""
  paced, width = TIMING.bind(LEARNED), 1e-3
  clock = jnp.linspace(0.01, 0.99, 333)[:, None]
  (before, speed), (after, later) = (
    paced.times(clock - width / 2, L),
    paced.times(clock + width / 2, L),
  )
  smooth = np.asarray(speed == later)
  assert smooth.mean() > 0.97
  np.testing.assert_allclose(((after - before) / width)[smooth], speed[smooth], rtol=2e-3)
  np.testing.assert_allclose(
    TIMING.bind(TIMING.init()).times(clock, L)[0], jnp.broadcast_to(clock, (333, L)), atol=1e-6
  )
  np.testing.assert_array_equal(paced.grid(8, 5), paced.grid(8, L)[:, :5])


def test_levels_follow_the_cost_of_each_stretch():
  """Of rates that are known and constant within a stretch: the shares become the costs, at every position, the floor permitting."""
  rates = jnp.array([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
  timing, clock = ByPosition(3, BINS, floor=0.2), jnp.linspace(1 / 999, 1, 999)[:, None]

  def loss(levels):
    t, speed = timing.bind({**timing.init(), "levels": levels}).times(clock, 3)
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
  np.testing.assert_allclose(
    timing.bind({**timing.init(), "levels": levels}).shares,
    rates / rates.sum(1, keepdims=True),
    atol=0.01,
  )


def two_stages(params):
  """A network whose first stage answers too."""

  def predict(inputs, t, layout):
    first = predict_with(params)(inputs, t, layout)
    return first._replace(features=2 * first.features, anchor=first)

  return predict


def of_vectors(params):
  """A linear network of vectors as wide as the table is."""
  return lambda inputs, t, layout: Prediction(
    inputs.vectors, lambda features: features @ params["out"]
  )


def of_vectors_and_answers(params):
  """The same, which adds its first answer to what it reads."""

  def predict(inputs, t, layout):
    told = (
      0.0 if inputs.recalled is None else jnp.where(inputs.recalls[..., None], inputs.recalled, 0.0)
    )
    return of_vectors(params)(inputs, t, layout)._replace(
      features=inputs.vectors + told, recall=lambda estimates: estimates
    )

  return TwoReadings(predict, jnp.arange(4) % 2 == 0, 8, 1)


VECTORS = Embedding(7, VPCosine(log_snr_max=2.0), width=5)
NETWORKS = {
  "anchored": two_stages,
  "mse_rounding": of_vectors,
  "reinforced_conditioning": of_vectors_and_answers,
}
OBJECTIVES_WITH_ROWS = {
  **{name: dataclasses.replace(objective, timing=TIMING) for name, objective in ROWS.items()},
  "anchored": Anchored(Masked(7, Linear()), TIMING, threshold=L),
  "mse_rounding": EmbeddingLosses(VECTORS, TIMING, weighting="v", anchor_weight=0.5),
  "reinforced_conditioning": ReinforcedConditioning(
    VECTORS, TIMING, weighting="v", anchor_weight=0.5
  ),
}


def levels_gradient(objective, name, params=PARAMS, learned=True):
  """(value, (gradient of the timing, of the network)) of an objective under the timing, learned or held as it is."""
  process = objective.process.init(jax.random.key(0))

  def total(timing, params):
    paced = TIMING.bind(timing)
    paced = paced if learned else Paced(jax.lax.stop_gradient(paced.shares))
    network = NETWORKS.get(name, predict_with)(params)
    return dataclasses.replace(objective, timing=paced)(
      process, jax.random.key(9), BATCHES["both"], START, network
    ).total

  return jit(jax.value_and_grad(total, argnums=(0, 1)))(LEARNED, params)


def reference(name, objective):
  """What fits the timing, written out: [B, L] costs and log speeds, or losses and what is expected of them."""
  process, batch, key = (
    objective.process.init(jax.random.key(0)),
    BATCHES["both"],
    jax.random.key(9),
  )
  network = NETWORKS.get(name, predict_with)(PARAMS)

  def fit(timing):
    noises = [noised(objective.process, TIMING.bind(timing), process, key, batch, START, network)]
    if name == "reinforce":  # two draws at the same times
      times, keys = noises[0].times, [jax.random.fold_in(noise_key(key, START), i) for i in (0, 1)]
      states = [corrupted(objective.process, process, key, batch, times.t) for key in keys]
      answers = [
        network(objective.process.inputs(process, state, times.t), times.t, Layout())
        for state in states
      ]
      noises = [Noised(state, times, answer) for state, answer in zip(states, answers)]
    total = 0.0
    for noise in noises:
      if isinstance(objective, EmbeddingLosses):
        token = noise.state, noise.times.t, noise.prediction.logits
        miss = objective.process.squared_error(process, batch.ids, *token) / objective.process.size
        loss = objective.weight(process, noise.times.t) * miss + 0.5 * cross_entropy(
          noise.prediction.logits, batch.ids
        )
        each = scored_weights(batch) * (noise.times.expected - jax.lax.stop_gradient(loss)) ** 2 / 2
      else:
        nats = weighted_rates(noise, objective.process, process, batch, objective.chunks)
        each = jax.lax.stop_gradient(nats) * jnp.log(noise.times.speed)
      total = total + jnp.sum(each)
    return total / len(noises)

  return jax.grad(fit)(LEARNED)


def check_fit(objective, name):
  """The gradient of the timing is that of its fit; value and gradient of the network are those of fixed times."""
  value, (timing, network) = levels_gradient(objective, name)
  fixed, (none, same) = levels_gradient(objective, name, learned=False)
  assert float(value) == pytest.approx(float(fixed), rel=1e-6) and not any(
    leaf.any() for leaf in jax.tree.leaves(none)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), network, same)
  assert np.abs(timing["levels"]).max() > 1e-3
  if name != "gaussian_curriculum":  # which moves the times while it lasts
    want = reference(name, objective)
    scale = np.abs(want["levels"]).max()
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale), timing, want
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_fits_the_timing_and_changes_nothing_else(name):
  check_fit(OBJECTIVES_WITH_ROWS[name], name)


class Unfitted(Bound):
  """Holds the timing fixed."""

  def __call__(self, params, key, batch, progress, predict):
    held = jax.tree.map(jax.lax.stop_gradient, (self.timing.shares, self.timing.growth))
    bound = Bound(self.process, Paced(*held), self.chunks)
    return bound(params, key, batch, progress, predict)


class SpeedLeaks(Bound):
  """Pays for the speed that it fits."""

  def __call__(self, params, key, batch, progress, predict):
    loss = super().__call__(params, key, batch, progress, predict)
    return loss._replace(
      total=loss.total + jnp.sum(self.timing.shares[0]) * self.timing.shares[0, 0]
    )


@pytest.mark.parametrize("mutant", [Unfitted, SpeedLeaks])
def test_mutants_fail(mutant):
  with pytest.raises(AssertionError):
    check_fit(mutant(Masked(7, Linear()), TIMING), "bound")


def test_what_is_impossible_costs_infinity_still():
  """The fit is no part of what is scored, and adds no nan to what is trained."""
  never = jnp.where(jnp.arange(7) == 0, 0.0, -jnp.inf)
  certain = lambda inputs, t, layout: Prediction(
    inputs.ids, lambda features: never + 0 * features[..., None]
  )
  bound = Bound(Masked(7, Linear()), Paced(TIMING.bind(LEARNED).shares))
  batch = Batch(jnp.ones((4, L), jnp.int32))
  assert float(bound.nats({}, jax.random.key(0), batch, START, certain).sum()) == np.inf
  assert float(bound({}, jax.random.key(0), batch, START, certain).total) == np.inf


def test_what_is_expected_becomes_the_loss_and_shares_its_slope():
  """Of losses known at every time, one of them noisy: the curve is learned, and over the clock the loss rises evenly."""
  levels = jnp.stack([jnp.array([0.0, 4.0, 4.5, 5.0, 6.0]), jnp.array([0.0, 0.1, 0.3, 0.6, 1.0])])
  timing, clock = ByPosition(2, BINS, floor=0.01), jnp.linspace(1 / 999, 1, 999)[:, None]
  truth = lambda t: jax.vmap(
    lambda t, curve: jnp.interp(t, jnp.linspace(0, 1, 5), curve), (1, 0), 1
  )(t, levels)
  noise = jnp.array([0.3, 0.0]) * jax.random.normal(jax.random.key(0), (999, 2))

  def loss(params):
    paced = timing.bind(params)
    t, _ = paced.times(clock, 2)
    return jnp.sum(fit_level(truth(t) + noise, paced.expected(t))) / len(clock)

  optimizer, params = optax.adam(0.02), timing.init()
  step = jax.jit(lambda params, state: optimizer.update(jax.grad(loss)(params), state))
  assert float(loss(params)) == 0
  state = optimizer.init(params)
  for _ in range(400):
    change, state = step(params, state)
    params = optax.apply_updates(params, change)
  paced = timing.bind(params)
  t = paced.grid(8, 2)
  np.testing.assert_allclose(paced.expected(t), truth(t), atol=0.12)
  np.testing.assert_allclose(
    truth(t) / levels[:, -1], jnp.linspace(1, 0, 9)[:, None] * jnp.ones(2), atol=0.03
  )


def test_bind_times_reaches_what_is_inside_and_leaves_the_rest():
  objective = dataclasses.replace(ROWS["bound"], timing=TIMING)

  @dataclasses.dataclass(frozen=True)
  class Outer:
    inner: object
    other: object

  bound = bind_times(Outer(objective, Learned()), {"timing": LEARNED})
  assert isinstance(bound.other, Learned), "a path has parameters too, and is no timing"
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
  params = {**state.params, "timing": {**state.params["timing"], "levels": early}}
  policy = make_policy({**config.sampler.to_dict(), "steps": 2}, experiment.timing)
  rows = Batch(jnp.zeros((256, 8), jnp.int32), given=jnp.zeros((256, 8), bool))
  first = np.asarray(
    experiment.sample_fn(policy)(params, row_keys(0, 256), rows).committed == 0
  ).mean(0)
  want = 1 - np.asarray(experiment.timing.bind(params["timing"]).grid(2, 8)[1])
  assert want[0] > 0.7 and want[1] < 0.3
  np.testing.assert_allclose(first, want, atol=4 * 0.5 / 16)
  with pytest.raises(ValueError, match="learned 8 positions, and the row has 9"):
    experiment.timing.grid(2, 9)


@pytest.mark.parametrize(
  "options,says", [({"bins": 1}, "timing.bins=1"), ({"floor": 0.0}, "timing.floor=0.0")]
)
def test_values_out_of_range_are_refused(options, says):
  with pytest.raises(ValueError, match=says):
    ByPosition(8, **options)

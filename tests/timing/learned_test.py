"""A learned timing: its times are any pace's, and its levels follow what time costs, by one fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_text.timing import ByPosition, Learned
from diffusion_text.timing.clock import clock_of_steps
from diffusion_text.types import Batch, DataFacts, Progress, Times, TokenCosts

LENGTH, BINS, ROWS = 6, 4, 8
RNG = np.random.default_rng(0)
LEVELS = RNG.normal(size=(LENGTH, BINS)).astype(np.float32)
SIZES = np.linspace(-0.1, 0.2, LENGTH).astype(np.float32)
FACTS = DataFacts(LENGTH, 4)
EVEN = np.linspace(1 / 999, 1, 999, dtype=np.float32)[:, None]  # the clock at 999 draws


def times_at(timing, params, tau, length):
  """Times of rows at clock tau [B, 1], by the timing itself, and the stretch of each token."""
  shares = np.asarray(jax.jit(timing.shares, static_argnums=1)(params, length))
  ends = np.cumsum(shares, axis=1)
  ends[:, -1] = 1.0
  begins = np.concatenate([np.zeros((len(shares), 1)), ends[:, :-1]], axis=1)
  stretch = (tau[..., None] > ends[:, :-1]).sum(-1)
  place = np.arange(len(shares))
  passed = (tau - begins[place, stretch]) / shares[place, stretch]
  t = np.broadcast_to((stretch + passed) / timing.bins, (len(tau), length))
  speed = np.broadcast_to(1 / (timing.bins * shares[place, stretch]), t.shape)
  return t, speed, np.broadcast_to(stretch, t.shape)


@pytest.mark.parametrize("timing", [Learned(bins=BINS), ByPosition(bins=BINS)], ids=repr)
def test_times_are_those_of_the_shares(timing):
  """Against the paths written out; speeds are shares; a fresh timing is the clock itself."""
  levels = LEVELS[0] if type(timing) is Learned else LEVELS
  batch = Batch(np.zeros((500, LENGTH), np.int32))

  @jax.jit
  def everything(params):
    times = timing.draw(params, jax.random.key(1), batch, Progress())
    grid = timing.grid(params, clock_of_steps(8), jnp.array([LENGTH, 2]), LENGTH)
    return times, grid, timing.grid(params, clock_of_steps(8), jnp.array([4]), 4)

  for params in (timing.init(jax.random.key(0), FACTS), {"levels": levels}):
    times, grid, shorter = jax.device_get(everything(params))
    t, speed, _ = times_at(timing, params, times.tau, LENGTH)
    np.testing.assert_allclose(times.t, t, atol=2e-6)
    np.testing.assert_allclose(times.dt_dtau, speed, rtol=1e-5)
    is_the_clock = np.abs(times.t - times.tau).max() < 1e-6
    assert is_the_clock == (not np.any(params["levels"]))
  even = np.arange(8, -1, -1, dtype=np.float32)[:, None] / 8
  np.testing.assert_allclose(grid[1], times_at(timing, params, even, LENGTH)[0], atol=2e-6)
  np.testing.assert_array_equal(grid[0], grid[1])
  np.testing.assert_allclose(shorter[0], grid[0, :, :4], atol=1e-6)


def drawn_costs():
  """Costs of a batch, some tokens not counted, some without weight, and one infinite."""
  rng = np.random.default_rng(3)
  shape = (ROWS, LENGTH)
  weight, counted = rng.integers(0, 3, shape).astype(np.float32), rng.random(shape) < 0.7
  nats = np.where(counted, rng.exponential(2.0, shape), 0.0).astype(np.float32)
  return TokenCosts(nats, 3 * rng.random(shape).astype(np.float32), weight, counted)


def written_out(timing, times, costs):
  """params -> what is fitted, as a sum of formulas; its gradient is what `fit` must give."""
  finite = np.isfinite(costs.nats)

  def shared(value):
    return value if type(timing) is ByPosition else jnp.broadcast_to(value, (LENGTH, *value.shape))

  def by_nats(params):
    inner = jax.nn.softmax(shared(params["levels"]), axis=-1)
    shares = timing.floor / BINS + (1 - timing.floor) * inner
    ends = jnp.cumsum(jax.lax.stop_gradient(shares), axis=1)[:, :-1]
    stretch = (times.tau[..., None] > ends).sum(-1)
    cost = timing.unit * (np.where(finite, costs.nats, 0) / timing.unit) ** timing.power
    speed = 1 / (BINS * shares[np.arange(LENGTH), stretch])
    return jnp.sum(costs.weight * cost * jnp.log(speed))

  def by_loss(params):
    rises = jnp.exp(10 * shared(params["size"]))[:, None] * jax.nn.softmax(
      shared(params["levels"]), axis=-1
    )
    inside = jnp.clip(times.t[..., None] * BINS - np.arange(BINS), 0, 1)
    expected = jnp.sum(inside * rises, axis=-1)
    return jnp.sum(jnp.where(costs.counted, costs.weight * (expected - costs.loss) ** 2 / 2, 0.0))

  return by_nats if timing.by == "nats" else by_loss


def check_fit(timing, cls=None):
  """Value 0; the gradient of the formula written out; an infinite cost is left out."""
  levels, size = (LEVELS[0], SIZES[1]) if type(timing) is Learned else (LEVELS, SIZES)
  params = {"levels": levels}
  if timing.by == "loss":
    params["size"] = np.float32(size)
  tau = np.random.default_rng(5).random((ROWS, 1)).astype(np.float32)
  t, speed, _ = times_at(timing, params, tau, LENGTH)
  times = Times(*(np.float32(x) for x in (t, speed)), tau, np.float32(t))
  costs = drawn_costs()
  fit = jax.jit(jax.value_and_grad((cls or timing).fit))
  value, gradient = fit(params, times, costs)
  assert float(value) == 0
  want = jax.jit(jax.grad(written_out(timing, times, costs)))(params)
  assert np.abs(want["levels"]).max() > 1e-2
  for name in params:
    np.testing.assert_allclose(gradient[name], want[name], rtol=1e-4, atol=1e-5)
  costs.nats[0, 0] = costs.loss[0, 0] = np.inf
  _, infinite = fit(params, times, costs)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(infinite))


FITS = [
  Learned(bins=BINS),
  Learned(bins=BINS, power=2.0, unit=1.5, floor=0.3),
  Learned(bins=BINS, by="loss"),
  ByPosition(bins=BINS),
  ByPosition(bins=BINS, power=1.5),
  ByPosition(bins=BINS, by="loss"),
]


@pytest.mark.parametrize("timing", FITS, ids=repr)
def test_the_fit_is_the_formula(timing):
  check_fit(timing)


class FitsWhatWasNotCounted(ByPosition):
  def fit(self, params, times, costs):
    return super().fit(params, times, costs._replace(counted=costs.counted | True))


class ForgetsWeights(ByPosition):
  def fit(self, params, times, costs):
    return super().fit(params, times, costs._replace(weight=costs.weight * 0 + 1))


class PaysForThePace(ByPosition):
  def fit(self, params, times, costs):
    return super().fit(params, times, costs) + jnp.sum(self.shares(params, LENGTH) ** 2)


class FitsTheClock(ByPosition):
  """Takes the stretch of the clock for that of the time."""

  def fit(self, params, times, costs):
    even = jnp.broadcast_to(times.tau, times.t.shape)
    return super().fit(params, times._replace(t=even), costs)


@pytest.mark.parametrize("mutant, by", [
  (FitsWhatWasNotCounted, "loss"),
  (ForgetsWeights, "nats"),
  (ForgetsWeights, "loss"),
  (PaysForThePace, "nats"),
  (FitsTheClock, "loss"),
])  # fmt: skip
def test_mutants_fail(mutant, by):
  with pytest.raises(AssertionError):
    check_fit(ByPosition(bins=BINS, by=by), mutant(bins=BINS, by=by))


def trained(timing, length, costs_at, rate=0.05, steps=300):
  """Parameters after steps of Adam on the fit at an even clock.

  costs_at: (t, dt_dtau, key) [B, length] each -> TokenCosts.
  """
  batch = Batch(np.zeros((999, length), np.int32))
  params = timing.init(jax.random.key(0), DataFacts(length, 4))
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def loss(params, key):
    times = timing.draw(params, key, batch, Progress())
    return timing.fit(params, times, costs_at(times.t, times.dt_dtau, key)) / len(EVEN)

  def step(carry, number):
    params, moments = carry
    key = jax.random.fold_in(jax.random.key(1), number)
    updates, moments = optimizer.update(jax.grad(loss)(params, key), moments)
    return (optax.apply_updates(params, updates), moments), None

  def run():
    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]

  return jax.jit(run)()


RATES = np.array([[1, 2, 3, 4], [4, 1, 1, 2], [1, 1, 1, 1]], np.float32)
CHANCES = np.array([[1, 1, 0.25, 1], [1, 0.5, 0.5, 1], [0.25, 0.25, 1, 1]], np.float32)


@pytest.mark.parametrize("timing", [
  ByPosition(bins=BINS, floor=0.02),
  ByPosition(bins=BINS, floor=0.02, power=2.0),
  Learned(bins=BINS, floor=0.02, power=2.0),
], ids=repr)  # fmt: skip
def test_shares_go_where_the_cost_is(timing):
  """Nats per unit of time that are seldom and dear, or always and cheap: E[cost^p]^(1/p)."""
  length = 3 if type(timing) is ByPosition else 1
  place = np.arange(length)

  def costs_at(t, speed, key):
    stretch = jnp.clip(jnp.ceil(t * BINS).astype(int) - 1, 0, BINS - 1)
    chance = jnp.asarray(CHANCES)[place, stretch]
    paid = jax.random.bernoulli(jax.random.fold_in(key, 1), chance)
    nats = jnp.where(paid, speed * jnp.asarray(RATES)[place, stretch] / chance, 0.0)
    return TokenCosts(nats, nats, jnp.ones_like(t), paid)

  shares = timing.shares(trained(timing, length, costs_at), length)
  want = (RATES * CHANCES ** (1 / timing.power - 1))[:length]
  np.testing.assert_allclose(shares, want / want.sum(1, keepdims=True), rtol=0.1, atol=0.01)


def test_what_is_expected_becomes_the_loss_and_shares_its_slope():
  """Of losses known at every time, one of them noisy: over the clock the loss rises evenly."""
  curve = np.array([[0.0, 4.0, 4.5, 5.0, 6.0], [0.0, 0.1, 0.3, 0.6, 1.0]])
  timing = ByPosition(bins=BINS, floor=0.01, by="loss")

  def truth(t):
    each = [jnp.interp(t[:, i], np.linspace(0, 1, 5), curve[i]) for i in (0, 1)]
    return jnp.stack(each, axis=1)

  def costs_at(t, speed, key):
    noise = jnp.array([0.3, 0.0]) * jax.random.normal(key, t.shape)
    return TokenCosts(jnp.zeros_like(t), truth(t) + noise, jnp.ones_like(t), t > 0)

  params = trained(timing, 2, costs_at, rate=0.03, steps=400)

  @jax.jit
  def along_the_clock(params):
    t = timing.grid(params, clock_of_steps(8), jnp.array([2]), 2)[0]
    return timing.expected(params, t), truth(t)

  expected, loss = along_the_clock(params)
  np.testing.assert_allclose(expected, loss, atol=0.12)
  even = np.linspace(1, 0, 9)[:, None] * np.ones(2)
  np.testing.assert_allclose(loss / curve[:, -1], even, atol=0.03)


def test_no_gradient_flows_through_times():
  def total(params):
    batch = Batch(np.zeros((4, LENGTH), np.int32))
    times = ByPosition(bins=BINS).draw(params, jax.random.key(0), batch, Progress())
    return sum(jnp.sum(leaf) for leaf in times)

  gradient = jax.jit(jax.grad(total))({"levels": LEVELS})
  assert not gradient["levels"].any()


def test_longer_rows_are_refused():
  params = {"levels": jnp.asarray(LEVELS)}
  with pytest.raises(ValueError, match="learned 6 positions, and the row has 7"):
    ByPosition(bins=BINS).grid(params, clock_of_steps(2), jnp.array([7]), 7)

"""Masks whose time depends on the token: what conformance_test.py does not ask of all processes.

Survivals are written here a second time, in float64 and from the papers' formulas; mutants of one
line each must fail.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.process.masked import Masked
from diffusion_text.process.token_masked import TokenMasked, information
from diffusion_text.schedules.discrete import Cosine, Geometric, Linear, Polynomial
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.two_tokens import smooth_nodes, two_token_bound
from diffusion_text.types import DataFacts

LINEAR, COSINE, SQUARE = Linear(), Cosine(), Polynomial(2.0)
TOY = Enumerable.dirichlet(1, 0.7, 4, 2)  # H = 2.1112697 nats
V = TOY.vocab_size
DRAWS = 48_000
KEYS = jax.random.split(jax.random.key(7), DRAWS)
MU = np.array([0.4, 0.2, 0.3, 0.1])
TOLD = np.array([-0.4, 0.15, 1.0, 0.3])
POWERS = np.array([0.6, 1.0, 2.2, 1.4])


class Row(NamedTuple):
  """A process with its parameters, and the shape of each token's survival as a test knows it."""

  process: TokenMasked
  params: dict
  shape: np.ndarray

  @property
  def spindle(self) -> bool:
    return self.process.loss_order == "spindle"


def learned(powers, schedule=LINEAR, cls=TokenMasked) -> Row:
  powers = np.asarray(powers, np.float64)
  params = {"power": jnp.asarray(np.log(np.expm1(powers)), jnp.float32)}
  return Row(cls(len(powers), schedule), params, powers)


def spindle(strength, told, schedule=COSINE, cls=TokenMasked) -> Row:
  told = np.asarray(told, np.float64)
  process = cls(len(told), schedule, "spindle", strength)
  return Row(process, {"information": jnp.asarray(told, jnp.float32)}, strength * told)


def frequency(strength, told, schedule=SQUARE, cls=TokenMasked) -> Row:
  told = np.asarray(told, np.float64)
  process = cls(len(told), schedule, "frequency", strength)
  return Row(process, {"information": jnp.asarray(told, jnp.float32)}, np.exp(-strength * told))


SCHEDULES_64 = {
  LINEAR: lambda t: t,
  COSINE: lambda t: np.sin(np.pi / 2 * t),
  SQUARE: lambda t: t**2,
}


def noise(row: Row, t):
  """1 - alpha of every token, in float64: t [...] -> [..., V]."""
  n = SCHEDULES_64[row.process.schedule](np.asarray(t, np.float64))[..., None]
  return n + row.shape * np.sin(np.pi * n) if row.spindle else n**row.shape


def hazards(row: Row, t):
  """-alpha' / (1 - alpha) of every token, by central differences in float64: [..., V]."""
  up, down = (noise(row, t * (1 + h)) for h in (1e-5, -1e-5))
  return (up - down) / (2e-5 * t[..., None]) / noise(row, t)


def law(row: Row, t):
  """q(z | x = v) at times t [K]: [K, V, V + 1]."""
  lost = noise(row, t)
  return np.concatenate([np.eye(V) * (1 - lost)[:, None, :], lost[..., None]], axis=-1)


def bound(row: Row, **how) -> float:
  return two_token_bound(row.process, functools.partial(law, row), TOY, params=row.params, **how)


ROWS = {
  "powers": learned(POWERS),
  "spindle": spindle(0.3, TOLD),
  "frequency": frequency(-0.5, TOLD),
}
EQUAL = {
  "powers": learned(np.ones(V)),
  "spindle": spindle(0.3, np.zeros(V)),
  "frequency": frequency(0.5, np.zeros(V)),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


class Tilted:
  """A process whose network weighs the exact posterior by each token's hazard."""

  def __init__(self, row: Row):
    self.row = row
    self.reads_logits_as = "posterior"
    self.mask_id = V
    self.round_time = row.process.round_time

  def nelbo_rate(self, params, clean_state, state, t, output):
    found = np.maximum(hazards(self.row, np.asarray(t, np.float64)), 1e-30)
    tilt = jnp.asarray(np.log(found), jnp.float32)
    return self.row.process.nelbo_rate(params, clean_state, state, t, output + tilt)


def check_no_prediction_is_cheaper(row: Row):
  """A posterior tilted towards soon-lost tokens, mu · w, must cost more than the exact one.

  It is what merely weighted cross-entropy would learn.
  """
  cost = two_token_bound(Tilted(row), functools.partial(law, row), TOY, params=row.params)
  assert cost > TOY.entropy + 1e-3


def check_bound_is_the_entropy(row: Row):
  assert abs(bound(row) - TOY.entropy) < 1e-4


def check_uniform_predictor(row: Row):
  """Token x costs log V - 1 + ∫ noise_x · (mean of all hazards) dt.

  That is log V only if all survivals are equal; of powers it has a closed form on every schedule.
  """
  nodes = smooth_nodes()
  mean = hazards(row, nodes.t).mean(1, keepdims=True)
  cost = np.log(V) - 1 + nodes.weight @ (noise(row, nodes.t) * mean)
  if not row.spindle:
    closed = np.log(V) - 1 + row.shape.mean() / row.shape
    np.testing.assert_allclose(cost, closed, rtol=1e-3)
  t, token = (x.reshape(-1) for x in np.meshgrid(nodes.t, np.arange(V), indexing="ij"))
  rate = row.process.nelbo_rate(
    row.params,
    jnp.asarray(token, jnp.int32),
    jnp.full(len(t), V, jnp.int32),
    jnp.asarray(t, jnp.float32),
    jnp.zeros((len(t), V)),
  )
  rate = np.asarray(rate, np.float64).reshape(-1, V)
  np.testing.assert_allclose(nodes.weight @ (noise(row, nodes.t) * rate), cost, atol=3e-4)
  inside = (nodes.t > 0.05) & (nodes.t < 0.95)
  want = hazards(row, nodes.t) * (np.log(V) - 1) + mean
  np.testing.assert_allclose(rate[inside], want[inside], rtol=1e-3)


def check_step_law(row: Row):
  """From a mask: y with probability mu_y r_y, the mask with what is left.

  Logits need not be normalised.
  """
  after = moved(row, row.process.step, 0.8, 0.5)
  want = MU * (1 - noise(row, 0.5) / noise(row, 0.8))
  expect_frequencies(after, np.append(want, 1 - want.sum()))


def moved(row: Row, method, t, s):
  """DRAWS masks after a step or a leap of a network that answers MU."""
  output = jnp.broadcast_to(jnp.log(jnp.asarray(MU, jnp.float32)) + 7, (DRAWS, V))
  times = (jnp.full(DRAWS, time, jnp.float32) for time in (t, s))
  return method(row.params, KEYS, jnp.full(DRAWS, V, jnp.int32), output, *times)


def expect_frequencies(found, want):
  got = np.bincount(np.asarray(found), minlength=V + 1) / len(found)
  np.testing.assert_array_less(np.abs(got - want), 4 * np.sqrt(want * (1 - want) / len(found)))


def check_marginals(row: Row):
  """corrupt to t, then step to s with the true token, leaves each token's own marginal at s."""
  t, s = 0.7, 0.4
  ids = jnp.asarray(np.arange(DRAWS) % V, jnp.int32)
  wide = [jnp.full(DRAWS, time, jnp.float32) for time in (t, s)]
  state = row.process.corrupt(row.params, KEYS, ids, wide[0])
  sure = jnp.where(ids[:, None] == jnp.arange(V), 0.0, -1e30)
  after = np.asarray(row.process.step(row.params, KEYS, state, sure, *wide))
  for token, (found, time) in itertools.product(range(V), ((np.asarray(state), t), (after, s))):
    mine = found[token::V]
    assert ((mine == token) | (mine == V)).all()
    want = noise(row, time)[token]
    got = (mine == V).mean()
    assert abs(got - want) < 4 * np.sqrt(want * (1 - want) / len(mine)), (token, time)


CHECKS = [check_no_prediction_is_cheaper, check_uniform_predictor, check_step_law]


@every_row
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_laws(row, check):
  check(row)


def test_random_powers():
  for seed in range(2):
    rng = np.random.default_rng(seed)
    check_bound_is_the_entropy(learned(np.exp(rng.uniform(-0.7, 1.1, V))))


def test_a_network_without_the_time_is_loose():
  """The posterior of plain masking, which ignores what being lost says, costs more."""
  blind = functools.partial(law, EQUAL["powers"])
  assert bound(ROWS["powers"], network_law=blind) > TOY.entropy + 0.02


@pytest.mark.parametrize("row", EQUAL.values(), ids=EQUAL.keys())
def test_equal_survivals_are_plain_masking(row):
  rng = np.random.default_rng(2)
  output = jnp.asarray(rng.normal(size=(500, V)) * 3, jnp.float32)
  t = jnp.asarray(rng.random(500), jnp.float32)
  ids, state = (jnp.asarray(rng.integers(0, high, 500), jnp.int32) for high in (V, V + 1))
  plain = Masked(V, row.process.schedule).nelbo_rate({}, ids, state, t, output)
  found = row.process.nelbo_rate(row.params, ids, state, t, output)
  np.testing.assert_allclose(found, plain, rtol=3e-7)


@every_row
def test_may_change_bounds_step(row):
  """Where `may_change` says no, no logits make `step` move.

  Where the soonest token is certain, it moves wherever `may_change` says yes.
  """
  rng = np.random.default_rng(1)
  t = jnp.asarray(rng.random(DRAWS), jnp.float32)
  s = t * jnp.asarray(rng.random(DRAWS), jnp.float32)
  state = jnp.full(DRAWS, V, jnp.int32)
  may_change = np.asarray(row.process.may_change(row.params, KEYS, state, t, s))
  changed = []
  for output in (*np.eye(V) * 1e4, np.zeros(V)):
    wide = jnp.broadcast_to(jnp.asarray(output, jnp.float32), (DRAWS, V))
    changed.append(np.asarray(row.process.step(row.params, KEYS, state, wide, t, s)) != V)
    assert not (changed[-1] & ~may_change).any()
  np.testing.assert_array_equal(np.any(changed, axis=0), may_change)
  assert 0 < may_change.mean() < 1


@every_row
def test_noise_level_is_accurate_at_both_ends(row):
  """`log_corruption` is the log of the float64 law to float32 precision."""
  t = np.concatenate([np.logspace(-6, -0.5, 23), 1 - np.logspace(-5, -0.5, 23)])
  t = t.astype(np.float32)
  wide = np.repeat(t, V)
  ids = jnp.asarray(np.tile(np.arange(V), len(t)), jnp.int32)
  lost, kept = (
    np.exp(row.process.log_corruption(row.params, ids, state, jnp.asarray(wide)))
    for state in (jnp.full_like(ids, V), ids)
  )
  np.testing.assert_allclose(lost.reshape(-1, V), noise(row, t), rtol=2e-5)
  t = t.astype(np.float64)[:, None]
  alpha = {
    LINEAR: 1 - t,
    COSINE: 2 * np.sin(np.pi / 4 * (1 - t)) ** 2,
    SQUARE: -np.expm1(2 * np.log(t)),
  }[row.process.schedule]
  bulge = alpha - row.shape * np.sin(np.pi * alpha)
  want = bulge if row.spindle else -np.expm1(row.shape * np.log1p(-alpha))
  np.testing.assert_allclose(kept.reshape(-1, V), want, rtol=2e-5)


def test_survival_falls_from_one_to_zero():
  """For the strongest spindle and random shapes, on every schedule."""
  t = np.linspace(0, 1, 2001, dtype=np.float32)
  told = np.append(np.random.default_rng(0).uniform(-1, 1, 6), [-1, 1])
  ids = jnp.asarray(np.tile(np.arange(8), len(t)), jnp.int32)
  times = jnp.asarray(np.repeat(t, 8))
  for schedule in (LINEAR, COSINE, SQUARE, Geometric()):
    for row in (
      spindle(0.318, told, schedule),
      frequency(1.5, told, schedule),
      learned(np.exp(2 * told), schedule),
    ):
      log_lost = row.process.log_corruption(row.params, ids, jnp.full_like(ids, 8), times)
      lost = np.exp(np.asarray(log_lost)).reshape(-1, 8)
      assert (np.diff(lost, axis=0) >= -2e-7).all()
      assert (lost[0] == 0).all() and (lost[-1] == 1).all()


def test_a_spindle_that_is_too_strong_would_be_noticed():
  n = np.linspace(0, 1, 1001)
  assert (np.diff(n - 0.34 * np.sin(np.pi * n)) < 0).any()
  with pytest.raises(ValueError, match=r"strength=0.34.*0.318"):
    spindle(0.34, TOLD)


def test_path_and_score_gradients_cancel_at_the_optimum():
  """The bound under the exact posterior is the entropy whatever the powers: its gradient is zero.

  But only with both its parts, that of the rate and that of the draw's probability.
  """
  row = ROWS["powers"]
  nodes = smooth_nodes(count=100)
  table = law(row, nodes.t)
  p = TOY.probabilities.reshape(V, V)
  pairs = np.array(list(itertools.product(range(V), range(V), (0, 1), (0, 1))))
  ids, lost = pairs[:, :2], pairs[:, 2:]
  state = np.where(lost, V, ids)  # of every sequence and mask pattern
  seen = [table[:, :, state[:, i]] for i in (1, 0)]  # [K, V, n]: of the other token
  alone = np.stack([np.einsum("vx,kxn->knv", q, s) for q, s in zip((p, p.T), seen, strict=True)], 2)
  both = alone * np.moveaxis(table[:, :, state], 1, -1)
  output = jnp.asarray(np.log(np.maximum(both, 1e-37)), jnp.float32)  # [K, n, 2, V]
  shape = output.shape[:-1]
  times = jnp.asarray(np.broadcast_to(nodes.t[:, None, None], shape), jnp.float32)
  wide = [jnp.asarray(np.broadcast_to(x, shape), jnp.int32) for x in (ids, state)]
  prior = jnp.asarray(np.log(p[ids[:, 0], ids[:, 1]]), jnp.float32)
  weight = jnp.asarray(nodes.weight[:, None], jnp.float32)

  def cost(of_rate, of_draw):
    log_q = row.process.log_corruption({"power": of_draw}, *wide, times).sum(-1)
    rate = row.process.nelbo_rate({"power": of_rate}, *wide, times, output).sum(-1)
    return jnp.sum(weight * jnp.exp(prior + log_q) * rate)

  power = row.params["power"]
  path, score = jax.jit(jax.grad(cost, argnums=(0, 1)))(power, power)
  np.testing.assert_allclose(path + score, 0, atol=2e-3)
  assert np.abs(path).max() > 0.1


def test_log_corruption_gradient():
  """Against finite differences, and finite at both ends."""
  row = ROWS["powers"]
  power, h = row.params["power"], 1e-2
  ids, masks = jnp.arange(V), jnp.full(V, V, jnp.int32)

  def of(power, state, t):
    return row.process.log_corruption({"power": power}, ids, state, t)

  def total(power, state, t):
    return of(power, state, t).sum()

  t = jnp.array([0.1, 0.5, 0.9, 0.7])
  for state in (masks, ids):
    want = (of(power + h, state, t) - of(power - h, state, t)) / (2 * h)
    np.testing.assert_allclose(jax.grad(total)(power, state, t), want, rtol=2e-3)
  for time, state in ((0.0, ids), (1.0, masks), (1e-30, masks)):
    assert np.isfinite(jax.grad(total)(power, state, jnp.full(V, time))).all()


def test_leap_jumps_by_the_hazards():
  row = ROWS["powers"]
  want = MU * 0.1 * row.shape / 0.8
  after = np.asarray(moved(row, row.process.leap, 0.8, 0.7))
  expect_frequencies(after, np.append(want, 1 - want.sum()))
  # The hazards of the end of the step are too many.
  with pytest.raises(AssertionError):
    late = MU * 0.1 * row.shape / 0.7
    expect_frequencies(after, np.append(late, 1 - late.sum()))


def test_posterior_keeps_what_is_visible():
  row = ROWS["powers"]
  state, t = jnp.array([0, V, 3], jnp.int32), jnp.full(3, 0.6)
  found = np.exp(row.process.posterior(row.params, state, t, jnp.zeros((3, V))))
  np.testing.assert_allclose(found, [[1, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("ranked", [False, True])
def test_information(ranked):
  counts = np.array([1000, 10, 100, 0, 10])
  share = (counts + 1) / (counts + 1).sum()
  value = information(counts, ranked)
  assert value.dtype == np.float32
  assert abs(value @ share) < 1e-6 and np.abs(value).max() == 1
  assert value[3] == 1 and value[0] < 0 and value[1] == value[4]
  assert (np.argsort(value, kind="stable") == [0, 2, 1, 4, 3]).all()
  if ranked:
    assert np.ptp(np.diff(np.sort(np.unique(value)))) < 1e-6, "ranks are evenly spaced"
  assert not information(np.full(7, 3), ranked).any()


def test_counts_are_read_once_by_init_and_never_trained():
  calls = []

  def counts():
    calls.append(1)
    return np.array([9.0, 1.0, 4.0, 2.0])

  process = TokenMasked(V, LINEAR, "spindle", 0.3)
  facts = DataFacts(2, V, token_counts=counts)
  params = process.init(jax.random.key(0), facts)
  assert len(calls) == 1
  np.testing.assert_array_equal(params["information"], information(np.array([9.0, 1, 4, 2])))
  with pytest.raises(ValueError, match="token counts"):
    process.init(jax.random.key(0), DataFacts(2, V))
  ids = jnp.arange(V)

  def cost(params):
    masks, t = jnp.full(V, V, jnp.int32), jnp.full(V, 0.5)
    return process.nelbo_rate(params, ids, masks, t, jnp.zeros((V, V))).sum()

  assert not np.asarray(jax.grad(cost)(params)["information"]).any()
  assert not process.noise_is_learned and TokenMasked(V).noise_is_learned


def test_the_information_survives_a_sharded_init():
  """`jit(init, out_shardings=…)` over all devices, as the trainer makes its state."""
  mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  process = TokenMasked(V, LINEAR, "frequency", 0.5)
  facts = DataFacts(2, V, token_counts=lambda: np.array([9.0, 1.0, 4.0, 2.0]))
  make = jax.jit(lambda key: process.init(key, facts), out_shardings=everywhere)
  want = information(np.array([9, 1, 4, 2]), True)
  np.testing.assert_array_equal(make(jax.random.key(0))["information"], want)


@pytest.mark.parametrize(
  "options,match",
  [
    ({"vocab_size": 0}, "vocab_size=0"),
    ({"loss_order": "rarest"}, "loss_order"),
    ({"strength": 0.3}, "strength=0.3 is not read"),
    ({"loss_order": "frequency"}, "strength=None"),
    ({"loss_order": "spindle", "strength": -0.4}, "strength=-0.4"),
  ],
)
def test_bad_options_are_refused(options, match):
  with pytest.raises(ValueError, match=match):
    TokenMasked(**{"vocab_size": 3, **options})


# Mutants: each breaks one line, and the named check must notice.


class WithoutSurplus(TokenMasked):
  """Cross-entropy weighted by token, which is no bound: without Σ mu w - w_x."""

  def nelbo_rate(self, params, clean_state, state, t, output):
    plain = Masked(self.vocab_size, self.schedule)
    growth = self._growth(self._shape(params)[clean_state], t)
    return growth * plain.nelbo_rate({}, clean_state, state, t, output)


class AverageReveal(TokenMasked):
  """Every token revealed as the average token is."""

  def _reveal(self, shape, t, s):
    return super()._reveal(jnp.full_like(shape, shape.mean()), t, s)


class DrawsFromMu(TokenMasked):
  """Whether as it should be, but what from mu, not from mu · r."""

  def _jump(self, keys, state, output, may_change, chance):
    changed = super()._jump(keys, state, output, may_change, chance) != state
    return jnp.where(changed, jax.vmap(jax.random.categorical)(keys, output), state)


class OneExponent(TokenMasked):
  """Corrupts every token as plain masking does."""

  def corrupt(self, params, keys, clean_state, t):
    return Masked(self.vocab_size, self.schedule).corrupt({}, keys, clean_state, t)


class OneHazard(TokenMasked):
  """The rate of plain masking under another corruption."""

  def nelbo_rate(self, params, clean_state, state, t, output):
    plain = Masked(self.vocab_size, self.schedule)
    return plain.nelbo_rate({}, clean_state, state, t, output)


MUTANTS = {
  "without surplus, powers": (
    learned(POWERS, cls=WithoutSurplus),
    check_no_prediction_is_cheaper,
  ),
  "without surplus, spindle": (spindle(0.3, TOLD, cls=WithoutSurplus), check_uniform_predictor),
  "average, powers": (learned(POWERS, cls=AverageReveal), check_step_law),
  "average, spindle": (spindle(0.3, TOLD, cls=AverageReveal), check_marginals),
  "draws from mu": (learned(POWERS, cls=DrawsFromMu), check_step_law),
  "one exponent": (spindle(0.3, TOLD, cls=OneExponent), check_marginals),
  "one hazard": (learned(POWERS, cls=OneHazard), check_bound_is_the_entropy),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_marginals(row):
  check_marginals(row)


@pytest.mark.parametrize("mutant,check", MUTANTS.values(), ids=MUTANTS.keys())
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant)

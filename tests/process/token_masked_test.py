"""Masks whose time depends on the token, against exact posteriors that know it: toy A (V = 3, L = 4, H = 3.7085873970 nats).

Survivals are written here a second time, in float64 and from the papers' formulas; mutants of one line each must fail.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys
from diffusion_text.objective.bound import Bound, Chunks
from diffusion_text.process.masked import Masked
from diffusion_text.process.token_masked import TokenMasked, information
from diffusion_text.sampler.ancestral import Ancestral, EventDriven
from diffusion_text.sampler.loop import Canvas, sample
from diffusion_text.schedules.discrete import Cosine, Geometric, Linear, Polynomial
from diffusion_text.testing.oracle import NEVER, Enumerable, exact_prediction
from diffusion_text.timing import Shared, Slanted
from diffusion_text.train.optimizer import is_kernel
from diffusion_text.types import Batch, Leaps, LearnedNoise, Progress, Renoises, Reveals

LINEAR, COSINE, SQUARE = Linear(), Cosine(), Polynomial(2.0)
TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
LEGENDRE, LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(300)
NODES, NODE_WEIGHTS = (
  ((LEGENDRE + 1) / 2) ** 2,
  LEGENDRE_WEIGHTS / 2 * (LEGENDRE + 1),
)  # t = u²: no pole at t = 0
PATTERNS = np.indices((2,) * 4).reshape(4, -1).T.astype(bool)  # [16, 4]: which tokens are lost
LOST = np.broadcast_to(PATTERNS[:, None], (16, 81, 4)).reshape(-1, 4)
IDS = np.broadcast_to(TOY.sequences[None], (16, 81, 4)).reshape(-1, 4)
STATES = np.where(LOST, 3, IDS).astype(np.int32)


ROWS_DRAWN = 12_000
KEYS = row_keys(7, 4 * ROWS_DRAWN)


@functools.cache
def compiled(process, name: str):
  """A method of a process, compiled once for all tests."""
  return jax.jit(getattr(process, name))


class Row(NamedTuple):
  """A process with its parameters, and the shape of each token's survival as a test knows it."""

  process: TokenMasked
  params: dict
  shape: np.ndarray


def learned(powers, schedule=LINEAR, cls=TokenMasked) -> Row:
  powers = np.asarray(powers, np.float64)
  return Row(
    cls(len(powers), schedule),
    {"power": jnp.asarray(np.log(np.expm1(powers)), jnp.float32)},
    powers,
  )


def spindle(strength, told, schedule=LINEAR, cls=TokenMasked) -> Row:
  told = np.asarray(told, np.float64)
  process = cls(len(told), schedule, "spindle", strength)
  return Row(process, {"information": jnp.asarray(told, jnp.float32)}, strength * told)


def frequency(strength, told, schedule=LINEAR, cls=TokenMasked) -> Row:
  told = np.asarray(told, np.float64)
  process = cls(len(told), schedule, "frequency", strength)
  return Row(process, {"information": jnp.asarray(told, jnp.float32)}, np.exp(-strength * told))


def noise(row: Row, t):
  """1 - alpha of every token: [..., V], in numpy's precision or jax's."""
  xp = jnp if isinstance(t, jax.Array) else np
  n = row.process.schedule(t).noise if xp is jnp else SCHEDULES_64[type(row.process.schedule)](t)
  n = n[..., None]
  if row.process.loss_order == "spindle":
    return n + xp.asarray(row.shape) * xp.sin(np.pi * n)
  return xp.maximum(n, 1e-37) ** xp.asarray(row.shape)


SCHEDULES_64 = {
  Linear: lambda t: t,
  Cosine: lambda t: np.sin(np.pi / 2 * t),
  Polynomial: lambda t: t**2,
}
TOLD = [-0.4, 0.15, 1.0]
ROWS = {
  "powers": learned([0.6, 1.0, 2.2]),
  "spindle": spindle(0.3, TOLD, COSINE),
  "frequency": frequency(-0.5, TOLD, SQUARE),
}
EQUAL = {
  "powers": learned([1.0, 1.0, 1.0]),
  "spindle": spindle(0.3, [0, 0, 0], COSINE),
  "frequency": frequency(0.5, [0, 0, 0]),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def evidence(row: Row, ids, t):
  """log q(z_i | x_i = v): log alpha_v(t) where z_i = v, log (1 - alpha_v(t)) where it is masked. [B, L, V]."""
  lost = noise(row, jnp.broadcast_to(t, ids.shape))
  kept = jnp.where(ids[..., None] == jnp.arange(3), jnp.log(jnp.maximum(1 - lost, 1e-30)), NEVER)
  return jnp.where(ids[..., None] == 3, jnp.log(jnp.maximum(lost, 1e-37)), kept)


def exact(row: Row):
  """The exact clean-token posterior, which knows the time."""
  return lambda inputs, t, layout=None: exact_prediction(
    TOY.posterior(evidence(row, inputs.ids, t))
  )


def uniform(row: Row):
  return lambda inputs, t, layout=None: exact_prediction(jnp.zeros((*inputs.ids.shape, 3)))


def quadrature(row: Row, predict) -> float:
  """∫ E[rate] dt in nats per sequence of toy A, over all sequences and mask patterns: no randomness."""
  process, params, _ = row
  state, ids = jnp.asarray(STATES), jnp.asarray(IDS, jnp.int32)

  def at(t):
    times = jnp.full(ids.shape, t)
    return process.rate(
      params, ids, state, times, predict(process.inputs(params, state, times), times).logits
    ).sum(1)

  rates = np.asarray(
    jax.jit(lambda ts: jax.lax.map(at, ts))(jnp.asarray(NODES, jnp.float32)), np.float64
  )
  of_token = noise(row, NODES)[:, IDS]  # [nodes, 1296, 4]: of the true tokens
  law = np.where(LOST, of_token, 1 - of_token).prod(-1) * np.tile(TOY.probabilities, 16)
  return float(NODE_WEIGHTS @ (law * rates).sum(1))


def check_bound_is_the_entropy(row):
  assert abs(quadrature(row, exact(row)) - TOY.entropy) < 5e-4


def check_no_prediction_is_cheaper(row):
  """A posterior tilted towards soon-lost tokens, mu · w, is what merely weighted cross-entropy would learn: it must cost more."""

  def tilted(inputs, t, layout=None):
    lost, slope = jax.jvp(lambda t: noise(row, t), (t,), (jnp.ones_like(t),))
    return exact_prediction(exact(row)(inputs, t).logits + jnp.log(slope / lost))

  assert quadrature(row, tilted) > TOY.entropy + 1e-3


def hazards(row, t):
  """-alpha' / (1 - alpha) of every token, by central differences in float64: [..., V]."""
  up, down = (noise(row, t * (1 + h)) for h in (1e-5, -1e-5))
  return (up - down) / (2e-5 * t[..., None]) / noise(row, t)


def check_uniform_predictor(row):
  """Token x costs log V - 1 + ∫ noise_x · (mean of all hazards) dt: log V only if all survivals are equal."""
  cost = (
    np.log(3) - 1 + NODE_WEIGHTS @ (noise(row, NODES) * hazards(row, NODES).mean(1, keepdims=True))
  )
  if row.process.loss_order != "spindle":  # in closed form, on every schedule
    np.testing.assert_allclose(cost, np.log(3) - 1 + row.shape.mean() / row.shape, rtol=1e-3)
  want = float(TOY.probabilities @ cost[TOY.sequences].sum(1))
  assert abs(quadrature(row, uniform(row)) - want) < 3e-4


def check_ends(row):
  process, params, _ = row
  ids = jnp.asarray(TOY.sequences)
  for t, want in ((0.0, ids), (1.0, process.prior(params, jax.random.key(1), ids.shape))):
    for seed in range(3):
      np.testing.assert_array_equal(
        process.corrupt(params, jax.random.key(seed), ids, jnp.full(ids.shape, t)), want
      )


def check_chapman_kolmogorov(row):
  """corrupt to t then step to s with the true token must leave each token's own marginal at s, for random per-token t >= s."""
  process, params, _ = row
  rows = ROWS_DRAWN
  rng = np.random.default_rng(0)
  t = rng.random(4).astype(np.float32)
  s = (t * rng.random(4)).astype(np.float32)
  ids = jnp.asarray(rng.integers(0, 3, (rows, 4)), jnp.int32)
  wide_t, wide_s = (jnp.broadcast_to(time, ids.shape) for time in (t, s))
  state = process.corrupt(params, jax.random.key(0), ids, wide_t)
  logits = jnp.where(ids[..., None] == jnp.arange(3), 0.0, -1e30)
  after = np.asarray(
    compiled(process, "step")(params, KEYS.reshape(rows, 4), state, logits, wide_t, wide_s)
  )
  clean = np.asarray(state) != 3
  assert (after[clean] == np.asarray(state)[clean]).all(), "carry-over"
  assert ((after == np.asarray(ids)) | (after == 3)).all(), (
    "a token that is neither the true one nor the mask"
  )
  for place, token in itertools.product(range(4), range(3)):
    mine = np.asarray(ids)[:, place] == token
    for z, time in ((np.asarray(state), t), (after, s)):
      want, got = noise(row, np.float64(time[place]))[token], (z[mine, place] == 3).mean()
      assert abs(got - want) < 4 * np.sqrt(want * (1 - want) / mine.sum()) + 1e-4, (place, token)


def check_steps_end_clean(row):
  shape = (ROWS_DRAWN, 4)
  state = row.process.prior(row.params, jax.random.key(0), shape)
  t, s = jnp.full(shape, 0.25), jnp.zeros(shape)
  after = compiled(row.process, "step")(
    row.params, KEYS.reshape(shape), state, jnp.zeros((*shape, 3)), t, s
  )
  assert int(after.max()) < 3 and int(after.min()) >= 0


def check_step_law(row):
  """From a mask: y with probability mu_y r_y, the mask with what is left; logits need not be normalised."""
  process, params, _ = row
  rows, t, s = len(KEYS), 0.8, 0.5
  mu = np.array([0.5, 0.2, 0.3])
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(mu, jnp.float32)) + 7, (rows, 3))
  flat = lambda value: jnp.full(rows, value, jnp.float32)
  after = compiled(process, "step")(params, KEYS, jnp.full(rows, 3), logits, flat(t), flat(s))
  got = np.bincount(np.asarray(after), minlength=4) / rows
  want = mu * (1 - noise(row, np.float64(s)) / noise(row, np.float64(t)))
  want = np.append(want, 1 - want.sum())
  np.testing.assert_array_less(np.abs(got - want), 4 * np.sqrt(want * (1 - want) / rows))


CHECKS = [
  check_bound_is_the_entropy,
  check_no_prediction_is_cheaper,
  check_uniform_predictor,
  check_ends,
  check_chapman_kolmogorov,
  check_steps_end_clean,
  check_step_law,
]


@every_row
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(row, check):
  check(row)


def test_random_powers():
  rng = np.random.default_rng(11)
  for _ in range(2):
    check_bound_is_the_entropy(learned(np.exp(rng.uniform(-0.7, 1.1, 3))))


def test_a_network_without_the_time_is_loose():
  """The posterior of plain masking, which ignores what being lost says, costs more: why these models want time conditioning."""
  row = ROWS["powers"]
  blind = exact(learned([1.0, 1.0, 1.0]))
  assert quadrature(row, blind) > TOY.entropy + 0.02


@pytest.mark.parametrize("name,timing", [("powers", Slanted(1.0)), ("spindle", Shared())], ids=str)
def test_drawn_bound_is_the_entropy(name, timing):
  """The objective with its own draws, within 3 standard errors below 1 %; under powers of n = t², so that the variance is finite."""
  row = learned([0.75, 1.0, 2.2], SQUARE) if name == "powers" else spindle(0.3, TOLD, SQUARE)
  rows = 80_000
  ids = jnp.asarray(TOY.sample(np.random.default_rng(3), rows))
  bound = Bound(row.process, timing, chunks=Chunks(8192))
  nats = np.asarray(
    jax.jit(lambda key: bound.nats(row.params, key, Batch(ids), Progress(), exact(row)).sum(1))(
      jax.random.key(5)
    )
  )
  error = nats.std() / len(nats) ** 0.5
  print(f"drawn bound {nats.mean():.4f} ± {error:.4f}, entropy {TOY.entropy:.4f}")
  assert error < 0.01 * TOY.entropy
  assert abs(nats.mean() - TOY.entropy) < 3 * error


@pytest.mark.parametrize("name", EQUAL)
def test_equal_survivals_are_plain_masking(name):
  row = EQUAL[name]
  rng = np.random.default_rng(2)
  logits = jnp.asarray(rng.normal(size=(1296, 4, 3)) * 3, jnp.float32)
  t = jnp.asarray(rng.random((1296, 4)), jnp.float32)
  plain = Masked(3, row.process.schedule).rate({}, jnp.asarray(IDS), jnp.asarray(STATES), t, logits)
  np.testing.assert_allclose(row.process.rate(row.params, IDS, STATES, t, logits), plain, rtol=3e-7)
  assert abs(quadrature(row, uniform(row)) / 4 - np.log(3)) < 5e-5


def ancestral_law(row: Row, steps: int) -> np.ndarray:
  """Exact law of `steps` ancestral steps with the exact denoiser: a Markov chain over the 4^4 partly masked states."""
  states = np.indices((4,) * 4).reshape(4, -1).T
  posterior = jax.jit(lambda t: TOY.posterior(evidence(row, jnp.asarray(states, jnp.int32), t)))
  law = np.zeros(256)
  law[-1] = 1.0
  grid = np.asarray(Shared().grid(steps, 1), np.float64)[:, 0]
  for t, s in itertools.pairwise(grid):
    mu = np.exp(np.asarray(posterior(jnp.float32(t)), np.float64))
    reveal = 1 - noise(row, s) / noise(row, t) if s > 0 else np.ones(3)
    moved = mu * reveal / mu.sum(-1, keepdims=True)  # [256, 4, 3]
    one = np.concatenate([moved, 1 - moved.sum(-1, keepdims=True)], axis=-1)
    one = np.where((states == 3)[..., None], one, np.eye(4)[states])
    law = np.einsum("n,na,nb,nc,nd->abcd", law, *np.moveaxis(one, 1, 0), optimize=True).reshape(-1)
  return law.reshape((4,) * 4)[:3, :3, :3, :3].reshape(-1)


@pytest.mark.parametrize("name", ["powers", "spindle"])
def test_ancestral_steps_reproduce_the_language(name):
  """Total variation ~ 1/steps by the exact chain; the sampler itself draws from that chain's law."""
  row = ROWS[name]
  distance = {steps: TOY.total_variation(ancestral_law(row, steps)) for steps in (64, 256)}
  print(name, distance)
  assert distance[256] < 0.02 and distance[256] < 0.3 * distance[64]
  rows, steps = ROWS_DRAWN, 8
  states = jnp.asarray(np.indices((4,) * 4).reshape(4, -1).T, jnp.int32)

  def denoise(inputs, t, layout=None):
    table = TOY.posterior(evidence(row, states, t.max()))  # all tokens share the time
    return exact_prediction(table[(inputs.ids * 4 ** jnp.arange(4)[::-1]).sum(1)])

  policy = Ancestral(Shared(), steps)
  run = jax.jit(
    lambda keys: (
      sample(
        policy, row.process, row.params, denoise, keys, Batch(jnp.zeros((rows, 4), jnp.int32))
      ).ids
    )
  )
  got = TOY.histogram(np.asarray(run(KEYS.reshape(rows, 4))))
  want = ancestral_law(row, steps)
  likely = want * rows >= 5
  chi_square = (rows * (got - want) ** 2 / np.maximum(want, 1e-12))[likely].sum()
  assert chi_square < likely.sum() + 4 * np.sqrt(2 * likely.sum())


@every_row
def test_moves_bounds_step(row):
  """Where `moves` says no, no logits make `step` move; where the soonest token is certain, it moves wherever `moves` says yes."""
  rows = len(KEYS)
  rng = np.random.default_rng(1)
  t = jnp.asarray(rng.random(rows), jnp.float32)
  s = t * jnp.asarray(rng.random(rows), jnp.float32)
  keys, state = KEYS, jnp.full(rows, 3)
  moves = np.asarray(compiled(row.process, "moves")(row.params, keys, state, t, s))
  step, changed = compiled(row.process, "step"), []
  for logits in (*np.eye(3) * 1e4, np.zeros(3), np.array([0, -1e30, -1e30])):
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (rows, 3))
    changed.append(np.asarray(step(row.params, keys, state, logits, t, s)) != 3)
    assert not (changed[-1] & ~moves).any()
  np.testing.assert_array_equal(np.any(changed, axis=0), moves)
  assert 0 < moves.mean() < 1


@every_row
def test_noise_level_is_accurate_at_both_ends(row):
  """log_corruption is the log of the float64 law to float32 precision, hazards are its derivative, and `corrupt` follows it."""
  process, params, _ = row
  t = np.concatenate([np.logspace(-6, -0.5, 23), 1 - np.logspace(-5, -0.5, 23)]).astype(np.float32)
  wide = np.float64(t)
  ids = np.broadcast_to(np.arange(3), (len(t), 3))
  log_corruption = compiled(process, "log_corruption")
  lost, kept = (
    np.exp(log_corruption(params, ids, state, t[:, None])) for state in (np.full(ids.shape, 3), ids)
  )
  np.testing.assert_allclose(lost, noise(row, wide), rtol=2e-5)
  a = {
    LINEAR: 1 - wide,
    COSINE: 2 * np.sin(np.pi / 4 * (1 - wide)) ** 2,
    SQUARE: -np.expm1(2 * np.log(wide)),
  }[process.schedule]
  a = a[:, None]
  want = (
    a - row.shape * np.sin(np.pi * a)
    if process.loss_order == "spindle"
    else -np.expm1(row.shape * np.log1p(-a))
  )
  np.testing.assert_allclose(kept, want, rtol=2e-5)
  draws = process.corrupt(
    params, jax.random.key(0), np.broadcast_to(ids[30], (50_000, 3)), np.full((50_000, 3), t[30])
  )
  assert (
    np.abs((np.asarray(draws) == 3).mean(0) - lost[30]) < 4 * np.sqrt(lost[30] * kept[30] / 50_000)
  ).all()


@every_row
def test_hazards_are_derivatives(row):
  """Read off the rate under uniform logits, w_x (log V - 1) + mean of all w."""
  t = np.linspace(0.05, 0.95, 19)
  want = hazards(row, t)
  ids, state = np.broadcast_to(np.arange(3), (19, 3)), np.full((19, 3), 3)
  times = jnp.broadcast_to(jnp.asarray(t[:, None], jnp.float32), (19, 3))
  got = compiled(row.process, "rate")(row.params, ids, state, times, jnp.zeros((19, 3, 3)))
  np.testing.assert_allclose(got, want * (np.log(3) - 1) + want.mean(1, keepdims=True), rtol=1e-4)


def test_survival_falls_from_one_to_zero():
  """For the strongest spindle and random shapes, on every schedule."""
  t = jnp.linspace(0, 1, 2001)[:, None]
  told = np.append(np.random.default_rng(0).uniform(-1, 1, 6), [-1, 1])
  ids = np.broadcast_to(np.arange(8), (2001, 8))
  for schedule in (LINEAR, COSINE, SQUARE, Geometric()):
    for row in (
      spindle(0.318, told, schedule),
      frequency(1.5, told, schedule),
      learned(np.exp(2 * told), schedule),
    ):
      lost = np.exp(
        compiled(row.process, "log_corruption")(row.params, ids, np.full((2001, 8), 8), t)
      )
      assert (
        (np.diff(lost, axis=0) >= -2e-7).all() and (lost[0] == 0).all() and (lost[-1] == 1).all()
      )


def test_a_spindle_that_is_too_strong_would_be_noticed():
  lost = np.linspace(0, 1, 1001) - 0.34 * np.sin(np.pi * np.linspace(0, 1, 1001))
  assert (np.diff(lost) < 0).any()
  with pytest.raises(ValueError, match=r"strength=0.34.*0.318"):
    spindle(0.34, TOLD)


def score_and_path(row: Row):
  """Gradient in the raw powers of the bound under the exact posterior: (of the rate, of the draw's probability), by quadrature."""
  process, params, _ = row
  state, ids = jnp.asarray(STATES), jnp.asarray(IDS, jnp.int32)

  def at(node):
    t, node_weight = node
    times = jnp.full(ids.shape, t)
    logits = TOY.posterior(evidence(row, state, times))
    prior = jnp.log(jnp.tile(jnp.asarray(TOY.probabilities, jnp.float32), 16))

    def cost(of_rate, of_draw):
      law = jnp.exp(prior + process.log_corruption({"power": of_draw}, ids, state, times).sum(1))
      return node_weight * jnp.sum(
        law * process.rate({"power": of_rate}, ids, state, times, logits).sum(1)
      )

    return jax.grad(cost, argnums=(0, 1))(params["power"], params["power"])

  nodes = jnp.asarray(NODES, jnp.float32), jnp.asarray(NODE_WEIGHTS, jnp.float32)
  return [np.asarray(g).sum(0) for g in jax.jit(lambda nodes: jax.lax.map(at, nodes))(nodes)]


def test_path_and_score_gradients_cancel_at_the_optimum():
  """The bound under the exact posterior is the entropy whatever the powers, so its gradient is zero: but only with both its parts."""
  path, score = score_and_path(ROWS["powers"])
  print("path", path, "score", score)
  np.testing.assert_allclose(path + score, 0, atol=2e-3)
  assert np.abs(path).max() > 0.1


def test_log_corruption_gradient():
  """Against finite differences, and finite at both ends."""
  row = ROWS["powers"]
  ids, masks, power, h = np.arange(3), np.full(3, 3), row.params["power"], 1e-2
  of = jax.jit(lambda power, state, t: row.process.log_corruption({"power": power}, ids, state, t))
  gradient = jax.jit(jax.grad(lambda power, state, t: of(power, state, t).sum()))
  t = jnp.array([0.1, 0.5, 0.9])
  for state in (masks, ids):
    want = (of(power + h, state, t) - of(power - h, state, t)) / (2 * h)
    np.testing.assert_allclose(gradient(power, state, t), want, rtol=2e-3)
  for time, state in ((0.0, ids), (1.0, masks), (1e-30, masks)):
    assert np.isfinite(gradient(power, state, jnp.full(3, time))).all()


def test_leap_jumps_by_the_hazards():
  row, rows = ROWS["powers"], len(KEYS)
  mu = np.array([0.5, 0.2, 0.3])
  flat = lambda value: jnp.full(rows, value, jnp.float32)
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(mu, jnp.float32)), (rows, 3))
  after = compiled(row.process, "leap")(
    row.params, KEYS, jnp.full(rows, 3), logits, flat(0.8), flat(0.7)
  )
  want = np.append(mu * 0.1 * row.shape / 0.8, 1 - (mu * 0.1 * row.shape / 0.8).sum())
  got = np.bincount(np.asarray(after), minlength=4) / rows
  np.testing.assert_array_less(np.abs(got - want), 4 * np.sqrt(want * (1 - want) / rows))


@every_row
def test_renoise_and_guess(row):
  rows, keys = len(KEYS), KEYS
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 3, (rows,)), jnp.int32)
  renoise = compiled(row.process, "renoise")
  z = np.asarray(renoise(row.params, keys, ids, jnp.full(rows, 0.6)))
  for token in range(3):
    mine, want = np.asarray(ids) == token, noise(row, np.float64(0.6))[token]
    assert abs((z[mine] == 3).mean() - want) < 4 * np.sqrt(want * (1 - want) / mine.sum())
  np.testing.assert_array_equal(renoise(row.params, keys, ids, jnp.zeros(rows)), ids)
  logits = jnp.broadcast_to(jnp.array([-1e30, 0.0, -1e30]), (rows, 3))
  np.testing.assert_array_equal(
    row.process.guess(row.params, keys, z, logits, jnp.full(rows, 0.6)), np.where(z == 3, 1, z)
  )


def test_contracts():
  process = ROWS["powers"].process
  assert all(isinstance(process, contract) for contract in (Renoises, Leaps, LearnedNoise))
  assert not isinstance(process, Reveals)
  canvas = Canvas(
    jnp.full((2, 4), 3), jnp.ones((2, 4), bool), KEYS[:8].reshape(2, 4), jnp.int32(0), None
  )
  with pytest.raises(
    ValueError, match="TokenMasked draws no reveal times in advance; use the ancestral sampler"
  ):
    EventDriven(Shared(), 4).plan(process, ROWS["powers"].params, canvas)


def test_information():
  counts = np.array([1000, 10, 100, 0, 10])
  frequency_of = (counts + 1) / (counts + 1).sum()
  for ranked in (False, True):
    value = information(counts, ranked)
    assert (
      value.dtype == np.float32 and abs(value @ frequency_of) < 1e-6 and np.abs(value).max() == 1
    )
    assert (
      value[3] == 1
      and value[0] < 0
      and value[1] == value[4]
      and (np.argsort(value, kind="stable") == [0, 2, 1, 4, 3]).all()
    )
  assert np.ptp(np.diff(np.sort(np.unique(information(counts, True))))) < 1e-6, (
    "ranks are evenly spaced"
  )
  assert not information(np.full(7, 3)).any()


def test_counts_are_read_once_by_init():
  calls = []

  def counts():
    calls.append(1)
    return np.array([9.0, 1.0, 4.0])

  process = TokenMasked(3, Linear(), "spindle", 0.3, counts)
  assert not calls
  got = process.init(jax.random.key(0))["information"]
  assert len(calls) == 1
  np.testing.assert_array_equal(got, information(np.array([9.0, 1.0, 4.0])))
  assert not is_kernel(("process", "information")) and not is_kernel(("process", "power"))


def test_information_is_not_trained():
  row = ROWS["spindle"]
  cost = lambda params: row.process.rate(
    params, IDS, STATES, jnp.full(IDS.shape, 0.5), jnp.zeros((*IDS.shape, 3))
  ).sum()
  assert not np.asarray(jax.jit(jax.grad(cost))(row.params)["information"]).any()


def test_the_information_survives_a_sharded_init():
  """`jit(init, out_shardings=…)` over all devices, as the trainer makes its state."""
  mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  process = TokenMasked(3, Linear(), "frequency", 0.5, lambda: np.array([9.0, 1.0, 4.0]))
  params = jax.jit(process.init, out_shardings=everywhere)(jax.random.key(0))
  np.testing.assert_array_equal(params["information"], information(np.array([9, 1, 4]), True))


@pytest.mark.parametrize(
  "options,match",
  [
    ({"vocab_size": 0}, "vocab_size=0"),
    ({"loss_order": "rarest"}, "rarest.*learned, spindle, frequency"),
    ({"strength": 0.3}, "strength=0.3 is not read"),
    ({"loss_order": "frequency"}, "strength=None"),
    ({"loss_order": "spindle", "strength": -0.4}, "strength=-0.4"),
  ],
)
def test_bad_options_are_refused(options, match):
  with pytest.raises(ValueError, match=match):
    TokenMasked(**{"vocab_size": 3, "schedule": Linear(), **options})


def test_init_without_counts_is_refused():
  with pytest.raises(ValueError, match="counts"):
    TokenMasked(3, Linear(), "spindle", 0.3).init(jax.random.key(0))


# Mutants: each breaks one line, and the named check must notice.


class WithoutSurplus(TokenMasked):
  """Without Σ mu w - w_x, whose mean is 0 under the exact posterior only: cross-entropy weighted by token, which is no bound."""

  def rate(self, params, ids, state, t, logits):
    plain = Masked(self.vocab_size, self.schedule).rate({}, ids, state, t, logits)
    return self._growth(self._shape(params)[ids], t) * plain


class AverageReveal(TokenMasked):
  """Every token revealed as the average token is."""

  def _reveal(self, shape, t, s):
    return super()._reveal(jnp.full_like(shape, shape.mean()), t, s)


class DrawsFromMu(TokenMasked):
  """Whether as it should be, but what from mu, not from mu · r."""

  def _jump(self, keys, state, logits, may_move, chance):
    moved = super()._jump(keys, state, logits, may_move, chance) != state
    return jnp.where(moved, self.guess({}, keys, state, logits, None), state)


class OneExponent(TokenMasked):
  """Corrupts every token as plain masking does."""

  def corrupt(self, params, key, ids, t):
    return Masked(self.vocab_size, self.schedule).corrupt({}, key, ids, t)


class OneHazard(TokenMasked):
  """The rate of plain masking under another corruption."""

  def rate(self, params, ids, state, t, logits):
    return Masked(self.vocab_size, self.schedule).rate({}, ids, state, t, logits)


POWERS, SPINDLE = [0.6, 1.0, 2.2], (0.3, TOLD)
MUTANTS = [
  (learned(POWERS, cls=WithoutSurplus), check_no_prediction_is_cheaper),
  (spindle(*SPINDLE, cls=WithoutSurplus), check_uniform_predictor),
  (learned(POWERS, cls=AverageReveal), check_step_law),
  (spindle(*SPINDLE, cls=AverageReveal), check_chapman_kolmogorov),
  (learned(POWERS, cls=DrawsFromMu), check_step_law),
  (spindle(*SPINDLE, cls=OneExponent), check_chapman_kolmogorov),
  (learned(POWERS, cls=OneHazard), check_bound_is_the_entropy),
]


@pytest.mark.parametrize("mutant,check", MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant)

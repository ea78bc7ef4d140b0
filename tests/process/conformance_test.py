"""Every process × every property, with exact denoisers and no training; and mutants that must fail.

To add a process: one line in ROWS. Toy A is the language of the golden numbers (V = 3, L = 4, H = 3.7085873970 nats).
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.draws import row_keys, token_keys
from diffusion_text.evaluate.oracle import Enumerable, MarkovChain, exact_prediction, masked_evidence
from diffusion_text.objective.bound import Bound, Chunks
from diffusion_text.process.masked import Masked
from diffusion_text.schedules import Cosine, Geometric, Linear, Polynomial, reveal_probability, weight
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch, Progress

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
SCHEDULES = [Linear(), Cosine(), Polynomial(2.0), Geometric(), Geometric(1e-2, 5.0)]
ROWS = [Masked(3, schedule) for schedule in SCHEDULES]
LEGENDRE, LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(400)
NODES, NODE_WEIGHTS = ((LEGENDRE + 1) / 2) ** 2, LEGENDRE_WEIGHTS / 2 * (LEGENDRE + 1)  # t = u²: no pole at t = 0

every_row = pytest.mark.parametrize("process", ROWS, ids=repr)


def exact(inputs, t, layout=None):
  """The exact clean-token posterior of toy A as the network's answer."""
  del t, layout
  return exact_prediction(TOY.posterior(masked_evidence(inputs.ids, TOY.vocab_size)))


def uniform(inputs, t, layout=None):
  del t, layout
  return exact_prediction(jnp.zeros((*inputs.ids.shape, TOY.vocab_size)))


def quadrature(process, predict) -> float:
  """∫ E[rate] dt in nats per sequence of toy A, summed over all sequences and mask patterns: no randomness."""
  pattern_PxL = np.indices((2,) * 4).reshape(4, -1).T.astype(bool)
  sequences, probability = TOY.sequences, TOY.probabilities
  state = jnp.asarray(np.where(pattern_PxL[:, None], process.vocab_size, sequences[None]).reshape(-1, 4), jnp.int32)
  ids = jnp.asarray(np.broadcast_to(sequences[None], (16, 81, 4)).reshape(-1, 4))
  logits = predict(process.inputs({}, state, None), None).logits
  lost = pattern_PxL.sum(1)

  @jax.jit
  def at(t):
    rate = process.rate({}, ids, state, jnp.full(ids.shape, t, jnp.float32), logits).sum(1).reshape(16, 81)
    return rate @ jnp.asarray(probability, jnp.float32)

  level = [process.schedule(jnp.float32(t)) for t in NODES]
  total = 0.0
  for node_weight, t, (alpha, noise) in zip(NODE_WEIGHTS, NODES, level):
    law = float(noise) ** lost * float(alpha) ** (4 - lost)
    total += node_weight * float(law @ np.asarray(at(t), np.float64))
  return total


def check_bound_is_the_entropy(process):
  assert abs(quadrature(process, exact) - TOY.entropy) < 2e-4


def check_uniform_predictor_costs_log_v(process):
  assert abs(quadrature(process, uniform) / 4 - np.log(3)) < 5e-5


def check_ends(process):
  ids = jnp.asarray(TOY.sequences)
  for t, want in ((0.0, ids), (1.0, process.prior({}, jax.random.key(1), ids.shape))):
    for seed in range(20):
      np.testing.assert_array_equal(process.corrupt({}, jax.random.key(seed), ids, jnp.full(ids.shape, t)), want)


def check_chapman_kolmogorov(process):
  """corrupt to t then step to s with the true token must leave corrupt's marginal at s, for random per-token t >= s."""
  rows = 40_000
  rng = np.random.default_rng(0)
  t = rng.random(4).astype(np.float32)
  s = (t * rng.random(4)).astype(np.float32)
  ids = jnp.asarray(TOY.sample(rng, rows))
  state = process.corrupt({}, jax.random.key(0), ids, jnp.broadcast_to(t, ids.shape))
  keys = token_keys(row_keys(7, rows), 4)
  logits = jnp.where(ids[..., None] == jnp.arange(3), 0.0, -1e30)
  after = process.step({}, keys, state, logits, jnp.broadcast_to(t, ids.shape), jnp.broadcast_to(s, ids.shape))
  want = np.asarray(process.schedule(jnp.asarray(s)).noise)
  clean = np.asarray(state) != 3
  assert (np.asarray(after)[clean] == np.asarray(state)[clean]).all(), "carry-over"
  known = (np.asarray(after) == np.asarray(ids)) | (np.asarray(after) == 3)
  assert known.all(), "a token that is neither the true one nor the mask"
  got = (np.asarray(after) == 3).mean(0)
  np.testing.assert_array_less(np.abs(got - want), 4 * np.sqrt(want * (1 - want) / rows) + 1e-4)


def check_steps_end_clean(process):
  """The last step of any grid leaves no noise symbol, and every id is a clean one."""
  state = process.prior({}, jax.random.key(0), (500, 4))
  t, s = jnp.full((500, 4), 0.25), jnp.zeros((500, 4))
  after = process.step({}, token_keys(row_keys(0, 500), 4), state, jnp.zeros((500, 4, 3)), t, s)
  assert int(after.max()) < 3 and int(after.min()) >= 0


def check_mean(nats, want: float, largest_error: float = 0.01):
  """The mean is `want` within 3 standard errors, and those are small enough to say something."""
  error = float(np.std(nats)) / len(nats) ** 0.5
  assert error < largest_error * want
  assert abs(float(np.mean(nats)) - want) < 3 * error


CHECKS = [
  check_bound_is_the_entropy,
  check_uniform_predictor_costs_log_v,
  check_ends,
  check_chapman_kolmogorov,
  check_steps_end_clean,
]


@every_row
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(process, check):
  check(process)


@pytest.mark.parametrize("timing", [Shared(), Slanted(1.0), Slanted(4.0)], ids=repr)
@every_row
def test_drawn_bound_is_the_entropy(process, timing):
  """The objective itself, with its own draws: within 3 standard errors, which are below 1 %. Per-token times included."""
  rows, draws = 100_000, 4  # the rate has a heavy tail at small t
  ids = jnp.asarray(TOY.sample(np.random.default_rng(3), rows))
  bound = Bound(process, timing, chunks=Chunks(8192))
  draw = jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), exact).sum(1))
  nats = np.concatenate([draw(jax.random.key(5 + i)) for i in range(draws)])
  check_mean(nats, TOY.entropy)


@every_row
def test_bound_of_a_markov_chain(process):
  """A longer language, by forward-backward."""
  chain = MarkovChain.branchy(0, vocab_size=5, length=12)
  process = dataclasses.replace(process, vocab_size=5)
  rows = 40_000
  ids = jnp.asarray(chain.sample(np.random.default_rng(4), rows))
  predict = lambda inputs, t, layout: exact_prediction(chain.posterior(masked_evidence(inputs.ids, 5)))
  bound = Bound(process, Shared(), chunks=Chunks(8192))
  check_mean(jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), predict).sum(1))(jax.random.key(6)), chain.entropy)


@every_row
def test_given_tokens_are_free_and_clean(process):
  """Given tokens cost nothing and the network reads them clean; what is left costs H(rest | given)."""
  rows = 60_000
  ids = jnp.asarray(TOY.sample(np.random.default_rng(8), rows))
  given = jnp.broadcast_to(jnp.array([True, True, False, False]), ids.shape)
  seen = []

  def predict(inputs, t, layout):
    seen.append((inputs.ids, t))
    return exact(inputs, t)

  nats = Bound(process, Shared()).nats({}, jax.random.key(1), Batch(ids, given=given), Progress(), predict)
  read, t = seen[0]
  np.testing.assert_array_equal(read[:, :2], ids[:, :2])
  assert (np.asarray(t)[:, :2] == 0).all() and not np.asarray(nats)[:, :2].any()
  pairs = TOY.probabilities.reshape(9, 9).sum(1)
  want = TOY.entropy + (pairs * np.log(pairs)).sum()
  check_mean(nats.sum(1), want, largest_error=0.03)


# --- golden numbers of ../shared/reference/discrete.md, section 8 ----------------------------------------------------------------


def patterns(weights) -> float:
  """E over t ~ U[low, 1] and masks of Σ_masked CE · weights(t, number masked), by quadrature."""
  process = Masked(3, Linear())
  pattern_PxL = np.indices((2,) * 4).reshape(4, -1).T.astype(bool)
  state = jnp.asarray(np.where(pattern_PxL[:, None], 3, TOY.sequences[None]).reshape(-1, 4), jnp.int32)
  ids = jnp.asarray(np.broadcast_to(TOY.sequences[None], (16, 81, 4)).reshape(-1, 4))
  logits = exact(process.inputs({}, state, None), None).logits
  cost = np.asarray(process.rate({}, ids, state, jnp.ones(ids.shape), logits).sum(1)).reshape(16, 81) @ TOY.probabilities
  lost = pattern_PxL.sum(1)
  return float(sum(weights(k) * c for k, c in zip(lost, cost)))


def integral(fn, low=0.0):
  t = low + (1 - low) * NODES
  return float(((1 - low) * NODE_WEIGHTS * fn(t)).sum()) / (1 - low)


GOLDEN = {
  "bound": (lambda k: integral(lambda t: t ** (k - 1) * (1 - t) ** (4 - k)) if k else 0, 3.7085873970),
  "t in [1e-3, 1]": (lambda k: integral(lambda t: t ** (k - 1) * (1 - t) ** (4 - k), 1e-3) if k else 0, 3.7096202),
  "t in [1e-2, 1]": (lambda k: integral(lambda t: t ** (k - 1) * (1 - t) ** (4 - k), 1e-2) if k else 0, 3.7188716),
  "unweighted sum": (lambda k: integral(lambda t: t**k * (1 - t) ** (4 - k)), 1.98971),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name):
  """Masked CE at weight 1 (the linear rate at t = 1) under the published estimators of toy A."""
  weights, want = GOLDEN[name]
  assert patterns(weights) == pytest.approx(want, abs=6e-6)


def ancestral_law(steps: int) -> np.ndarray:
  """Exact law of `steps` ancestral steps on toy A: a Markov chain over the 4^4 partly masked states."""
  states = np.indices((4,) * 4).reshape(4, -1).T
  logits = np.asarray(TOY.posterior(masked_evidence(jnp.asarray(states, jnp.int32), 3)), np.float64)
  predicted = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
  law = np.zeros(256)
  law[-1] = 1.0  # all mask
  grid = np.asarray(Shared().grid(steps, 1))[:, 0]
  for t, s in itertools.pairwise(grid):
    reveal = float(reveal_probability(Linear(), jnp.float32(t), jnp.float32(s)))
    after = np.zeros(256)
    for number in np.nonzero(law)[0]:
      joint = np.ones(1)
      for place, token in enumerate(states[number]):
        one = np.eye(4)[token] if token < 3 else np.append(reveal * predicted[number, place], 1 - reveal)
        joint = np.multiply.outer(joint, one).reshape(-1)
      after += law[number] * joint
    law = after
  return law.reshape((4,) * 4)[:3, :3, :3, :3].reshape(-1)


@pytest.mark.parametrize("steps,want", [(1, 0.44769), (4, 0.14712), (16, 0.03920), (64, 0.00996), (256, 0.00250)])
def test_golden_total_variation_of_ancestral_steps(steps, want):
  assert TOY.total_variation(ancestral_law(steps)) == pytest.approx(want, abs=2e-5)


# --- mutants: each breaks one line, and the named check must notice -------------------------------------------------------------


class NoCarryOver(Masked):
  def step(self, params, keys, state, logits, t, s):
    return jnp.where(self.moves(params, keys, state, t, s), self.draw(params, keys, state, logits), self.mask_id)


class SquaredWeight(Masked):
  def rate(self, params, ids, state, t, logits):
    return super().rate(params, ids, state, t, logits) * weight(self.schedule, t)


class OffByOne(Masked):
  def moves(self, params, keys, state, t, s):
    return super().moves(params, keys, state, t, t - (t - s) / 2)


class SamplesTheMask(Masked):
  def draw(self, params, keys, state, logits):
    with_mask = jnp.concatenate([logits, jnp.max(logits, axis=-1, keepdims=True)], axis=-1)
    return super().draw(params, keys, state, with_mask)


class ScoresEverything(Masked):
  def scored(self, params, state, t):
    return jnp.ones(state.shape, bool)


MUTANTS = [
  (NoCarryOver, check_chapman_kolmogorov),
  (SquaredWeight, check_bound_is_the_entropy),
  (SquaredWeight, check_uniform_predictor_costs_log_v),
  (OffByOne, check_chapman_kolmogorov),
  (OffByOne, check_steps_end_clean),
  (SamplesTheMask, check_steps_end_clean),
  (ScoresEverything, check_uniform_predictor_costs_log_v),
]


@pytest.mark.parametrize("mutant,check", MUTANTS, ids=lambda value: value.__name__)
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant(3, Linear()))

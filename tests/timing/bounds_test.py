"""Which timings give the bound: with exact networks it is the entropy, for the surrogate it is not.

By quadrature and by draws. Masked diffusion is written out here, in numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.experiment.settings import EvaluateSettings
from diffusion_text.experiment.validation import scoring_model
from diffusion_text.process import Uniform
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.small_transformer import small_transformer
from diffusion_text.timing import (
  AtNoise,
  Converging,
  ExactCount,
  Hyperschedule,
  Independent,
  Learned,
  Shared,
  Slanted,
  Tilted,
)
from diffusion_text.types import Batch, Model, Progress

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
COPIES = Enumerable(np.array([[0] * 4, [1] * 4], np.int32), np.array([0.5, 0.5]), 2)
BITS = np.indices((2,) * 4).reshape(4, -1).T.astype(np.int32)
PARITY = Enumerable(BITS[BITS.sum(1) % 2 == 0], np.full(8, 1 / 8), 2)
ROWS = 200_000

# noise(t), and the hazard noise'(t) / noise(t)
SCHEDULES = {
  "linear": (lambda t: t, lambda t: 1 / t),
  "square": (lambda t: t**2, lambda t: 2 / t),
  "cosine": (lambda t: np.sin(np.pi / 2 * t), lambda t: np.pi / 2 / np.tan(np.pi / 2 * t)),
}


def every_cost(language) -> np.ndarray:
  """[2^L, M, L]: -log p(x_i | the tokens in a set), for each set (bits) and each sequence."""
  patterns, sequences = np.indices((2,) * 4).reshape(4, -1).T.astype(bool), language.sequences
  same = sequences[:, None] == sequences[None]  # [M, M', L]
  agree = (same[None] | ~patterns[:, None, None]).all(-1)  # of sequences m and m' on the set
  mass = agree @ language.probabilities
  with_token = np.einsum("smn,mnl,n->sml", agree, same, language.probabilities)
  return np.log(mass)[..., None] - np.log(with_token)


def seen_first(language) -> np.ndarray:
  """[M]: -log p(x) of each sequence."""
  return -np.log(language.probabilities)


def nats_per_row(times, language=TOY, schedule="linear", context="full", seed=5) -> np.ndarray:
  """[ROWS]: one draw of the bound per sequence of the language, less -log p(x)."""
  rng = np.random.default_rng(seed)
  numbers = np.repeat(
    np.arange(len(language.sequences)),
    np.diff(np.round(np.r_[0, np.cumsum(language.probabilities)] * ROWS)).astype(int),
  )
  numbers = rng.permutation(numbers)
  noise, hazard = SCHEDULES[schedule]
  t, speed = (np.asarray(x, np.float64).reshape(ROWS, 4) for x in (times.t, times.dt_dtau))
  masked = rng.random(t.shape) < noise(t)
  with np.errstate(divide="ignore", invalid="ignore"):
    rate = np.where(masked, hazard(np.minimum(t, 1.0)), 0.0)
  costs, place = every_cost(language), 2 ** np.arange(3, -1, -1)
  if context == "full":
    cost = costs[~masked @ place, numbers]
  else:  # blocks of `context` tokens: clean before the block, noisy in it, nothing after it
    block = np.arange(4) // context
    cost = np.zeros(t.shape)
    for i in range(4):
      known = np.where(block == block[i], ~masked, block < block[i])
      cost[:, i] = costs[known @ place, numbers, i]
  return (speed * rate * cost).sum(1) - seen_first(language)[numbers]


def distance(excess, want: float = 0.0, scale=TOY.entropy) -> float:
  """Of the mean from what is wanted, in standard errors, which are below 2 % of the entropy."""
  error = excess.std() / len(excess) ** 0.5
  assert error < 0.02 * scale
  return abs(float(excess.mean()) - want) / error


class SpeedForgotten(Hyperschedule):
  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(dt_dtau=jnp.ones_like(times.t))


class WrongWeight(ExactCount):
  """The weight of an average row, 2, for every count."""

  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(dt_dtau=2 * times.t)


LEVELS = {"levels": jax.random.normal(jax.random.key(1), (5,))}
# name -> (timing, units of a row)
TIMINGS = {
  "shared": (Shared(), 1),
  "shared, power 2": (Shared(power=2.0), 1),
  "shared, power 3": (Shared(power=3.0), 1),
  "shared, about a time": (Shared(about=0.4, width=0.2), 1),
  "exact_count": (ExactCount(), 1),
  "wave 1": (Hyperschedule(kind="wave", width=1), 1),
  "wave 2": (Hyperschedule(kind="wave", width=2), 1),
  "wave 50": (Hyperschedule(kind="wave", width=50), 1),
  "blocks 1": (Hyperschedule(kind="blocks", width=1), 1),
  "blocks 3": (Hyperschedule(kind="blocks", width=3), 1),
  "learned": (Learned(bins=5), 1),
  "tilted": (Tilted(ratio=0.05), 1),
  "tilted in units": (Tilted(), 2),
  "converging": (Converging(levels=5), 1),
  "slanted in units": (Slanted(spread=2.0), 2),
  "shared in units": (Shared(), 2),
  "at_noise": (AtNoise(), 4),
  "exact_count in units": (ExactCount(), 2),
  "independent": (Independent(), 1),
  "speed forgotten": (SpeedForgotten(kind="wave", width=2), 1),
  "wrong weight": (WrongWeight(), 1),
}


@pytest.fixture(scope="module")
def times():
  """name -> Times of ROWS rows of 4 tokens."""

  def everything():
    found = {}
    for name, (timing, units) in TIMINGS.items():
      batch = Batch(np.zeros((ROWS * units, 4 // units), np.int32))
      params = LEVELS if name == "learned" else {}
      found[name] = timing.draw(params, jax.random.key(5), batch, Progress(units=units))
    return found

  return jax.device_get(jax.jit(everything)())


BOUNDS = [
  ("shared", "linear", "full"),
  ("shared, power 2", "linear", "full"),
  ("shared, power 3", "linear", "full"),
  ("shared, power 2", "square", "full"),
  ("shared, about a time", "linear", "full"),
  ("exact_count", "linear", "full"),
  ("wave 1", "linear", "full"),
  ("wave 2", "linear", "full"),
  ("wave 50", "linear", "full"),
  ("wave 2", "cosine", "full"),
  ("blocks 1", "linear", "full"),
  ("blocks 3", "linear", "full"),
  ("learned", "linear", "full"),
  ("learned", "cosine", "full"),
  ("tilted", "linear", "full"),
  ("tilted in units", "cosine", 2),
  ("converging", "linear", "full"),
  ("slanted in units", "linear", 2),
  ("shared in units", "square", 2),
  ("exact_count in units", "linear", 2),
]


@pytest.mark.parametrize("name, schedule, context", BOUNDS)
def test_the_bound_is_the_entropy(name, schedule, context, times):
  assert distance(nats_per_row(times[name], schedule=schedule, context=context)) < 3.5


def test_one_token_at_a_time_is_the_likelihood_of_every_row(times):
  excess = nats_per_row(times["at_noise"], context=1)
  np.testing.assert_allclose(excess, 0.0, atol=1e-9)


def test_a_reported_bound_is_drawn_as_the_process_asks():
  """Options of the training times do not get in the way, and timings with times of their own keep
  them."""
  asked = {"power": 3.0}
  assert Shared(about=0.4).for_bound(asked) == Shared(power=3.0)
  assert Shared(power=2.0).for_bound({}) == Shared(power=2.0)
  for own in (ExactCount(), Learned(bins=5)):
    assert own.for_bound(asked) == own
  process = Uniform(vocab_size=8)
  model = Model(small_transformer(), process, Independent(), Full())
  assert process.bound_times() == asked
  assert scoring_model(model, EvaluateSettings()).timing == Shared(power=3.0)


@pytest.mark.parametrize("name", ["speed forgotten", "wrong weight"])
def test_what_is_no_bound_is_noticed(name, times):
  assert distance(nats_per_row(times[name])) > 5


def test_independent_times_are_noticed(times):
  """Where they differ much; on TOY a surrogate is 3 % off, its tail nearly as much."""
  excess = nats_per_row(times["independent"], PARITY)
  assert distance(excess, scale=PARITY.entropy) > 5


def test_exact_counts_lower_the_variance(times):
  shared, counted = (nats_per_row(times[name]) for name in ("shared", "exact_count"))
  assert counted.var() < 0.7 * shared.var()


def test_jumps_are_the_bound_where_noise_costs_the_likelihood_only(times):
  """At t = 1 the hazard of the square schedule is 2: `rate_at_noise_is_nll` is False there."""
  assert ExactCount().path == "jumps"
  assert distance(nats_per_row(times["exact_count"], schedule="square")) > 5


def quadrature(language, independent: bool) -> float:
  """E[Σ rate] of masked diffusion with the linear schedule, nats per sequence: no randomness.

  Token i is masked at t_i with probability t_i and then costs CE / t_i, so its time cancels; it
  remains how many of the others are known, each with probability 1 - t_j: t_j integrated by
  Gauss-Legendre one by one, or one t for all.
  """
  nodes, weights = np.polynomial.legendre.leggauss(20)
  nodes, weights = (nodes + 1) / 2, weights / 2
  patterns = np.indices((2,) * 4).reshape(4, -1).T.astype(bool)
  costs = np.einsum("sml,m->ls", every_cost(language), language.probabilities)
  total = 0.0
  for i in range(4):
    for pattern, nats in zip(patterns, costs[i], strict=True):
      if pattern[i]:
        continue  # known, so it costs nothing
      law = np.stack([1 - nodes if known else nodes for known in np.delete(pattern, i)])
      chance = np.prod(law @ weights) if independent else np.prod(law, axis=0) @ weights
      total += chance * nats
  return float(total)


LANGUAGES = {
  "toy": (TOY, None),
  "four copies of a bit": (COPIES, 0.5 * np.log(2)),
  "four bits of even parity": (PARITY, 3.5 * np.log(2)),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_independent_times_give_a_surrogate_on_either_side_of_the_bound(name, times):
  """One path for all gives the entropy; independent times do not; draws agree with quadrature."""
  language, want = LANGUAGES[name]
  value = quadrature(language, independent=True)
  assert quadrature(language, independent=False) == pytest.approx(language.entropy, abs=1e-5)
  assert abs(value - language.entropy) > 0.02
  assert want is None or value == pytest.approx(want, abs=1e-6)
  excess = nats_per_row(times["independent"], language)
  assert distance(excess, value - language.entropy, language.entropy) < 3


def test_independent_times_agree_with_the_bound_where_tokens_know_nothing_of_each_other():
  single = np.array([0.2, 0.8])
  coins = Enumerable(BITS, np.prod(single[BITS], axis=1), 2)
  assert quadrature(coins, independent=True) == pytest.approx(coins.entropy, abs=1e-5)


def test_observed_tokens_are_not_counted():
  """Exact counts are among the tokens that are scored, so what is left costs H(rest | observed)."""
  observed = np.broadcast_to(np.array([True, True, False, False]), (ROWS, 4))
  batch = Batch(np.zeros((ROWS, 4), np.int32), observed=observed)
  times = jax.jit(lambda: ExactCount().draw({}, jax.random.key(5), batch, Progress()))()
  assert not np.asarray(times.t)[:, :2].any() and not np.asarray(times.dt_dtau)[:, :2].any()
  pairs = TOY.probabilities.reshape(9, 9).sum(1)
  known = -(pairs * np.log(pairs)).sum()
  assert distance(nats_per_row(times), -known) < 3.5

"""Which timings give the bound: with exact denoisers it is the entropy, for the surrogate it is not, by quadrature and by draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.objective.bound import Bound, Chunks
from diffusion_text.process.masked import Masked
from diffusion_text.schedules.discrete import Cosine, Linear, Polynomial
from diffusion_text.testing.oracle import Enumerable, exact_prediction, masked_evidence
from diffusion_text.timing import Counted, Hyperschedule, Independent, Paced, PerBlock, Shared
from diffusion_text.types import Batch, Progress
from tests.process.block_test import CHAIN, LENGTH, VOCAB, exact_blocks

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
COPIES = Enumerable(np.array([[0] * 4, [1] * 4], np.int32), np.array([0.5, 0.5]), 2)
BITS = np.indices((2,) * 4).reshape(4, -1).T.astype(np.int32)
PARITY = Enumerable(BITS[BITS.sum(1) % 2 == 0], np.full(8, 1 / 8), 2)


def exact(language):
  """The exact denoiser of a language of 4 tokens, from a table of all partly masked rows."""
  symbols = language.vocab_size + 1
  states = jnp.asarray(np.indices((symbols,) * 4).reshape(4, -1).T, jnp.int32)
  table = language.posterior(masked_evidence(states, language.vocab_size))
  place = symbols ** jnp.arange(3, -1, -1)
  return lambda inputs, t, layout: exact_prediction(table[inputs.ids @ place])


def nats_per_row(timing, language=TOY, schedule=None, rows=200_000, seed=5) -> np.ndarray:
  """[rows]: one draw of the objective per sequence drawn from the language, under its exact denoiser."""
  predict = exact(language)
  ids = jnp.asarray(language.sample(np.random.default_rng(3), rows))
  bound = Bound(Masked(language.vocab_size, schedule or Linear()), timing, Chunks(8192))
  return np.asarray(
    jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), predict).sum(1))(
      jax.random.key(seed)
    )
  )


def distance(nats, want: float) -> float:
  """Of the mean from what is wanted, in standard errors, which are below 2 % (1 / t has a heavy tail)."""
  error = nats.std() / len(nats) ** 0.5
  assert error < 0.02 * nats.mean()
  return abs(float(nats.mean()) - want) / error


PACED = Paced(jax.nn.softmax(jax.random.normal(jax.random.key(1), (4, 5)), axis=-1))
BOUNDS = [
  *((timing, Linear()) for timing in (Shared(2.0), Shared(3.0), Counted())),
  *((Hyperschedule("wave", width), Linear()) for width in (1, 2, 50)),
  *((Hyperschedule("blocks", width), Linear()) for width in (1, 3, 4)),
  (Hyperschedule("wave", 2), Cosine()),
  (PACED, Linear()),
  (PACED, Cosine()),
  (Shared(2.0), Polynomial(2.0)),
]


@pytest.mark.parametrize("timing,schedule", BOUNDS, ids=repr)
def test_the_bound_is_the_entropy(timing, schedule):
  assert distance(nats_per_row(timing, schedule=schedule), TOY.entropy) < 3


class SpeedForgotten(Hyperschedule):
  def draw(self, key, batch, progress):
    return super().draw(key, batch, progress)._replace(speed=jnp.ones(batch.ids.shape))


class WrongWeight(Counted):
  """The weight of an average row, 2, for every count."""

  def draw(self, key, batch, progress):
    times = super().draw(key, batch, progress)
    return times._replace(speed=2 * times.t)


@pytest.mark.parametrize(
  "mutant", [SpeedForgotten("wave", 2), WrongWeight(), Independent()], ids=repr
)
def test_what_is_no_bound_is_noticed(mutant):
  language = (
    PARITY if isinstance(mutant, Independent) else TOY
  )  # on toy A a surrogate is 3 % off, its tail nearly as much
  assert distance(nats_per_row(mutant, language), language.entropy) > 5


def test_counting_lowers_the_variance():
  shared, counted = nats_per_row(Shared()), nats_per_row(Counted())
  print(
    f"toy A: mean {shared.mean():.4f} shared, {counted.mean():.4f} counted, entropy {TOY.entropy:.4f} nats"
  )
  print(
    f"variance of one row and draw: {shared.var():.3f} shared, {counted.var():.3f} counted, nats²"
  )
  assert distance(counted, TOY.entropy) < 3
  assert counted.var() < 0.7 * shared.var()


def test_counting_does_not_fit_other_schedules():
  """Why it is `clipped`: a discrete-time process is another bound, and rate(t = 1) is CE for the linear schedule only."""
  assert Counted().clipped
  assert distance(nats_per_row(Counted(), schedule=Polynomial(2.0)), TOY.entropy) > 5


def known_tokens(language) -> np.ndarray:
  """[L, 2^L]: E[-log p(x_i | the tokens in a set)] in nats, for every set of known tokens as a bit pattern."""
  length = language.sequences.shape[1]
  patterns = np.indices((2,) * length).reshape(length, -1).T.astype(bool)
  ids = np.where(patterns[:, None], language.sequences[None], language.vocab_size).reshape(
    -1, length
  )
  logits = np.asarray(
    language.posterior(masked_evidence(jnp.asarray(ids, jnp.int32), language.vocab_size)),
    np.float64,
  )
  logits = logits.reshape(len(patterns), -1, length, language.vocab_size)
  cost = -np.take_along_axis(logits, language.sequences[None, :, :, None], -1)[..., 0]
  return np.einsum("psl,s->lp", cost, language.probabilities)


def quadrature(language, independent: bool) -> float:
  """E[Σ rate] of masked diffusion with the linear schedule, nats per sequence: no randomness.

  Token i is masked at t_i with probability t_i and then costs CE / t_i, so its time cancels; it remains how many of the others are
  known, each with probability 1 - t_j: t_j integrated by Gauss-Legendre one by one, or one t for all.
  """
  length = language.sequences.shape[1]
  nodes, weights = np.polynomial.legendre.leggauss(20)
  nodes, weights = (nodes + 1) / 2, weights / 2
  patterns = np.indices((2,) * length).reshape(length, -1).T.astype(bool)
  cost, total = known_tokens(language), 0.0
  for i in range(length):
    for pattern, nats in zip(patterns, cost[i]):
      if pattern[i]:
        continue  # known, so it costs nothing
      law = np.stack([1 - nodes if known else nodes for known in np.delete(pattern, i)])
      chance = np.prod(law @ weights) if independent else np.prod(law, axis=0) @ weights
      total += chance * nats
  return float(total)


LANGUAGES = {
  "toy A": (TOY, None),
  "four copies of a bit": (COPIES, 0.5 * np.log(2)),
  "four bits of even parity": (PARITY, 3.5 * np.log(2)),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_independent_times_give_a_surrogate_on_either_side_of_the_bound(name):
  """One path for all gives the entropy; independent times do not, and the drawn objective agrees with the quadrature."""
  language, want = LANGUAGES[name]
  value = quadrature(language, independent=True)
  print(
    f"{name}: independent times {value:.4f}, one time {quadrature(language, False):.4f}, entropy {language.entropy:.4f} nats"
  )
  assert quadrature(language, independent=False) == pytest.approx(language.entropy, abs=1e-5)
  assert abs(value - language.entropy) > 0.02
  assert want is None or value == pytest.approx(want, abs=1e-6)
  assert distance(nats_per_row(Independent(), language), value) < 3


def test_independent_times_agree_with_the_bound_where_they_must():
  """Two tokens; or tokens that know nothing of each other."""
  pair = Enumerable.dirichlet(1, 0.7, 4, 2)
  assert quadrature(pair, independent=True) == pytest.approx(pair.entropy, abs=1e-6)
  single = np.array([0.2, 0.8])
  coins = Enumerable(BITS, np.prod(single[BITS], axis=1), 2)
  assert quadrature(coins, independent=True) == pytest.approx(coins.entropy, abs=1e-5)


def chain_bound(timing, rows=6000) -> tuple[float, float]:
  """(mean, standard error) of the bound of a Markov chain under the exact denoiser of whatever the layout shows."""
  ids = jnp.asarray(CHAIN.sample(np.random.default_rng(0), rows))
  bound = Bound(Masked(VOCAB, Linear()), timing.scoring(), Chunks(8192))
  nats = np.asarray(
    jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), exact_blocks).sum(1))(
      jax.random.key(1)
    )
  )
  return float(nats.mean()), float(nats.std()) / rows**0.5


@pytest.mark.parametrize(
  "timing", [PerBlock(4, spread=2.0), PerBlock(LENGTH, 0.3, 0.8, spread=1.0)], ids=repr
)
def test_slanted_blocks_give_the_bound(timing):
  mean, error = chain_bound(timing)
  assert error < 0.025 * CHAIN.entropy and abs(mean - CHAIN.entropy) < 3 * error


def test_causal_context_pays_for_what_it_does_not_see():
  """One token after the other needs nothing on the right; a causal wave of several tokens is a looser bound, not a wrong one."""
  mean, error = chain_bound(Hyperschedule("wave", 1, "causal"))
  assert abs(mean - CHAIN.entropy) < 3 * error
  mean, error = chain_bound(Hyperschedule("blocks", 6, "causal"))
  assert mean > CHAIN.entropy + 5 * error


def test_given_tokens_are_not_counted():
  """Counted masks among the tokens that are scored, so what is left costs H(rest | given)."""
  rows = 60_000
  ids = jnp.asarray(TOY.sample(np.random.default_rng(8), rows))
  given = jnp.broadcast_to(jnp.array([True, True, False, False]), ids.shape)
  bound, predict = Bound(Masked(3, Linear()), Counted(), Chunks(8192)), exact(TOY)
  nats = np.asarray(
    jax.jit(lambda key: bound.nats({}, key, Batch(ids, given), Progress(), predict))(
      jax.random.key(1)
    )
  )
  pairs = TOY.probabilities.reshape(9, 9).sum(1)
  assert not nats[:, :2].any()
  assert distance(nats.sum(1), TOY.entropy + (pairs * np.log(pairs)).sum()) < 3

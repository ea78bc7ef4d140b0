"""Times by token: the Poisson law and its quantiles, and rarity as a place in the corpus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_text.timing import ByInformation, Poisson
from diffusion_text.timing.by_token import poisson_quantile, rarity, tf_idf_entropy
from diffusion_text.types import Batch, DataFacts, Progress

COUNTS = np.array([6, 2, 2, 0])


def check_poisson_law(t, speed):
  """Moments and shares at either end, against numpy: λ = 198 τ, of deviation λ before the cut."""
  levels = np.round(t * 99)
  assert set(np.unique(levels)) == set(range(100)) and np.abs(t * 99 - levels).max() < 1e-4
  np.testing.assert_array_equal(speed, t > 0)
  rng = np.random.default_rng(0)
  mean = 198 * rng.random(200_000)
  level = np.clip(np.round(mean * (1 + (rng.poisson(mean) - mean) / np.sqrt(mean))), 0, 99) / 99

  def statistics(x):
    return np.array([x.mean(), (x**2).mean(), (x == 0).mean(), (x == 1).mean()])

  np.testing.assert_allclose(statistics(t), statistics(level), atol=0.01)
  within = np.corrcoef(t[:, 0], t[:, 1])[0, 1]
  assert 0.05 < within < 0.6  # a common clock, and a count of its own


def test_the_published_poisson_law():
  batch = Batch(np.zeros((2048, 16), np.int32))
  times = jax.jit(lambda key: Poisson().draw({}, key, batch, Progress()))(jax.random.key(0))
  t, speed = np.asarray(times.t), np.asarray(times.dt_dtau)
  check_poisson_law(t, speed)
  one_count, bent = np.repeat(t[:, :1], 16, axis=1), np.round(99 * t**1.1) / 99
  for mutant in ((one_count, one_count > 0), (bent, speed), (t, np.ones_like(speed))):
    with pytest.raises(AssertionError):
      check_poisson_law(*mutant)


def test_poisson_quantiles_are_those_of_scipy():
  """Over the whole range of the clock."""
  rng = np.random.default_rng(0)
  mean = np.concatenate([rng.uniform(0, 198, (60, 1)), [[0.01], [1.0], [198.0]]])
  mean = mean.astype(np.float32)
  share = rng.uniform(0.001, 0.999, (63, 40)).astype(np.float32)
  want = scipy.stats.poisson.ppf(share, mean)
  got = jax.jit(poisson_quantile, static_argnums=2)(share, mean, 198)
  # The law is in float32.
  assert (got == want).mean() > 0.999 and np.abs(got - want).max() <= 1


ROWS, LENGTH = 3, 6
COUNTED = np.array([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]], bool)


def reference_labels(timing, clock, cost, counts, segment=None):
  """The r-th lowest cost of n has the quantile (r - 1/2) / n of the row's law, in each document."""
  labels, most = np.zeros(cost.shape), timing.levels - 1
  segment = np.zeros(cost.shape) if segment is None else segment
  documents = [(row, document) for row in range(len(cost)) for document in np.unique(segment[row])]
  for row, document in documents:
    here = np.flatnonzero(counts[row] & (segment[row] == document))
    mean = 2 * most * clock[row, 0]
    for rank, place in enumerate(here[np.argsort(cost[row, here])]):
      count = scipy.stats.poisson.ppf((rank + 0.5) / len(here), mean)
      level = np.round((count - mean) / np.sqrt(mean) * timing.spread * mean + mean)
      labels[row, place] = np.clip(level, 0, most) / most
  return labels


class RanksTheOthersToo(Poisson):
  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, cost, jnp.ones_like(counts), segment)


class HardTokensFirst(Poisson):
  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, -cost, counts, segment)


class OneTimeForAll(Poisson):
  def labels(self, tau, cost, counts, segment):
    return jnp.broadcast_to(jnp.minimum(2 * tau, 1.0), cost.shape)


class OneDocument(Poisson):
  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, cost, counts, None)


def check_labels(cls):
  rng = np.random.default_rng(1)
  clock = rng.uniform(0.05, 0.6, (ROWS, 1)).astype(np.float32)
  cost = rng.normal(size=(ROWS, LENGTH)).astype(np.float32)
  in_runs = np.sort(rng.integers(0, 3, (ROWS, LENGTH)), axis=1)
  mixed = rng.integers(0, 2, (ROWS, LENGTH))
  for spread, segment in ((1.0, None), (0.3, in_runs), (0.3, mixed)):
    timing = cls(spread=spread)
    want = reference_labels(timing, clock, cost, COUNTED, segment)
    found = jax.jit(timing.labels)(clock, cost, COUNTED, segment)
    np.testing.assert_allclose(np.where(COUNTED, found, 0), want, atol=1e-5)


def test_labels_are_times_of_the_law_in_the_order_of_the_cost():
  check_labels(Poisson)
  for mutant in (RanksTheOthersToo, HardTokensFirst, OneTimeForAll, OneDocument):
    with pytest.raises(AssertionError):
      check_labels(mutant)


def test_rarity_is_the_share_of_the_corpus_that_is_commoner():
  np.testing.assert_allclose(rarity(COUNTS), [0.3, 0.8, 0.8, 1.0], rtol=1e-6)
  np.testing.assert_allclose(rarity(np.array([5, 5])), [0.5, 0.5])
  counts = np.random.default_rng(0).zipf(1.5, 100)
  assert np.average(rarity(counts), weights=counts) == pytest.approx(0.5)


def test_tf_idf_and_entropy_are_highest_for_words_of_few_documents():
  """Of 100 tokens in 8 documents: one of every document, one that fills one document, a rare one,
  and one that never occurs.
  """
  counts, documents = np.array([80, 16, 4, 0]), np.array([8, 1, 2, 0])
  p = np.array([0.8, 0.16, 0.04])
  tf_idf = np.array([10 * np.log(9 / 9), 16 * np.log(9 / 2), 2 * np.log(9 / 3)])
  entropy = -p * np.log(p)
  want = tf_idf / (p @ tf_idf) + entropy / (p @ entropy)
  np.testing.assert_allclose(tf_idf_entropy(counts, documents), [*want, 0], rtol=1e-6)
  facts = DataFacts(3, 4, lambda: counts, lambda: documents)
  timing = ByInformation(information="tf_idf_entropy")
  found = timing.init(jax.random.key(0), facts)["rarity"]
  np.testing.assert_allclose(found, [0.4, 0.92, 0.82, 0.0], rtol=1e-6)
  rare = ByInformation().init(jax.random.key(0), facts)["rarity"]
  np.testing.assert_allclose(rare, [0.4, 0.88, 0.98, 1.0], rtol=1e-6)
  with pytest.raises(ValueError, match="needs the document counts"):
    timing.init(jax.random.key(0), DataFacts(3, 4, lambda: counts))


@pytest.mark.parametrize("first", [True, False])
def test_rare_tokens_fall_first_or_last(first):
  timing = ByInformation(spread=3.0, informative_first=first)
  params = timing.init(jax.random.key(0), DataFacts(3, 4, token_counts=lambda: COUNTS))
  batch = Batch(np.broadcast_to(np.array([0, 1, 3], np.int32), (400, 3)))
  times = jax.jit(lambda: timing.draw(params, jax.random.key(0), batch, Progress()))()
  order = np.argsort(times.tau[:, 0])
  t, speed = np.asarray(times.t)[order], np.asarray(times.dt_dtau)[order]
  assert t[0].min() == 0 and t[-1].max() == 1 and (np.diff(t, axis=0) >= 0).all()
  rising = np.diff(t, axis=1)
  assert (rising <= 0).all() if first else (rising >= 0).all()
  assert (rising != 0).any() and set(np.unique(speed)) == {0.0, 4.0}


def test_token_counts_are_asked_for():
  with pytest.raises(ValueError, match="needs the token counts of the training split"):
    ByInformation().init(jax.random.key(0), DataFacts(3, 4))

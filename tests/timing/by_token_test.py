"""Times by token: the published Poisson law, rarity as a place in the corpus, and times that must not be told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import infodiffusion
from diffusion_text.experiment.build import build
from diffusion_text.objective.bound import Bound, noised
from diffusion_text.process.masked import Masked
from diffusion_text.schedules.discrete import Linear
from diffusion_text.timing import ByInformation, Poisson, Shared, rarity
from diffusion_text.types import Batch, Prediction, Progress

COUNTS = lambda: np.array([6, 2, 2, 0])


def check_poisson_law(t, speed):
  """Mean, mean square and the shares at either end, against the definition in numpy: λ = 198 τ, of standard deviation λ before the cut."""
  assert (
    set(np.unique(np.round(t * 99))) == set(range(100))
    and np.abs(t * 99 - np.round(t * 99)).max() < 1e-4
  )
  np.testing.assert_array_equal(speed, t > 0)
  rng = np.random.default_rng(0)
  mean = 198 * rng.random(200_000)
  level = np.clip(np.round(mean * (1 + (rng.poisson(mean) - mean) / np.sqrt(mean))), 0, 99) / 99
  statistics = lambda x: np.array([x.mean(), (x**2).mean(), (x == 0).mean(), (x == 1).mean()])
  np.testing.assert_allclose(statistics(t), statistics(level), atol=0.01)
  within = np.corrcoef(t[:, 0], t[:, 1])[0, 1]
  assert 0.05 < within < 0.6  # a common clock, and a count of its own


def test_the_published_poisson_law():
  batch = Batch(jnp.zeros((2048, 16), jnp.int32))
  times = jax.jit(lambda key: Poisson().draw(key, batch, Progress()))(jax.random.key(0))
  t, speed = np.asarray(times.t), np.asarray(times.speed)
  check_poisson_law(t, speed)
  mutants = [
    (np.repeat(t[:, :1], 16, axis=1),) * 2,
    (np.round(99 * t**1.1) / 99, speed),
    (t, np.ones_like(speed)),
  ]
  for mutant in mutants:
    with pytest.raises(AssertionError):
      check_poisson_law(mutant[0], mutant[1] if mutant[1] is not mutant[0] else mutant[0] > 0)


def test_rarity_is_the_share_of_the_corpus_that_is_commoner():
  np.testing.assert_allclose(rarity(np.array([6, 2, 2, 0])), [0.3, 0.8, 0.8, 1.0], rtol=1e-6)
  np.testing.assert_allclose(rarity(np.array([5, 5])), [0.5, 0.5])
  counts = np.random.default_rng(0).zipf(1.5, 100)
  assert np.average(rarity(counts), weights=counts) == pytest.approx(0.5)


@pytest.mark.parametrize("first", [True, False])
def test_rare_tokens_fall_first_or_last(first):
  timing = ByInformation(3.0, informative_first=first, counts=COUNTS)
  clock = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
  t, _ = map(np.asarray, timing.times(clock, rarity(COUNTS())[[0, 1, 3]][None]))
  assert (t[0] == 0).all() and (t[-1] == 1).all() and (np.diff(t, axis=0) >= 0).all()
  rarer_is_cleaner = np.diff(t, axis=1) <= 0
  assert rarer_is_cleaner.all() if first else (np.diff(t, axis=1) >= 0).all()
  np.testing.assert_array_equal(
    np.ptp(timing.times(clock, np.float32([[0.0, 1.0]]))[1], axis=0), [4, 4]
  )


def test_the_network_is_told_the_clock_and_not_the_times_that_give_tokens_away():
  timing, process = ByInformation(2.0, counts=COUNTS), Masked(4, Linear())
  given = jnp.arange(6)[None] < 2

  def told(ids, timing):
    seen = []
    batch = Batch(jnp.asarray(ids, jnp.int32), given=jnp.broadcast_to(given, (8, 6)))

    def predict(inputs, t, layout):
      seen.append(np.broadcast_to(np.asarray(t), (8, 6)))
      return Prediction(jnp.zeros((8, 6, 1)), lambda features: jnp.zeros((*features.shape[:-1], 4)))

    noise = noised(process, timing, {}, jax.random.key(0), batch, Progress(), predict)
    return seen[0], np.broadcast_to(noise.times.t, (8, 6))

  common, rare = np.zeros((8, 6)), np.full((8, 6), 3)
  (told_common, t_common), (told_rare, t_rare) = told(common, timing), told(rare, timing)
  np.testing.assert_array_equal(told_common, told_rare)
  assert (t_common[:, 2:] != t_rare[:, 2:]).any()  # which is why
  assert (
    not told_rare[:, :2].any()
    and (np.ptp(told_rare[:, 2:], axis=1) == 0).all()
    and (told_rare[:, 2:] > 0).all()
  )

  class Leaky(ByInformation):
    def draw(self, key, batch, progress):
      return super().draw(key, batch, progress)._replace(told=None)

  leaky = Leaky(2.0, counts=COUNTS)
  assert (told(common, leaky)[0] != told(rare, leaky)[0]).any()


@pytest.mark.parametrize("timing", [Poisson(), ByInformation(counts=COUNTS)], ids=repr)
def test_surrogates_are_scored_and_sampled_under_shared_times(timing):
  assert (
    timing.scoring() == Shared() and Bound(Masked(4, Linear()), timing.scoring()).timing == Shared()
  )
  np.testing.assert_array_equal(timing.grid(5, 3), Shared().grid(5, 3))


@pytest.mark.parametrize("make, message", [
  (lambda: Poisson(1), r"timing.levels=1 must be at least 2"),
  (lambda: Poisson(spread=-1.0), r"timing.spread=-1.0 must be at least 0"),
  (lambda: ByInformation(-0.5), r"timing.spread=-0.5 must be at least 0"),
  (lambda: ByInformation().draw(jax.random.key(0), Batch(jnp.zeros((1, 2), jnp.int32)), Progress()), r"needs the token counts"),
])  # fmt: skip
def test_values_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_building_counts_nothing():
  """The corpus is asked when the first training batch is drawn, not by build, and never by a sampler."""
  experiment = build(
    infodiffusion.get_config("micro"), tokenizer=type("Any", (), {"vocab_size": 64, "name": "any"})
  )
  assert experiment.timing.counts is not None and experiment.bound.timing == Shared()

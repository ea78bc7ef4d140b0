"""Times by frequency against the published scaling, its mean, and mutants that fail."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.contrib.frequency_times import (
  ByFrequency,
  Spindle,
  log_frequency,
  rank_weights,
)
from diffusion_text.core.options import internal, member
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.guessed_times import GuessedTimes
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import Batch, DataFacts, IdentityHead, Model, Prediction, Progress

COUNTS = np.array([50, 20, 20, 3, 0])
FACTS = DataFacts(6, 5, token_counts=lambda: COUNTS, steps=100)
IDS = np.random.default_rng(0).integers(0, 5, (400, 6)).astype(np.int32)
REAL = np.broadcast_to((np.arange(6) < 4).astype(np.float32), IDS.shape)


def by_frequency(cls=ByFrequency, **options):
  """A timing of a run of 100 updates."""
  return cls(train_steps=100, **options)


def drawn(timing, batch, *steps):
  """Times of a batch at each of these updates, in numpy; at the last one by default, alone."""
  params = timing.init(jax.random.key(0), FACTS)
  run = jax.jit(lambda step: timing.draw(params, jax.random.key(1), batch, Progress(step=step)))
  found = [jax.device_get(run(step)) for step in steps or (100,)]
  return found if steps else found[0]


def published(weights, rate):
  """w · n / mu if mu > n, else 1 - (1 - w) (1 - n) / (1 - mu): of one row."""
  mean = weights.mean()
  if mean > rate:
    return weights * rate / mean
  return 1 - (1 - weights) * (1 - rate) / (1 - mean)


def test_ranks():
  """Of four frequencies, over five; equal ones share a rank."""
  np.testing.assert_allclose(rank_weights(COUNTS), [0.2, 0.4, 0.4, 0.6, 0.8], rtol=1e-6)


def check_scaling(cls):
  """The published probabilities of every row at its clock, whose mean is the clock."""
  for power, batch in ((0.02, Batch(IDS)), (1.0, Batch(IDS, weights=REAL))):
    times = drawn(by_frequency(cls, power=power), batch)
    soft, real = rank_weights(COUNTS)[IDS].astype(np.float64) ** power, batch.weights is None
    width = 6 if real else 4
    tau = times.tau[:, 0].astype(np.float64)
    want = np.stack([published(w[:width], n) for w, n in zip(soft, tau, strict=True)])
    np.testing.assert_allclose(times.t[:, :width], want, atol=2e-5)
    np.testing.assert_allclose(times.t[:, :width].mean(1), tau, atol=1e-5)
    np.testing.assert_array_equal(
      np.broadcast_to(times.network_time, tau[:, None].shape), times.tau
    )


class UnitMean(ByFrequency):
  """Leaves the rate to the tokens: w^p · τ."""

  def times(self, tau, soft, counts):
    return tau * soft, soft


class WithPadding(ByFrequency):
  def times(self, tau, soft, counts):
    return super().times(tau, soft, jnp.ones_like(counts))


class AtOnce(ByFrequency):
  def power_at(self, step):
    return jnp.float32(self.power)


def test_probabilities_are_the_published_ones():
  check_scaling(ByFrequency)
  for mutant in (UnitMean, WithPadding):
    with pytest.raises(AssertionError):
      check_scaling(mutant)


def test_speed_is_the_derivative_and_the_weight_is_of_the_clock():
  """A token at both sides of the bend; before it a token weighs 1 / τ, as all of its row."""
  row = np.broadcast_to(np.array([0, 3, 4, 1, 1, 0], np.int32), (4000, 6))
  times = drawn(by_frequency(power=1.0), Batch(row))
  order = np.argsort(times.tau[:, 0])
  tau, t, speed = (x[order] for x in (times.tau, times.t, times.dt_dtau))
  np.testing.assert_allclose(np.diff(t, axis=0), speed[1:] * np.diff(tau, axis=0), atol=1e-3)
  assert t[0].max() < 1e-3 and t[-1].min() > 1 - 1e-3
  early = tau[:, 0] < rank_weights(COUNTS)[row[0]].mean() - 1e-3
  weight = (speed / t)[early]
  np.testing.assert_allclose(weight, np.broadcast_to(1 / tau[early], weight.shape), rtol=1e-4)


def check_annealing(cls):
  """p · step / steps: none at first, where all tokens share the clock."""
  first, *later = drawn(by_frequency(cls, power=0.5, annealed=0.5), Batch(IDS), 0, 25, 50, 90)
  np.testing.assert_allclose(first.t, np.broadcast_to(first.tau, first.t.shape), atol=1e-6)
  np.testing.assert_allclose(first.dt_dtau, 1.0, atol=1e-6)
  half, whole = (drawn(cls(power=power, annealed=0.0), Batch(IDS)) for power in (0.25, 0.5))
  for found, want in zip(later, (half, whole, whole), strict=True):
    np.testing.assert_allclose(found.t, want.t, atol=1e-5)


def test_the_power_grows_in_the_course_of_training():
  check_annealing(ByFrequency)
  with pytest.raises(AssertionError):
    check_annealing(AtOnce)


def test_another_number_of_updates_is_another_annealing():
  """Of the same parameters, which are saved: before, they held the number of updates."""
  batch = Batch(IDS)
  timings = [ByFrequency(power=0.5, train_steps=steps) for steps in (100, 200)]
  params = timings[0].init(jax.random.key(0), FACTS)
  assert params.keys() == {"weight"}
  found = [
    timing.draw(params, jax.random.key(1), batch, Progress(step=step)).t
    for timing, step in ((timings[0], 50), (timings[1], 100), (timings[1], 50))
  ]
  np.testing.assert_array_equal(found[0], found[1])
  assert np.abs(found[0] - found[2]).max() > 0.01


# Texts along the path of training.

V, L = 3, 4
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
TOLD = DataFacts(L, V, token_counts=lambda: np.array([60, 30, 10]), steps=1)
MASKED = Masked(vocab_size=V)


@member
class KnowsRows:
  """The network that knows the language and that the times of a row follow from all its tokens."""

  timing: ByFrequency = internal()
  remembers: ClassVar[bool] = False
  layers: ClassVar[int] = 1

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    """log p(x_i = v | the masks and tokens at the clock), [B, L, V], by enumeration."""
    state, clock = rows.inputs.ids, rows.t
    texts, count = jnp.asarray(LANGUAGE.sequences), state.shape[0]
    shape = (count, *texts.shape)
    every = jnp.broadcast_to(texts, shape).reshape(-1, L)
    tau = jnp.broadcast_to(clock[:, None], shape).reshape(-1, L)
    t = self.timing.token_times(params, every, tau, tau > 0).reshape(shape)
    masked, there = (state == V)[:, None], state[:, None] == texts
    fits = jnp.where(masked, t, jnp.where(there, 1 - t, 0.0))
    known = jnp.where(masked, 0.0, there)
    fits = jnp.where(clock[:, None] > 0, fits, known)
    law = jnp.log(jnp.asarray(LANGUAGE.probabilities)) + jnp.sum(jnp.log(fits + 1e-30), -1)
    law = jax.nn.softmax(law, axis=-1)
    marginal = jnp.einsum("bm,mlv->blv", law, jax.nn.one_hot(texts, V))
    return Prediction(jnp.log(marginal + 1e-30), IdentityHead())


def distance(sampler, power=1.0, rows=4000, timing=ByFrequency):
  """(total variation of texts to the language, that of as many exact draws)."""
  known = ByFrequency(power=power, annealed=0)
  params = known.init(jax.random.key(0), TOLD)
  model = Model(KnowsRows(known), MASKED, timing(power=power, annealed=0), Full(), 256)
  sampler.check(model)
  params = {"network": params, "process": {}, "timing": params}
  ids = sample(model, params, sampler, row_keys(0, rows), rows=rows, length=L).ids
  found = LANGUAGE.total_variation(LANGUAGE.histogram(np.asarray(ids)))
  return found, LANGUAGE.chance_distance(rows)


@member
class OfTheTokenAlone(ByFrequency):
  """The mean of a row is taken to be a half, whatever its tokens are."""

  def token_times(self, params, ids, tau, counts):
    soft = params["weight"][ids] ** self.power
    return jnp.where(tau < 0.5, tau * soft / 0.5, 1 - (1 - tau) * (1 - soft) / 0.5).clip(0, 1)


def test_texts_along_the_times_of_training_are_nearer_than_at_shared_ones():
  """By a power 50 times the published one, at which guesses that are drawn apart cost little."""
  walked, chance = distance(GuessedTimes(steps=24))
  shared, _ = distance(Grid(steps=24))
  assert walked < chance + 0.06, (walked, chance)
  assert shared > walked + 0.1, (shared, walked)
  wrong, _ = distance(GuessedTimes(steps=24), timing=OfTheTokenAlone)
  assert wrong > walked + 0.03, (wrong, walked)


def test_the_published_power_reaches_the_language():
  walked, chance = distance(GuessedTimes(steps=24), power=0.02, rows=2000)
  assert walked < chance + 0.02, (walked, chance)


def check_token_times(timing):
  """Those that are drawn at the end of training, whatever stands in padding."""
  params = timing.init(jax.random.key(0), FACTS)
  batch = Batch(IDS, weights=REAL)
  times = timing.draw(params, jax.random.key(1), batch, Progress(step=100))
  clock = jnp.broadcast_to(times.tau, IDS.shape)
  ids = np.where(REAL > 0, IDS, 0)
  found = timing.token_times(params, ids, clock, REAL > 0)
  np.testing.assert_array_equal(np.where(REAL > 0, found, 0), np.where(REAL > 0, times.t, 0))
  ends = [timing.token_times(params, ids, jnp.full(IDS.shape, x), REAL > 0) for x in (0.0, 1.0)]
  assert (ends[0] == 0).all() and (ends[1] == 1).all()


@member
class OverPaddingToo(ByFrequency):
  def token_times(self, params, ids, tau, counts):
    return super().token_times(params, ids, tau, jnp.ones_like(counts))


def test_times_of_tokens_are_those_that_are_drawn():
  check_token_times(by_frequency(power=0.5))
  with pytest.raises(AssertionError):
    check_token_times(by_frequency(OverPaddingToo, power=0.5))


def test_a_token_that_is_known_counts_by_itself():
  """In a row of which some tokens are final, they and not token 0 make the mean."""
  timing = ByFrequency(power=1.0, annealed=0)
  params = timing.init(jax.random.key(0), TOLD)
  model = Model(KnowsRows(timing), MASKED, timing, Full(), 256)
  everything = {"network": params, "process": {}, "timing": params}
  loop = Loop(model, GuessedTimes(steps=2), WholeRow())
  batch = Batch(np.zeros((1, L), np.int32))

  @jax.jit
  def next_times():
    """Of a row whose first three tokens are known, after a call."""
    fixed = loop.fixed(everything, row_keys(0, 1), batch)
    carry = loop.start(everything, fixed)
    level = jnp.array([[0.0, 0.0, 0.0, 1.0]])
    sampler = carry.sampler._replace(extra=level)
    carry = carry._replace(state=jnp.array([[2, 2, 2, V]]), sampler=sampler)
    return loop.advance(everything, fixed, carry).sampler.extra

  after = next_times()
  weight = np.asarray(params["weight"])
  possible = [published(weight[[2, 2, 2, last]], 0.5)[3] for last in range(V)]
  assert np.abs(np.array(possible) - float(after[0, 3])).min() < 1e-6
  np.testing.assert_array_equal(after[0, :3], 0)


# The spindle.


def released(counts, row, step, steps=2048, strength=0.3):
  """P(mask) of the tokens of a row at a step, in the terms of the released code: survival of the
  'mutual' schedule, 1 - step / steps, and the logarithm of frequency, centred over the sentence.
  """
  frequency = np.log(np.asarray(counts, np.float64) + 1)
  frequency = (frequency / frequency.max())[row]
  centred = frequency - frequency.mean()
  bulge = strength * np.sin(step / steps * np.pi)
  return 1 - np.clip(1 - step / steps + centred * bulge, 0, 0.999)


def check_spindle(cls):
  """The released probabilities of masks of two sentences, one of them padded, at seven steps."""
  timing = cls()
  params = timing.init(jax.random.key(0), FACTS)
  rows, real = np.array([[0, 4, 3, 1, 0, 2], [4, 0, 1, 2, 3, 3]]), np.ones((2, 6), bool)
  real[1, 4:] = False
  for step in (1, 2, 300, 1024, 1500, 2046, 2048):
    tau = jnp.full((2, 6), step / 2048, jnp.float32)
    found = np.asarray(timing.token_times(params, rows, tau, real))
    for row, width, t in zip(rows, (6, 4), found, strict=True):
      np.testing.assert_allclose(t[:width], released(COUNTS, row[:width], step), atol=3e-7)


@member
class OverTheCorpus(Spindle):
  """Information is centred over the corpus, as the process has it."""

  def times(self, tau, frequency, counts):
    mean = np.average(log_frequency(COUNTS), weights=COUNTS)
    none = Spindle(strength=self.strength).times
    lead = self.strength * (mean - frequency) * jnp.sin(jnp.pi * tau)
    return jnp.clip(tau + lead, 0.001, 1.0), none(tau, frequency, counts)[1]


@member
class NotCut(Spindle):
  def times(self, tau, frequency, counts):
    return Spindle(least=0.0).times(tau, frequency, counts)


def test_the_spindle_is_that_of_the_released_code():
  check_spindle(Spindle)
  for mutant in (OverTheCorpus, NotCut):
    with pytest.raises(AssertionError):
      check_spindle(mutant)


def test_the_spindle_is_walked_from_noise_to_text():
  """Speed is the derivative; at the ends all is clean and all is noise; the mean is the clock."""
  timing = Spindle(least=0.0)
  params = timing.init(jax.random.key(0), FACTS)
  clock = jnp.linspace(0, 1, 401)[:, None]
  row = np.broadcast_to(np.array([0, 3, 4, 1, 1, 0], np.int32), (401, 6))
  real = np.ones(row.shape, bool)
  t, speed = timing.times(clock, params["frequency"][row], real)
  assert (np.asarray(t)[0] == 0).all() and (np.asarray(t)[-1] == 1).all()
  np.testing.assert_allclose(jnp.mean(t, axis=1), clock[:, 0], atol=1e-6)
  middle = (speed[1:] + speed[:-1])[1:-1] / 2
  np.testing.assert_allclose(jnp.diff(t, axis=0)[1:-1], middle / 400, atol=1e-5)
  times = drawn(timing, Batch(row[:8]))
  np.testing.assert_array_equal(times.network_time, times.tau)
  with pytest.raises(ValueError, match="timing 'spindle' needs the token counts"):
    timing.init(jax.random.key(0), DataFacts(3, 4))


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="needs the token counts of the training split"):
    by_frequency().init(jax.random.key(0), DataFacts(3, 4))
  with pytest.raises(ValueError, match=r"annealed=1.0 is a share of the updates"):
    ByFrequency().init(jax.random.key(0), FACTS)
  for options in ({"power": -1.0}, {"annealed": 2.0}):
    with pytest.raises(ValueError, match=next(iter(options))):
      ByFrequency(**options)

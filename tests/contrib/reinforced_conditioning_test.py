"""Reinforced conditioning: BLEU is sacrebleu's, the policy's gradient is that of the expected
reward, and the value is untouched.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.contrib.reinforced_conditioning import (
  ReinforcedConditioning,
  accuracy,
  bleu,
)
from diffusion_text.core.prng import stream
from diffusion_text.objective import EmbeddingLosses, engine
from diffusion_text.process.embedding import Embedding
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, DataFacts, InputSizes, Model, Progress

V, B, L, E = 5, 4, 8, 4
START = Progress()
PROCESS = Embedding(vocab_size=V, schedule=VPCosine(), width=E, norm="none")
OBSERVED = np.broadcast_to(np.arange(L) < 2, (B, L))
REAL = np.broadcast_to((np.arange(L) < 7).astype(np.float32), (B, L))
IDS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
BATCH = Batch(IDS, observed=OBSERVED, weights=REAL)
COUNTS = ~OBSERVED & (REAL > 0)
MODEL = Model(TableNetwork(), PROCESS, Shared(), Full(), chunk=5, self_conditioning=0.7)
NET = TableNetwork.params(
  jax.random.key(7), InputSizes(vectors=E), V, PROCESS.estimate_size, width=6
)
NET = {name: np.asarray(NET[name]) for name in ("in", "out", "memory")}
PARAMS = {
  "process": PROCESS.init(jax.random.key(1), DataFacts(length=L, vocab_size=V)),
  "timing": {},
}
KEY = jax.random.key(3)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bleu_of(*rows):
  return np.asarray(jax.jit(jax.vmap(bleu))(*rows))


def test_bleu_is_sacrebleus():
  """Sentence BLEU with one added from 2-grams on, of rows that repeat themselves; only of the
  tokens that count, and within documents.
  """
  sacrebleu = pytest.importorskip("sacrebleu")
  rng = np.random.default_rng(0)
  target = rng.integers(0, 3, (60, 9))
  ids = np.where(rng.random((60, 9)) < 0.6, target, rng.integers(0, 3, (60, 9)))
  counts, one = np.arange(9) >= rng.integers(0, 5, (60, 1)), np.zeros((60, 9), int)
  got = bleu_of(ids, target, counts, one)

  def words(row, counts):
    return " ".join(f"w{word}" for word in row[counts])

  options = {"smooth_method": "add-k", "smooth_value": 1, "tokenize": "none"}
  want = [
    sacrebleu.sentence_bleu(words(a, c), [words(b, c)], use_effective_order=False, **options).score
    for a, b, c in zip(ids, target, counts, strict=True)
  ]
  np.testing.assert_allclose(got, np.array(want) / 100, atol=1e-5)
  assert len(set(np.round(want, 2))) > 20

  # No n-gram goes from one document into the next: as if a token between them did not count.
  split = np.where(np.arange(9) < 5, 0, 1) * np.ones((60, 1), int)

  def gap(row, fill):
    return np.insert(row, 5, fill, axis=1)

  everything = np.ones((60, 9), bool)
  apart = bleu_of(gap(ids, 0), gap(target, 0), gap(everything, False), np.zeros((60, 10), int))
  np.testing.assert_allclose(bleu_of(ids, target, everything, split), apart, atol=1e-6)
  shares = jax.jit(jax.vmap(accuracy))(ids, target, counts, one)
  np.testing.assert_allclose(shares, ((ids == target) & counts).sum(1) / counts.sum(1), rtol=1e-6)


def objective(cls=ReinforcedConditioning, **options):
  return cls(anchor_weight=1.0, **options)


def tree(net):
  return {"network": net, **PARAMS}


def loss_of(objective, net):
  params = tree(net)
  times = engine.draw_times(MODEL, params, stream(KEY, "times"), BATCH, START)
  return objective(MODEL, params, KEY, BATCH, times, START)[0]


def read(net):
  params = tree(net)
  times = engine.draw_times(MODEL, params, stream(KEY, "times"), BATCH, START)
  return engine.read(MODEL, params, KEY, BATCH, times, START)


def test_the_value_is_that_of_the_losses():
  @jit
  def run(net):
    return [loss_of(objective(cls), net) for cls in (ReinforcedConditioning, EmbeddingLosses)]

  got, plain = run(NET)
  assert float(got.total) == pytest.approx(float(plain.total), rel=1e-6)
  for name, value in plain.sums.items():
    assert float(got.sums[name]) == pytest.approx(float(value), rel=1e-6)
  assert set(got.sums) - set(plain.sums) == {"reward", "reward_before"}
  assert 0 < float(got.sums["reward"]) < float(got.count)


def expected_reward(net, weight):
  """- weight · Σ over conditioned rows of n E[accuracy], whose gradient is wanted: p of the true
  tokens, conditioned on a first prediction that is held constant.
  """
  noised = read(NET)
  first, told = noised.first
  estimate = PROCESS.estimate(PARAMS["process"], noised.state, noised.times.t, first.logits)
  shown = told[:, None] & (noised.times.t > 0)
  memory = jnp.where(shown[..., None], jax.lax.stop_gradient(estimate) @ net["memory"], 0.0)
  features = noised.rows.inputs.vectors @ net["in"] + memory
  p = jnp.take_along_axis(jax.nn.softmax(features @ net["out"]), IDS[..., None], -1)[..., 0]
  return -weight * jnp.sum(jnp.where(COUNTS & told[:, None], p, 0.0))


class OfTheFirstReading(ReinforcedConditioning):
  """Rewards the first reading by the second."""

  def rewards(self, model, params, key, batch, noised, progress):
    first, told = noised.first
    swapped = noised._replace(prediction=first, first=(noised.prediction, told))
    return super().rewards(model, params, key, batch, swapped, progress)


class RewardsAllRows(ReinforcedConditioning):
  """Draws rows that were shown nothing too."""

  def rewards(self, model, params, key, batch, noised, progress):
    first, told = noised.first
    everywhere = noised._replace(first=(first, told | True))
    return super().rewards(model, params, key, batch, everywhere, progress)


class Punishes(ReinforcedConditioning):
  """The wrong sign."""

  def rewards(self, *args):
    term, sums = super().rewards(*args)
    return -term, sums


def check_gradient(cls, draws):
  """Over draws of both rows at one state the mean gradient is that of the expected accuracy, to
  4.5 standard errors.

  Returns the largest entry of each array of the gradient in standard errors: what the test can see.
  """
  weight = 2.0
  reinforced = objective(cls, reward="accuracy", reward_weight=weight)

  def term(net, number):
    noised = read(net)
    key = jax.random.fold_in(KEY, number)
    return reinforced.rewards(MODEL, tree(net), key, BATCH, noised, START)[0]

  def gradients(net):
    def of(number):
      return jax.grad(term)(net, number)

    return jax.lax.map(of, jnp.arange(draws), batch_size=100)

  got, want = jax.jit(lambda net: (gradients(net), jax.grad(expected_reward)(net, weight)))(NET)
  seen = {}
  for name in NET:
    drawn = np.asarray(got[name])
    error = drawn.std(0) / draws**0.5 + 1e-4
    np.testing.assert_array_less(np.abs(drawn.mean(0) - want[name]), 4.5 * error)
    seen[name] = np.max(np.abs(want[name]) / error)
  return seen


def test_the_gradient_is_that_of_the_expected_reward():
  assert min(check_gradient(ReinforcedConditioning, 3000).values()) > 10


@pytest.mark.parametrize("mutant", [OfTheFirstReading, RewardsAllRows, Punishes])
def test_mutants_of_the_gradient_fail(mutant):
  with pytest.raises(AssertionError):
    check_gradient(mutant, 1500)


def test_rewards_that_differ_by_more_are_clipped():
  whole, tight = (objective(advantage_clip=clip, reward_weight=1e3) for clip in (1.0, 1e-3))

  @jit
  def slopes(net):
    def of(reinforced):
      return jax.grad(lambda n: reinforced.rewards(MODEL, tree(n), KEY, BATCH, read(n), START)[0])(
        net
      )["out"]

    return of(whole), of(tight)

  whole, tight = slopes(NET)
  assert 0 < float(jnp.abs(tight).max()) < 0.05 * float(jnp.abs(whole).max())


def check(model):
  objective().check(model)


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: objective(reward="rouge"), "reward"),
    (lambda: objective(reward_weight=0.0), "reward_weight"),
    (lambda: objective(advantage_clip=0.0), "advantage_clip"),
    (lambda: check(MODEL._replace(self_conditioning=0.0)), "this network is read once"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


def test_what_fits_is_not_refused():
  check(MODEL)

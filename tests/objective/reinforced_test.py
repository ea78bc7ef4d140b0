"""Reinforced conditioning: BLEU is sacrebleu's, the policy's gradient is that of the expected reward, and the value is untouched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.objective.bound import Chunks
from diffusion_text.objective.conditioning import TwoReadings
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.objective.reinforced import ReinforcedConditioning, accuracy, bleu
from diffusion_text.process.embedding import Embedding
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Progress
from tests.objective.conditioning_test import linear

V, B, L, E = 5, 4, 8, 4
PROCESS = Embedding(V, VPCosine(), width=E, norm="none")
PARAMS = PROCESS.init(jax.random.key(1))
BATCH = Batch(
  jax.random.randint(jax.random.key(0), (B, L), 0, V),
  given=jnp.broadcast_to(jnp.arange(L) < 2, (B, L)),
  weights=jnp.broadcast_to((jnp.arange(L) < 7).astype(jnp.float32), (B, L)),
)
COUNTS = ~BATCH.given & (BATCH.weights > 0)
COINS = jnp.array([True, False, True, True])
KEYS = jax.random.split(jax.random.key(7), 3)
NET = {
  "in": jax.random.normal(KEYS[0], (E, 6)),
  "out": jax.random.normal(KEYS[1], (6, V)),
  "recall": jnp.zeros((E, 6)),
}
NET["recall"] = 0.7 * jax.random.normal(KEYS[2], (E, 6))


def test_bleu_is_sacrebleus():
  """Sentence BLEU with one added from 2-grams on, of rows that repeat themselves; of the tokens that count alone, and within documents."""
  sacrebleu = pytest.importorskip("sacrebleu")
  rng = np.random.default_rng(0)
  target = rng.integers(0, 3, (60, 9))
  ids = np.where(rng.random((60, 9)) < 0.6, target, rng.integers(0, 3, (60, 9)))
  counts, one = np.arange(9) >= rng.integers(0, 5, (60, 1)), np.zeros((60, 9), int)
  got = jax.jit(jax.vmap(bleu))(ids, target, counts, one)
  words = lambda row, counts: " ".join(f"w{word}" for word in row[counts])
  options = {
    "smooth_method": "add-k",
    "smooth_value": 1,
    "tokenize": "none",
    "use_effective_order": False,
  }
  want = [
    sacrebleu.sentence_bleu(words(a, here), [words(b, here)], **options).score / 100
    for a, b, here in zip(ids, target, counts)
  ]
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert len(set(np.round(want, 4))) > 20
  # No n-gram goes from one document into the next: as if a token between them did not count.
  split = np.where(np.arange(10) < 5, 0, 1) * np.ones((60, 1), int)
  gap = lambda row, fill: np.insert(row, 5, fill, axis=1)
  wide, no = gap(np.tile(np.arange(9) < 9, (60, 1)), False), np.zeros((60, 10), int)
  apart = jax.vmap(bleu)(gap(ids, 0), gap(target, 0), wide, no)
  np.testing.assert_allclose(
    jax.vmap(bleu)(ids, target, np.ones((60, 9), bool), split[:, :9]), apart, atol=1e-6
  )
  shares = jax.vmap(accuracy)(ids, target, counts, one)
  np.testing.assert_allclose(shares, ((ids == target) & counts).sum(1) / counts.sum(1), rtol=1e-6)


def objective(cls=ReinforcedConditioning, **options):
  return cls(PROCESS, Shared(), Chunks(5), anchor_weight=1.0, **options)


def call(objective, net, key, constant=None, seen=None):
  """The loss of a network of which the rows of COINS are told its first answer."""
  predict = TwoReadings(linear(net, seen, constant), COINS, 5, 1)
  return objective(PARAMS, key, BATCH, Progress(), predict)


def test_the_value_is_that_of_the_losses():
  loss = jax.jit(lambda objective: call(objective, NET, jax.random.key(3)), static_argnums=0)
  got, plain = (loss(objective(cls)) for cls in (ReinforcedConditioning, EmbeddingLosses))
  assert float(got.total) == pytest.approx(float(plain.total), rel=1e-6)
  assert all(
    float(got.sums[name]) == pytest.approx(float(value), rel=1e-6)
    for name, value in plain.sums.items()
  )
  assert set(got.sums) - set(plain.sums) == {"reward", "reward_before"}
  assert 0 < float(got.sums["reward"]) < float(got.count)


def exact(net, key, weight):
  """- weight · Σ over told rows of n E[accuracy], whose gradient is wanted: p of the true tokens, told what they were, held constant."""
  seen = []
  call(objective(EmbeddingLosses), NET, key, seen=seen)
  inputs, estimates = seen[1][0], seen[1][0].recalled
  features = inputs.vectors @ net["in"] + jnp.where(
    inputs.recalls[..., None], held(estimates) @ net["recall"], 0.0
  )
  p = jnp.take_along_axis(jax.nn.softmax(features @ net["out"]), BATCH.ids[..., None], -1)[..., 0]
  return -weight * jnp.sum(jnp.where(COUNTS & COINS[:, None], p, 0.0))


def held(recalled):
  """The estimates that were recalled by NET's map."""
  return recalled @ jnp.linalg.pinv(NET["recall"])


class OfTheFirstReading(ReinforcedConditioning):
  def rewards(self, params, key, batch, noise):
    first, told = noise.prediction.before
    return super().rewards(
      params, key, batch, noise._replace(prediction=first._replace(before=(noise.prediction, told)))
    )


class RewardsAllRows(ReinforcedConditioning):
  def rewards(self, params, key, batch, noise):
    first, told = noise.prediction.before
    return super().rewards(
      params,
      key,
      batch,
      noise._replace(prediction=noise.prediction._replace(before=(first, told | True))),
    )


class Punishes(ReinforcedConditioning):
  def rewards(self, *args):
    surrogate, sums = super().rewards(*args)
    return -surrogate, sums


def check_gradient(cls):
  """Over 3000 draws of both rows at one state: the mean gradient is that of the expected accuracy, to 4.5 standard errors.

  Returns the largest entry of each array of the gradient in standard errors: what the test can see."""
  key, weight, draws = jax.random.key(3), 2.0, 3000
  reinforced = objective(cls, reward="accuracy", reward_weight=weight)

  class Redraws(cls):
    """The same state and times, other draws."""

    def rewards(self, params, key, batch, noise):
      return super().rewards(params, jax.random.fold_in(key, self.number), batch, noise)

  def of(number):
    redrawn = Redraws(
      **{field.name: getattr(reinforced, field.name) for field in dataclasses.fields(reinforced)}
    )
    object.__setattr__(redrawn, "number", number)
    return jax.grad(lambda net: call(redrawn, net, key).total)(NET)

  gradients = jax.jit(lambda: jax.lax.map(of, jnp.arange(draws), batch_size=100))()
  plain = jax.jit(jax.grad(lambda net: call(objective(EmbeddingLosses), net, key).total))(NET)
  want = jax.grad(exact)(NET, key, weight)
  seen = {}
  for name in NET:
    got = np.asarray(gradients[name] - plain[name])
    error = got.std(0) / draws**0.5 + 1e-4
    np.testing.assert_array_less(np.abs(got.mean(0) - want[name]), 4.5 * error)
    seen[name] = np.max(np.abs(want[name]) / error)
  return seen


def test_the_gradient_is_that_of_the_expected_reward():
  assert min(check_gradient(ReinforcedConditioning).values()) > 10


@pytest.mark.parametrize("mutant", [OfTheFirstReading, RewardsAllRows, Punishes])
def test_mutants_of_the_gradient_fail(mutant):
  with pytest.raises(AssertionError):
    check_gradient(mutant)


def test_rewards_that_differ_by_more_are_clipped():
  of = jax.jit(
    jax.grad(lambda net, objective: call(objective, net, jax.random.key(3)).total), static_argnums=1
  )
  plain = of(NET, objective(EmbeddingLosses))["out"]
  whole, tight = (
    of(NET, objective(advantage_clip=clip, reward_weight=1e3))["out"] - plain
    for clip in (1.0, 1e-3)
  )
  assert 0 < float(jnp.abs(tight).max()) < 0.05 * float(jnp.abs(whole).max())


@pytest.mark.parametrize("make,match", [
  (lambda: objective(reward="rouge"), r"objective.reward='rouge' is unknown"),
  (lambda: objective(reward_weight=0.0), r"objective.reward_weight=0.0 must be positive"),
  (lambda: objective(advantage_clip=0.0), r"objective.advantage_clip=0.0 must be in \(0, 1\]"),
  (lambda: objective()(PARAMS, jax.random.key(0), BATCH, Progress(), linear(NET)), r"this network is read once"),
])  # fmt: skip
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()

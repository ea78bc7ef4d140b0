"""The score-function gradient, exactly: every pair of draws of a small row, weighted by its probability, and no sampling at all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.objective.bound import Chunks
from diffusion_text.objective.reinforce import ScoreFunction
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.schedules.discrete import Linear
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Inputs, Layout, Prediction, Progress, Times

V, L = 3, 3
IDS = jnp.array([[2, 0, 1]])
STATES = np.indices((2,) * L).reshape(L, -1).T.astype(bool)  # which tokens are masked
PARAMS = {
  "power": jnp.array([-0.3, 0.6, 1.4]),
  "logits": jax.random.normal(jax.random.key(0), (2**L, L, V)),
}
BATCHES = {
  "plain": Batch(IDS),
  "given": Batch(IDS, given=jnp.array([[True, False, False]])),
  "padded": Batch(IDS, weights=jnp.array([[1.0, 0.5, 0.0]])),
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class FixedTime(Shared):
  def draw(self, key, batch, progress):
    return Times(jnp.full((1, 1), 0.4), jnp.ones((1, 1)), Layout())


@dataclasses.dataclass(frozen=True)
class Scripted(TokenMasked):
  """Draws what it is told to."""

  script: list = dataclasses.field(default_factory=list)

  def corrupt(self, params, key, ids, t):
    return jnp.where(self.script.pop(0) & (t > 0), V, ids)


def predict(params):
  """A network that tells each of the 2^L masks from the others."""

  def answer(inputs, t, layout):
    number = jnp.sum((inputs.ids == V) * 2 ** jnp.arange(L)[::-1], axis=1)
    return Prediction(params["logits"][number], lambda features: features)

  return answer


def times_of(batch):
  t = jnp.full(IDS.shape, 0.4)
  return t if batch.given is None else jnp.where(batch.given, 0.0, t)


def probability(params, batch):
  """q(z | x) of each state, [2^L], differentiable; 0 for states in which a given token is masked."""
  masked = jax.nn.softplus(params["power"])[IDS] * jnp.log(0.4)
  chance = jnp.exp(masked) * (times_of(batch) > 0)
  return jnp.prod(jnp.where(STATES, chance, 1 - chance), axis=1)


def expected_loss(params, batch):
  """E over z of the weighted rates, by enumeration: its autodiff gradient is the truth."""
  process = TokenMasked(V, Linear())
  state = jnp.where(STATES, V, IDS)
  t, ids = jnp.broadcast_to(times_of(batch), state.shape), jnp.broadcast_to(IDS, state.shape)
  weights = jnp.ones(IDS.shape) if batch.weights is None else batch.weights
  rate = process.rate(params, ids, state, t, predict(params)(Inputs(state), t, None).features)
  return jnp.sum(
    probability(params, batch) * jnp.sum(jnp.where(t > 0, weights * rate, 0.0), axis=1)
  )


def check_gradient_is_unbiased(cls, batch):
  """Σ over pairs of q(z1) q(z2) · gradient = gradient of the expectation, for the network and the noise; and so for the value."""
  process = Scripted(V, Linear())

  def one(pair):
    def total(params):
      process.script[:] = [STATES_J[pair[0]], STATES_J[pair[1]]]
      objective = cls(process, FixedTime(), Chunks(2))
      return objective(params, jax.random.key(0), batch, Progress(), predict(params)).total

    return jax.value_and_grad(total)(PARAMS)

  number = 2**L
  pairs = jnp.stack(jnp.meshgrid(jnp.arange(number), jnp.arange(number)), axis=-1).reshape(-1, 2)
  q = np.asarray(probability(PARAMS, batch))
  ours = jit(lambda pairs: jax.lax.map(one, pairs))(pairs)
  ours = jax.tree.map(lambda x: np.einsum("p,p...->...", q[pairs[:, 0]] * q[pairs[:, 1]], x), ours)
  theirs = jit(jax.value_and_grad(expected_loss))(PARAMS, batch)
  assert abs(np.asarray(theirs[1]["power"])).max() > 0.05
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
  return ours


STATES_J = jnp.asarray(STATES)


@pytest.mark.parametrize("kind", BATCHES)
def test_gradient_is_unbiased(kind):
  (_, gradient) = check_gradient_is_unbiased(ScoreFunction, BATCHES[kind])
  print(kind, "d/d power:", gradient["power"])


class NoScore(ScoreFunction):
  def log_corruption(self, params, ids, state, t):
    return jax.lax.stop_gradient(super().log_corruption(params, ids, state, t))


class HalfTheScore(ScoreFunction):
  def log_corruption(self, params, ids, state, t):
    return super().log_corruption(params, ids, state, t) / 2


class ScoredTokensOnly(ScoreFunction):
  """Forgets that the network reads padding too."""

  def log_corruption(self, params, ids, state, t):
    return super().log_corruption(params, ids, state, jnp.where(jnp.arange(L) < 2, t, 0.0))


@pytest.mark.parametrize(
  "mutant,kind", [(NoScore, "plain"), (HalfTheScore, "plain"), (ScoredTokensOnly, "padded")]
)
def test_mutants_fail(mutant, kind):
  with pytest.raises(AssertionError):
    check_gradient_is_unbiased(mutant, BATCHES[kind])


def test_rows_are_each_others_business_only_through_the_sum():
  """Two rows: the gradient is the sum of theirs, so no row serves as the baseline of another."""
  batch, states = Batch(jnp.array([[2, 0, 1], [1, 1, 0]])), STATES_J[jnp.array([[3, 5], [6, 0]])]

  def gradient(rows):
    process = Scripted(V, Linear())

    def total(params):
      process.script[:] = [states[rows, 0], states[rows, 1]]
      timing = FixedTime()
      part = Batch(batch.ids[rows])
      return ScoreFunction(process, timing)(
        params, jax.random.key(0), part, Progress(), predict(params)
      ).total

    return jit(jax.grad(total))(PARAMS)

  both, first, second = gradient(jnp.arange(2)), gradient(jnp.array([0])), gradient(jnp.array([1]))
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-5, atol=1e-6), both, first, second
  )


def test_value_is_the_bound_and_gradients_are_finite_at_both_ends():
  """Clean and fully masked tokens: log q has no finite slope at t = 0 by itself."""
  objective = ScoreFunction(TokenMasked(V, Linear()), Shared())
  ids = jnp.broadcast_to(IDS, (64, L))

  def loss(params, t):
    class At(Shared):
      def draw(self, key, batch, progress):
        return Times(jnp.broadcast_to(t, (64, 1)), jnp.ones((64, 1)), Layout())

    at = dataclasses.replace(objective, timing=At())
    result = at(params, jax.random.key(1), Batch(ids), Progress(), predict(params))
    return result.total, result.sums["bound"]

  for t in (0.0, 1e-6, 0.5, 1.0):
    (total, bound), gradient = jit(jax.value_and_grad(loss, has_aux=True))(PARAMS, jnp.float32(t))
    assert float(total) == pytest.approx(float(bound), rel=1e-6)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradient))

"""The score-function gradient, exactly: every pair of draws of a small row, weighted by its
probability, and no sampling at all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.objective import ScoreFunction
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, IdentityHead, Model, Prediction, Progress, Times

V, L = 3, 3
IDS = np.array([[2, 0, 1]], np.int32)
STATES = np.indices((2,) * L).reshape(L, -1).T.astype(bool)  # which tokens are masked
PARAMS = {
  "power": np.array([-0.3, 0.6, 1.4], np.float32),
  "logits": np.asarray(jax.random.normal(jax.random.key(0), (2**L, L, V))),
}
BATCHES = {
  "plain": Batch(IDS),
  "observed": Batch(IDS, observed=np.array([[True, False, False]])),
  "padded": Batch(IDS, weights=np.array([[1.0, 0.5, 0.0]], np.float32)),
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Scripted(TokenMasked):
  """Draws what it is told to: the states in `script`, one after the other."""

  script = []  # noqa: RUF012

  def corrupt(self, params, keys, clean_state, t):
    return jnp.where(self.script.pop(0) & (t > 0), V, clean_state)


class TellsMasksApart:
  """A network with an answer of its own for each of the 2^L masks."""

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    number = jnp.sum((rows.inputs.ids == V) * 2 ** jnp.arange(L)[::-1], axis=1)
    return Prediction(jnp.asarray(params)[number], IdentityHead())


PROCESS = Scripted(vocab_size=V)
MODEL = Model(TellsMasksApart(), PROCESS, Shared(), Full(), chunk=2)


def tree(params):
  return {"network": params["logits"], "process": {"power": params["power"]}, "timing": {}}


def times_of(batch, t=0.4):
  t = jnp.full(batch.ids.shape, t)
  t = t if batch.observed is None else jnp.where(batch.observed, 0.0, t)
  return Times(t, jnp.ones_like(t), t[:, :1], t)


def loss_of(objective, params, batch, states, t=0.4):
  Scripted.script[:] = list(states)
  times = times_of(batch, t)
  return objective(MODEL, tree(params), jax.random.key(0), batch, times, Progress())[0]


def probability(params, batch):
  """q(z | x) of each state, [2^L], differentiable; 0 for states with a masked observed token."""
  masked = jax.nn.softplus(params["power"])[IDS] * jnp.log(0.4)
  chance = jnp.exp(masked) * (times_of(batch).t > 0)
  return jnp.prod(jnp.where(STATES, chance, 1 - chance), axis=1)


def expected_loss(params, batch):
  """E over z of the weighted rates, by enumeration: its autodiff gradient is the truth."""
  state = jnp.where(STATES, V, IDS)
  t, ids = (jnp.broadcast_to(x, state.shape) for x in (times_of(batch).t, IDS))
  weights = jnp.ones(IDS.shape) if batch.weights is None else batch.weights
  own = {"power": params["power"]}
  rate = PROCESS.nelbo_rate(own, ids, state, t, params["logits"])
  return jnp.sum(
    probability(params, batch) * jnp.sum(jnp.where(t > 0, weights * rate, 0.0), axis=1)
  )


def check_gradient_is_unbiased(objective, batch):
  """Σ over pairs of q(z1) q(z2) · gradient is the gradient of the expectation, for network, noise
  and value.
  """
  states = jnp.asarray(STATES)

  def one(pair):
    def total(params):
      return loss_of(objective, params, batch, [states[pair[0]], states[pair[1]]]).total

    return jax.value_and_grad(total)(PARAMS)

  pairs = np.indices((2**L, 2**L)).reshape(2, -1).T
  ours, theirs, q = jit(
    lambda params: (
      jax.lax.map(one, jnp.asarray(pairs)),
      jax.value_and_grad(expected_loss)(params, batch),
      probability(params, batch),
    )
  )(PARAMS)
  q = np.asarray(q)
  weight = q[pairs[:, 0]] * q[pairs[:, 1]]
  ours = jax.tree.map(lambda x: np.einsum("p,p...->...", weight, x), ours)
  assert abs(np.asarray(theirs[1]["power"])).max() > 0.05
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("kind", BATCHES)
def test_gradient_is_unbiased(kind):
  check_gradient_is_unbiased(ScoreFunction(), BATCHES[kind])


class NoScore(ScoreFunction):
  """Leaves the score out."""

  def log_corruption(self, *args):
    return jax.lax.stop_gradient(super().log_corruption(*args))


class HalfTheScore(ScoreFunction):
  """Halves it."""

  def log_corruption(self, *args):
    return super().log_corruption(*args) / 2


class ScoredTokensOnly(ScoreFunction):
  """Forgets that the network reads padding too."""

  def log_corruption(self, process, params, clean, state, t):
    scored = jnp.where(jnp.arange(L) < 2, t, 0.0)
    return super().log_corruption(process, params, clean, state, scored)


@pytest.mark.parametrize(
  "mutant,kind", [(NoScore, "plain"), (HalfTheScore, "plain"), (ScoredTokensOnly, "padded")]
)
def test_mutants_fail(mutant, kind):
  with pytest.raises(AssertionError):
    check_gradient_is_unbiased(mutant(), BATCHES[kind])


def test_rows_are_each_others_business_only_through_the_sum():
  """Two rows: the gradient is the sum of theirs, so no row serves as the baseline of another."""
  ids = np.array([[2, 0, 1], [1, 1, 0]], np.int32)
  states = STATES[np.array([[3, 5], [6, 0]])]

  def gradient(rows):
    def total(params):
      drawn = [jnp.asarray(states[rows, draw]) for draw in (0, 1)]
      return loss_of(ScoreFunction(), params, Batch(ids[rows]), drawn).total

    return jax.grad(total)(PARAMS)

  both, first, second = jit(lambda: [gradient(np.array(rows)) for rows in ([0, 1], [0], [1])])()
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-5, atol=1e-6), both, first, second
  )


def test_value_is_the_bound_and_gradients_are_finite_at_both_ends():
  """Clean and fully masked tokens: log q has no finite slope at t = 0 by itself."""
  ids = np.broadcast_to(IDS, (64, L))
  model = MODEL._replace(process=TokenMasked(vocab_size=V))

  @jit
  def run(params, t):
    def loss(params):
      times = times_of(Batch(ids), t)
      key = jax.random.key(1)
      result, _ = ScoreFunction()(model, tree(params), key, Batch(ids), times, Progress())
      return result.total, result.sums["bound"]

    return jax.value_and_grad(loss, has_aux=True)(params)

  for t in (0.0, 1e-6, 0.5, 1.0):
    (total, bound), gradient = run(PARAMS, jnp.float32(t))
    assert float(total) == pytest.approx(float(bound), rel=1e-6)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradient))


def test_costs_are_those_of_both_draws():
  """Nats are the mean of the two draws, the loss the mean over the draws that have one."""
  states = [
    jnp.asarray(STATES[i : i + 1]) for i in (3, 1)
  ]  # 011 and 001: the second token in one only
  Scripted.script[:] = states
  times = times_of(BATCHES["plain"])
  batch = BATCHES["plain"]
  _, costs = ScoreFunction()(MODEL, tree(PARAMS), jax.random.key(0), batch, times, Progress())
  assert np.asarray(costs.counted).tolist() == [[False, True, True]]
  np.testing.assert_allclose(costs.loss[0, 1], 2 * costs.nats[0, 1], rtol=1e-6)
  np.testing.assert_allclose(costs.loss[0, 2], costs.nats[0, 2], rtol=1e-6)

"""The mean over noisy tokens against the formula with all logits in memory; mutants that fail."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.contrib.masked_mean import MaskedMean
from diffusion_text.core.prng import stream
from diffusion_text.objective import CrossEntropy, engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress

V, B, L = 7, 8, 12
MASKED = Masked(vocab_size=V)
IDS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
BATCH = Batch(
  IDS,
  observed=np.broadcast_to(np.arange(L) < 3, (B, L)),
  weights=np.broadcast_to((np.arange(L) < 10).astype(np.float32), (B, L)),
)
NETWORK = TableNetwork(mask_id=V, router=0.2)
# Times as published: uniform on [1e-3, 1].
MODEL = Model(NETWORK, MASKED, Shared(low=1e-3), Full(), chunk=5)
NET = TableNetwork.params(jax.random.key(1), InputSizes(ids=V + 1), V, V)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def loss_of(objective, net, model=MODEL):
  params, key = {"network": net, "process": {}, "timing": {}}, jax.random.key(9)
  times = engine.draw_times(model, params, stream(key, "times"), BATCH, Progress())
  loss, _ = objective(model, params, key, BATCH, times, Progress())
  return loss, NETWORK.calls[-1][0]


def check_published(objective):
  """Value and gradient are those of Σ CE / t over noisy tokens, divided by their number."""

  def ours(net):
    loss, rows = loss_of(objective, net)
    own = loss.sums["router"] / loss.count
    return loss.total / loss.count - own, (rows, loss.sums["bound"] / loss.count)

  (value, (rows, bound)), gradient = jit(jax.value_and_grad(ours, has_aux=True))(NET)
  state, t = np.asarray(rows.inputs.ids), np.asarray(rows.t)
  scored = BATCH.weights * ~BATCH.observed
  noisy = (state == V) * scored
  # One row of times each: those of the tokens that are not observed.
  assert len(set(t[:, 5])) == B and (t[:, 5] >= 1e-3).all() and noisy.sum() > 5

  def formula(net):
    masks = (state == V).sum(1)[:, None, None]
    logits = (jnp.asarray(net["table"])[state] + masks * net["crowd"]) @ net["out"]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), IDS[..., None], -1)[..., 0]
    return jnp.sum(noisy * nll / np.maximum(t, 1e-3)) / noisy.sum()

  theirs, slope = jit(jax.value_and_grad(formula))(NET)
  np.testing.assert_allclose(value, theirs, rtol=1e-4)
  np.testing.assert_allclose(gradient["out"], slope["out"], rtol=2e-3, atol=2e-4)
  # The bound of the same draw is over all tokens.
  np.testing.assert_allclose(bound, theirs * noisy.sum() / scored.sum(), rtol=1e-4)


class PerRow(MaskedMean):
  """Each row is divided by its own masks: a weight of 1/t²."""

  def __call__(self, model, params, key, batch, times, progress):
    scored = engine.scored_weights(batch)
    noised = engine.read(model, params, key, batch, times, progress)
    where, rows = engine.token_rows(model, params, batch, noised)
    number = jnp.sum(where * rows.weight, axis=1, keepdims=True)
    mean = jnp.sum(scored) / scored.shape[0] / jnp.maximum(number, 1)
    batch = dataclasses.replace(batch, weights=batch.weights * mean)
    return CrossEntropy.__call__(self, model, params, key, batch, times, progress)


def test_the_loss_is_the_published_one():
  check_published(MaskedMean(weighting="inverse_time"))


@pytest.mark.parametrize("mutant", [
  CrossEntropy(weighting="inverse_time"),
  MaskedMean(weighting="uniform"),
  PerRow(weighting="inverse_time"),
])  # fmt: skip
def test_other_weights_are_noticed(mutant):
  with pytest.raises(AssertionError):
    check_published(mutant)


def test_a_batch_without_noise_costs_nothing():
  model = MODEL._replace(timing=Shared(low=0.0, high=1e-9))
  loss = jit(lambda net: loss_of(MaskedMean(), net, model)[0])(NET)
  assert float(loss.total - loss.sums["router"]) == 0.0

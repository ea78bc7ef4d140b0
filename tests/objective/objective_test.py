"""Objectives on a real network: gradients, weights, memory. (That the bound is a bound is shown in tests/process.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.experiment.build import build
from diffusion_text.objective.bound import Bound, Chunks, scored_weights
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.process.masked import Masked
from diffusion_text.schedules.discrete import Linear
from diffusion_text.studies.benchmark import full_logits_loss
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Layout, Prediction, Progress
from tests.experiment.build_test import AnyTokenizer, sized

PROCESS = Masked(7, Linear())
IDS = jax.random.randint(jax.random.key(0), (16, 12), 0, 7)


def linear_predict(params):
  """A network of one table: features are the embedding of the id that is read."""

  def predict(inputs, t, layout: Layout) -> Prediction:
    del t, layout
    return Prediction(params["table"][inputs.ids], lambda features: features @ params["out"])

  return predict


PARAMS = {
  "table": jax.random.normal(jax.random.key(1), (8, 5)),
  "out": jax.random.normal(jax.random.key(2), (5, 7)),
}
BATCHES = {
  "plain": Batch(IDS),
  "given": Batch(IDS, given=jax.random.bernoulli(jax.random.key(3), 0.3, IDS.shape)),
  "padded": Batch(IDS, weights=(jnp.arange(12) < 9).astype(jnp.float32) * jnp.ones((16, 1))),
}


def brute_force(params, key, batch, weighting):
  """The loss and the bound with every logit in memory."""
  bound = Bound(PROCESS, Shared())
  times = bound.timing.draw(jax.random.fold_in(key, 0), batch, Progress())
  t = times.t if batch.given is None else jnp.where(batch.given, 0.0, times.t)
  t = jnp.broadcast_to(t, IDS.shape)
  state = PROCESS.corrupt({}, jax.random.fold_in(jax.random.fold_in(key, 1), 0), batch.ids, t)
  logits = params["table"][state] @ params["out"]
  nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.ids[..., None], -1)[..., 0]
  masked = (state == 7) * scored_weights(batch)
  return jnp.sum(masked * nats * weighting(jnp.maximum(t, 1e-7)))


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("chunk", [1, 64, 1024])
def test_values_and_gradients_equal_brute_force(kind, chunk):
  batch, key, chunks = BATCHES[kind], jax.random.key(9), Chunks(chunk)
  for objective, weighting in (
    (Bound(PROCESS, Shared(), chunks), lambda t: 1 / t),
    (CrossEntropy(PROCESS, Shared(), chunks=chunks), jnp.ones_like),
    (CrossEntropy(PROCESS, Shared(), "inverse_time", chunks=chunks), lambda t: 1 / t),
    (
      CrossEntropy(PROCESS, Shared(), "inverse_time", 2.0, chunks),
      lambda t: jnp.minimum(1 / t, 2.0),
    ),
  ):
    ours = jax.value_and_grad(
      lambda p, o=objective: o({}, key, batch, Progress(), linear_predict(p)).total
    )(PARAMS)
    theirs = jax.value_and_grad(lambda p, w=weighting: brute_force(p, key, batch, w))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, theirs)


def test_cross_entropy_reports_the_bound_of_the_same_draw():
  key, batch = jax.random.key(4), BATCHES["padded"]
  bound = Bound(PROCESS, Shared())({}, key, batch, Progress(), linear_predict(PARAMS))
  surrogate = CrossEntropy(PROCESS, Shared())({}, key, batch, Progress(), linear_predict(PARAMS))
  assert float(surrogate.sums["bound"]) == pytest.approx(float(bound.total), rel=1e-5)
  assert float(surrogate.count) == float(bound.count) == 16 * 9


def test_clean_tokens_get_no_gradient():
  """Carry-over: logits at positions that are not masked do not enter the loss at all."""
  objective = Bound(PROCESS, Shared())
  features = jax.random.normal(jax.random.key(1), (16, 12, 7))
  seen = []

  def loss(features):
    def predict(inputs, t, layout):
      seen.append(inputs.ids)
      return Prediction(features, lambda rows: rows)

    return objective({}, jax.random.key(2), Batch(IDS), Progress(), predict).total

  gradient = jax.grad(loss)(features)
  clean = np.asarray(seen[0]) != 7
  assert clean.any() and not np.asarray(gradient)[clean].any()
  assert (np.abs(np.asarray(gradient)[~clean]).sum(-1) > 0).all()


def test_microbatches_draw_different_noise_at_evenly_spread_times():
  objective, key, states = Bound(PROCESS, Shared()), jax.random.key(3), []

  def predict(inputs, t, layout):
    states.append((np.asarray(inputs.ids), np.asarray(t)))
    return linear_predict(PARAMS)(inputs, t, layout)

  for part in range(4):
    objective({}, key, Batch(IDS), Progress(part=part, parts=4), predict)
  times = np.sort(np.concatenate([t[:, 0] for _, t in states]))
  np.testing.assert_allclose(np.diff(times), 1 / 64, atol=1e-5)
  assert not np.array_equal(states[0][0], states[1][0])


def test_memory_does_not_grow_with_the_logits_of_all_positions():
  """The compiler's own figures: what V = 8192 costs over V = 64 is a few chunks, where full logits take two [B, L, V] at least."""

  def temporaries(vocab_size, loss_of):
    experiment = build(
      sized("micro", batch_size=32, length=128),
      tokenizer=AnyTokenizer(vocab_size),
      devices=jax.devices()[:1],
    )
    params = jax.eval_shape(experiment.init_params, jax.random.key(0))
    batch = Batch(jax.ShapeDtypeStruct((32, 128), jnp.int32))
    gradient = jax.grad(lambda p, b: loss_of(experiment)(p, jax.random.key(0), b, Progress()).total)
    return jax.jit(gradient).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

  growth = lambda loss_of: temporaries(8192, loss_of) - temporaries(64, loss_of)
  one = 32 * 128 * 8192 * 4
  assert growth(full_logits_loss) > 1.5 * one
  assert growth(lambda experiment: experiment.loss_fn(1.0)) < 0.35 * one


def test_bad_options_are_refused():
  with pytest.raises(ValueError, match="weighting='t'"):
    CrossEntropy(PROCESS, Shared(), "t")
  with pytest.raises(ValueError, match=r"max_weight=0\.0"):
    CrossEntropy(PROCESS, Shared(), max_weight=0.0)

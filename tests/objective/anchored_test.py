"""The anchored bound: which tokens are rare, values and gradients against brute force, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.experiment.build import build
from diffusion_text.objective.anchored import Anchored, occurrences
from diffusion_text.objective.bound import Bound, Chunks, scored_weights
from diffusion_text.process.masked import Masked
from diffusion_text.schedules.discrete import Linear
from diffusion_text.timing import PerBlock, Shared
from diffusion_text.types import Batch, Prediction, Progress
from tests.experiment.build_test import AnyTokenizer, sized

PROCESS = Masked(7, Linear())
IDS = jax.random.randint(jax.random.key(0), (16, 12), 0, 7)
SHAPES = {"table": (8, 5), "first": (5, 7), "final": (5, 7)}
PARAMS = {
  name: jax.random.normal(jax.random.key(i), shape)
  for i, (name, shape) in enumerate(SHAPES.items())
}
BATCHES = {
  "plain": Batch(IDS),
  "given": Batch(IDS, given=jax.random.bernoulli(jax.random.key(3), 0.3, IDS.shape)),
  "padded": Batch(IDS, weights=(jnp.arange(12) < 9).astype(jnp.float32) * jnp.ones((16, 1))),
  "packed": Batch(
    IDS, segment=(jnp.arange(12) > 6).astype(jnp.int32) * jnp.ones((16, 1), jnp.int32)
  ),
}


def two_stages(params):
  """A network of one table and two heads."""

  def predict(inputs, t, layout):
    features = params["table"][inputs.ids]
    anchor = Prediction(2 * features, lambda features: features @ params["first"])
    return Prediction(features, lambda features: features @ params["final"], anchor)

  return predict


def counted(batch):
  """`occurrences`, by comparing every token with every other."""
  real = np.broadcast_to(1.0 if batch.weights is None else np.asarray(batch.weights), IDS.shape) > 0
  segment = np.zeros(IDS.shape) if batch.segment is None else np.asarray(batch.segment)
  fields = real, segment, np.asarray(batch.ids)
  return np.logical_and.reduce([f[:, :, None] == f[:, None, :] for f in fields]).sum(axis=2)


def brute_force(params, key, batch, threshold, anchor_weight):
  """The loss with every logit in memory: masks at rate 1/t, as drawn by `noised`."""
  t = Shared().draw(jax.random.fold_in(key, 0), batch, Progress()).t
  t = jnp.broadcast_to(t if batch.given is None else jnp.where(batch.given, 0.0, t), IDS.shape)
  state = PROCESS.corrupt({}, jax.random.fold_in(jax.random.fold_in(key, 1), 0), batch.ids, t)
  nats = lambda logits: (
    -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.ids[..., None], -1)[..., 0]
  )
  final, first = (
    scale * params["table"][state] @ params[name] for scale, name in ((1, "final"), (2, "first"))
  )
  weight = (state == 7) * scored_weights(batch) / jnp.maximum(t, 1e-7)
  bound, anchor = (
    jnp.sum(weight * nats(final)),
    jnp.sum(weight * (counted(batch) <= threshold) * nats(first)),
  )
  return bound + anchor_weight * anchor, (bound, anchor)


@pytest.mark.parametrize("kind", BATCHES)
def test_occurrences_are_those_in_the_row(kind):
  np.testing.assert_array_equal(occurrences(BATCHES[kind]), counted(BATCHES[kind]))


def test_occurrences_by_hand():
  ids = jnp.array([[4, 1, 4, 4, 0, 0], [0, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(occurrences(Batch(ids)), [[3, 1, 3, 3, 2, 2], [6] * 6])
  padded = Batch(ids, weights=jnp.array([[1.0, 1, 1, 1, 1, 0]] * 2))
  np.testing.assert_array_equal(occurrences(padded), [[3, 1, 3, 3, 1, 1], [5] * 5 + [1]])


@pytest.mark.parametrize(
  "kind,threshold", [("plain", 1), ("given", 2), ("padded", 2), ("packed", 1)]
)
def test_values_and_gradients_equal_brute_force(kind, threshold):
  batch, key = BATCHES[kind], jax.random.key(9)
  objective = Anchored(PROCESS, Shared(), Chunks(64), anchor_weight=0.5, threshold=threshold)

  def ours(params):
    loss = objective({}, key, batch, Progress(), two_stages(params))
    return loss.total, (loss.sums["bound"], loss.sums["anchor"])

  theirs = lambda params: brute_force(params, key, batch, threshold, 0.5)
  ours, theirs = (jax.jit(jax.value_and_grad(fn, has_aux=True))(PARAMS) for fn in (ours, theirs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, theirs)


def test_it_reports_the_bound_of_the_same_draw_and_is_it_without_weight():
  key, batch = jax.random.key(4), BATCHES["padded"]
  bound = Bound(PROCESS, Shared())({}, key, batch, Progress(), two_stages(PARAMS))
  for weight in (0.0, 3e-3):
    loss = Anchored(PROCESS, Shared(), anchor_weight=weight)(
      {}, key, batch, Progress(), two_stages(PARAMS)
    )
    assert float(loss.sums["bound"]) == pytest.approx(float(bound.total), rel=1e-5)
    assert float(loss.total) == pytest.approx(
      float(bound.total) + weight * float(loss.sums["anchor"]), rel=1e-5
    )
    assert float(loss.count) == float(bound.count)


def test_noisy_clean_rows_read_the_noisy_half():
  """Blocks: 2L positions are read, and both answers are those of the noisy copy. Equal heads then cost the same on rare tokens."""
  equal = PARAMS | {"first": PARAMS["final"] / 2}
  objective = Anchored(PROCESS, PerBlock(4), threshold=12)
  loss = objective({}, jax.random.key(4), Batch(IDS), Progress(), two_stages(equal))
  assert float(loss.sums["anchor"]) == pytest.approx(float(loss.sums["bound"]), rel=1e-5)


def test_one_stage_is_refused():
  predict = lambda inputs, t, layout: two_stages(PARAMS)(inputs, t, layout)._replace(anchor=None)
  with pytest.raises(ValueError, match=r"needs a network of two stages; set model\.anchor_layers"):
    Anchored(PROCESS, Shared())({}, jax.random.key(4), Batch(IDS), Progress(), predict)


@pytest.mark.parametrize(
  "option,match",
  [(dict(anchor_weight=-1.0), r"anchor_weight=-1\.0"), (dict(threshold=0), "threshold=0")],
)
def test_bad_options_are_refused(option, match):
  with pytest.raises(ValueError, match=match):
    Anchored(PROCESS, Shared(), **option)


def test_it_trains_the_anchor_of_a_real_network():
  """With the anchor's loss, its head moves at once; the last head gets the gradient that it has without."""
  config = sized("micro", batch_size=4, length=16)
  config.model.anchor_layers = 1
  experiment = build(config, tokenizer=AnyTokenizer(11), devices=jax.devices()[:1])
  params = experiment.init_params(jax.random.key(0))
  batch = Batch(jax.random.randint(jax.random.key(1), (4, 16), 0, 11))
  predict = lambda params: (
    lambda inputs, t, layout: experiment.network.apply(params["network"], inputs, t, layout, None)
  )

  def gradient(objective):
    loss = lambda params: (
      objective(params["process"], jax.random.key(2), batch, Progress(), predict(params)).total
    )
    return jax.jit(jax.grad(loss))(params)["network"]

  anchored, alone = (
    gradient(Anchored(experiment.process, Shared())),
    gradient(Bound(experiment.process, Shared())),
  )
  assert (
    float(jnp.abs(anchored["anchor"]["head"]["kernel"]).max())
    > 0
    == float(jnp.abs(alone["anchor"]["head"]["kernel"]).max())
  )
  np.testing.assert_allclose(anchored["head"]["kernel"], alone["head"]["kernel"], atol=1e-5)


def by_row_only(batch):
  return occurrences(dataclasses.replace(batch, segment=None))


def without_padding(batch):
  return occurrences(dataclasses.replace(batch, weights=None))


@pytest.mark.parametrize("mutant,kind", [(by_row_only, "packed"), (without_padding, "padded")])
def test_mutants_of_occurrences_fail(mutant, kind):
  assert not np.array_equal(mutant(BATCHES[kind]), counted(BATCHES[kind]))

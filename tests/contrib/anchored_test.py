"""The anchored bound: rare tokens, values and gradients against brute force, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.contrib.anchored import Anchored, occurrences
from diffusion_text.core.prng import stream
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress

V, B, L = 7, 8, 12
PROCESS = Masked(vocab_size=V)
START = Progress()
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
ONES = np.ones((B, L), np.float32)
PLAIN = {
  "observed": np.zeros((B, L), bool),
  "weights": ONES,
  "segment": np.zeros((B, L), np.int32),
}
BATCHES = {  # of one structure, so that one program serves them all
  "plain": Batch(IDS, **PLAIN),
  "observed": Batch(IDS, **(PLAIN | {"observed": RNG.random((B, L)) < 0.3})),
  "padded": Batch(IDS, **(PLAIN | {"weights": (np.arange(L) < 9) * ONES})),
  "packed": Batch(IDS, **(PLAIN | {"segment": ((np.arange(L) > 6) * ONES).astype(np.int32)})),
}
NET = jax.tree.map(np.asarray, TableNetwork.params(jax.random.key(1), InputSizes(ids=V + 1), V, V))


def model_of(context=None, network=None):
  network = TableNetwork(stages=True) if network is None else network
  return Model(network, PROCESS, Shared(), Full() if context is None else context, chunk=64)


def loss_of(objective, network, batch, model):
  params, key = {"network": network, "process": {}, "timing": {}}, jax.random.key(9)
  times = engine.draw_times(model, params, stream(key, "times"), batch, START)
  return objective(model, params, key, batch, times, START)[0]


def counted(batch):
  """`occurrences`, by comparing every token with every other."""
  fields = batch.weights > 0, batch.segment, batch.ids
  return np.logical_and.reduce([f[:, :, None] == f[:, None, :] for f in fields]).sum(axis=2)


COUNT = jit(occurrences)


@pytest.mark.parametrize("kind", BATCHES)
def test_occurrences_are_those_in_the_row(kind):
  np.testing.assert_array_equal(COUNT(BATCHES[kind]), counted(BATCHES[kind]))


def by_row_only(batch):
  return COUNT(dataclasses.replace(batch, segment=0 * batch.segment))


def without_padding(batch):
  return COUNT(dataclasses.replace(batch, weights=ONES))


@pytest.mark.parametrize("mutant,kind", [(by_row_only, "packed"), (without_padding, "padded")])
def test_mutants_of_occurrences_fail(mutant, kind):
  assert not np.array_equal(mutant(BATCHES[kind]), counted(BATCHES[kind]))


def test_occurrences_by_hand():
  ids = np.array([[4, 1, 4, 4, 0, 0], [0, 0, 0, 0, 0, 0]], np.int32)
  plain, padded = jit(
    lambda ids, weights: (occurrences(Batch(ids)), occurrences(Batch(ids, weights=weights)))
  )(ids, np.float32([[1, 1, 1, 1, 1, 0]] * 2))
  np.testing.assert_array_equal(plain, [[3, 1, 3, 3, 2, 2], [6] * 6])
  np.testing.assert_array_equal(padded, [[3, 1, 3, 3, 1, 1], [5] * 5 + [1]])


@functools.cache
def compiled(threshold):
  """batch -> ((total, sums), gradient), ours and by hand with every logit in memory."""
  model, objective = model_of(), Anchored(anchor_weight=0.5, threshold=threshold)

  def ours(network, batch):
    loss = loss_of(objective, network, batch, model)
    return loss.total, (loss.sums["bound"], loss.sums["anchor"])

  def by_hand(network, batch, count):
    params, key = {"network": network, "process": {}, "timing": {}}, jax.random.key(9)
    times = engine.draw_times(model, params, stream(key, "times"), batch, START)
    _, state = engine.corrupted(model, params, key, batch, times, START)
    weight = (state == V) * engine.scored_weights(batch) / jnp.maximum(times.t, 1e-7)

    def nats(features, head):
      log_p = jax.nn.log_softmax(features @ head)
      return -jnp.take_along_axis(log_p, batch.ids[..., None], -1)[..., 0]

    features = jnp.asarray(network["table"])[state]
    bound = jnp.sum(weight * nats(features, network["out"]))
    first = jnp.sum(weight * (count <= threshold) * nats(2 * features, network["first"]))
    return bound + 0.5 * first, (bound, first)

  def both(batch, count):
    grad = functools.partial(jax.value_and_grad, has_aux=True)
    return grad(ours)(NET, batch), grad(by_hand)(NET, batch, count)

  return jit(both)


@pytest.mark.parametrize(
  "kind,threshold", [("plain", 1), ("observed", 2), ("padded", 2), ("packed", 1)]
)
def test_values_and_gradients_equal_brute_force(kind, threshold):
  ours, theirs = compiled(threshold)(BATCHES[kind], counted(BATCHES[kind]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, theirs)


def test_it_reports_the_bound_of_the_same_draw_and_is_it_without_weight():
  model = model_of()
  objectives = Bound(), Anchored(anchor_weight=0.0), Anchored(anchor_weight=3e-3)
  bound, *losses = jit(lambda b: [loss_of(o, NET, b, model) for o in objectives])(BATCHES["padded"])
  for weight, loss in zip((0.0, 3e-3), losses, strict=True):
    assert float(loss.sums["bound"]) == pytest.approx(float(bound.total), rel=1e-5)
    want = float(bound.total) + weight * float(loss.sums["anchor"])
    assert float(loss.total) == pytest.approx(want, rel=1e-5)
    assert float(loss.count) == float(bound.count)


def test_noisy_clean_rows_read_the_noisy_half():
  """Blocks read 2 L positions, and both predictions are of the noisy copy. Equal heads then cost
  the same on rare tokens.
  """
  equal = NET | {"first": NET["out"] / 2}
  loss = jit(lambda b: loss_of(Anchored(threshold=12), equal, b, model_of(Blocks(size=4))))(
    Batch(IDS)
  )
  assert float(loss.sums["anchor"]) == pytest.approx(float(loss.sums["bound"]), rel=1e-5)


def test_one_stage_is_refused():
  with pytest.raises(ValueError, match=r"network of two stages; set model\.first_stage_layers"):
    model = model_of(network=TableNetwork())
    jax.eval_shape(lambda net: loss_of(Anchored(), net, Batch(IDS), model), NET)


@pytest.mark.parametrize("option", [{"anchor_weight": -1.0}, {"threshold": 0}])
def test_bad_options_are_refused(option):
  with pytest.raises(ValueError, match=next(iter(option))):
    Anchored(**option)


def test_it_trains_the_first_stage_of_a_real_network():
  """With the first stage's loss its head gets a gradient at once; the gradient of the last head
  stays as it is without.
  """
  network = Transformer(
    layers=2,
    width=8,
    heads=1,
    mlp_width=8,
    first_stage_layers=1,
    input_sizes=PROCESS.input_sizes,
    output_size=V,
    attention=("xla",),
  )
  model = Model(network, PROCESS, Shared(), Full(), chunk=64)
  params = jax.jit(network.init)(jax.random.key(0))
  batch = Batch(IDS[:4])

  @jit
  def gradients(params):
    def of(objective):
      return jax.grad(lambda p: loss_of(objective, p, batch, model).total)(params)

    return of(Anchored()), of(Bound())

  anchored, alone = gradients(params)
  largest = [
    {jax.tree_util.keystr(path): float(jnp.abs(leaf).max()) for path, leaf in leaves}
    for leaves in (jax.tree_util.tree_leaves_with_path(g) for g in (anchored, alone))
  ]
  moved = [name for name, size in largest[0].items() if size > 0 and largest[1][name] == 0]
  assert moved and not any(name.startswith("['head']") for name in moved), moved
  np.testing.assert_allclose(anchored["head"]["kernel"], alone["head"]["kernel"], atol=1e-5)

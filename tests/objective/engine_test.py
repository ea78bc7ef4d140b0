"""The engine of losses: times, noise, readings and sums, on a table network and the exact one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full, NextToken
from diffusion_text.core.prng import row_coins, stream
from diffusion_text.objective import Bound, CrossEntropy, engine
from diffusion_text.objective.bound import bound_cost
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.testing.exact_network import ExactNetwork, exact_params
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import ByPosition, ExactCount, Independent, Shared
from diffusion_text.types import Batch, DataFacts, InputSizes, Model, Progress, Times

V, B, L = 7, 8, 12
MASKED = Masked(vocab_size=V)
START = Progress()
# Programs run once on small arrays: compiling them well takes longer than running them badly.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
OBSERVED = RNG.random((B, L)) < 0.3
REAL = np.broadcast_to((np.arange(L) < 9).astype(np.float32), (B, L))
BATCH = Batch(IDS, observed=OBSERVED, weights=REAL)
NET = jax.tree.map(np.asarray, TableNetwork.params(jax.random.key(1), InputSizes(ids=V + 1), V, V))
PARAMS = {"network": NET, "process": {}, "timing": {}}


def model_of(network=None, process=MASKED, timing=None, context=None, **options):
  network = TableNetwork() if network is None else network
  timing = Shared() if timing is None else timing
  context = Full() if context is None else context
  return Model(network, process, timing, context, **options)


def loss_of(objective, model, params, batch, key=9, progress=START):
  key = jax.random.key(key)
  times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
  return objective(model, params, key, batch, times, progress)


def noised_of(model, params, batch, key=9, progress=START, **options):
  key = jax.random.key(key)
  times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
  return engine.read(model, params, key, batch, times, progress, **options)


# Values and gradients, against every logit in memory.

LOSSES = {
  "bound": (Bound(), lambda t: 1 / t),
  "uniform": (CrossEntropy(), np.ones_like),
  "inverse_time": (CrossEntropy(weighting="inverse_time"), lambda t: 1 / t),
  "cut off": (
    CrossEntropy(weighting="inverse_time", max_weight=2.0),
    lambda t: np.minimum(1 / t, 2.0),
  ),
}


def all_losses(model, names, network, batch):
  """name -> (value, gradient for the network)."""

  def total(network, objective):
    return loss_of(objective, model, {**PARAMS, "network": network}, batch)[0].total

  return {
    name: jax.value_and_grad(total)(network, objective) for name, (objective, _) in LOSSES.items()
  }


@jit
def drawn(batch):
  noised = noised_of(model_of(), PARAMS, batch)
  return noised.state, noised.times.t


def by_hand(batch, weighting):
  """Σ weight · w(t) · CE at masks and its gradient for "table" and "out", in numpy."""
  state, t = (np.asarray(x) for x in drawn(batch))
  table, out = (np.asarray(NET[name], np.float64) for name in ("table", "out"))
  logits = table[state] @ out
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  counts = np.ones((B, L)) if batch.weights is None else np.asarray(batch.weights)
  counts = counts if batch.observed is None else counts * ~np.asarray(batch.observed)
  weight = counts * (state == V) * weighting(np.maximum(t, 1e-7))
  value = -(weight * np.log(np.take_along_axis(p, IDS[..., None], -1)[..., 0])).sum()
  slope = weight[..., None] * (p - np.eye(V)[IDS])
  d_table = np.zeros_like(table)
  np.add.at(d_table, state, slope @ out.T)
  return value, {"table": d_table, "out": np.einsum("bld,blv->dv", table[state], slope)}


def check_values(model, batch, names):
  ours = jit(all_losses, static_argnums=(0, 1))(model, names, NET, batch)
  for name in names:
    value, gradient = by_hand(batch, LOSSES[name][1])
    assert float(ours[name][0]) == pytest.approx(value, rel=2e-4)
    for leaf, want in gradient.items():
      np.testing.assert_allclose(ours[name][1][leaf], want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
  "chunk,shards,batch,names",
  [
    (1024, 1, Batch(IDS), ("bound",)),
    (5, 4, BATCH, tuple(LOSSES)),
    (1, 1, BATCH, ("cut off",)),
  ],
  ids=["plain", "shards", "one at a time"],
)
def test_values_and_gradients_equal_brute_force(chunk, shards, batch, names):
  check_values(model_of(chunk=chunk, shards=shards), batch, names)


class CountsObserved(Masked):
  """Scores what the batch says is observed."""

  def in_positions(self, batch):
    return dataclasses.replace(batch, observed=None)


def test_scoring_observed_tokens_would_be_noticed():
  with pytest.raises(AssertionError):
    check_values(model_of(process=CountsObserved(vocab_size=V), chunk=1024), BATCH, ("bound",))


def test_logits_that_carry_over_get_no_gradient():
  """Only masked tokens have a loss; the features of all others get no gradient at all."""
  model = model_of()

  @jit
  def run(network):
    noised = noised_of(model, {**PARAMS, "network": network}, BATCH)

    def total(features):
      prediction = dataclasses.replace(noised.prediction, features=features)
      read = noised._replace(prediction=prediction)
      loss, costs = engine.token_loss(model, PARAMS, BATCH, read, bound_cost)
      return loss.total, costs

    gradient, costs = jax.grad(total, has_aux=True)(noised.prediction.features)
    return noised.state, gradient, costs

  state, gradient, costs = (np.asarray(x) if hasattr(x, "shape") else x for x in run(NET))
  scored = (state == V) & ~OBSERVED & (REAL > 0)
  assert scored.any() and not gradient[~scored].any()
  assert (np.abs(gradient[scored]).sum(-1) > 0).all()
  np.testing.assert_array_equal(costs.counted, scored)
  np.testing.assert_array_equal(costs.weight, REAL * ~OBSERVED)
  assert (np.asarray(costs.nats)[scored] > 0).all() and not np.asarray(costs.nats)[~scored].any()


def test_the_bound_is_what_nats_says():
  """The same key draws the same noise: the loss is the sum of what evaluation reports per token."""
  model = model_of()

  @jit
  def both(params):
    nats = engine.nats(model, params, jax.random.key(9), BATCH, START)
    loss, costs = loss_of(Bound(), model, params, BATCH)
    other, _ = loss_of(CrossEntropy(weighting="linear"), model, params, BATCH)
    return nats, loss, costs, other

  nats, loss, costs, other = both(PARAMS)
  assert float(loss.total) == pytest.approx(float(nats.sum()), rel=1e-5)
  np.testing.assert_allclose(nats, costs.weight * costs.nats, rtol=1e-5)
  assert float(other.sums["bound"]) == pytest.approx(float(loss.total), rel=1e-5)
  assert float(other.count) == float(loss.count) == (REAL * ~OBSERVED).sum()


def test_dropout_is_of_training_only():
  """Evaluation has no key of dropout, and microbatches drop different numbers."""
  network = TableNetwork()
  model = model_of(network)
  jax.eval_shape(lambda key: engine.nats(model, PARAMS, key, BATCH, START), jax.random.key(0))
  assert network.calls[0][2] is None

  @jit
  def key_of(part):
    noised_of(model, PARAMS, BATCH, progress=Progress(part=part, parts=2))
    return jax.random.key_data(network.calls[-1][2])

  assert (np.asarray(key_of(0)) != np.asarray(key_of(1))).any()


# Times.


def test_times_of_observed_and_dropped_tokens():
  """0 where observed, 1 where dropped; what the timing drew elsewhere; in units of the context."""
  dropped = OBSERVED & (np.arange(B) % 2 == 0)[:, None]
  batch = dataclasses.replace(BATCH, dropped=dropped)
  model = model_of(context=Blocks(size=4))
  times = jit(lambda b: engine.draw_times(model, PARAMS, jax.random.key(3), b, START))(batch)
  t, tau = np.asarray(times.t), np.asarray(times.tau)
  assert tau.shape == (B, 3) and t.shape == times.dt_dtau.shape == (B, L)
  drawn = np.repeat(tau, 4, axis=1)
  np.testing.assert_array_equal(t, np.where(dropped, 1.0, np.where(OBSERVED, 0.0, drawn)))
  np.testing.assert_array_equal(times.network_time, t)
  spread = np.sort(tau.reshape(-1))  # low discrepancy over all units of the batch
  np.testing.assert_allclose(np.diff(spread), 1 / (3 * B), atol=1e-5)


ONE_TIME = {  # timing, context, batch: whether the network reads one time per row
  "shared": (Shared(), Full(), Batch(IDS), True),
  "each its own": (Independent(), Full(), Batch(IDS), False),
  "a prompt": (Shared(), Full(), BATCH, False),
  "blocks": (Shared(), Blocks(size=4), Batch(IDS), False),
  "shifted": (Shared(), Full(answer_shift=1), Batch(IDS), False),
}


@pytest.mark.parametrize("timing,context,batch,one", ONE_TIME.values(), ids=ONE_TIME)
def test_rows_of_one_time_say_so(timing, context, batch, one):
  model = model_of(timing=timing, context=context)
  found = jax.eval_shape(lambda batch: noised_of(model, PARAMS, batch).rows, batch)
  assert found.one_time is one and found.t.shape == found.inputs.shape


def test_times_are_on_the_grid_of_the_process():
  model = model_of(process=Masked(vocab_size=V, time_steps=5))
  t = engine.draw_times(model, PARAMS, jax.random.key(3), Batch(IDS), START).t
  np.testing.assert_allclose(np.asarray(t) * 5, np.round(np.asarray(t) * 5), atol=1e-5)
  assert (np.asarray(t) > 0).all()


def test_a_unit_that_does_not_divide_the_row_is_refused():
  model = model_of(context=Blocks(size=5))
  with pytest.raises(
    ValueError, match=r"context\.size=5 must divide the 12 .*use 4, or rows of 15"
  ):
    engine.draw_times(model, PARAMS, jax.random.key(0), Batch(IDS), START)


def test_a_timing_is_fitted_in_the_units_in_which_it_draws():
  """Its parameters are of one block; the fit has value 0 and a gradient for each of them."""
  timing = ByPosition(bins=3)
  model = model_of(timing=timing, context=Blocks(size=4))
  start = timing.init(jax.random.key(0), DataFacts(length=4, vocab_size=V))

  def fit(own):
    params = {**PARAMS, "timing": own}
    times = engine.draw_times(model, params, jax.random.key(1), BATCH, START)
    _, costs = loss_of(Bound(), model, params, BATCH)
    return engine.fit_times(model, params, times, costs)

  value, gradient = jit(jax.value_and_grad(fit))(start)
  assert float(value) == 0
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
  assert any(
    leaf.shape[:1] == (4,) and (np.abs(leaf).reshape(4, -1).max(1) > 0).all() for leaf in leaves
  )
  params = {**PARAMS, "timing": start}
  times = engine.draw_times(model, params, jax.random.key(1), BATCH, START)
  assert engine.fit_times(model, params, times, None) == 0.0


# Self-conditioning (trap 6 of continuous.md, section 22).


def test_a_coin_belongs_to_a_row_of_the_global_batch():
  """256 of them realise 0.5 to 0.031, 8 shards' coins to 0.177."""
  draw = jax.jit(jax.vmap(lambda key: row_coins(key, 256, START, 0.5)))
  rates = np.asarray(draw(jax.random.split(jax.random.key(2), 400))).mean(1)
  assert rates.std() == pytest.approx(0.03125, rel=0.15) and abs(rates.mean() - 0.5) < 0.005


def conditioned(network=None, **options):
  return model_of(network, chunk=7, self_conditioning=0.5, **options)


def check_gradient(read, model):
  """The gradient is that of one reading that is conditioned on a constant, and the map that keeps
  it is trained.
  """

  def total(network, memory_of):
    params = {**PARAMS, "network": network}
    noised = read(model, params, BATCH, memory_of)
    return engine.token_loss(model, params, BATCH, noised, bound_cost)[0].total

  @jit
  def both(network):
    plain = noised_of(model, {**PARAMS, "network": network}, BATCH)
    logits = plain.first[0].logits
    told = plain.first[1][:, None] & MASKED.has_loss({}, plain.state, plain.times.t)
    estimate = jax.lax.stop_gradient(MASKED.estimate({}, plain.state, plain.times.t, logits))

    def constant(network):
      memory = TableNetwork().remember(network, estimate)
      return jnp.where(told[..., None], memory, TableNetwork().no_memory(network))

    return jax.grad(total)(network, None), jax.grad(total)(network, constant)

  ours, want = both(NET)
  for name in ("table", "out", "memory"):
    np.testing.assert_allclose(ours[name], want[name], rtol=2e-4, atol=1e-4)
  assert float(np.abs(ours["memory"]).max()) > 1e-3, "the map that keeps an answer must be trained"


def read_once_with(model, params, batch, memory_of):
  """One reading that is shown a memory; without one, the engine's two readings."""
  if memory_of is None:
    return noised_of(model, params, batch)
  plain = noised_of(model._replace(self_conditioning=0.0), params, batch)
  memory = memory_of(params["network"])
  prediction = model.network.apply(params["network"], plain.rows, memory=memory)
  return plain._replace(prediction=prediction)


def read_differentiably(model, params, batch, memory_of):
  """The first reading's graph is kept, as where `detach` is a no-op."""
  if memory_of is not None:
    return read_once_with(model, params, batch, memory_of)
  once = noised_of(model._replace(self_conditioning=0.0), params, batch)
  told = noised_of(model, params, batch).first[1]
  estimate = MASKED.estimate({}, once.state, once.times.t, once.prediction.logits)
  where = told[:, None] & MASKED.has_loss({}, once.state, once.times.t)
  memory = model.network.remember(params["network"], estimate)
  memory = jnp.where(where[..., None], memory, 0.0)
  prediction = model.network.apply(params["network"], once.rows, memory=memory)
  return once._replace(prediction=prediction)


def test_no_gradient_through_the_first_answer():
  check_gradient(read_once_with, conditioned())


def test_a_gradient_through_the_first_answer_would_be_noticed():
  with pytest.raises(AssertionError):
    check_gradient(read_differentiably, conditioned())


@pytest.mark.parametrize("context", [Full(), Blocks(size=4)], ids=["full", "blocks"])
def test_what_the_second_reading_is_shown(context):
  """The estimate of the first, at the same rows, of noisy tokens where the coin says so."""
  network = TableNetwork()
  model = conditioned(network, context=context)

  @jit
  def run(batch):
    noised = noised_of(model, PARAMS, batch)
    calls = list(network.calls)
    network.calls.clear()
    return noised.state, noised.first[1], [call[:2] for call in calls]

  state, told, ((first, nothing), (second, memory)) = jax.tree.map(np.asarray, run(BATCH))
  assert nothing is None and 0 < told.sum() < B
  jax.tree.map(np.testing.assert_array_equal, first, second)
  logits = NET["table"][state] @ NET["out"]
  estimate = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  where = told[:, None] & (state == V)
  want = np.where(where[..., None], estimate @ NET["memory"], 0.0)
  np.testing.assert_allclose(memory, want, rtol=1e-4, atol=1e-4)


TOY = Enumerable.dirichlet(0, 0.5, 3, 4)


class KnowsNothingUntilTold(ExactNetwork):
  """Exact at its second reading, uniform at its first; `leak`: it is told the text itself."""

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    prediction = super().apply(params, rows)
    if memory is None:
      return dataclasses.replace(prediction, features=0 * prediction.features)
    known = 30 * params["text"] if "text" in params else 0.0
    return dataclasses.replace(prediction, features=prediction.features + known)


def bound_of_two_readings(leak):
  """(the mean bound over -log p(x), its standard error), nats per row."""
  process = Masked(vocab_size=3)
  ids = TOY.systematic(8192)
  network = KnowsNothingUntilTold(process=process)
  model = Model(network, process, Shared(), Full(), chunk=ids.size, self_conditioning=1.0)
  params = exact_params(TOY)
  if leak:
    params["network"]["text"] = jax.nn.one_hot(ids, 3)
  nats = jit(lambda p: engine.nats(model, p, jax.random.key(2), Batch(ids), START))(params)
  rows = np.asarray(nats).sum(1) + TOY.log_likelihood(ids)
  return rows.mean(), rows.std() / len(rows) ** 0.5


def test_the_bound_of_two_readings():
  """It is that of the second answer: the entropy where that is exact."""
  excess, error = bound_of_two_readings(leak=False)
  assert error < 0.1 and abs(excess) < 4 * error
  excess, error = bound_of_two_readings(leak=True)
  told = "told of the text, it is no bound: the estimate must follow from z alone"
  assert excess < -0.5 * TOY.entropy, told


def test_a_jump_costs_the_cross_entropy_of_the_posterior():
  """With exact_count and uniform noise t is 0 or 1, where the rate says nothing and -log p all."""
  process = Uniform(vocab_size=3)
  ids = TOY.systematic(8192)
  model = Model(ExactNetwork(process=process), process, ExactCount(), Full(), chunk=ids.size)
  params = exact_params(TOY)

  @jit
  def run(params):
    nats = engine.nats(model, params, jax.random.key(2), Batch(ids), START)
    loss, _ = loss_of(CrossEntropy(), model, params, Batch(ids), key=2)
    return nats, loss

  nats, loss = run(params)
  rows = np.asarray(nats.sum(1)) + TOY.log_likelihood(ids)
  assert abs(rows.mean()) < 4 * rows.std() / len(rows) ** 0.5 + 1e-3
  assert engine.is_bound(model, CrossEntropy()) and not engine.is_bound(model, Bound())
  assert float(loss.sums["bound"]) == pytest.approx(float(nats.sum()), rel=1e-5)
  assert float(loss.total) == pytest.approx(float(nats.sum()), rel=1e-5)


# Prompt dropout.


@pytest.mark.parametrize("process", [MASKED, Uniform(vocab_size=V)], ids=["masked", "uniform"])
def test_dropped_tokens_are_noise_and_not_scored(process):
  """They leave no trace in what the network reads; shown ones do."""
  model = model_of(process=process)
  key = jax.random.key(2)

  @jit
  def run(ids):
    batch = engine.drop_prompts(dataclasses.replace(BATCH, ids=ids), key, START, 0.5)
    noised = noised_of(model, PARAMS, batch)
    return batch.dropped, noised.rows.inputs.ids, noised.rows.t, engine.scored_weights(batch)

  dropped, read, t, weights = (np.asarray(x) for x in run(IDS))
  _, other, _, _ = run(np.where(OBSERVED, (IDS + 1) % V, IDS))
  rows = dropped.any(1)
  assert 0 < rows.sum() < B
  np.testing.assert_array_equal(dropped, rows[:, None] & OBSERVED)
  np.testing.assert_array_equal(read == np.asarray(other), ~OBSERVED | dropped)
  assert (t[dropped] == 1).all() and (t[OBSERVED & ~dropped] == 0).all()
  assert not weights[OBSERVED].any()


def test_nothing_is_dropped_unless_asked():
  key = jax.random.key(0)
  assert engine.drop_prompts(BATCH, key, START, 0.0) is BATCH
  with pytest.raises(ValueError, match=r"prompt_dropout=0\.5 .*have none"):
    engine.drop_prompts(Batch(IDS), key, START, 0.5)
  with pytest.raises(ValueError, match=r"prompt_dropout=-0\.1"):
    engine.drop_prompts(BATCH, key, START, -0.1)


@pytest.mark.parametrize(
  "model,match",
  [
    (model_of(self_conditioning=1.5), r"self_conditioning=1\.5"),
    (model_of(self_conditioning=0.5, context=NextToken()), "clean tokens alone"),
  ],
)
def test_readings_that_do_not_fit_are_refused(model, match):
  with pytest.raises(ValueError, match=match):
    CrossEntropy().check(model)


# What is a bound.


@pytest.mark.parametrize(
  "timing,process,objective,bound",
  [
    (Shared(), MASKED, Bound(), True),
    (Shared(), MASKED, CrossEntropy(weighting="linear"), True),
    (Shared(low=0.3, high=0.8), MASKED, Bound(), False),
    (ExactCount(), MASKED, Bound(), True),
    (ExactCount(), Uniform(vocab_size=V), Bound(), False),
    (ExactCount(), Uniform(vocab_size=V), CrossEntropy(), True),
    (ExactCount(), Uniform(vocab_size=V), CrossEntropy(label_smoothing=0.1), False),
  ],
)
def test_what_is_a_bound(timing, process, objective, bound):
  assert engine.is_bound(model_of(process=process, timing=timing), objective) == bound


# Memory.


def test_memory_does_not_grow_with_the_logits_of_all_positions():
  """The compiler's figures: a few chunks, where full logits take two [B, L, V] at least."""

  def temporaries(vocab_size, chunk):
    process = Masked(vocab_size=vocab_size)
    model = Model(TableNetwork(), process, Shared(), Full(), chunk=chunk)
    net = jax.eval_shape(
      lambda key: TableNetwork.params(key, process.input_sizes, vocab_size, vocab_size),
      jax.random.key(0),
    )

    def total(network, ids):
      params = {"network": network, "process": {}, "timing": {}}
      return loss_of(Bound(), model, params, Batch(ids))[0].total

    ids = jax.ShapeDtypeStruct((16, 64), jnp.int32)
    program = jax.jit(jax.grad(total)).lower(net, ids).compile()
    return program.memory_analysis().temp_size_in_bytes

  one = 16 * 64 * 4096 * 4
  chunked, full = (temporaries(4096, chunk) for chunk in (64, 16 * 64))
  assert full > 1.5 * one
  assert chunked < 0.35 * one


def test_times_are_constants():
  """No gradient flows through times: a learned timing moves by its fit alone."""
  timing = ByPosition(bins=3)
  model = model_of(timing=timing)
  own = timing.init(jax.random.key(0), DataFacts(length=L, vocab_size=V))

  def total(own):
    return loss_of(Bound(), model, {**PARAMS, "timing": own}, Batch(IDS))[0].total

  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(jit(jax.grad(total))(own)))
  assert isinstance(
    engine.draw_times(model, {**PARAMS, "timing": own}, jax.random.key(0), BATCH, START), Times
  )

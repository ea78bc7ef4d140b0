"""Every objective × what all of them promise; then the options of each against the formula written
out, and mutants that must fail.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.core.prng import stream
from diffusion_text.experiment import registry
from diffusion_text.objective import Bound, CrossEntropy, Reweighted, ScoreFunction, engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Polynomial
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import ExactCount, Shared
from diffusion_text.types import Batch, DataFacts, InputSizes, Model, Progress

V, B, L = 7, 4, 12
START = Progress()
# Programs run once on small arrays: compiling them well takes longer than running them badly.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
OBSERVED = RNG.random((B, L)) < 0.3
REAL = np.broadcast_to((np.arange(L) < 9).astype(np.float32), (B, L))
BATCH = Batch(IDS, observed=OBSERVED, weights=REAL)
NET = jax.tree.map(np.asarray, TableNetwork.params(jax.random.key(1), InputSizes(ids=V + 1), V, V))
MASKED, MIXED = Masked(vocab_size=V), Mixed(vocab_size=V, schedule=Polynomial(power=2.0))
ROWS = {  # every objective of tokens, with a process that it takes and options that are no defaults
  "bound": (Bound(auxiliary=0.01), MASKED),
  "cross_entropy": (CrossEntropy(weighting="linear", label_smoothing=0.1, focusing=1.0), MASKED),
  "reweighted": (Reweighted(), MIXED),
  "score_function": (ScoreFunction(), TokenMasked(vocab_size=V)),
}
every_row = pytest.mark.parametrize("name", ROWS)


def model_of(process, network=None, timing=None, context=None, **options):
  network = TableNetwork(mask_id=V) if network is None else network
  timing = Shared() if timing is None else timing
  return Model(network, process, timing, Full() if context is None else context, **options)


def params_of(process, network=NET):
  own = process.init(jax.random.key(0), DataFacts(length=L, vocab_size=V))
  return {"network": network, "process": own, "timing": {}}


def loss_of(objective, model, params, batch, key=9, progress=START):
  key = jax.random.key(key)
  times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
  return objective(model, params, key, batch, times, progress)


@every_row
def test_losses_of_the_network_are_added_once(name):
  """As the mean over readings, per token of text; they are no part of the reported bound."""
  objective, process = ROWS[name]
  networks = [TableNetwork(mask_id=V, router=router) for router in (0.3, 0.0)]

  @jit
  def run(params):
    return [
      loss_of(objective, model_of(process, network, chunk=5, shards=2), params, BATCH)[0]
      for network in networks
    ]

  loss, plain = run(params_of(process))
  assert len(networks[0].calls) == objective.passes
  router = float(loss.sums["router"])
  assert router != 0
  assert float(loss.total) == pytest.approx(float(plain.total) + router, rel=1e-5)
  assert float(loss.sums["bound"]) == pytest.approx(float(plain.sums["bound"]), rel=1e-5)


@every_row
def test_a_uniform_predictor_costs_log_v(name):
  """What is reported as the bound: the data are all the same to a network that knows nothing."""
  objective, process = ROWS[name]
  process = dataclasses.replace(process, schedule=Polynomial(power=2.0))
  model = model_of(process, TableNetwork(), Shared(power=2.0), chunk=4096)
  params = params_of(process, {**NET, "out": np.zeros_like(NET["out"])})
  batch = Batch(np.random.default_rng(5).integers(0, V, (512, 8)).astype(np.int32))

  def keyed(seed):
    return loss_of(objective, model, params, batch, seed)[0].sums["bound"]

  nats = np.asarray(jit(lambda seeds: jax.lax.map(keyed, seeds))(jnp.arange(12))) / batch.ids.size
  error = nats.std() / len(nats) ** 0.5
  print(f"{name}: {nats.mean():.4f} +- {error:.4f}, log V = {np.log(V):.4f}")
  assert error < 0.02 and abs(nats.mean() - np.log(V)) < 3 * error + 1e-4


# Formulas.


def full_logits(network, objective, model, params, cost, everywhere=False):
  """Σ weight · cost(clean, state, t, dt_dtau, logits) with all logits in memory, for one draw; of
  the tokens that have a loss, or of all.
  """
  key = jax.random.key(9)
  params = {**params, "network": network}
  times = engine.draw_times(model, params, stream(key, "times"), BATCH, START)
  noised = engine.read(model, params, key, BATCH, times, START)
  counts = REAL * ~OBSERVED
  if not everywhere:
    counts = counts * model.process.has_loss(params["process"], noised.state, times.t)
  token = noised.clean, noised.state, times.t, times.dt_dtau
  return jnp.sum(counts * cost(*token, noised.prediction.logits))


def ce(ids, logits):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]


def focal(ids, logits, power):
  p = jnp.exp(-ce(ids, logits))
  return (1 - p) ** power * ce(ids, logits)


def smoothed(ids, logits, share):
  target = (1 - share) * jax.nn.one_hot(ids, V) + share / V
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def gidd(ids, z, t, speed, logits):
  # As released: the mask is one of the V + 1 tokens.
  wrong = jnp.where(z == ids, 0.2 / 0.9 / (V + 1) * jnp.exp(jax.nn.sigmoid(-t) / 2), 1.0)
  weight = jnp.where(z == V, 1.5, wrong)
  return speed * weight * MIXED.divergence({}, ids, z, t, logits)


def posterior_of_uniform(ids, z, t, speed, logits):
  """-log p_x, p_v ∝ e^l_v (alpha [v = z] + (1 - alpha) / V), l_v the leave-one-out logits."""
  noise = t[..., None]
  seen = jnp.log((1 - noise) * jax.nn.one_hot(z, V) + noise / V)
  return ce(ids, logits + seen)


RDM = {"weighting": "linear", "linear_steps": 50, "label_smoothing": 0.1, "focusing": 1.0}


def steps_cost(ids, z, t, speed, logits):
  """The rate at masks, and 0.3 · 4 times the cross-entropy at masks and clean tokens."""
  return 2 * jnp.sqrt(t) * ((z == V) / jnp.maximum(t, 1e-7) + 1.2) * ce(ids, logits)


def routed(ids, z, t, speed, logits):
  """(1 - t + 1/50) · 0.9 · CE, focal as MDM's, and 0.1 times the mean over v at any time."""
  spread = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
  return (1 - t + 1 / 50) * 0.9 * focal(ids, logits, 1.0) + 0.1 * spread


FORMULAS = {
  "weights of RDM": (
    CrossEntropy(**RDM, weigh_smoothing=False),
    model_of(MASKED, chunk=5, shards=2),
    routed,
  ),
  "smoothed": (
    CrossEntropy(weighting="linear", label_smoothing=0.1),
    model_of(MASKED, chunk=5, shards=2),
    lambda ids, z, t, speed, logits: (1 - t) * smoothed(ids, logits, 0.1),
  ),
  "focused": (
    CrossEntropy(focusing=0.5),
    model_of(MASKED, chunk=5, shards=2),
    lambda ids, z, t, speed, logits: focal(ids, logits, 0.5),
  ),
  "auxiliary": (
    Bound(auxiliary=0.3),
    model_of(MASKED, timing=Shared(power=2.0), chunk=5, shards=2),
    lambda ids, z, t, speed, logits: (
      2 * jnp.sqrt(t) * (1 / jnp.maximum(t, 1e-7) + 0.3) * ce(ids, logits)
    ),
  ),
  "reweighted": (
    Reweighted(max_weight=1.5),
    model_of(MIXED, timing=Shared(power=2.0), chunk=5, shards=2),
    gidd,
  ),
  "leave-one-out": (
    CrossEntropy(),
    model_of(Uniform(vocab_size=V), chunk=5, shards=2),
    posterior_of_uniform,
  ),
}


def check_formula(objective, model, cost, everywhere=False):
  """Value and gradient, in chunks that do not fit and over shards."""
  params = params_of(model.process)

  def total(network):
    return loss_of(objective, model, {**params, "network": network}, BATCH)[0].total

  def formula(network):
    return full_logits(network, objective, model, params, cost, everywhere)

  ours, theirs = jit(
    lambda net: (jax.value_and_grad(total)(net), jax.value_and_grad(formula)(net))
  )(NET)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-4, atol=3e-4), ours, theirs)


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name):
  check_formula(*FORMULAS[name])


def test_the_auxiliary_loss_of_a_step_is_of_all_tokens():
  """λ · T times the cross-entropy of every token, of masks and of clean ones."""
  model = model_of(MASKED, timing=Shared(power=2.0), chunk=5, shards=2)
  check_formula(Bound(auxiliary=0.3, auxiliary_steps=4), model, steps_cost, everywhere=True)
  with pytest.raises(AssertionError):
    check_formula(Bound(auxiliary=1.2), model, steps_cost, everywhere=True)


def construct(name):
  """The objective of a config."""
  config = importlib.import_module(f"configs.{name}").get_config("micro")
  return registry.construct("objective", config.objective.to_dict())


def test_auxiliary_losses_as_released():
  """Of a network that knows nothing, the auxiliary loss is λ · T · log V per token: 10 times the
  bound of D3PM, which was 200 times as large as the auxiliary loss.
  """
  for name, steps in (("d3pm", 1000), ("diffusionbert", 2048)):
    objective = construct(name)
    assert (objective.auxiliary, objective.auxiliary_steps) == (0.01, steps)
  assert construct("d3pm_uniform").auxiliary == 0
  model = model_of(MASKED, TableNetwork())
  params = params_of(MASKED, {**NET, "out": np.zeros_like(NET["out"])})

  @jit
  def run(params):
    return [loss_of(each, model, params, BATCH) for each in (construct("d3pm"), Bound())]

  (loss, costs), (bound, plain) = run(params)
  beside = float(loss.total - bound.total) / float(loss.count)
  assert beside == pytest.approx(10 * np.log(V), rel=1e-4)
  assert float(loss.sums["bound"]) == pytest.approx(float(bound.total), rel=1e-5)
  for mine, theirs in zip(costs, plain, strict=True):  # no timing is fitted to it
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@pytest.mark.parametrize("name,steps,smoothing", [("rdm", 50, 0.1), ("mdm", 20, 0.0)])
def test_weights_of_times_as_released(name, steps, smoothing):
  """The k-th of T times weighs 1 - (k - 1) / T, and label smoothing the same at all of them."""
  objective = construct(name)
  k = np.arange(1, steps + 1)
  got = np.asarray(objective.weight(jnp.float32(k / steps)))
  np.testing.assert_allclose(got, 1 - (k - 1) / steps, rtol=1e-5)
  # A token that is certain costs nothing but the smoothing, whose mean over the vocabulary is 48.
  logits, t, true = jnp.array([[60.0, 0, 0, 0, 0]]), jnp.array([0.98]), jnp.array([0])
  cost = objective.weighted(t, logits, objective.cost(logits, true))
  assert float(cost[0]) == pytest.approx(smoothing * 48, abs=1e-4)


def check_weights_of_the_signal(cls):
  """ᾱ of the usual cosine chain at each time, and no other factor."""
  process = registry.construct(
    "process",
    importlib.import_module("configs.add").get_config("micro").process.to_dict(),
    vocab_size=V,
  )
  model, objective = model_of(process, chunk=5, shards=2), cls(weighting="signal")
  net = TableNetwork.params(jax.random.key(1), process.input_sizes, V, V)

  @jit
  def run(params):
    times = engine.draw_times(model, params, stream(jax.random.key(9), "times"), BATCH, START)
    return times.t, *loss_of(objective, model, params, BATCH)

  t, loss, costs = jax.device_get(run(params_of(process, net)))
  share = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  want = np.sum(costs.weight * costs.counted * share * costs.loss)
  assert float(loss.total) == pytest.approx(want, rel=2e-3)
  assert float(np.sum(costs.weight * costs.counted * costs.loss)) > 1.5 * want


def test_add_weighs_times_by_what_is_left_of_the_signal():
  assert construct("add") == CrossEntropy(weighting="signal")
  check_weights_of_the_signal(CrossEntropy)
  with pytest.raises(ValueError, match="weighting='signal' needs log_snr, which Masked"):
    CrossEntropy(weighting="signal").check(model_of(MASKED))


class WeighsTimes(CrossEntropy):
  """Takes the time for the log-SNR."""

  def measure(self, process, process_params, t):
    return t


def test_weights_of_the_time_are_noticed():
  with pytest.raises(AssertionError):
    check_weights_of_the_signal(WeighsTimes)


class ConstantWeight(CrossEntropy):
  """Holds the focal weight constant, which the published code does not."""

  def cost(self, logits, ids):
    weight = focal(ids, logits, self.focusing) / ce(ids, logits)
    return jax.lax.stop_gradient(weight) * ce(ids, logits)


class SmoothsTheOthersOnly(CrossEntropy):
  """Spreads the share over the tokens that are not the true one."""

  def cost(self, logits, ids):
    return smoothed(ids, logits, self.label_smoothing * V / (V - 1))


class TakesLogitsForThePosterior(Uniform):
  """Says nothing of what its logits leave out."""

  reads_logits_as = "posterior"


@pytest.mark.parametrize(
  "name,objective,process",
  [
    ("focused", ConstantWeight(focusing=0.5), MASKED),
    ("weights of RDM", CrossEntropy(**RDM, weigh_smoothing=True), MASKED),
    (
      "weights of RDM",
      CrossEntropy(**{**RDM, "linear_steps": None}, weigh_smoothing=False),
      MASKED,
    ),
    ("smoothed", SmoothsTheOthersOnly(weighting="linear", label_smoothing=0.1), MASKED),
    ("reweighted", Reweighted(max_weight=2.0), MIXED),
    ("leave-one-out", CrossEntropy(), TakesLogitsForThePosterior(vocab_size=V)),
  ],
)
def test_mutants_of_the_formulas_fail(name, objective, process):
  _, model, cost = FORMULAS[name]
  with pytest.raises(AssertionError):
    check_formula(objective, model._replace(process=process), cost)


def test_focusing_by_hand():
  """One token of probability p: loss (1 - p)^γ · CE, slope in CE as the docstring says.

  Both are finite for a token that is certain.
  """
  zero = np.zeros((), np.int32)

  @jit
  def at(x):
    objective = CrossEntropy(focusing=2.0)
    slope = jax.grad(lambda x: objective.cost(jnp.stack([0.0 * x, x]), zero))(x)
    certain = [
      jax.value_and_grad(CrossEntropy(focusing=power).cost)(jnp.array([60.0, 0.0]), zero)
      for power in (0.5, 1.0, 3.0)
    ]
    return objective.cost(jnp.stack([0.0 * x, x]), zero), slope / 0.75, certain  # dCE / dx = 1 - p

  value, slope, certain = at(jnp.log(3.0))
  assert float(value) == pytest.approx(0.75**2 * np.log(4), rel=1e-5)
  assert float(slope) == pytest.approx(0.75**2 + 2 * np.log(4) * 0.25 * 0.75, rel=1e-5)
  for value, slope in certain:
    assert float(value) == 0 and np.isfinite(np.asarray(slope)).all()


def check_auxiliary_is_not_reported(cls):
  model, params = model_of(MASKED), params_of(MASKED)

  @jit
  def both(params):
    return [loss_of(cls(auxiliary=weight), model, params, BATCH)[0] for weight in (0.0, 0.3)]

  plain, hybrid = both(params)
  assert float(hybrid.sums["bound"]) == pytest.approx(float(plain.total), rel=1e-6)
  assert float(hybrid.total) > float(plain.total)


class AuxiliaryInTheBound(Bound):
  """Calls what is minimised the bound."""

  def __call__(self, *args):
    loss, costs = super().__call__(*args)
    return loss._replace(sums={"bound": loss.total}), costs


def test_auxiliary_is_not_reported():
  check_auxiliary_is_not_reported(Bound)
  with pytest.raises(AssertionError):
    check_auxiliary_is_not_reported(AuxiliaryInTheBound)


def test_what_costs_minus_log_p():
  assert CrossEntropy().costs_nll and CrossEntropy(weighting="inverse_time").costs_nll
  for other in (
    CrossEntropy(weighting="linear"),
    CrossEntropy(weighting="signal"),
    CrossEntropy(max_weight=0.5),
    CrossEntropy(label_smoothing=0.1),
    CrossEntropy(focusing=1.0),
    Bound(),
    Reweighted(),
    ScoreFunction(),
  ):
    assert not other.costs_nll


LEARNED = TokenMasked(vocab_size=V)


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: CrossEntropy(weighting="t"), "weighting"),
    (lambda: CrossEntropy(max_weight=0.0), "max_weight"),
    (lambda: CrossEntropy(linear_steps=50), "linear_steps=50 is read by weighting='linear' alone"),
    (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing"),
    (lambda: CrossEntropy(focusing=-1.0), "focusing"),
    (lambda: CrossEntropy().check(model_of(LEARNED)), "learned noise no gradient.*score_function"),
    (
      lambda: CrossEntropy(weighting="linear").check(model_of(MASKED, timing=ExactCount())),
      "weighting='linear' is 0 at t = 1.*'inverse_time'",
    ),
    (lambda: Bound(auxiliary=-0.1), "auxiliary"),
    (lambda: Bound().check(model_of(LEARNED)), "learned noise no gradient.*score_function"),
    (lambda: Bound(decode_at=3.0).check(model_of(MASKED)), r"decode_at=3\.0"),
    (
      lambda: ScoreFunction().check(model_of(MASKED)),
      "log_corruption, which Masked does not offer",
    ),
    (
      lambda: ScoreFunction().check(
        model_of(TokenMasked(vocab_size=V, loss_order="frequency", strength=0.3))
      ),
      "costs twice the network calls.*'bound'",
    ),
    (lambda: Reweighted().check(model_of(MASKED)), "divergence.*Masked does not offer"),
    (lambda: Reweighted().check(model_of(Uniform(vocab_size=V))), "dynamic_weight.*Uniform"),
    (
      lambda: Reweighted().check(model_of(dataclasses.replace(MIXED, time_steps=10))),
      "time_steps|continuous time",
    ),
    (lambda: Reweighted(min_weight=2.0, max_weight=1.0), r"min_weight=2\.0"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


@pytest.mark.parametrize("name", ROWS)
def test_what_fits_is_not_refused(name):
  objective, process = ROWS[name]
  objective.check(model_of(process))
  objective.check(model_of(process, context=Blocks(size=4)))

"""Times that a network predicts: labels by the rank of the loss, a fit that reaches the predictor
alone, and a sampler that walks the predicted times.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_text.context import Blocks, Full
from diffusion_text.contrib.predicted_times import (
  GROUP,
  PredictedTimes,
  PredictedTimesLosses,
  predict,
)
from diffusion_text.core.prng import row_keys, stream
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import EmbeddingLosses, engine
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.timing import Poisson, Shared
from diffusion_text.timing.by_token import poisson_quantile
from diffusion_text.types import (
  Batch,
  DataFacts,
  Head,
  IdentityHead,
  Inputs,
  Model,
  Network,
  Prediction,
  Progress,
)

B, L, V, E = 3, 6, 5, 4
START = Progress()
FACTS = DataFacts(length=L, vocab_size=V)
PROCESS = Embedding(vocab_size=V, schedule=VPCosine(), width=E)
OWN = jax.tree.map(np.asarray, PROCESS.init(jax.random.key(1), FACTS))
TABLE = np.asarray(PROCESS.table(OWN))
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
OBSERVED = np.arange(L)[None] < np.array([[2], [0], [1]])
REAL = np.broadcast_to((np.arange(L) < 5).astype(np.float32), (B, L))
BATCH = Batch(IDS, observed=OBSERVED, weights=REAL)
COUNTS = ~OBSERVED & (REAL > 0)
OUT = np.asarray(jax.random.normal(jax.random.key(5), (E, V)))
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Predictor(Network):
  """A network of one number per token: Σ guess · weights + slope · clock, or `says(rows)` unless
  that is None. It keeps the rows that it reads.
  """

  remembers, layers = False, 1

  def __init__(self, says=None):
    self.says, self.asked = says, []

  def init(self, key):
    return {"weights": jax.random.normal(key, (E,)), "slope": jnp.float32(0.5)}

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    self.asked.append(rows)
    if self.says is None:
      number = rows.inputs.vectors @ params["weights"] + params["slope"] * rows.t
    else:
      number = jnp.broadcast_to(self.says(rows), rows.t.shape)
    return Prediction(number[..., None], IdentityHead())


class Served:
  """A linear network with a predictor beside it; `answers` in the place of its logits, if given."""

  layers = 1

  def __init__(self, predictor=None, answers=None):
    self.predictor = Predictor() if predictor is None else predictor
    self.answers, self.seen = answers, []

  def like(self, **changes):
    assert changes["layers"] == 1 and changes["output_size"] == 1
    return self.predictor

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    jax.debug.callback(
      lambda *seen: self.seen.append(seen), rows.inputs.vectors, rows.t, ordered=True
    )
    if self.answers is None:
      return Prediction(rows.inputs.vectors, Head(jnp.asarray(params)))
    logits = jnp.broadcast_to(jnp.asarray(self.answers), (*rows.t.shape, V))
    return Prediction(logits, IdentityHead())


class Silent(Served):
  """As `Served`, for programs that are differentiated: what it is asked is not kept."""

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    return Prediction(rows.inputs.vectors, Head(jnp.asarray(params)))


PREDICTOR = jax.tree.map(np.asarray, Predictor().init(jax.random.key(2)))
PARAMS = {"network": OUT, "process": OWN, "timing": {}, GROUP: PREDICTOR}


def model_of(network, timing=None, **options):
  timing = Poisson() if timing is None else timing
  options = {"process": PROCESS, "context": Full(), "chunk": 4} | options
  return Model(network, timing=timing, **options)


# Labels.


def test_poisson_quantiles_are_scipys():
  """The golden numbers are scipy's, over the whole range of the clock."""
  rng = np.random.default_rng(0)
  mean = np.concatenate([rng.uniform(0, 198, (60, 1)), [[0.01], [1.0], [198.0]]])
  mean, share = np.float32(mean), rng.uniform(0.001, 0.999, (63, 40)).astype(np.float32)
  want = scipy.stats.poisson.ppf(share, mean)
  got = np.asarray(jax.jit(poisson_quantile, static_argnums=2)(share, mean, 198))
  assert (got == want).mean() > 0.999 and np.abs(got - want).max() <= 1  # the law's own float32


def reference_labels(timing, tau, cost, counts, segment=None):
  """The labels of the published code: the r-th lowest loss of n in a document has the quantile
  (r - 1/2) / n of the row's law of times.
  """
  labels, most = np.zeros(cost.shape), timing.levels - 1
  segment = np.zeros(cost.shape) if segment is None else segment
  documents = [(i, document) for i in range(len(cost)) for document in np.unique(segment[i])]
  for row, document in documents:
    here = np.flatnonzero(counts[row] & (segment[row] == document))
    mean = 2 * most * tau[row, 0]
    for rank, place in enumerate(here[np.argsort(cost[row, here])]):
      count = scipy.stats.poisson.ppf((rank + 0.5) / len(here), mean)
      level = np.round((count - mean) / np.sqrt(mean) * timing.spread * mean + mean)
      labels[row, place] = np.clip(level, 0, most) / most
  return labels


class RanksTheOthersToo(Poisson):
  """Ranks tokens that do not count among those that do."""

  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, cost, jnp.ones_like(counts), segment)


class HardTokensFirst(Poisson):
  """Gives tokens that are easy more noise."""

  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, -cost, counts, segment)


class OneTimeForAll(Poisson):
  """Gives all tokens the mean time of the law."""

  def labels(self, tau, cost, counts, segment):
    return jnp.broadcast_to(jnp.minimum(2 * tau, 1.0), cost.shape)


class OneDocument(Poisson):
  """Ranks the whole row."""

  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, cost, counts, jnp.zeros_like(segment))


def check_labels(cls):
  rng = np.random.default_rng(1)
  tau = rng.uniform(0.05, 0.6, (B, 1)).astype(np.float32)
  cost = rng.normal(size=(B, L)).astype(np.float32)
  one = np.zeros((B, L), int)
  segments = one, np.sort(rng.integers(0, 3, (B, L)), axis=1), rng.integers(0, 2, (B, L))
  timing = cls(spread=0.3)
  got = jax.jit(jax.vmap(timing.labels, in_axes=(None, None, None, 0)))(
    tau, cost, COUNTS, np.stack(segments)
  )
  for labels, segment in zip(np.asarray(got), segments, strict=True):
    want = reference_labels(timing, tau, cost, COUNTS, segment)
    np.testing.assert_allclose(np.where(COUNTS, labels, 0), want, atol=1e-5)


def test_labels_are_times_of_the_law_in_the_order_of_the_loss():
  check_labels(Poisson)


@pytest.mark.parametrize("mutant", [RanksTheOthersToo, HardTokensFirst, OneTimeForAll, OneDocument])
def test_mutants_of_the_labels_fail(mutant):
  with pytest.raises(AssertionError):
    check_labels(mutant)


# The fit.

OPTIONS = {"rounding_weight": 0.0, "anchor_weight": 2.0, "label_smoothing": 0.1, "weighting": "v"}


def loss_of(objective, model, params, batch=BATCH):
  key = jax.random.key(9)
  times = engine.draw_times(model, params, stream(key, "times"), batch, START)
  return objective(model, params, key, batch, times, START)[0], times


SEGMENT = np.broadcast_to(np.arange(L) // 3, (B, L)).astype(np.int32)


def check_fit(cls, timing):
  """The error of the predicted times of noisy tokens, written out.

  It follows from the mean of the prediction, the row's clock, and mse + 2 · cross-entropy, without
  the weight of the time and without the smoothing.
  """
  predictor = Predictor(lambda rows: 0.25)
  model, batch = model_of(Silent(predictor), timing), dataclasses.replace(BATCH, segment=SEGMENT)

  @jit
  def run(params):
    predictor.asked.clear()
    loss, times = loss_of(cls(**OPTIONS), model, params, batch)
    plain, _ = loss_of(EmbeddingLosses(**OPTIONS), model, params, batch)
    noised = engine.read(model, params, jax.random.key(9), batch, times, START)
    asked = predictor.asked[0]
    return loss, plain, times, noised.rows.inputs.vectors, asked.inputs.vectors, asked.t

  loss, plain, times, vectors, guess, clock = run(PARAMS)
  tau, t = np.asarray(times.tau), np.asarray(times.t)
  np.testing.assert_array_equal(clock, np.broadcast_to(tau, (B, L)))
  log_p = np.asarray(jax.nn.log_softmax(np.asarray(vectors) @ OUT))
  clean, mean, noisy = TABLE[IDS], np.exp(log_p) @ TABLE, COUNTS & (t > 0)
  assert 0 < noisy.sum() < COUNTS.sum()
  np.testing.assert_allclose(guess, np.where(noisy[..., None], mean, clean), atol=1e-5)
  nats = -np.take_along_axis(log_p, IDS[..., None], -1)[..., 0]
  cost = ((clean - mean) ** 2).mean(-1) + 2 * nats
  miss = noisy * (0.25 - reference_labels(timing, tau, cost, noisy, SEGMENT)) ** 2
  assert float(loss.sums["times"]) == pytest.approx(miss.sum(), rel=1e-4)
  assert float(loss.total - plain.total) == pytest.approx(miss.sum(), rel=1e-3)


class CountsCleanTokens(Poisson):
  """Ranks tokens of which nothing is to be predicted."""

  def labels(self, tau, cost, counts, segment):
    return super().labels(tau, cost, jnp.asarray(COUNTS), segment)


class ReadsTheWrongTime(PredictedTimesLosses):
  """Shows the predictor half of the clock."""

  def fit(self, model, params, batch, noised):
    times = noised.times._replace(tau=noised.times.tau / 2)
    return super().fit(model, params, batch, noised._replace(times=times))


class FitsOneDocument(PredictedTimesLosses):
  """Ranks the whole row."""

  def fit(self, model, params, batch, noised):
    batch = dataclasses.replace(batch, segment=None)
    return super().fit(model, params, batch, noised)


def test_the_fit_is_of_the_prediction_that_was_made():
  check_fit(PredictedTimesLosses, Poisson(levels=100))


@pytest.mark.parametrize(
  "cls,timing",
  [
    (PredictedTimesLosses, CountsCleanTokens(levels=100)),
    (ReadsTheWrongTime, Poisson(levels=100)),
    (FitsOneDocument, Poisson(levels=100)),
  ],
)
def test_mutants_of_the_fit_fail(cls, timing):
  with pytest.raises(AssertionError):
    check_fit(cls, timing)


def test_the_fit_reaches_the_predictor_alone():
  """Parameters of the network and the process have the gradient that they have without it, and the
  predictor's is that of the squares."""
  predictor = Predictor()
  model = model_of(Silent(predictor))

  class Keeps(Poisson):
    """Keeps its labels."""

    def labels(self, tau, cost, counts, segment):
      kept.append((super().labels(tau, cost, counts, segment), counts, tau))
      return kept[-1][0]

  kept = []

  def total(params, cls, timing):
    return loss_of(cls(**OPTIONS), model._replace(timing=timing), params)[0].total

  @jit
  def gradients(params):
    fitted = jax.grad(total)(params, PredictedTimesLosses, Poisson())
    plain = jax.grad(total)(params, EmbeddingLosses, Poisson())
    kept.clear(), predictor.asked.clear()
    total(params, PredictedTimesLosses, Keeps())
    (labels, noisy, tau), guess = kept[0], predictor.asked[0].inputs.vectors

    def squares(own):
      prediction = guess @ own["weights"] + own["slope"] * tau
      return jnp.sum(jnp.where(noisy, REAL * (prediction - labels) ** 2, 0.0))

    return fitted, plain, jax.grad(squares)(params[GROUP])

  fitted, plain, want = gradients(PARAMS)
  for name in ("network", "process"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fitted[name], plain[name]
    )
  assert float(jnp.abs(fitted[GROUP]["weights"]).min()) > 1e-3
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(plain[GROUP]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), fitted[GROUP], want)


# The sampler.


def walk(sampler, network, batch=BATCH, process=PROCESS, rows=B, seed=0):
  """(the sample, what the network was asked at each call: vectors and times)."""
  model = model_of(network, process=process)
  network.seen.clear()
  result = sample(model, PARAMS, sampler, row_keys(seed, rows), batch=batch)
  return jax.tree.map(np.asarray, result), jax.tree.map(np.asarray, network.seen)


def clock_of(rows):
  return rows.t


@pytest.mark.parametrize("projection", ["expectation", "sample", "argmax"])
def test_even_times_are_steps_of_fresh_noise(projection):
  """A network that predicts the clock makes it the grid sampler with ρ = 1, in law: the same means
  and variances of what the network reads, call by call.
  """
  rows, answers = 600, np.float32([0.0, 1.0, 2.0, 0.5, 1.5])
  batch = Batch(np.zeros((rows, 2), np.int32))
  predicted, seen = walk(
    PredictedTimes(steps=4, projection=projection),
    Served(Predictor(clock_of), answers),
    batch,
    rows=rows,
  )
  options = StepOptions(projection=projection, rho=1.0)
  even = GaussianGrid(steps=4, **dataclasses.asdict(options))
  plain, others = walk(even, Served(None, answers), batch, rows=rows, seed=1)
  assert predicted.calls == plain.calls == 4
  assert (predicted.row_calls == 4).all()
  for (vectors, t), (want, other) in zip(seen, others, strict=True):
    np.testing.assert_allclose(t, other, atol=1e-6)
    for moment in (lambda x: x, lambda x: x**2):
      a, b = moment(vectors).reshape(-1, E), moment(want).reshape(-1, E)
      error = np.sqrt((a.var(0) + b.var(0)) / len(a))
      np.testing.assert_array_less(np.abs(a.mean(0) - b.mean(0)), 4.5 * error)
  share = [
    np.bincount(ids.reshape(-1), minlength=V) / ids.size for ids in (predicted.ids, plain.ids)
  ]
  np.testing.assert_allclose(share[0], share[1], atol=0.09)


class StepsInsteadOfNoisingAnew(PredictedTimes):
  """Leaves a token alone whose time rises, as a step does."""

  def moved(self, model, params, canvas, state, prediction, moves, turn):
    after, t = super().moved(model, params, canvas, state, prediction, moves, turn)
    rises = t >= state.extra
    return jnp.where(rises[..., None], canvas.state, after), t


def wave(rows):
  return 0.5 + 0.45 * jnp.cos(40 * rows.t + jnp.arange(L))


def check_walk(cls):
  """Times are those predicted, per token, rising ones too; observed tokens stay; what the network
  reads has the noise of its time.
  """
  rows, steps = 400, 6
  batch = jax.tree.map(lambda leaf: np.repeat(leaf[:1], rows, axis=0), BATCH)
  network = Served(Predictor(wave), 100 * np.eye(V, dtype=np.float32)[0])
  result, seen = walk(cls(steps=steps), network, batch, rows=rows, seed=1)
  active = COUNTS[0]
  np.testing.assert_array_equal(result.ids[:, ~active], batch.ids[:, ~active])
  assert (result.ids[:, active] == 0).all() and len(seen) == steps
  for call, (vectors, t) in enumerate(seen):
    told = 0.5 + 0.45 * np.cos(40 * (1 - call / steps) + np.arange(L)) if call else 1.0
    np.testing.assert_allclose(t, np.broadcast_to(np.where(active, told, 0.0), t.shape), atol=1e-4)
    if call:
      alpha, sigma, _ = (np.asarray(x)[..., None] for x in PROCESS.schedule(np.maximum(t, 1e-3)))
      noise = (vectors - alpha * TABLE[0]) / sigma
      assert np.abs(noise[:, active].mean(0)).max() < 0.25
      assert np.abs(noise[:, active].std(0) - 1).max() < 0.15


def test_the_network_is_told_the_predicted_times():
  check_walk(PredictedTimes)
  with pytest.raises(AssertionError):
    check_walk(StepsInsteadOfNoisingAnew)


def test_a_token_that_is_being_made_is_never_taken_for_known():
  """Where less than nothing is predicted, half a level is left, so that the network answers and the
  last step draws.
  """
  result, seen = walk(PredictedTimes(steps=6), Served(Predictor(lambda rows: -1.0)))
  for call, (_, t) in enumerate(seen):
    np.testing.assert_allclose(t, np.where(COUNTS, 0.5 / 99 if call else 1.0, 0.0), rtol=1e-5)
  np.testing.assert_array_equal(result.committed[COUNTS], 5)


class PredictsFromWhatIsDrawn(PredictedTimes):
  """Predicts times from transformed logits."""

  def moved(self, model, params, canvas, state, prediction, moves, turn):
    cold = self.transform(prediction.features.reshape(-1, V), turn.s.reshape(-1))
    cold = dataclasses.replace(prediction, features=cold.reshape(*turn.s.shape, V))
    return super().moved(model, params, canvas, state, cold, moves, turn)


class ForgetsWhatIsObserved(PredictedTimes):
  """Predicts times without the observed tokens."""

  def moved(self, model, params, canvas, state, prediction, moves, turn):
    canvas = canvas._replace(state=canvas.state * canvas.active[..., None])
    return super().moved(model, params, canvas, state, prediction, moves, turn)


def check_guess(cls):
  """Times are predicted from the network's own prediction where tokens are active, however cold the
  sampler is, from the observed tokens, and from the documents of the row.
  """
  asked = []

  def keeps(rows):
    jax.debug.callback(
      lambda *seen: asked.append(seen), rows.inputs.vectors, rows.layout.segment, ordered=True
    )
    return rows.t

  batch = dataclasses.replace(BATCH, segment=SEGMENT)
  answers = np.float32([0.0, 1.0, 2.0, 0.5, 1.5])
  network = Served(Predictor(keeps), answers)
  result, _ = walk(cls(steps=2, temperature=0.0), network, batch)
  p = np.exp(answers) / np.exp(answers).sum()
  want = np.where(COUNTS[..., None], p @ TABLE, TABLE[IDS])
  assert asked
  for vectors, segment in asked:
    text = np.asarray(REAL > 0)
    np.testing.assert_allclose(np.asarray(vectors)[text], want[text], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(segment)[text], SEGMENT[text])
  assert (result.ids[COUNTS] == 2).all()


def test_times_are_predicted_from_the_answer_itself_and_what_is_observed():
  check_guess(PredictedTimes)


@pytest.mark.parametrize("mutant", [PredictsFromWhatIsDrawn, ForgetsWhatIsObserved])
def test_mutants_of_the_guess_fail(mutant):
  with pytest.raises(AssertionError):
    check_guess(mutant)


# A real network.


# Weights of a transformer start near 0.02. A rate of that size lets them grow within some hundred
# steps until scores of attention pass 1e9, where float32 has no digits left for their softmax.
STEPS, RATE = 100, 0.002


class Sure(Silent):
  """A transformer for a predictor, and answers that are the less sure the later a token stands."""

  transformer = Transformer(
    layers=2,
    width=16,
    heads=2,
    mlp_width=32,
    attention=("xla",),
    scan_layers=False,
    input_sizes=PROCESS.input_sizes,
    output_size=V,
  )

  def like(self, **changes):
    return self.transformer.like(**changes)

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    logits = jax.nn.one_hot(IDS, V) * jnp.linspace(4.0, 0.0, L)[:, None]
    return Prediction(logits, IdentityHead())


def check_learning(timing):
  """Fitted to one draw, the predictor says the times of the law in the order of hardness."""
  objective, model = PredictedTimesLosses(), model_of(Sure(), timing)
  objective.check(model)

  @jit
  def train(params, batch):
    key = jax.random.key(9)
    params = {**params, **objective.init(model, key, FACTS)}
    times = engine.draw_times(model, params, stream(key, "times"), batch, START)
    noised = engine.read(model, params, key, batch, times, START)

    def miss(own):
      return objective.fit(model, {**params, GROUP: own}, batch, noised)

    def step(carry, _):
      own, mean, square = carry
      slope = jax.grad(miss)(own)
      mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, slope)
      square = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, square, slope)
      own = jax.tree.map(lambda p, m, v: p - RATE * m / (v**0.5 + 1e-8), own, mean, square)
      return (own, mean, square), None

    zeros = jax.tree.map(jnp.zeros_like, params[GROUP])
    (own, _, _), _ = jax.lax.scan(step, (params[GROUP], zeros, zeros), length=STEPS)
    p = jax.nn.softmax(noised.prediction.logits, axis=-1)
    noisy = COUNTS & (times.t > 0)
    guess = jnp.where(noisy[..., None], p @ TABLE, jnp.asarray(TABLE)[batch.ids])
    found = predict(model, {**params, GROUP: own}, 1, Inputs(vectors=guess), times.tau, None)
    return found, times, noisy

  found, times, noisy = (jax.tree.map(np.asarray, x) for x in train(PARAMS, BATCH))
  want = reference_labels(timing, times.tau, np.broadcast_to(np.arange(L), (B, L)), noisy)
  assert 0 < noisy.sum() < COUNTS.sum()
  np.testing.assert_allclose(found[noisy], want[noisy], atol=0.05)


def test_a_network_learns_the_times():
  check_learning(Poisson(levels=100))


def test_a_network_that_learns_other_times_is_noticed():
  with pytest.raises(AssertionError):
    check_learning(CountsCleanTokens(levels=100))


def check(member, **options):
  member.check(model_of(Served(), **options))


@pytest.mark.parametrize("member", [PredictedTimesLosses(), PredictedTimes(steps=6)])
@pytest.mark.parametrize(
  "options,match",
  [
    ({"timing": Shared()}, "labels, levels, which Shared does not offer.*'poisson'"),
    ({"process": Masked(vocab_size=V)}, "Masked"),
    ({"process": Simplex(vocab_size=V)}, "would not read as they are.*'embedding'"),
    ({"context": Blocks(size=2)}, "times of a whole row.*Blocks"),
  ],
)
def test_what_does_not_fit_is_refused(member, options, match):
  with pytest.raises(ValueError, match=match):
    check(member, **options)


def test_what_fits_is_not_refused():
  check(PredictedTimesLosses())
  check(PredictedTimes(steps=6))
  assert PredictedTimesLosses().trains == {"network", "process", GROUP}
  with pytest.raises(ValueError, match="layers"):
    PredictedTimesLosses(layers=0)

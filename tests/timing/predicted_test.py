"""Times that a network predicts: labels by the rank of the loss, a fit that reaches the timing alone, and a sampler that walks them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.experiment.build import make_policy
from diffusion_text.objective.bound import Chunks
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.predicted_times import PredictedTimes
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.testing.oracle import exact_prediction
from diffusion_text.timing import Poisson, Predicted, Shared
from diffusion_text.timing.predicted import poisson_quantile
from diffusion_text.types import Batch, Inputs, Prediction, PredictsTimes, Progress
from tests.experiment.build_test import AnyTokenizer, build, small_config

B, L, V, E = 3, 6, 5, 4
PROCESS = Embedding(V, VPCosine(), width=E, rho=1.0)
PARAMS = PROCESS.init(jax.random.key(1))
GIVEN = jnp.arange(L)[None] < jnp.array([[2], [0], [1]])
BATCH = Batch(
  jax.random.randint(jax.random.key(0), (B, L), 0, V),
  given=GIVEN,
  weights=(jnp.arange(L) < 5) * jnp.ones((B, 1)),
)
COUNTS = np.asarray(~GIVEN & (BATCH.weights > 0))


@dataclasses.dataclass(frozen=True)
class Reader:
  """A network of one number per token: Σ guess · weights + slope · clock; `says` in its place, if it is given."""

  says: object = None

  def init(self, key):
    return {"weights": jax.random.normal(key, (E,)), "slope": jnp.float32(0.5)}

  def apply(self, params, inputs, t, layout):
    number = (
      inputs.vectors @ params["weights"] + params["slope"] * t
      if self.says is None
      else self.says(inputs, t)
    )
    return Prediction(jnp.broadcast_to(number, inputs.shape)[..., None], lambda features: features)


TIMING = Predicted(reader=Reader())
BOUND = TIMING.bind(TIMING.init(jax.random.key(2)))


def test_poisson_quantiles_are_scipys():
  """The golden numbers are scipy's, over the whole range of the clock."""
  rng = np.random.default_rng(0)
  mean = np.concatenate([rng.uniform(0, 198, (60, 1)), [[0.01], [1.0], [198.0]]]).astype(np.float32)
  share = rng.uniform(0.001, 0.999, (63, 40)).astype(np.float32)
  want = scipy.stats.poisson.ppf(share, mean)
  got = jax.jit(poisson_quantile, static_argnums=2)(share, mean, 198)
  assert (got == want).mean() > 0.999 and np.abs(got - want).max() <= 1  # the law's own float32


def reference_labels(timing, clock, cost, counts, segment=None):
  """As their code makes them: the r-th lowest loss of n has the quantile (r - 1/2) / n of the row's law of times; of each document."""
  labels, most = np.zeros(cost.shape), timing.levels - 1
  segment = np.zeros(cost.shape) if segment is None else segment
  for row, document in [
    (i, document) for i in range(len(cost)) for document in np.unique(segment[i])
  ]:
    here = np.flatnonzero(counts[row] & (segment[row] == document))
    mean = 2 * most * clock[row, 0]
    for rank, place in enumerate(here[np.argsort(cost[row, here])]):
      count = scipy.stats.poisson.ppf((rank + 0.5) / len(here), mean)
      level = np.round((count - mean) / np.sqrt(mean) * timing.spread * mean + mean)
      labels[row, place] = np.clip(level, 0, most) / most
  return labels


class RanksTheOthersToo(Predicted):
  def labels(self, clock, cost, counts, segment):
    return super().labels(clock, cost, jnp.ones_like(counts), segment)


class HardTokensFirst(Predicted):
  def labels(self, clock, cost, counts, segment):
    return super().labels(clock, -cost, counts, segment)


class OneTimeForAll(Predicted):
  def labels(self, clock, cost, counts, segment):
    return jnp.broadcast_to(jnp.minimum(2 * clock, 1.0), cost.shape)


class OneDocument(Predicted):
  def labels(self, clock, cost, counts, segment):
    return super().labels(clock, cost, counts, None)


def check_labels(cls):
  rng = np.random.default_rng(1)
  clock, cost = (
    rng.uniform(0.05, 0.6, (B, 1)).astype(np.float32),
    rng.normal(size=(B, L)).astype(np.float32),
  )
  for spread, segment in (
    (1.0, None),
    (0.3, np.sort(rng.integers(0, 3, (B, L)), axis=1)),
    (0.3, rng.integers(0, 2, (B, L))),
  ):
    timing = cls(spread=spread)
    want = reference_labels(timing, clock, cost, COUNTS, segment)
    np.testing.assert_allclose(
      np.where(COUNTS, timing.labels(clock, cost, COUNTS, segment), 0), want, atol=1e-5
    )


def test_labels_are_times_of_the_law_in_the_order_of_the_loss():
  check_labels(Predicted)
  for mutant in (RanksTheOthersToo, HardTokensFirst, OneTimeForAll, OneDocument):
    with pytest.raises(AssertionError):
      check_labels(mutant)


def test_training_times_are_those_of_the_law():
  times, plain = (
    timing.draw(jax.random.key(3), BATCH, Progress()) for timing in (TIMING, Poisson())
  )
  np.testing.assert_array_equal(times.t, plain.t)
  assert (
    times.clock.shape == (B, 1)
    and isinstance(TIMING, PredictsTimes)
    and not isinstance(Poisson(), PredictsTimes)
  )
  assert TIMING.scoring() == Shared()


OUT = jax.random.normal(jax.random.key(5), (E, V))


def losses(timing, net=OUT, params=PARAMS, seen=None, batch=BATCH):
  """The objective of Difformer and NeoDiff with a linear network that keeps what it is asked."""

  def predict(inputs, t, layout):
    if seen is not None:
      seen.append((inputs.vectors, jnp.broadcast_to(t, inputs.shape)))
    return Prediction(inputs.vectors, lambda features: features @ net)

  options = {"rounding_weight": 0.0, "anchor_weight": 2.0, "label_smoothing": 0.1, "weighting": "v"}
  return EmbeddingLosses(PROCESS, timing, Chunks(4), **options)(
    params, jax.random.key(9), batch, Progress(), predict
  )


def check_fit(cls):
  """The error of the predicted times, written out: by the mean of the answer, the row's clock, and mse + 2 · cross-entropy, the weight of
  the time and the smoothing left out; of the tokens that are noisy."""
  asked, made = [], []
  says = lambda inputs, t: (asked.append((inputs.vectors, t)), 0.25)[1]
  segment = np.broadcast_to(np.arange(L) // 3, (B, L))
  batch = dataclasses.replace(BATCH, segment=jnp.asarray(segment))
  timing = cls(reader=Reader(says), params=BOUND.params)
  loss = losses(timing, seen=made, batch=batch)
  (guess, clock), (vectors, t) = asked[0], made[0]
  np.testing.assert_array_equal(
    clock, TIMING.draw(jax.random.fold_in(jax.random.key(9), 0), BATCH, Progress()).clock
  )
  table, log_p = PROCESS.table(PARAMS), jax.nn.log_softmax(vectors @ OUT)
  clean, mean, noisy = table[BATCH.ids], jnp.exp(log_p) @ table, COUNTS & (np.asarray(t) > 0)
  assert 0 < noisy.sum() < COUNTS.sum()
  np.testing.assert_allclose(guess, np.where(noisy[..., None], mean, clean), atol=1e-5)
  cost = (
    jnp.mean((clean - mean) ** 2, -1)
    - 2 * jnp.take_along_axis(log_p, BATCH.ids[..., None], -1)[..., 0]
  )
  miss = (
    noisy
    * (0.25 - reference_labels(TIMING, np.asarray(clock), np.asarray(cost), noisy, segment)) ** 2
  )
  assert float(loss.sums["times"]) == pytest.approx(miss.sum(), rel=1e-4)
  assert float(loss.total - losses(Poisson(), batch=batch).total) == pytest.approx(
    miss.sum(), rel=1e-3
  )


class CountsCleanTokens(Predicted):
  def fit(self, guess, clock, cost, counts, segment):
    return super().fit(guess, clock, cost, jnp.asarray(COUNTS), segment)


class ReadsTheWrongTime(Predicted):
  def fit(self, guess, clock, cost, counts, segment):
    return super().fit(guess, clock / 2, cost, counts, segment)


class FitsOneDocument(Predicted):
  def fit(self, guess, clock, cost, counts, segment):
    return super().fit(guess, clock, cost, counts, None)


def test_the_fit_is_of_the_prediction_that_was_made():
  check_fit(Predicted)
  for mutant in (CountsCleanTokens, ReadsTheWrongTime, FitsOneDocument):
    with pytest.raises(AssertionError):
      check_fit(mutant)


def test_the_fit_reaches_the_timing_alone():
  """Parameters of the network and the process have the gradient that they have without it, and the timing's is that of the squares."""

  def total(params, timing):
    return losses(
      timing.bind(params["timing"]) if isinstance(timing, Predicted) else timing,
      params["net"],
      params["table"],
    ).total

  params = {"net": OUT, "table": PARAMS, "timing": BOUND.params}
  gradient = jax.jit(jax.grad(total), static_argnums=1)
  fitted, plain = gradient(params, TIMING), gradient(params, Poisson())
  for name in ("net", "table"):
    np.testing.assert_allclose(
      *(np.asarray(jax.tree.leaves(each[name])[0]) for each in (fitted, plain)), atol=1e-5
    )
  assert (
    float(jnp.abs(fitted["timing"]["weights"]).min()) > 1e-3
    and not plain["timing"]["weights"].any()
  )

  def squares(weights):
    timing, asked = TIMING.bind({**BOUND.params, "weights": weights}), []
    losses(
      dataclasses.replace(
        timing, reader=Reader(lambda inputs, t: (asked.append((inputs, t)), 0.0)[1])
      )
    )
    guess, clock = asked[0]
    labels = []

    class Keeps(Predicted):
      def labels(self, clock, cost, counts, segment):
        labels.append((super().labels(clock, cost, counts, segment), counts))
        return labels[-1][0]

    losses(Keeps(reader=Reader(), params=timing.params))
    prediction = guess.vectors @ weights + timing.params["slope"] * clock
    return jnp.sum(labels[0][1] * (prediction - labels[0][0]) ** 2)

  np.testing.assert_allclose(
    fitted["timing"]["weights"], jax.grad(squares)(BOUND.params["weights"]), rtol=1e-3
  )


KEYS = token_keys(row_keys(0, B), L)


def walk(policy, process=PROCESS, batch=BATCH):
  """(the sample, the times that the network was told at each call) under a network that is sure of nothing."""
  seen = []

  def denoise(inputs, t):
    jax.debug.callback(lambda t: seen.append(np.asarray(t)), t, ordered=True)
    return exact_prediction(inputs.vectors @ OUT)

  result = jax.jit(lambda: sample(policy, process, PARAMS, denoise, KEYS, batch))()
  return jax.tree.map(np.asarray, result), np.stack(seen)


def saying(says):
  return PredictedTimes(Predicted(reader=Reader(says), params={}), 6)


@pytest.mark.parametrize("projection", ["expectation", "sample", "argmax"])
def test_even_times_are_ancestral_steps_of_fresh_noise(projection):
  """A network that predicts the clock makes of it the ancestral sampler with ρ = 1, draw for draw."""
  process = dataclasses.replace(PROCESS, projection=projection)
  predicted, told = walk(saying(lambda inputs, t: t), process)
  even, _ = walk(Ancestral(Shared(), 6), process)
  np.testing.assert_array_equal(predicted.ids, even.ids)
  assert predicted.calls == 6 and (predicted.row_calls == 6).all()
  np.testing.assert_allclose(told[:, 1, 0], 1 - np.arange(6) / 6, atol=1e-6)


class StepsInsteadOfNoisingAnew(PredictedTimes):
  """Leaves a token alone whose time rises, as a step does."""

  def advance(self, process, params, canvas, prediction):
    after = super().advance(process, params, canvas, prediction)
    rises = after.plan[1] >= canvas.plan[1]
    return after._replace(state=jnp.where(rises[..., None], canvas.state, after.state))


def check_walk(cls):
  """Times are what was predicted, per token, rising ones too; given tokens stay; what the network reads has the noise of its time."""
  wave = lambda inputs, t: 0.5 + 0.45 * jnp.cos(40 * t + jnp.arange(L))
  states = []

  def denoise(inputs, t):
    jax.debug.callback(lambda *seen: states.append(seen), inputs.vectors, t, ordered=True)
    return exact_prediction(100.0 * jax.nn.one_hot(jnp.zeros(inputs.shape, int), V))

  rows, clocks = 400, 1 - jnp.arange(6) / 6
  batch = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], rows, axis=0), BATCH)
  policy = cls(Predicted(reader=Reader(wave), params={}), 6)
  result = jax.jit(
    lambda: sample(policy, PROCESS, PARAMS, denoise, token_keys(row_keys(1, rows), L), batch)
  )()
  open_ = COUNTS[0]
  np.testing.assert_array_equal(result.ids[:, ~open_], batch.ids[:, ~open_])
  assert (result.ids[:, open_] == 0).all()
  for call, (vectors, t) in enumerate(states):
    told = np.where(open_, 1.0 if call == 0 else wave(None, clocks[call]), 0.0)
    np.testing.assert_allclose(t, np.broadcast_to(told, t.shape), atol=1e-5)
    gain = PROCESS.schedule(jnp.asarray(t))
    if call:
      noise = (np.asarray(vectors) - gain.alpha[..., None] * PROCESS.table(PARAMS)[0]) / gain.sigma[
        ..., None
      ]
      assert (
        np.abs(noise[:, open_].mean(0)).max() < 0.25
        and np.abs(noise[:, open_].std(0) - 1).max() < 0.15
      )


def test_the_network_is_told_the_predicted_times():
  check_walk(PredictedTimes)
  with pytest.raises(AssertionError):
    check_walk(StepsInsteadOfNoisingAnew)


def test_a_token_that_is_being_made_is_never_taken_for_known():
  """Where less than nothing is predicted, half a level is left, so that the network answers and the last step draws."""
  result, told = walk(saying(lambda inputs, t: -1.0))
  open_ = ~np.asarray(GIVEN) & (np.asarray(BATCH.weights) > 0)
  np.testing.assert_allclose(
    told[1:], np.broadcast_to(np.where(open_, 0.5 / 99, 0.0), told[1:].shape), rtol=1e-5
  )
  np.testing.assert_array_equal(result.committed[open_], 5)


class PredictsFromWhatIsDrawn(PredictedTimes):
  def advance(self, process, params, canvas, prediction):
    guided = prediction._replace(
      unembed=lambda features: self.guidance(prediction.unembed(features))
    )
    return super().advance(process, params, canvas, guided)


class ForgetsWhatIsGiven(PredictedTimes):
  def advance(self, process, params, canvas, prediction):
    return super().advance(
      process, params, canvas._replace(state=canvas.state * canvas.open[..., None]), prediction
    )


def check_guess(cls):
  """What times are predicted from: the network's own answer where tokens are open, cold as the sampler may be, and the given tokens; and
  the documents of the row."""
  seen, segments = [], []

  class Keeps(Reader):
    def apply(self, params, inputs, t, layout):
      jax.debug.callback(seen.append, inputs.vectors)
      segments.append(layout.segment)
      return super().apply(params, inputs, t, layout)

  batch = dataclasses.replace(BATCH, segment=jnp.broadcast_to(jnp.arange(L) // 3, (B, L)))
  policy = cls(
    Predicted(reader=Keeps(lambda inputs, t: t), params={}), 2, Guidance(temperature=0.0)
  )
  logits = jnp.array([0.0, 1.0, 2.0, 0.5, 1.5])
  denoise = lambda inputs, t: exact_prediction(jnp.broadcast_to(logits, (B, L, V)))
  result = jax.jit(lambda: sample(policy, PROCESS, PARAMS, denoise, KEYS, batch))()
  open_, table = ~np.asarray(GIVEN) & (np.asarray(BATCH.weights) > 0), PROCESS.table(PARAMS)
  want = np.where(open_[..., None], jax.nn.softmax(logits) @ table, table[BATCH.ids])
  for vectors in seen:
    np.testing.assert_allclose(vectors, want, atol=1e-5)
  assert (np.asarray(result.ids)[open_] == 2).all() and len(seen) == 2
  assert (
    all((np.asarray(segment) == np.asarray(batch.segment)).all() for segment in segments)
    and segments
  )


def test_times_are_predicted_from_the_answer_itself_and_what_is_given():
  check_guess(PredictedTimes)
  for mutant in (PredictsFromWhatIsDrawn, ForgetsWhatIsGiven):
    with pytest.raises(AssertionError):
      check_guess(mutant)


def test_a_network_learns_the_times():
  """Through build: of tokens half of which are always the same, the easy ones are predicted less noise than the others."""
  config = small_config("neodiff")
  config.update_from_flattened_dict(
    {"data.length": 8, "train.steps": 60, "optimizer.learning_rate": 0.01}
  )
  experiment = build(config, tokenizer=AnyTokenizer(16), devices=jax.devices()[:1])
  assert experiment.timing.reader.config.layers == 1 and experiment.objective.label_smoothing == 0.1
  state, step = experiment.fresh_state(), experiment.jitted_step(experiment.loss_fn(1.0))
  rng, rows = np.random.default_rng(0), config.train.batch_size
  easy = np.arange(8) % 2 == 0
  text = lambda: Batch(np.where(easy, 3, rng.integers(4, 16, (rows, 8))).astype(np.int32))
  first = None
  for _ in range(60):
    state, metrics = step(state, text())
    first = metrics["times"] if first is None else first
  assert float(metrics["times"]) < 0.5 * float(first)
  timing, table = (
    experiment.timing.bind(state.params["timing"]),
    experiment.process.table(state.params["process"]),
  )
  guess = jnp.where(easy[:, None], table[3], jnp.mean(table[4:], axis=0))[
    None
  ]  # of a network that knows half of the text
  times = np.asarray(timing.next_times(Inputs(vectors=guess), jnp.array([[0.25]]), None))[0]
  assert times[easy].mean() < times[~easy].mean() - 0.05
  assert isinstance(make_policy(experiment.config.sampler, experiment.timing), PredictedTimes)


def refused(**changes):
  config = small_config("neodiff")
  config.update(changes)
  return build(config, tokenizer=AnyTokenizer(16))


@pytest.mark.parametrize("make,match", [
  (lambda: Predicted(layers=0), r"timing.layers=0 must be at least 1"),
  (lambda: PredictedTimes(Poisson(), 6), r"asks the timing for times, and Poisson\(levels=100, spread=1.0\) predicts none"),
  (lambda: walk(PredictedTimes(BOUND, 6), dataclasses.replace(PROCESS, rho=0.0)), r"which process.rho=0.0 does not"),
  (lambda: walk(PredictedTimes(BOUND, 6), Masked(V, Linear())), r"which Masked does not"),
  (lambda: refused(objective={"name": "bound", "anchor_weight": None, "rounding_weight": None, "readout": None,
                              "label_smoothing": None}), r"objective.name='bound' does not teach Predicted"),
  (lambda: refused(process={"name": "simplex", "width": None, "norm": None, "noise_factor": None}), r"which Simplex would read as tokens"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()

"""Mutants: for each law of the checks, a member that breaks it, and the error that says so."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context.blocks import Blocks
from diffusion_text.context.whole import Full, plain_rows
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, fold
from diffusion_text.process.masked import Masked
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.testing import (
  Enumerable,
  check_context,
  check_objective,
  check_process,
  check_reader,
  check_sampler,
  check_timing,
  exact_model,
)
from diffusion_text.timing.along_row import Independent, Shared
from diffusion_text.types import InputSizes, Layout, Progress
from tests.testing.madeup.context import Padded
from tests.testing.madeup.objective import Humble
from tests.testing.madeup.sampler import Backwards
from tests.testing.madeup.timing import Relay

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)


@pytest.fixture(scope="module")
def masked():
  return exact_model(Masked(3), LANGUAGE)


def breaks(law, check, *args, match=None, **options):
  """The check, asked for one law only, raises an AssertionError that says what is wrong."""
  with pytest.raises(AssertionError, match=match) as error:
    check(*args, only={law}, **options)
  assert "found" in str(error.value) and "expected" in str(error.value)


# Processes.


class NoTwoAreEqual(Masked):
  def __eq__(self, other):
    return self is other

  def __hash__(self):
    return id(self)


class MisjudgesItsEstimate(Masked):
  estimate_size = 7


class RoundsDown(Masked):
  def round_time(self, t):
    return np.floor(np.asarray(t) * 10) / 10


class OneCoinForAll(Masked):
  def corrupt(self, params, keys, clean_state, t):
    coin = draw_uniform(fold(keys, 5)).reshape(-1)[0]
    return jnp.where(coin < t, self.mask_id, clean_state)


class ChangesWhatItKeeps(Masked):
  def may_change(self, params, keys, state, t, s):
    return super().may_change(params, fold(keys, 9), state, t, s)

  def step(self, params, keys, state, output, t, s):
    return super().step(params, fold(keys, 1), state, output, t, s)


class ForgetsTheTime(Masked):
  """Loses tokens at every time, and keeps some to the end."""

  def corrupt(self, params, keys, clean_state, t):
    return super().corrupt(params, keys, clean_state, 0.1 + 0.8 * t)


class Suspects(Masked):
  """Takes a mask for a hint at token 0, and says so to everybody."""

  def evidence(self, params, state, t):
    hint = jnp.where((state == self.mask_id)[..., None], jnp.float32([1, 0, 0]), 0.0)
    return super().evidence(params, state, t) + hint

  def posterior(self, params, state, t, output):
    return super().posterior(params, state, t, 0.5 * output)


class KnowsNoMask(Masked):
  @property
  def input_sizes(self):
    return InputSizes(ids=self.vocab_size)


class DoubtsWhatItSees(Masked):
  """Right with the exact network, which says the evidence itself, and with no other one."""

  def posterior(self, params, state, t, output):
    return jax.nn.log_softmax(output, axis=-1)


class StopsHalfway(Masked):
  def step(self, params, keys, state, output, t, s):
    return super().step(params, keys, state, output, t, t - (t - s) / 2)


class ClaimsToBeLinear(Masked):
  """Its rate at noise is twice -log p, which is no bound either."""

  def nelbo_rate(self, params, clean_state, state, t, output):
    return 2 * super().nelbo_rate(params, clean_state, state, t, output)


class Greedy(Masked):
  def step(self, params, keys, state, output, t, s):
    return super().step(params, keys, state, 100 * output, t, s)


@pytest.mark.parametrize(
  "law,process",
  [
    ("options", NoTwoAreEqual),
    ("shapes", MisjudgesItsEstimate),
    ("inputs", KnowsNoMask),
    ("rounding", RoundsDown),
    ("elementwise", OneCoinForAll),
    ("excluded", DoubtsWhatItSees),
    ("steps", ChangesWhatItKeeps),
    ("rate_at_noise", ClaimsToBeLinear),
    ("clean", ForgetsTheTime),
    ("noise", ForgetsTheTime),
    ("evidence", Suspects),
    ("marginals", StopsHalfway),
    ("posterior", Suspects),
    ("bound", ClaimsToBeLinear),
    ("uniform", ClaimsToBeLinear),
    ("language", Greedy),
  ],
)
def test_process(law, process):
  breaks(law, check_process, process(3), rows=512, draws=4, steps=8, largest_error=0.5)


# Timings.


class NotAllTheWay(Relay):
  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(t=0.2 + 0.8 * times.t)


class OutOfRange(Relay):
  def draw(self, params, key, batch, progress):
    times = super().draw(params, key, batch, progress)
    return times._replace(t=1.5 * times.t)


class ManyPaths(Independent):
  path: ClassVar[str] = "continuous"


class KnowsNoParts(Shared):
  def draw(self, params, key, batch, progress):
    return super().draw(params, key, batch, Progress(units=progress.units))


class NeverEnds(Relay):
  def grid(self, params, clock, lengths, length):
    return jnp.maximum(super().grid(params, clock, lengths, length), 0.1)


class LooksAtTheFirstRow(Relay):
  def grid(self, params, clock, lengths, length):
    return super().grid(params, clock, lengths, length) ** (lengths[0] / length)


class MovesTheLoss(Relay):
  def fit(self, params, times, costs):
    return jnp.sum(costs.nats)


@pytest.mark.parametrize(
  "law,timing",
  [
    ("shapes", OutOfRange),
    ("sweep", NotAllTheWay),
    ("one_path", ManyPaths),
    ("microbatches", KnowsNoParts),
    ("grid", NeverEnds),
    ("lengths", LooksAtTheFirstRow),
    ("fit", MovesTheLoss),
  ],
)
def test_timing(law, timing):
  breaks(law, check_timing, timing(), rows=512)


# Contexts.


class Miscounts(Padded):
  def positions_read(self, length):
    return length


class ShowsTheAnswer(Padded):
  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    return super().training_rows(key, clean, clean, noise, times, batch, progress)


class SamplesCausally(Full):
  def sampling_rows(self, noisy, noise, t, batch):
    return plain_rows(noisy, t, batch, block=jnp.arange(t.shape[1])[None])

  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    return plain_rows(noisy, times.network_time, batch, block=None)


class ShowsWhatIsDropped(Blocks):
  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    batch = dataclasses.replace(batch, dropped=None)
    return super().training_rows(key, noisy, clean, noise, times, batch, progress)


class SeesTwice(Padded):
  """The place of each token is that of the one before it."""

  def sampling_rows(self, noisy, noise, t, batch):
    rows = super().sampling_rows(noisy, noise, t, batch)
    position = jnp.maximum(rows.inputs.position - 1, 0)
    return dataclasses.replace(rows, inputs=dataclasses.replace(rows.inputs, position=position))


class SeesFurtherThanItSays(Padded):
  horizon = 2


class MixesDocuments(Padded):
  def sampling_rows(self, noisy, noise, t, batch):
    rows = super().sampling_rows(noisy, noise, t, batch)
    return dataclasses.replace(rows, layout=Layout())


@pytest.mark.parametrize(
  "law,context",
  [
    ("spans", Miscounts()),
    ("no_answer_shown", ShowsTheAnswer()),
    ("sampling", SamplesCausally()),
    ("horizon", SeesFurtherThanItSays()),
    ("dropped", ShowsWhatIsDropped(size=2)),
    ("bound", SeesTwice()),
    ("packed", MixesDocuments()),
  ],
)
def test_context(law, context):
  breaks(law, check_context, context, rows=512, draws=4, largest_error=0.5)


# Objectives.


class ForgetsWeights(Humble):
  def __call__(self, model, params, key, batch, times, progress):
    batch = dataclasses.replace(batch, weights=None)
    return super().__call__(model, params, key, batch, times, progress)


class ScoresThePrompt(Humble):
  def __call__(self, model, params, key, batch, times, progress):
    batch = dataclasses.replace(batch, observed=None)
    return super().__call__(model, params, key, batch, times, progress)


class NoiseByPlaceInTheBatch(Humble):
  def __call__(self, model, params, key, batch, times, progress):
    return super().__call__(model, params, key, batch, times, Progress())


class CostsWithGradient(Humble):
  def __call__(self, model, params, key, batch, times, progress):
    loss, costs = super().__call__(model, params, key, batch, times, progress)
    return loss, costs._replace(nats=costs.nats + params["network"]["kernel"][0, 0])


class HoldsTheNetwork(Humble):
  trains: ClassVar[frozenset[str]] = frozenset({"process"})


class HalfAGradient(Humble):
  def __call__(self, model, params, key, batch, times, progress):
    loss, costs = super().__call__(model, params, key, batch, times, progress)
    held = jax.lax.stop_gradient(loss.total)
    return loss._replace(total=(loss.total + held) / 2), costs


class ForgetsTheSpeed(Humble):
  def __call__(self, model, params, key, batch, times, progress):
    times = times._replace(dt_dtau=0.5 * times.dt_dtau)
    return super().__call__(model, params, key, batch, times, progress)


@pytest.mark.parametrize(
  "law,objective",
  [
    ("weights", ForgetsWeights),
    ("observed", ScoresThePrompt),
    ("microbatches", NoiseByPlaceInTheBatch),
    ("costs", CostsWithGradient),
    ("groups", HoldsTheNetwork),
    ("slope", HalfAGradient),
    ("bound", ForgetsTheSpeed),
  ],
)
def test_objective(law, objective, masked):
  options = {"rows": 512, "draws": 4, "largest_error": 0.5}
  breaks(law, check_objective, objective(), *masked, LANGUAGE, **options)


# Samplers.


class StopsEarly(Backwards):
  def needs(self, model, params, canvas, state):
    return super().needs(model, params, canvas, state) & (canvas.call < 2)[:, None]


class LooksAtBatchMates(Backwards):
  def step(self, model, params, canvas, state, prediction, query, needs):
    canvas = canvas._replace(keys=fold(canvas.keys, jnp.sum(canvas.active)))
    return super().step(model, params, canvas, state, prediction, query, needs)


class RemembersOutside(Backwards):
  """Keeps something in Python, so that the text depends on how often it was traced."""

  traced: ClassVar[list[int]] = []

  def step(self, model, params, canvas, state, prediction, query, needs):
    self.traced.append(1)
    canvas = canvas._replace(keys=fold(canvas.keys, len(self.traced)))
    return super().step(model, params, canvas, state, prediction, query, needs)


class TwoAtATime(Backwards):
  def needs(self, model, params, canvas, state):
    place = jnp.arange(state.shape[1])
    last = jnp.max(jnp.where(state, place, -1), axis=1, keepdims=True)
    return state & (place > last - 2)


@pytest.mark.parametrize(
  "law,sampler,options",
  [
    ("tokens", StopsEarly(), {}),
    ("calls", Backwards(), {"calls": 5}),
    ("alone", LooksAtBatchMates(), {}),
    ("host", RemembersOutside(), {}),
    ("same", Backwards(), {"same_as": Backwards(temperature=0.7)}),
    ("trace", TwoAtATime(), {"one_per_call": True}),
    ("law", Backwards(temperature=0.3), {}),
  ],
)
def test_sampler(law, sampler, options, masked):
  breaks(law, check_sampler, sampler, *masked, LANGUAGE, rows=256, **options)


# Readers.


@member
class Stale(WholeRow):
  """Answers with what it read at the call before."""

  late: bool = option(True, "whether it is")

  def init(self, model, params, query):
    return super().read(model, params, (), query)[0]

  def read(self, model, params, memory, query, *, refresh=True):
    now, _ = super().read(model, params, (), query)
    return memory, now


@member
class Averages(WholeRow):
  """Leans towards what all rows say on average."""

  def read(self, model, params, memory, query, *, refresh=True):
    now, memory = super().read(model, params, memory, query)
    features = (now.features + now.features.mean(0)) / 2
    return dataclasses.replace(now, features=features), memory


@pytest.mark.parametrize(
  "law,reader", [("same", Stale()), ("law", Stale()), ("alone", Averages())], ids=str
)
def test_reader(law, reader, masked):
  breaks(law, check_reader, reader, *masked, Backwards(), LANGUAGE, rows=256)


# The checks themselves.


def test_a_law_that_does_not_exist():
  with pytest.raises(ValueError, match="only=\\['bond'\\] is unknown; use some of \\['options'"):
    check_timing(Shared(), only={"bond"})


def test_noise_that_says_nothing():
  with pytest.raises(AssertionError, match=r"too noisy.*use more rows or draws"):
    check_process(Masked(3), rows=512, draws=4, largest_error=0.001, only={"bound"})

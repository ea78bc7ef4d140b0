"""Steps along the path of a guessed token: the law of the language where each token's noise depends
on what it is, and the noise of training where the guess is certain.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.core.numerics import NEVER
from diffusion_text.core.options import internal, member
from diffusion_text.core.prng import row_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.rows import rows_of
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.control import LatentControl
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.guessed_times import GuessedTimes
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.testing.check_sampler import check_sampler
from diffusion_text.testing.exact_model import CHUNK, facts_of
from diffusion_text.testing.exact_network import ExactNetwork, exact_params
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import ByInformation, Shared
from diffusion_text.timing.by_token import rarity
from diffusion_text.types import Batch, DataFacts, IdentityHead, Model, Prediction, Progress, Query

V, L, E = 3, 4, 3
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
COUNTS = np.array([60, 30, 10])
RARE = tuple(rarity(COUNTS).tolist())
FACTS = DataFacts(L, V, lambda: COUNTS)
MASKED, VECTORS = Masked(vocab_size=V), Embedding(vocab_size=V, width=E)


def times_of(timing, clock):
  """[..., V]: the times of all tokens at the clock."""
  clock = jnp.repeat(jnp.asarray(clock)[..., None], V, axis=-1)
  every = jnp.broadcast_to(jnp.arange(V), clock.shape)
  return timing.token_times({"rarity": jnp.asarray(RARE)}, every, clock, clock > 0)


@member
class MasksByToken(Masked):
  """What a mask says of its token, at the clock: the exact network reads this."""

  timing: ByInformation = internal()

  def evidence(self, params, state, t):
    """log q(mask | v): the noise of v at its own time."""
    lost = jnp.log(self.schedule(times_of(self.timing, t)).noise)
    visible = jnp.where(state[..., None] == jnp.arange(V), 0.0, NEVER)
    return jnp.where((state == self.mask_id)[..., None], lost, visible)


@member
class VectorsByToken(Embedding):
  """What a vector says of its token, at the clock: its own noise, or none at all."""

  timing: ByInformation = internal()

  def evidence(self, params, state, t):
    """log N(z; alpha_v x_v, sigma_v²) at the token's own time, and certainty at its time 0."""
    own = times_of(self.timing, t)
    alpha, sigma, _ = self.schedule(own)
    miss = state[..., None, :] - alpha[..., None] * self.table(params)
    noisy = -jnp.sum(miss**2, axis=-1) / (2 * sigma**2) - E * jnp.log(sigma)
    there = jnp.abs(state[..., None, :] - self.table(params)).max(-1) < 1e-4
    return jnp.where(own > 0, noisy, jnp.where(there, 1e4, NEVER))


READS = {MASKED: MasksByToken, VECTORS: VectorsByToken}


def model_of(process, timing, context=None):
  """(a model whose network knows the language and the times of its tokens, the parameters)."""
  options = {} if process == MASKED else {"width": E}
  network = ExactNetwork(READS[process](vocab_size=V, timing=timing, **options))
  own = process.init(jax.random.key(0), facts_of(LANGUAGE))
  params = exact_params(LANGUAGE, own, timing=timing.init(jax.random.key(1), FACTS))
  return Model(network, process, timing, context or Full(), CHUNK), params


def distance(process, sampler, rows=2000, first=True, **options):
  """(total variation of texts to the language, that of as many exact draws)."""
  model, params = model_of(process, ByInformation(informative_first=first), **options)
  sampler.check(model)
  ids = sample(model, params, sampler, row_keys(0, rows), rows=rows, length=L).ids
  found = LANGUAGE.total_variation(LANGUAGE.histogram(np.asarray(ids)))
  return found, LANGUAGE.chance_distance(rows)


@pytest.mark.parametrize("process", [MASKED, VECTORS], ids=["masked", "vectors"])
@pytest.mark.parametrize("first", [True, False], ids=["informative_first", "informative_last"])
def test_the_law_of_the_language_is_reached(process, first):
  found, chance = distance(process, GuessedTimes(steps=32), first=first)
  assert found < 1.5 * chance + 0.02


@pytest.mark.parametrize(
  "process,shared",
  [(MASKED, Grid(steps=16)), (VECTORS, GaussianGrid(steps=16, projection="sample"))],
  ids=["masked", "vectors"],
)
def test_times_that_all_tokens_share_miss_it(process, shared):
  """What samplers did before: the network takes the noise of a token for what it is."""
  found, chance = distance(process, shared)
  assert found > chance + 0.3


def test_the_law_is_reached_in_blocks_and_from_an_observed_token():
  """Rows of which the first token is observed have the law that follows from it."""
  model, params = model_of(MASKED, ByInformation(), Blocks(size=2))
  ids = LANGUAGE.systematic(2000)
  batch = Batch(ids, observed=np.broadcast_to(np.arange(L) == 0, ids.shape))
  made = sample(model, params, GuessedTimes(steps=32), row_keys(0, 2000), batch=batch).ids
  np.testing.assert_array_equal(made[:, 0], ids[:, 0])
  found = LANGUAGE.total_variation(LANGUAGE.histogram(np.asarray(made)))
  assert found < 1.5 * LANGUAGE.chance_distance(2000) + 0.02


@pytest.mark.parametrize("context", [Full(), Blocks(size=2)])
def test_it_obeys_the_laws_of_all_samplers(context):
  model, params = model_of(MASKED, ByInformation(), context)
  laws = ("options", "fits", "tokens", "calls", "alone", "host")
  calls = 6 * (1 if context == Full() else 2)
  check_sampler(GuessedTimes(steps=6), model, params, LANGUAGE, calls=calls, rows=32, only=laws)


def test_hidden_tokens_are_noise_whatever_the_network_is_told():
  """What a reading hides is told 1, and all else what the sampler says."""
  model, params = model_of(MASKED, ByInformation())
  ids = jnp.zeros((1, L), jnp.int32)
  hidden = jnp.array([[True, False, False, False]])
  told = jnp.array([[0.0, 0.7, 0.7, 0.7]])
  query = Query(ids, 0 * told, jnp.int32(0), ~hidden, Batch(ids), ids + V, hidden, told=told)
  rows = rows_of(model, params, query)
  np.testing.assert_array_equal(rows.t, jnp.where(hidden, 1.0, told))
  np.testing.assert_array_equal(rows.inputs.ids, jnp.where(hidden, V, 0))
  np.testing.assert_array_equal(rows_of(model, params, query._replace(told=None)).t, hidden)


@member
class StepsFromTheLastGuess(GuessedTimes):
  """Takes a token to stand where its last guess put it, whatever it is guessed to be now."""

  def moved(self, model, params, canvas, state, prediction, moves, turn):
    stale = model._replace(timing=Stale(model.timing))
    own = {**params, "timing": (params["timing"], turn.t, state.extra)}
    return super().moved(stale, own, canvas, state, prediction, moves, turn)


class Stale:
  """The times of tokens, but for those before a step."""

  def __init__(self, timing):
    self.timing = timing

  def token_times(self, params, ids, tau, counts):
    own, before, stood = params
    there = jnp.all(tau == before)
    return jnp.where(there, stood, self.timing.token_times(own, ids, tau, counts))


@member
class TellsItsOwnTimes(GuessedTimes):
  """The network reads the time of each token."""

  def network_times(self, model, params, canvas, state):
    return state.extra


@pytest.mark.parametrize("mutant", [StepsFromTheLastGuess, TellsItsOwnTimes])
def test_a_wrong_path_misses_the_law(mutant):
  found, chance = distance(MASKED, mutant(steps=16))
  assert found > chance + 0.1


TEXT = np.array([0, 1, 2, 1], np.int32)
ACTIVE = np.arange(L) < 3


class Sure:
  """A network that is certain of one text; it keeps the times that it reads."""

  remembers, layers = False, 1

  def __init__(self):
    self.told = []

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    self.told.append(rows.t)
    sure = jnp.where(jnp.arange(V) == jnp.asarray(TEXT)[:, None], 0.0, NEVER)
    return Prediction(jnp.broadcast_to(sure, (*rows.t.shape, V)), IdentityHead())


def check_path(sampler, timing):
  """Sure of the text, tokens have the noise of training at the clock, which the network reads."""
  rows, network = 400, Sure()
  model = Model(network, VECTORS, timing, Full())
  own = VECTORS.init(jax.random.key(0), FACTS)
  params = {"network": {}, "process": own, "timing": timing.init(jax.random.key(1), FACTS)}
  sampler.check(model)
  loop = Loop(model, sampler, WholeRow())
  batch = Batch(np.tile(TEXT, (rows, 1)), observed=np.tile(~ACTIVE, (rows, 1)))
  fixed = jax.jit(loop.fixed)(params, row_keys(0, rows), batch)
  carry = jax.jit(loop.start)(params, fixed)

  @jax.jit
  def advance(fixed, carry):
    """(the next carry, the times that the network read)."""
    return loop.advance(params, fixed, carry), network.told[-1]

  table = np.asarray(VECTORS.table(own))[TEXT]
  for call in range(sampler.steps):
    clock = 1 - call / sampler.steps
    path = ByInformation(spread=timing.spread)
    t = np.asarray(path.times(np.float32([clock]), np.float32(RARE)[TEXT])[0])
    np.testing.assert_allclose(carry.sampler.extra[:, ACTIVE], np.tile(t[:3], (rows, 1)), atol=1e-6)
    alpha, sigma, _ = (np.asarray(x)[:, None] for x in VECTORS.schedule(np.float32(t)))
    state, noisy = np.asarray(carry.state), ACTIVE & (t > 0)
    clean = ACTIVE & (t == 0)
    np.testing.assert_allclose(state[:, clean], np.tile(table[clean], (rows, 1, 1)), atol=1e-6)
    noise = ((state - alpha * table) / np.maximum(sigma, 1e-6))[:, noisy]
    assert np.abs(noise.mean(0)).max(initial=0) < 0.25
    assert np.abs(noise.std(0) - 1).max(initial=0) < 0.15
    carry, found = advance(fixed, carry)
    told = np.where(ACTIVE, np.float32(clock), 0)
    np.testing.assert_allclose(found, np.tile(told, (rows, 1)), atol=1e-6)
  np.testing.assert_array_equal(jax.jit(loop.finish)(params, fixed, carry).ids, batch.ids)


@member
class OneTimeForAll(ByInformation):
  """Every token has the time of the clock."""

  def token_times(self, params, ids, tau, counts):
    return tau


def test_a_certain_guess_walks_the_path_of_training():
  check_path(GuessedTimes(steps=5), ByInformation(spread=2.0))
  with pytest.raises(AssertionError):
    check_path(GuessedTimes(steps=5), OneTimeForAll(spread=2.0))
  with pytest.raises(AssertionError):
    check_path(TellsItsOwnTimes(steps=5), ByInformation(spread=2.0))


def test_times_of_tokens_are_those_that_are_drawn():
  timing = ByInformation(spread=2.0, informative_first=False)
  params = timing.init(jax.random.key(0), FACTS)
  ids = LANGUAGE.systematic(64)
  drawn = timing.draw(params, jax.random.key(1), Batch(ids), Progress())
  clock = jnp.broadcast_to(drawn.tau, ids.shape)
  np.testing.assert_array_equal(timing.token_times(params, ids, clock, clock > 0), drawn.t)


def test_what_does_not_fit_is_refused():
  model, _ = model_of(MASKED, ByInformation())
  sampler = GuessedTimes(steps=4)
  with pytest.raises(ValueError, match=r"token_times, which Shared.*by_information"):
    sampler.check(model._replace(timing=Shared()))
  with pytest.raises(ValueError, match="reads logits as 'leave_one_out'"):
    sampler.check(model._replace(process=Uniform(vocab_size=V)))
  vectors, _ = model_of(VECTORS, ByInformation())
  with pytest.raises(ValueError, match="times that follow from what it predicts"):
    LatentControl(sampler, None).check(vectors)

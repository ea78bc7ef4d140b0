"""Control by a classifier: exact where theory says so, for every kind of process; what it costs;
what it leaves alone; and mutants.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.control import LatentControl, LogitControl
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Random
from diffusion_text.schedules.gaussian import LogSNR
from diffusion_text.testing import Enumerable, ExactNetwork, check_sampler, exact_params
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Canvas, DataFacts, IdentityHead, Model, Prediction
from tests.sampler.queries import query_of

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)
V, LENGTH, ROWS = 3, 3, 1000
# A language of independent tokens, whose exact leave-one-out prediction is always this.
FREQUENT = np.log(np.float32([0.5, 0.3, 0.2]))
# log p(c | x) = Σ_i TILT[x_i] + constant: linear in the tokens.
TILT = np.float32([-1.0, 0.0, 1.2])
PATH = LogSNR(log_snr_max=8.0, log_snr_min=-8.0)
PROCESSES = {
  "masked": MASKED,
  "uniform": Uniform(vocab_size=V),
  "embedding": Embedding(vocab_size=V, schedule=PATH, prediction="leave_one_out", width=4),
  "simplex": Simplex(vocab_size=V, schedule=PATH, prediction="leave_one_out"),
}


def model_of(process, network=None):
  network = ExactNetwork(process) if network is None else network
  return Model(network, process, Shared(), Full(), chunk=4096)


@member
class Frequencies:
  """A network that knows independent tokens, and says the same of each."""

  layers: ClassVar[int] = 1

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    return Prediction(jnp.broadcast_to(FREQUENT, (*rows.t.shape, V)), IdentityHead())


@member
class OfTokens:
  """Linear in the soft tokens; its strength is a parameter."""

  def log_prob(self, params, soft):
    return params["strength"] * jnp.einsum("blv,v->b", soft, TILT)


@member
class OfVectors:
  """log p(c | z_t) of independent tokens, exactly."""

  process: Embedding = option(...)

  def log_prob(self, params, vectors, t):
    logits = FREQUENT + self.process.evidence(params["process"], vectors, t)
    gain = jax.nn.logsumexp(logits + TILT, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return params["strength"] * jnp.sum(jnp.where(t > 0, gain, 0.0), axis=1)


def law_of(ids):
  return np.bincount(ids.reshape(-1), minlength=V) / ids.size


def distance(ids, logits):
  law = np.exp(logits) / np.exp(logits).sum()
  return 0.5 * np.abs(law_of(ids) - law).sum()


@functools.cache
def independent(kind, name, steps):
  """(strength -> ids [1000, 3] of independent tokens; None: not controlled, the ids before).

  The first token is observed.
  """
  process = PROCESSES[name]
  of_process = process.init(jax.random.key(5), DataFacts(length=LENGTH, vocab_size=V))
  ids = np.tile(np.arange(V, dtype=np.int32), ROWS)[:ROWS, None] * np.ones((1, LENGTH), np.int32)
  batch = Batch(ids, observed=np.tile(np.arange(LENGTH) == 0, (ROWS, 1)))
  bare = Grid(steps=steps)
  steered = (
    LatentControl(sampler=bare, classifier=OfVectors(process=process))
    if (kind == "latents")
    else LogitControl(sampler=bare, classifier=OfTokens(), steps=2)
  )
  model = model_of(process, Frequencies())

  def draw(strength):
    classifier = {"process": of_process, "strength": jnp.float32(strength or 0.0)}
    params = {"network": {}, "process": of_process, "timing": {}, "classifier": classifier}
    sampler = bare if strength is None else steered
    return np.asarray(sample(model, params, sampler, row_keys(0, ROWS), batch=batch).ids)

  return draw, ids


CASES = [
  ("logits", "masked", 3),
  ("logits", "uniform", 16),
  ("logits", "simplex", 32),
  ("latents", "embedding", 32),
]


@pytest.mark.parametrize("kind,name,steps", CASES)
def test_bayes_rule_is_exact_for_independent_tokens(kind, name, steps):
  """Strength 1 draws from p(x | c), 0 is the bare sampler, and observed tokens stay.

  Standard error of the distance: 0.011.
  """
  draw, before = independent(kind, name, steps)
  ids = draw(1.0)
  np.testing.assert_array_equal(ids[:, 0], before[:, 0])
  assert distance(ids[:, 1:], FREQUENT + TILT) < 0.05
  unguided = draw(0.0)
  assert distance(unguided[:, 1:], FREQUENT) < 0.05
  if name in ("masked", "embedding"):
    np.testing.assert_array_equal(unguided, draw(None))
  assert distance(draw(-1.0)[:, 1:], FREQUENT + TILT) > 0.5, "with its sign flipped it must fail"


@member
class FirstIsZero:
  """c is nearly "the first token is 0", by the soft token; its strength is a parameter."""

  def log_prob(self, params, soft):
    return params["strength"] * jnp.log(0.02 + 0.96 * soft[:, 0, 0])


def test_a_classifier_of_dependent_tokens_moves_the_law_towards_the_conditional():
  """To first order only, so nearer is what theory promises."""
  weight = TOY.probabilities * np.where(TOY.sequences[:, 0] == 0, 0.98, 0.02)
  conditional = weight / weight.sum()
  inner = Reveal(score=Random(), budget=EvenShare(steps=4))
  sampler = LogitControl(sampler=inner, classifier=FirstIsZero())

  def away(strength):
    params = exact_params(TOY, classifier={"strength": jnp.float32(strength)})
    keys = row_keys(0, 4_000)
    ids = sample(model_of(MASKED), params, sampler, keys, rows=4_000, length=4).ids
    return 0.5 * np.abs(TOY.histogram(np.asarray(ids)) - conditional).sum()

  against, none, towards = map(away, (-1.0, 0.0, 1.0))
  assert towards < 0.5 * none < none < against


@member
class Told:
  """Counts how often it is asked."""

  def log_prob(self, params, soft):
    jax.debug.callback(lambda: ASKED.append(1))
    return jnp.log(soft[:, 0, 0] + 0.1) + soft[:, 1, 2] ** 2


@member
class Linear:
  """Linear in two of the soft tokens."""

  def log_prob(self, params, soft):
    return 3.0 * soft[:, 0, 0] + soft[:, 1, 2]


@member
class Counted(ExactNetwork):
  """Counts how often it is asked."""

  def apply(self, params, rows, **options):
    jax.debug.callback(lambda: MADE.append(1))
    return super().apply(params, rows, **options)


ASKED, MADE = [], []


@pytest.mark.parametrize("steps,wrt", [(1, "probabilities"), (3, "logits")])
def test_what_it_costs(steps, wrt):
  """One network call per step of the sampler; `steps` gradients of the classifier in each."""
  ASKED.clear()
  MADE.clear()
  sampler = LogitControl(sampler=Grid(steps=5), classifier=Told(), steps=steps, wrt=wrt)
  model = model_of(MASKED, Counted(MASKED))
  result = sample(
    model, exact_params(TOY, classifier={}), sampler, row_keys(0, 2), rows=2, length=4
  )
  jax.block_until_ready(result)
  jax.effects_barrier()
  assert int(result.calls) == len(MADE) == 5 and len(ASKED) == 5 * steps


@member
class Shows(Grid):
  """Makes no step, but shows the logits that it is given."""

  def step(self, model, params, canvas, state, prediction, query, needs):
    return prediction.logits, state


@pytest.mark.parametrize("wrt", ["probabilities", "logits"])
def test_what_is_added(wrt):
  """The gradient at noisy tokens, nothing at clean ones; the published form has p as a factor."""
  logits = np.float32([[[0.1, -0.5, 0.3], [0.0, 1.0, -1.0]]])
  control = LogitControl(sampler=Shows(steps=1), classifier=Linear(), strength=0.7, wrt=wrt)
  params = {"network": {}, "process": {}, "timing": {}, "classifier": {}}

  @jax.jit
  def run(text, logits):
    zeros = jnp.zeros(1, jnp.int32)
    keys = jax.random.split(jax.random.key(0), (1, 2))
    canvas = Canvas(text, jnp.ones((1, 2), bool), keys, zeros, zeros + 2)
    model = model_of(MASKED)
    state = control.init(model, params, canvas)
    prediction = Prediction(logits, IdentityHead())
    t = control.times(model, params, canvas, state)
    query = query_of(canvas, t, canvas.active)
    return control.step(model, params, canvas, state, prediction, query, canvas.active)[0]

  after = np.asarray(run(jnp.array([[3, 1]]), logits))
  p, g = np.exp(logits[0, 0]) / np.exp(logits[0, 0]).sum(), np.array([3.0, 0.0, 0.0])
  added = g if wrt == "probabilities" else p * (g - p @ g)
  np.testing.assert_allclose(after[0, 0] - logits[0, 0], 0.7 * added, atol=1e-6)
  np.testing.assert_array_equal(after[0, 1], logits[0, 1])


def test_an_observed_end_is_length_control():
  """Words of tokens 2 and 3, then one END (0), then padding (1).

  To give END its place is to give the length, and nothing new is needed.
  """
  language = Enumerable.dirichlet(0, 0.5, 4, 4)
  ends = np.argmax(language.sequences == 0, axis=1)
  words = np.arange(4) < ends[:, None]
  want = np.where(words, language.sequences >= 2, language.sequences == 1)
  shaped = (want | (np.arange(4) == ends[:, None])).all(1) & (language.sequences == 0).any(1)
  probabilities = language.probabilities * shaped
  language = Enumerable(language.sequences, probabilities / probabilities.sum(), 4)
  observed = np.tile(np.arange(4) == 2, (2000, 1))
  batch = Batch(np.zeros((2000, 4), np.int32), observed=observed)
  sampler = Reveal(score=Random(), budget=EvenShare(steps=4))
  model = model_of(Masked(vocab_size=4))
  got = sample(model, exact_params(language), sampler, row_keys(0, 2000), batch=batch).ids
  got = np.asarray(got)
  assert (np.argmax(got == 0, axis=1) == 2).all() and (got[:, 3] == 1).all()
  asked = language.probabilities * (ends == 2)
  assert 0.5 * np.abs(language.histogram(got) - asked / asked.sum()).sum() < 0.04
  assert language.probabilities[ends == 2].sum() < 0.9, "other lengths are possible"


@member
class AnswersSome(WholeRow):
  """A reader that says that it has answered the first place only."""

  def read(self, model, params, memory, query, *, refresh=True):
    prediction, memory = super().read(model, params, memory, query, refresh=refresh)
    fresh = jnp.broadcast_to(jnp.arange(query.needs.shape[1]) == 0, query.needs.shape)
    return dataclasses.replace(prediction, fresh=fresh), memory


def test_what_does_not_fit_is_refused():
  inner, told = Grid(steps=2), Told()
  for make, word in (
    (lambda: LogitControl(sampler=inner, classifier=told, strength=float("nan")), "strength"),
    (lambda: LatentControl(sampler=inner, classifier=told, steps=0), "steps"),
    (lambda: LogitControl(sampler=inner, classifier=told, wrt="tokens"), "wrt"),
  ):
    with pytest.raises(ValueError, match=word):
      make()
  logits = LogitControl(sampler=inner, classifier=told)
  with pytest.raises(ValueError, match="score"):
    logits.check(model_of(Uniform(vocab_size=V, prediction="score")))
  logits.check(model_of(MASKED))
  with pytest.raises(ValueError, match="whole_row"):
    params = exact_params(TOY, classifier={})
    keys = row_keys(0, 2)
    sample(model_of(MASKED), params, logits, keys, rows=2, length=4, reader=AnswersSome())
  vectors = model_of(PROCESSES["embedding"], Frequencies())
  LatentControl(sampler=inner, classifier=told).check(vectors)
  with pytest.raises(ValueError, match=r"control of latents needs.*Masked"):
    LatentControl(sampler=inner, classifier=told).check(model_of(MASKED))
  with pytest.raises(ValueError, match=r"control of latents needs on_grid.*Reveal"):
    LatentControl(sampler=Reveal(), classifier=told).check(vectors)


def test_the_laws_of_every_sampler():
  """Observed tokens and padding stay, a row is its own, and the calls are the sampler's."""
  sampler = LogitControl(sampler=Grid(steps=4), classifier=FirstIsZero(), strength=2.0)
  params = exact_params(TOY, classifier={"strength": jnp.float32(1.0)})
  laws = ("options", "tokens", "calls", "alone")
  check_sampler(sampler, model_of(MASKED), params, TOY, rows=64, calls=4, only=laws)

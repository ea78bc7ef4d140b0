"""Control by a classifier: exact where theory says so, for every kind of process; what it costs; what it leaves alone; and mutants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.ancestral import Ancestral, EventDriven
from diffusion_text.sampler.control import LatentControl, LogitControl
from diffusion_text.sampler.loop import Canvas, sample
from diffusion_text.sampler.order import Ordered
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import PATHS
from diffusion_text.testing.oracle import Enumerable, exact_prediction, masked_evidence
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Prediction
from tests.process.conformance_test import TOY

V, LENGTH = 3, 3
FREQUENT = jnp.log(
  jnp.array([0.5, 0.3, 0.2])
)  # a language of independent tokens, whose exact prediction is always this
TILT = jnp.array([-1.0, 0.0, 1.2])  # log p(c | x) = Σ_i TILT[x_i] + constant: linear in the tokens
PATH = PATHS["log_snr"](log_snr_max=8.0, log_snr_min=-8.0)
PROCESSES = {
  "masked": Masked(V, Linear()),
  "uniform": Uniform(V, Linear()),
  "embedding": Embedding(V, PATH, "leave_one_out", width=4),
  "simplex": Simplex(V, PATH, "leave_one_out"),
}


def law_of(ids):
  return np.bincount(np.asarray(ids).reshape(-1), minlength=V) / np.asarray(ids).size


def distance(ids, logits):
  return 0.5 * np.abs(law_of(ids) - np.asarray(jax.nn.softmax(logits))).sum()


@functools.cache
def independent(kind, name, steps):
  """(strength, seed) -> ids [1000, L] of independent tokens under control; strength None: the bare policy. The first token is given."""
  process = PROCESSES[name]
  params = process.init(jax.random.key(5))
  bare = Ancestral(Shared(), steps)
  rows = 1000
  given = jnp.zeros((rows, LENGTH), bool).at[:, 0].set(True)
  batch = Batch(
    jnp.tile(jnp.arange(V)[: rows % V + 1], rows)[:rows, None] * jnp.ones((1, LENGTH), jnp.int32),
    given=given,
  )

  def of_latents(z, t):
    logits = FREQUENT + process.evidence(params, z, t)
    gain = jax.nn.logsumexp(logits + TILT, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.where(t > 0, gain, 0.0), axis=1)

  def denoise(inputs, t):
    return exact_prediction(jnp.broadcast_to(FREQUENT, (rows, LENGTH, V)))

  def run(policy, keys):
    return sample(policy, process, params, denoise, token_keys(keys, LENGTH), batch).ids

  def controlled(strength, keys):
    if kind == "logits":
      return run(
        LogitControl(bare, lambda soft: jnp.einsum("blv,v->b", soft, TILT), strength, 2), keys
      )
    return run(LatentControl(bare, of_latents, strength), keys)

  controlled, uncontrolled = jax.jit(controlled), jax.jit(functools.partial(run, bare))
  return lambda strength, seed=0: np.asarray(
    uncontrolled(row_keys(seed, rows))
    if strength is None
    else controlled(jnp.float32(strength), row_keys(seed, rows))
  ), np.asarray(batch.ids)


CASES = [
  ("logits", "masked", 3),
  ("logits", "uniform", 16),
  ("logits", "simplex", 32),
  ("latents", "embedding", 32),
]


@pytest.mark.parametrize("kind,name,steps", CASES)
def test_bayes_rule_is_exact_for_independent_tokens(kind, name, steps):
  """Strength 1 draws from p(x | c), 0 is the bare policy bit for bit, and given tokens stay. Standard error of the distance: 0.011."""
  draw, before = independent(kind, name, steps)
  ids = draw(1.0)
  np.testing.assert_array_equal(ids[:, 0], before[:, 0])
  assert distance(ids[:, 1:], FREQUENT + TILT) < 0.05
  unguided = draw(0.0)
  assert distance(unguided[:, 1:], FREQUENT) < 0.05
  if name in ("masked", "embedding"):
    np.testing.assert_array_equal(unguided, draw(None))
  assert distance(draw(-1.0)[:, 1:], FREQUENT + TILT) > 0.5, (
    "with its sign flipped the test must fail"
  )


def exact(inputs, t):
  del t
  return exact_prediction(TOY.posterior(masked_evidence(inputs.ids, TOY.vocab_size)))


def test_a_classifier_of_dependent_tokens_moves_the_law_towards_the_conditional():
  """c is nearly "the first token is 0", told through the soft token. To first order only, so nearer is what theory promises."""
  told = lambda soft: jnp.log(0.02 + 0.96 * soft[:, 0, 0])
  weight = TOY.probabilities * np.where(TOY.sequences[:, 0] == 0, 0.98, 0.02)
  conditional = weight / weight.sum()
  batch = Batch(jnp.zeros((8_000, 4), jnp.int32))

  @jax.jit
  def draw(strength):
    policy = LogitControl(Ordered(Shared(), 4, "random"), told, strength)
    return sample(
      policy, Masked(3, Linear()), {}, exact, token_keys(row_keys(0, 8_000), 4), batch
    ).ids

  away = {
    s: 0.5 * np.abs(TOY.histogram(draw(jnp.float32(s))) - conditional).sum()
    for s in (-1.0, 0.0, 1.0)
  }
  assert away[1.0] < 0.5 * away[0.0] < away[0.0] < away[-1.0], away


@pytest.mark.parametrize("steps,wrt", [(1, "probabilities"), (3, "logits")])
def test_what_is_added_and_what_it_costs(steps, wrt):
  """One network call per step of the policy; `steps` gradients of the classifier in each; the published form has p as a factor."""
  asked, made = [], []

  def told(soft):
    jax.debug.callback(lambda: asked.append(1))
    return jnp.log(soft[:, 0, 0] + 0.1) + soft[:, 1, 2] ** 2

  def denoise(inputs, t):
    jax.debug.callback(lambda: made.append(1))
    return exact(inputs, t)

  policy = LogitControl(Ancestral(Shared(), 5), told, 1.0, steps, wrt)
  batch = Batch(jnp.zeros((2, 4), jnp.int32))
  result = jax.jit(lambda keys: sample(policy, Masked(3, Linear()), {}, denoise, keys, batch))(
    token_keys(row_keys(0, 2), 4)
  )
  jax.block_until_ready(result)
  jax.effects_barrier()
  assert int(result.calls) == len(made) == 5 and len(asked) == 5 * steps

  class Shows(Ancestral):
    def advance(self, process, params, canvas, prediction):
      return prediction.logits

  logits = jnp.array([[[0.1, -0.5, 0.3], [0.0, 1.0, -1.0]]])
  canvas = Canvas(
    jnp.array([[3, 1]]),
    jnp.array([[True, True]]),
    token_keys(row_keys(0, 1), 2),
    jnp.int32(0),
    jnp.ones((2, 2)),
  )
  one = LogitControl(
    Shows(Shared(), 1), lambda soft: 3.0 * soft[:, 0, 0] + soft[:, 1, 2], 0.7, 1, wrt
  )
  after = one.advance(Masked(3, Linear()), {}, canvas, Prediction(logits, lambda rows: rows))
  p, g = np.asarray(jax.nn.softmax(logits[0, 0])), np.array([3.0, 0.0, 0.0])
  added = g if wrt == "probabilities" else p * (g - p @ g)
  np.testing.assert_allclose(after[0, 0] - logits[0, 0], 0.7 * added, atol=1e-6)
  np.testing.assert_array_equal(after[0, 1], logits[0, 1])  # a token that is clean already


def test_a_given_end_is_length_control():
  """Words of tokens 2 and 3, then one END (0), then padding (1): to give END its place is to give the length, and nothing new is needed."""
  language = Enumerable.dirichlet(0, 0.5, 4, 4)
  ends = np.argmax(language.sequences == 0, axis=1)
  shaped = [
    (row[:k] >= 2).all() and (row[k] == 0) and (row[k + 1 :] == 1).all()
    for row, k in zip(language.sequences, ends)
  ]
  probabilities = language.probabilities * shaped
  language = Enumerable(language.sequences, probabilities / probabilities.sum(), 4)
  ids = jnp.zeros((2000, 4), jnp.int32)
  batch = Batch(ids, given=jnp.zeros(ids.shape, bool).at[:, 2].set(True))
  denoise = lambda inputs, t: exact_prediction(language.posterior(masked_evidence(inputs.ids, 4)))
  run = jax.jit(
    lambda keys: (
      sample(Ordered(Shared(), 4, "random"), Masked(4, Linear()), {}, denoise, keys, batch).ids
    )
  )
  got = np.asarray(run(token_keys(row_keys(0, 2000), 4)))
  assert (np.argmax(got == 0, axis=1) == 2).all() and (got[:, 3] == 1).all()
  asked = language.probabilities * (ends == 2)
  assert 0.5 * np.abs(language.histogram(got) - asked / asked.sum()).sum() < 0.04
  assert language.probabilities[ends == 2].sum() < 0.9, "other lengths are possible"


def test_what_does_not_fit_is_refused():
  inner, told = Ancestral(Shared(), 2), lambda soft: soft[:, 0, 0]
  with pytest.raises(ValueError, match="strength=nan"):
    LogitControl(inner, told, float("nan"))
  with pytest.raises(ValueError, match="steps=0"):
    LatentControl(inner, told, 1.0, 0)
  with pytest.raises(ValueError, match="wrt='tokens'"):
    LogitControl(inner, told, 1.0, wrt="tokens")
  with pytest.raises(ValueError, match="EventDriven"):
    LatentControl(EventDriven(Shared(), 2), told, 1.0)
  canvas = Canvas(
    jnp.zeros((1, 2), jnp.int32),
    jnp.ones((1, 2), bool),
    token_keys(row_keys(0, 1), 2),
    jnp.int32(0),
    None,
  )
  with pytest.raises(ValueError, match="Masked has no vectors"):
    LatentControl(inner, told, 1.0).plan(Masked(3, Linear()), {}, canvas)
  with pytest.raises(ValueError, match="ratios"):
    LogitControl(inner, told, 1.0).plan(Uniform(3, Linear(), "score"), {}, canvas)

"""DPM-Solver++(2M): its order, its start, its end (trap 15 of continuous.md, section 22), and
mutants that must fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.options import member
from diffusion_text.core.prng import token_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.process.masked import Masked
from diffusion_text.sampler import multistep
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.schedules.gaussian import LogSNR
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.exact_network import ExactNetwork
from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import Batch, Canvas, IdentityHead, Prediction
from tests.sampler.queries import query_of

V, B, L, E = 5, 2, 4, 3
PROCESS = Embedding(vocab_size=V, width=E)
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, 1)
STILL = StepOptions(rho=0.0)


def errors(order):
  """|x - exact| at log-SNR 6 (λ = 3), from x = 1 at -8, for data N(0, 0.04), whose x̂ is exact and
  linear: n = 10, 20, 40, 80 steps.
  """
  path = LogSNR(log_snr_max=6.0, log_snr_min=-8.0)
  process, data = Embedding(vocab_size=2, schedule=path, width=1), 0.04

  def step(carry, times):
    x, last, before = carry
    t, s = times[:, None]
    gain = path(t)
    mean = gain.alpha * data * x / (gain.alpha**2 * data + gain.sigma**2)
    target = mean
    if order == 2:
      target = multistep.extrapolated(path, mean, last, before, t, s)
    after = process.towards({}, target, x, t, s, jnp.zeros((1, 1)), STILL)
    return (after, mean, t), None

  @jax.jit
  def run(steps):
    start = jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros(1)
    return jax.lax.scan(step, start, steps)[0][0][0, 0]

  found = []
  for n in (10, 20, 40, 80):
    grid = np.linspace(1, 0, n + 1, dtype=np.float32)
    found.append(float(run(np.stack([grid[:-1], grid[1:]], axis=1))))
  ends = [path(jnp.float32(t)) for t in (1, 0)]
  spread = [float(end.alpha**2 * data + end.sigma**2) for end in ends]
  return np.abs(np.array(found) - (spread[1] / spread[0]) ** 0.5)


def check_order():
  first, second = errors(1), errors(2)
  np.testing.assert_allclose(first, (3.13e-2, 1.63e-2, 8.31e-3, 4.20e-3), rtol=0.01)
  np.testing.assert_allclose(second, (8.2e-4, 6.2e-4, 2.2e-4, 6.2e-5), rtol=0.03)
  assert first[2] / first[3] > 1.9 and second[2] / second[3] > 3


def test_order():
  check_order()


def test_extrapolating_a_whole_step_would_be_noticed(monkeypatch):
  right = multistep.extrapolated
  monkeypatch.setattr(
    multistep, "extrapolated", lambda path, x, *rest: 2 * right(path, x, *rest) - x
  )
  with pytest.raises(AssertionError):
    check_order()


def check_start():
  """Tokens without a history step as DDIM does; those with one do not."""
  model, params = exact_model(PROCESS, LANGUAGE)
  keys = token_keys(jax.random.split(jax.random.key(0), B), L)
  logits = jax.random.normal(jax.random.key(3), (B, L, V))
  has = np.broadcast_to(np.arange(L) % 2 == 1, (B, L))
  needs = jnp.ones((B, L), bool)

  @jax.jit
  def run(params):
    noise = PROCESS.prior(params["process"], keys)
    calls = jnp.ones(B, jnp.int32)
    canvas = Canvas(noise, needs, keys, calls, jnp.full(B, L))
    prediction = Prediction(logits, IdentityHead())
    states = []
    for sampler in (Multistep(steps=4), GaussianGrid(steps=4, rho=0.0)):
      walked = sampler.init(model, params, canvas)
      walked = sampler._enter(model, params, canvas, walked._replace(step=calls))
      if len(states) == 0:
        last, before = walked.extra
        walked = walked._replace(extra=(last + 1, jnp.where(has, 1.0, before)))
      query = query_of(canvas, walked.t, needs)
      states.append(sampler.step(model, params, canvas, walked, prediction, query, needs))
    return states

  (ours, walked), (theirs, _) = run(params)
  np.testing.assert_allclose(ours[~has], theirs[~has], atol=1e-6)
  assert np.abs(ours - theirs)[has].max(axis=-1).min() > 1e-3
  assert (walked.extra[1] == 0.75).all() and (walked.step == 2).all()


def test_start():
  check_start()


def test_a_false_history_would_be_noticed(monkeypatch):
  right = multistep.extrapolated

  def always(path, x, last, before, t, s):
    return right(path, x, last, before + 2, t, s)

  monkeypatch.setattr(multistep, "extrapolated", always)
  with pytest.raises(AssertionError):
    check_start()


@member
class ChangesItsMind(ExactNetwork):
  """Likes token 1 until late, and then token 2."""

  def apply(self, params, rows, **options):
    """Near certainty, everywhere."""
    prediction = ExactNetwork.apply(self, params, rows, **options)
    liked = jnp.where(jnp.max(rows.t) > 0.4, 1, 2)
    logits = jnp.broadcast_to(30 * jax.nn.one_hot(liked, V), prediction.features.shape)
    return Prediction(logits, prediction.head)


def check_end(sampler):
  """Observed tokens come back, and the text is the last prediction's, not the one before's; as many
  calls as steps.
  """
  observed = np.broadcast_to(np.arange(L) == 1, (B, L))
  batch = Batch(np.full((B, L), 4, np.int32), observed=observed)
  model, params = exact_model(PROCESS, LANGUAGE)
  model = model._replace(network=ChangesItsMind(process=PROCESS))
  result = sample(model, params, sampler, jax.random.key(0), batch=batch)
  np.testing.assert_array_equal(result.ids, np.where(observed, 4, 2))
  assert int(result.calls) == 3


@member
class ReturnsTheOneBefore(Multistep):
  """Ends at the x̂ of the call before."""

  def step(self, model, params, canvas, state, prediction, query, needs):
    """The last x̂, in the last step."""
    text, walked = Multistep.step(self, model, params, canvas, state, prediction, query, needs)
    ends = (state.step == self.steps - 1)[:, None, None]
    return jnp.where(ends, state.extra[0], text), walked


@pytest.mark.parametrize("kind", [Multistep, GaussianGrid], ids=lambda kind: kind.__name__)
def test_end(kind):
  check_end(kind(steps=3))


def test_the_prediction_before_would_be_noticed():
  with pytest.raises(AssertionError):
    check_end(ReturnsTheOneBefore(steps=3))


def test_processes_without_vectors_are_refused():
  model, _ = exact_model(Masked(vocab_size=V), LANGUAGE)
  with pytest.raises(ValueError, match=r"multistep.* needs .*predicted.* which Masked .*'grid'"):
    Multistep(steps=4).check(model)

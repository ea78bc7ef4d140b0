"""DPM-Solver++(2M): its order, its start, its end (trap 15 of continuous.md, section 22), and mutants that must fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.sampler import multistep
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import Canvas, sample
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.schedules.gaussian import LogSNR, VPCosine
from diffusion_text.testing.oracle import exact_prediction
from diffusion_text.timing import Shared
from diffusion_text.types import Batch

V, B, L, E = 5, 2, 4, 3
PROCESS = Embedding(V, VPCosine(), width=E, rho=0.0)
PARAMS = PROCESS.init(jax.random.key(0))
KEYS = token_keys(row_keys(0, B), L)


def errors(order):
  """|x - exact| at log-SNR 6 (λ = 3), from x = 1 at -8, for data N(0, 0.04), whose x̂ is exact and linear: n = 10, 20, 40, 80 steps."""
  process, data = Embedding(2, LogSNR(6.0, -8.0), width=1, rho=0.0), 0.04
  params, path = process.init(jax.random.key(0)), process.schedule

  def step(carry, times):
    x, last, before = carry
    t, s = times[:, None]
    gain = path(t)
    mean = gain.alpha * data * x / (gain.alpha**2 * data + gain.sigma**2)
    target = multistep.extrapolated(path, mean, last, before, t, s) if order == 2 else mean
    return (process.towards(params, target, x, t, s, jnp.zeros((1, 1))), mean, t), None

  @jax.jit
  def run(grid):
    start = jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros(1)
    return jax.lax.scan(step, start, jnp.stack([grid[:-1], grid[1:]], axis=1))[0][0][0, 0]

  ends = [
    float(path(jnp.float32(t)).alpha ** 2 * data + path(jnp.float32(t)).sigma ** 2) for t in (1, 0)
  ]
  return np.array(
    [
      abs(float(run(jnp.linspace(1, 0, n + 1))) - (ends[1] / ends[0]) ** 0.5)
      for n in (10, 20, 40, 80)
    ]
  )


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
  """Tokens without a history step as DDIM does, bit by bit; those with one do not."""
  policy, ddim, has = (
    Multistep(Shared(), 4),
    Ancestral(Shared(), 4),
    jnp.broadcast_to(jnp.arange(L) % 2 == 1, (B, L)),
  )
  prediction = exact_prediction(jax.random.normal(jax.random.key(3), (B, L, V)))
  canvas = Canvas(
    PROCESS.prior(PARAMS, jax.random.key(1), (B, L)),
    jnp.ones((B, L), bool),
    KEYS,
    jnp.int32(1),
    None,
  )

  @jax.jit
  def run():
    times, last, before = policy.plan(PROCESS, PARAMS, canvas)
    plan = times, last + 1, jnp.where(has, 1.0, before)
    after = policy.advance(PROCESS, PARAMS, canvas._replace(plan=plan), prediction)
    return (
      after.state,
      after.plan[2],
      ddim.advance(PROCESS, PARAMS, canvas._replace(plan=times), prediction),
    )

  ours, before, theirs = run()
  np.testing.assert_array_equal(ours[~has], theirs[~has])
  assert np.abs(ours - theirs)[has].max(axis=-1).min() > 1e-3 and (before == 0.75).all()


def test_start():
  check_start()


def test_a_false_history_would_be_noticed(monkeypatch):
  right = multistep.extrapolated
  monkeypatch.setattr(
    multistep,
    "extrapolated",
    lambda path, x, last, before, t, s: right(path, x, last, before + 2, t, s),
  )
  with pytest.raises(AssertionError):
    check_start()


def check_end(kind):
  """Through the loop: given tokens come back, and the text is the last prediction's, not the one before's; as many calls as steps."""
  ids, given = jnp.full((B, L), 4), jnp.broadcast_to(jnp.arange(L) == 1, (B, L))

  def denoise(inputs, t):
    likes = jnp.where(jnp.max(t) > 0.4, 1, 2)
    return exact_prediction(jnp.broadcast_to(30 * jax.nn.one_hot(likes, V), (B, L, V)))

  run = jax.jit(
    lambda: sample(kind(Shared(), 3), PROCESS, PARAMS, denoise, KEYS, Batch(ids, given=given))
  )
  result = run()
  np.testing.assert_array_equal(result.ids, jnp.where(given, 4, 2))
  assert int(result.calls) == 3


class ReturnsTheOneBefore(Multistep):
  def advance(self, process, params, canvas, prediction):
    after = super().advance(process, params, canvas, prediction)
    ended = canvas.open & (canvas.call == self.steps - 1)
    return after._replace(state=jnp.where(ended[..., None], canvas.plan[1], after.state))


def test_end():
  check_end(Multistep)


def test_the_prediction_before_would_be_noticed():
  with pytest.raises(AssertionError):
    check_end(ReturnsTheOneBefore)

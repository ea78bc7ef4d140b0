"""Details of continuous diffusion that are easy to get wrong, each against a number from elsewhere.

Traps 1 to 3, 5, 9, 10, 12, 13 and 15 of the list that this project started from. 4 is of paths
(tests/schedules); 6 to 8, 11 and 14 are of objectives, networks and samplers, and tested there.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.process.simplex import Simplex
from diffusion_text.schedules.gaussian import LogSNR, Noisier, SquareRoot, VPCosine
from diffusion_text.types import DataFacts

V = 4
FACTS = DataFacts(2, V)
KEYS = jax.random.split(jax.random.key(0), 4000)
NONE, STILL = StepOptions(), StepOptions(rho=0.0)


def params_of(process):
  return process.init(jax.random.key(0), FACTS)


def signal(path, u):
  """alpha² of the published curve at u, before any window."""
  return float(jax.nn.sigmoid(path.at(jnp.float32(u), jnp.float32(path.last - u))))


def at_level(alpha_squared, path=None):
  """The time at which LogSNR() has this alpha²."""
  path = LogSNR() if path is None else path
  log_snr = math.log(alpha_squared / (1 - alpha_squared))
  return (path.log_snr_max - log_snr) / (path.log_snr_max - path.log_snr_min)


def coefficients(path, t, s, options=NONE):
  """(of z_t, of the projection, of fresh noise) of a step, by feeding unit vectors."""
  process = Embedding(V, path, width=1)
  t, s = (jnp.full(1, time, jnp.float32) for time in (t, s))
  units = np.eye(3)[:, :, None, None].astype(np.float32)

  def feed(target, state, noise):
    return float(process.towards({}, target, state, t, s, noise, options)[0, 0])

  return feed(*units[1]), feed(*units[0]), feed(*units[2])


def test_golden_posterior():
  """Trap 2: the coefficients of the DDPM posterior from alpha² = 0.2 to 0.5, and ρ_d."""
  found = coefficients(LogSNR(), at_level(0.2), at_level(0.5))
  assert found == pytest.approx((0.395285, 0.530330, 0.612372), rel=1e-5)
  assert found[2] / math.sqrt(0.5) == pytest.approx(0.866025, rel=1e-5)


def test_golden_strided_step():
  """Traps 1 to 3: steps of the chain of 2000 land at the level of their own target.

  They keep the variance; the legacy one does not.
  """
  path, chain = LogSNR(16.0, -16.0), SquareRoot()

  def time(index, cut=1.0):
    return at_level(cut * signal(chain, (index + 1) / 2000), path)

  first = time(1998, 1e-3)
  of_state, of_target, _ = coefficients(path, first, time(1899), STILL)
  here = float(path(jnp.float32(first)).alpha)
  assert of_target + of_state * here == pytest.approx(0.15976, rel=1e-4)
  t, s = time(1500), time(1300)
  of_state, of_target, of_noise = coefficients(path, t, s)
  here = jax.tree.map(float, path(jnp.float32(t)))
  assert 0.7 * (of_target + of_state * here.alpha) == pytest.approx(0.30939, rel=1e-4)
  assert (of_state * here.sigma) ** 2 + of_noise**2 == pytest.approx(0.80464, rel=1e-4)
  legacy = coefficients(path, t, s, StepOptions(fixed_large=True))
  assert legacy[:2] == (of_state, of_target)
  # By hand: (0.80465 / 0.86502)² · (0.13498 / 0.19535) · 0.86502 + 1 - 0.13498 / 0.19535. The list
  # that this follows says 0.82504.
  assert (legacy[0] * here.sigma) ** 2 + legacy[2] ** 2 == pytest.approx(0.82622, rel=1e-4)


def test_small_steps_keep_their_noise():
  """Trap 13: 1 - e^(λ_t - λ_s) for a difference of 1e-4 at λ = -5.

  To within float32's own grain of the two log-SNRs.
  """
  path, s = LogSNR(), 0.75 - 1e-4 / 20
  rho = coefficients(path, 0.75, s)[2] / float(path(jnp.float32(s)).sigma)
  assert rho**2 == pytest.approx(9.9995e-5, rel=0.02)


GOLDEN_WINS = [
  (0.25, 3.0, 3.0, 0.7175),
  (0.5, 5.0, 5.0, 0.0154),
  (0.25, 5.0, 1.0, 1.0),
  (0.75, 5.0, 1.0, 0.4666),
]


@pytest.mark.parametrize("u,k,noise_scale,want", GOLDEN_WINS)
def test_golden_simplex_noise(u, k, noise_scale, want):
  """Trap 5: how often the token's own number is the largest of V = 50,265 at the path's gap."""
  alpha = signal(VPCosine(offset=1e-4), u)
  gap = 2 * k / noise_scale * math.sqrt(alpha / (1 - alpha))  # forgetting k: noise of scale 1
  x = np.linspace(-9, 9, 40_001)
  wins = scipy.stats.norm.pdf(x) * np.exp(50_264 * scipy.stats.norm.logcdf(x + gap))
  assert np.trapezoid(wins, x) == pytest.approx(want, abs=2e-4)


def test_the_snr_of_a_simplex_does_not_depend_on_k():
  """Trap 5: noise is k times the path's."""
  path, ids, t = VPCosine(offset=1e-4), jnp.arange(4000) % V, jnp.full(4000, 0.3)
  states = []
  for k in (3.0, 5.0, 8.0):
    process = Simplex(V, path, k=k)
    states.append(process.corrupt({}, KEYS, process.clean({}, ids), t) / k)
  np.testing.assert_allclose(states[0], states[1], atol=1e-5)
  np.testing.assert_allclose(states[0], states[2], atol=1e-5)


GOLDEN_READS = [
  (50_265, 5.0, 0.3047),
  (30_522, 5.0, 0.4192),
  (50_265, 3.0, 0.0080),
  (50_265, 8.0, 0.9944),
]


@pytest.mark.parametrize("size,k,want", GOLDEN_READS)
def test_golden_simplex_read(size, k, want):
  """Trap 5: what the network reads of a clean token depends on k, but at t == 0 it is the token."""
  process = Simplex(size, VPCosine(offset=1e-4), k=k)
  clean = jnp.broadcast_to(process.clean({}, jnp.array([7])), (1, 2, size))
  read = process.inputs({}, clean, jnp.float32([[1e-6, 0.0]])).vectors[0, :, 7]
  assert float(read[0]) == pytest.approx(want, abs=1e-4)
  assert float(read[1]) == 1


@pytest.mark.parametrize("size,width,want", [(10_000, 16, 0.042), (30_522, 128, 0.996)])
def test_golden_nearest_neighbour(size, width, want):
  """Trap 9: how often the nearest of the rows of length √width is the token.

  At t = 1000 of the chain of 2000.
  """
  process = Embedding(size, LogSNR(), width=width)
  params, ids = params_of(process), jax.random.randint(jax.random.key(1), (2000,), 0, size)
  level = at_level(signal(SquareRoot(), 1000 / 2000))
  t = jnp.full(ids.shape, level)
  state = process.corrupt(params, KEYS[:2000], process.clean(params, ids), t)
  chunks = [process.decode(params, chunk) for chunk in jnp.split(state, 8)]
  found = float(jnp.mean(jnp.concatenate(chunks) == ids))
  assert found == pytest.approx(want, abs=3.5 * math.sqrt(want * (1 - want) / ids.size))


def test_golden_noise_factor():
  """Trap 9: F = 4 takes ᾱ = 0.9 to 0.36 for what is trained; steps and `renoise` are at F = 1."""
  process = Embedding(V, LogSNR(), Noisier(LogSNR(), 4.0), width=8)
  params, t = params_of(process), jnp.full(4000, at_level(0.9))
  x = process.clean(params, jnp.arange(4000) % V)
  for noised, want in ((process.corrupt, 0.36), (process.renoise, 0.9)):
    state = noised(params, KEYS, x, t)
    assert float(jnp.mean(state * x)) == pytest.approx(math.sqrt(want), abs=0.02)
    assert float(jnp.var(state - math.sqrt(want) * x)) == pytest.approx(1 - want, rel=0.03)
  step = [
    one.step(params, KEYS, x, jnp.zeros((4000, V)), jnp.full(4000, 0.6), jnp.full(4000, 0.4))
    for one in (process, Embedding(V, LogSNR(), width=8))
  ]
  np.testing.assert_array_equal(*step)


def test_the_rate_sums_over_the_vector():
  """Trap 10: the bound sums over the vector, never its mean."""
  process = Embedding(V, LogSNR(), width=8, norm="none")
  params, output = params_of(process), jnp.array([[0.0, 1.0, -1e9, -1e9]])
  clean, t = process.clean(params, jnp.array([1])), jnp.array([0.5])
  found = process.nelbo_rate(params, clean, jnp.zeros((1, 8)), t, output)
  table = np.asarray(params["embedding"])
  error = np.sum((table[1] - np.asarray(jax.nn.softmax(output[0, :2])) @ table[:2]) ** 2)
  # SNR = 1 at t = 0.5, and falls at 20 per unit of time.
  assert float(found[0]) == pytest.approx(0.5 * 20.0 * error, rel=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_multi_hot(dtype):
  """Trap 12: k for the tokens that top_p leaves (the others are -inf), in bfloat16 too."""
  process = Simplex(3, VPCosine())
  for kept in ([True, False, False], [True, True, False], [True, True, True]):
    left = jnp.where(jnp.array(kept), jnp.log(jnp.array([0.6, 0.3, 0.1])), -jnp.inf)
    target = process.project({}, left.astype(dtype), "multi_hot")
    np.testing.assert_array_equal(target, np.where(kept, 5.0, -5.0))


def test_multi_hot_through_a_step():
  """Trap 12: the mean of what is noised anew is the multi-hot vector."""
  process, t = Simplex(3, VPCosine()), jnp.full(4000, 0.5)
  output = jnp.broadcast_to(jnp.array([np.log(0.6), np.log(0.3), -np.inf]), (4000, 3))
  options = StepOptions("multi_hot", rho=1.0)
  after = process.step_towards({}, KEYS, jnp.zeros((4000, 3)), output, t, t - 0.25, options)
  mean = np.asarray(after).mean(0) / float(VPCosine()(jnp.float32(0.25)).alpha)
  np.testing.assert_allclose(mean, [5.0, 5.0, -5.0], atol=0.35)


def test_nearest_clamps_the_mean():
  """The nearest embedding of x̂ is not that of the likeliest token.

  Two rows about a third one have it in their middle.
  """
  process = Embedding(3, LogSNR(), width=2, norm="none")
  params = {"embedding": jnp.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.1]])}
  logits = jnp.log(jnp.array([[0.45, 0.45, 0.1]]))
  found = process.project(params, logits, "nearest")
  np.testing.assert_array_equal(found, params["embedding"][2:])


def test_score_temperature():
  """Plaid's: the predicted noise is divided by τ before the mean is formed from it."""
  params = {"embedding": jnp.array([[1.0, -1.0], [-1.0, 1.0]])}
  state, output = jnp.array([[0.3, -0.2]]), jnp.array([[0.5, 0.0]])
  t, s = jnp.array([0.6]), jnp.array([0.4])
  process = Embedding(2, LogSNR(), width=2, norm="none")
  options = StepOptions(rho=0.0, score_temperature=0.9)
  here, there = (jax.tree.map(float, LogSNR()(time[0])) for time in (t, s))
  mean = np.asarray(jax.nn.softmax(output[0]) @ params["embedding"])
  noise = (np.asarray(state[0]) - here.alpha * mean) / here.sigma / 0.9
  guess = (np.asarray(state[0]) - here.sigma * noise) / here.alpha
  want = there.alpha * guess + there.sigma * noise
  after = process.step_towards(params, KEYS[:1], state, output, t, s, options)
  np.testing.assert_allclose(after[0], want, rtol=1e-4)


@pytest.mark.parametrize("projection", ["expectation", "nearest", "argmax", "sample"])
def test_the_last_step_takes_the_last_prediction(projection):
  """Trap 15: at s = 0 the token is of this call's logits.

  Whatever the state still shows and however the noise would be made.
  """
  process = Embedding(V, LogSNR(), width=8)
  params, want = params_of(process), jnp.array([1, 2])
  state = process.clean(params, jnp.array([3, 3]))
  output = jnp.where(want[:, None] == jnp.arange(V), 0.0, -200.0)
  t = jnp.full(2, 0.02)
  options = StepOptions(projection)
  after = process.step_towards(params, KEYS[:2], state, output, t, 0 * t, options)
  np.testing.assert_array_equal(process.decode(params, after), want)

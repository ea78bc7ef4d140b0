"""Details of continuous diffusion that are easy to get wrong, each against a number computed elsewhere (by hand or in numpy).

Traps 1 to 5, 8 to 10, 12 and 13 of the list that this project started from; 6, 7, 11, 14 and 15 are of objectives and samplers, and tested
there.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.model.layers import TimeEmbedding
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.simplex import Simplex
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.schedules.gaussian import (
  PATHS,
  Arctangent,
  Flow,
  LogSNR,
  Noisier,
  SquareRoot,
  Tangent,
  VPCosine,
)
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Prediction, Progress
from tests.process.gaussian_test import DRAWN, V, coefficients, params_of


def signal(path, u):
  """alpha² of the published curve at u, before any window."""
  return float(jax.nn.sigmoid(path.at(jnp.float32(u), jnp.float32(path.last - u))))


def noise(path, u):
  return float(jax.nn.sigmoid(-path.at(jnp.float32(u), jnp.float32(path.last - u))))


def test_golden_paths():
  """Trap 4. A chain's ᾱ[i] is at u = (i + 1) / T, of TESS at u = i / T; its last step is cut to β = 0.999."""
  sqrt, cosine, tess = SquareRoot(), VPCosine(), VPCosine(offset=1e-4)
  assert signal(sqrt, 1 / 2000) == pytest.approx(0.9853586895, rel=1e-6)
  assert noise(sqrt, 1 / 2000) == pytest.approx(0.0146413105, rel=1e-5)
  assert math.sqrt(noise(sqrt, 1 / 2000)) == pytest.approx(0.1210013, rel=1e-6)
  assert signal(sqrt, 1000 / 2000) == pytest.approx(0.2957803148, rel=1e-6)
  assert 1e-3 * signal(sqrt, 1999 / 2000) == pytest.approx(2.02040e-7, rel=1e-5)
  assert noise(cosine, 1 / 1000) == pytest.approx(1 - 0.9999587158, rel=1e-5)
  assert signal(cosine, 500 / 1000) == pytest.approx(0.4938435904, rel=1e-6)
  assert 1e-3 * signal(cosine, 999 / 1000) == pytest.approx(2.42877e-9, rel=1e-5)
  assert noise(tess, 1 / 5000) == pytest.approx(1 - 0.9999998026, rel=1e-3)
  assert signal(tess, 2500 / 5000) == pytest.approx(0.4999214804, rel=1e-6)
  assert signal(tess, 4999 / 5000) == pytest.approx(9.8676e-8, rel=1e-5)
  for u, want in ((0.1, 0.574302), (0.5, 0.110432), (0.9, 0.0175955)):
    assert math.sqrt(signal(Tangent(), u)) == pytest.approx(want, rel=1e-5)
  for u, want in ((0.9, -5.7807), (0.5, -1.3863), (0.1, 3.0082)):  # their t = 1 - u
    assert float(Flow(slope=2.0).at(jnp.float32(u), jnp.float32(1 - u))) == pytest.approx(
      want, abs=1e-4
    )


def at_level(alpha_squared, path=None):
  """The time at which LogSNR() has this alpha²."""
  path = LogSNR() if path is None else path
  return (path.log_snr_max - math.log(alpha_squared / (1 - alpha_squared))) / (
    path.log_snr_max - path.log_snr_min
  )


def test_golden_posterior():
  """Trap 2: the coefficients of the DDPM posterior from alpha² = 0.2 to 0.5, and ρ_d."""
  of_state, of_target, of_noise = (
    float(x[0]) for x in coefficients(Embedding(V, LogSNR(), width=1), at_level(0.2), at_level(0.5))
  )
  assert (of_state, of_target, of_noise) == pytest.approx((0.395285, 0.530330, 0.612372), rel=1e-5)
  assert of_noise / math.sqrt(0.5) == pytest.approx(0.866025, rel=1e-5)


def test_golden_strided_step():
  """Traps 1 to 3: steps of the chain of 2000 land at the level of their own target and keep the variance; the legacy one does not."""
  path, chain = LogSNR(16.0, -16.0), SquareRoot()
  time = lambda index, cut=1.0: at_level(cut * signal(chain, (index + 1) / 2000), path)
  of_state, of_target, _ = (
    x[0] for x in coefficients(Embedding(V, path, rho=0.0, width=1), time(1998, 1e-3), time(1899))
  )
  here = float(path(jnp.float32(time(1998, 1e-3))).alpha)
  assert of_target + of_state * here == pytest.approx(0.15976, rel=1e-4)
  t, s = time(1500), time(1300)
  of_state, of_target, of_noise = (x[0] for x in coefficients(Embedding(V, path, width=1), t, s))
  here = path(jnp.float32(t))
  assert 0.7 * float(of_target + of_state * here.alpha) == pytest.approx(0.30939, rel=1e-4)
  assert float((of_state * here.sigma) ** 2 + of_noise**2) == pytest.approx(0.80464, rel=1e-4)
  legacy = [x[0] for x in coefficients(Embedding(V, path, width=1, fixed_large=True), t, s)]
  assert legacy[:2] == [of_state, of_target]
  # By hand: (0.80465 / 0.86502)² · (0.13498 / 0.19535) · 0.86502 + 1 - 0.13498 / 0.19535. The list that this follows says 0.82504.
  assert float((legacy[0] * here.sigma) ** 2 + legacy[2] ** 2) == pytest.approx(0.82622, rel=1e-4)


def test_small_steps_keep_their_noise():
  """Trap 13: 1 - e^(λ_t - λ_s) for a difference of 1e-4 at λ = -5 to within float32's own grain of the two log-SNRs."""
  path = LogSNR()
  t, s = 0.75, 0.75 - 1e-4 / 20
  rho = coefficients(Embedding(V, path, width=1), t, s)[2][0] / float(path(jnp.float32(s)).sigma)
  assert rho**2 == pytest.approx(9.9995e-5, rel=0.02)


def test_golden_simplex():
  """Trap 5: noise is k times the path's, so the SNR does not depend on k; and what the network reads of a clean token does."""
  tess = VPCosine(offset=1e-4)
  x = np.linspace(-9, 9, 40_001)
  for u, k, noise_scale, want in (
    (0.25, 3.0, 3.0, 0.7175),
    (0.5, 5.0, 5.0, 0.0154),
    (0.25, 5.0, 1.0, 1.0),
    (0.75, 5.0, 1.0, 0.4666),
  ):
    gap = (
      2 * k / noise_scale * math.sqrt(signal(tess, u) / noise(tess, u))
    )  # forgetting k leaves noise of scale 1
    wins = np.trapezoid(
      scipy.stats.norm.pdf(x) * np.exp(50_264 * scipy.stats.norm.logcdf(x + gap)), x
    )
    assert wins == pytest.approx(want, abs=2e-4)
  ids, t = DRAWN, jnp.full(DRAWN.shape, 0.3)
  states = [
    Simplex(V, tess, k=k).corrupt({}, jax.random.key(0), ids, t) / k for k in (3.0, 5.0, 8.0)
  ]
  np.testing.assert_allclose(states[0], states[1], atol=1e-5)
  np.testing.assert_allclose(states[0], states[2], atol=1e-5)
  for size, k, want in (
    (50_265, 5.0, 0.3047),
    (30_522, 5.0, 0.4192),
    (50_265, 3.0, 0.0080),
    (50_265, 8.0, 0.9944),
  ):
    process = Simplex(size, tess, k=k)
    clean = process.encode({}, jnp.array([[7]]))
    assert float(process.inputs({}, clean, jnp.array([[1e-6]])).vectors[0, 0, 7]) == pytest.approx(
      want, abs=1e-4
    )
    assert float(process.inputs({}, clean, jnp.array([[0.0]])).vectors[0, 0, 7]) == 1


@pytest.mark.parametrize("size,width,want", [(10_000, 16, 0.042), (30_522, 128, 0.996)])
def test_golden_nearest_neighbour(size, width, want):
  """Trap 9: how often the nearest of the rows of length √width is the token, at t = 1000 of the chain of 2000."""
  process = Embedding(size, LogSNR(), width=width)
  params, ids = params_of(process), jax.random.randint(jax.random.key(1), (250, 8), 0, size)
  level = at_level(signal(SquareRoot(), 1000 / 2000))
  state = process.corrupt(params, jax.random.key(2), ids, jnp.full(ids.shape, level))
  found = float(jnp.mean(process.decode(params, state) == ids))
  assert found == pytest.approx(want, abs=3.5 * math.sqrt(want * (1 - want) / ids.size))


def test_golden_arctangent():
  """Smoothie: alpha = 1 / w² of its own formula, at its d = 9 and σ from 1.5 to 200."""
  path = Arctangent(log_snr_min=-19.5)
  for u in (0.01, 0.3, 0.9):
    width = 1 + (200 / 1.5 - 1) * 2 / math.pi * math.atan(math.sqrt(u / (1 - u)) / 9)
    assert signal(path, u) == pytest.approx(width**-4, rel=1e-4)
    assert path.when(float(path.at(jnp.float32(u), jnp.float32(1 - u)))) == pytest.approx(
      u, rel=1e-4
    )


def test_golden_noise_factor():
  """Trap 9: F = 4 takes ᾱ = 0.9 to 0.36, an SNR of 1/16, for what is trained; steps and their noise are at F = 1."""
  level = at_level(0.9)
  gain = Noisier(base=LogSNR(), factor=4.0)(jnp.float32(level))
  assert float(gain.alpha) ** 2 == pytest.approx(0.36, rel=1e-5)
  assert float(jnp.exp(LogSNR().log_snr(level) - gain.log_snr)) == pytest.approx(16, rel=1e-5)
  grown = Noisier(
    base=LogSNR(), factor=3.0, growth=1.5
  )  # TREC's line in t, as recalled: 3 at t = 0, 4.5 at t = 1
  for t, factor in ((0.0, 3.0), (0.5, 3.75), (1.0, 4.5)):
    t = jnp.float32(t)
    assert float(LogSNR().log_snr(t) - grown.log_snr(t)) == pytest.approx(
      2 * math.log(factor), rel=1e-5
    )
    slope = (grown.log_snr(t + 1e-2) - grown.log_snr(t - 1e-2)) / 2e-2
    assert float(grown.snr_rate(t)) == pytest.approx(
      float(-slope * jnp.exp(grown.log_snr(t))), rel=1e-3
    )
  process = Embedding(V, LogSNR(), width=8, noise_factor=4.0)
  params, ids = params_of(process), jnp.tile(jnp.array([[1, 2]]), (4000, 1))
  t = jnp.full(ids.shape, level)
  for state, want in (
    (process.corrupt(params, jax.random.key(0), ids, t), 0.36),
    (process.renoise(params, token_keys(row_keys(0, 4000), 2), ids, t), 0.9),
  ):
    x = process.encode(params, ids)
    assert float(jnp.mean(state * x)) == pytest.approx(math.sqrt(want), abs=0.02)
    assert float(jnp.var(state - math.sqrt(want) * x)) == pytest.approx(1 - want, rel=0.03)
  plain = Embedding(V, LogSNR(), width=8)
  assert coefficients(process, 0.6, 0.4) == coefficients(plain, 0.6, 0.4)


def test_time_embedding_tells_times_apart():
  """Trap 8: sines and cosines of 1000 t, not of t, which would be 0.273 and 2.67 apart; one embedding for each token's time."""
  layer, seen = TimeEmbedding(16, rngs=nnx.Rngs(0)), []
  inner = layer.inner
  layer.inner = lambda waves: seen.append(np.asarray(waves)) or inner(waves)
  out = layer(jnp.array([[0.4, 0.5], [0.0, 1.0]]))
  distance = np.linalg.norm(seen[0][:, 0] - seen[0][:, 1], axis=-1)
  assert out.shape == (2, 2, 16) and seen[0].shape == (2, 2, 256)
  np.testing.assert_allclose(distance, [11.80, 14.38], atol=0.01)


def test_a_loss_sums_over_the_vector_and_skips_what_is_given():
  """Trap 10: source and padding add nothing to the loss, whatever their embeddings; the bound sums over the vector, never its mean."""
  process = Embedding(V, LogSNR(), width=8, norm="none")
  loss = EmbeddingLosses(process, Shared())
  batch = Batch(
    jnp.array([[2, 0, 1, 3]]),
    given=jnp.array([[True, False, False, False]]),
    weights=jnp.array([[1.0, 1.0, 1.0, 0.0]]),
  )
  table = jnp.concatenate(
    [params_of(process)["embedding"][:2], jnp.full((2, 8), 8.0)]
  )  # far: rounding does not mistake them
  logits = jnp.array([0.0, 1.0, -1e9, -1e9])
  network = lambda inputs, t, layout: Prediction(
    jnp.zeros((1, 4, 1)), lambda features: jnp.broadcast_to(logits, (*features.shape[:-1], V))
  )

  @jax.jit
  def total(table):
    return loss({"embedding": table}, jax.random.key(0), batch, Progress(), network).total

  assert float(total(table)) == float(total(table.at[2:].multiply(2.0)))
  assert float(total(table)) != float(total(table.at[1].multiply(1.1)))
  params, state = {"embedding": table}, jnp.zeros((1, 8))
  found = process.rate(params, jnp.array([1]), state, jnp.array([0.5]), logits[None])
  error = np.sum((np.asarray(table[1]) - np.asarray(jax.nn.softmax(logits[:2]) @ table[:2])) ** 2)
  assert float(found[0]) == pytest.approx(
    0.5 * 20.0 * error, rel=1e-4
  )  # SNR = 1 at t = 0.5, and falls at 20 per unit time


def test_nucleus_and_multi_hot():
  """Trap 12: the token that crosses top_p stays, so at least one does; multi-hot is k for those that stay, in bfloat16 too."""
  for top_p, kept in (
    (0.5, [True, False, False]),
    (0.65, [True, True, False]),
    (0.95, [True, True, True]),
  ):
    left = Guidance(top_p=top_p)(jnp.log(jnp.array([0.6, 0.3, 0.1])))
    np.testing.assert_array_equal(left > -jnp.inf, kept)
    process = Simplex(3, VPCosine(), projection="multi_hot", rho=1.0)
    for dtype in (jnp.float32, jnp.bfloat16):
      np.testing.assert_array_equal(
        process.project({}, left.astype(dtype)), np.where(kept, 5.0, -5.0)
      )
  # Through a step: the mean of what is noised anew is the multi-hot vector.
  rows, t = 4000, jnp.full((4000, 1), 0.5)
  logits = jnp.broadcast_to(Guidance(top_p=0.65)(jnp.log(jnp.array([0.6, 0.3, 0.1]))), (rows, 1, 3))
  after = process.step(
    {}, token_keys(row_keys(0, rows), 1), jnp.zeros((rows, 1, 3)), logits, t, t - 0.25
  )
  mean = np.asarray(after).mean((0, 1)) / float(VPCosine()(jnp.float32(0.25)).alpha)
  np.testing.assert_allclose(mean, [5.0, 5.0, -5.0], atol=0.35)


def test_nearest_clamps_the_mean():
  """The nearest embedding of x̂ is not that of the likeliest token: two rows about a third one have it in their middle."""
  process = Embedding(3, LogSNR(), width=2, norm="none", projection="nearest")
  params = {"embedding": jnp.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.1]])}
  logits = jnp.log(jnp.array([[0.45, 0.45, 0.1]]))
  np.testing.assert_array_equal(process.project(params, logits), params["embedding"][2:])


def test_score_temperature():
  """Plaid's: the predicted noise is divided by τ before the mean is formed from it."""
  params, keys = {"embedding": jnp.array([[1.0, -1.0], [-1.0, 1.0]])}, token_keys(row_keys(0, 1), 1)
  state, logits, t, s = (
    jnp.array([[[0.3, -0.2]]]),
    jnp.array([[[0.5, 0.0]]]),
    jnp.array([[0.6]]),
    jnp.array([[0.4]]),
  )
  process = Embedding(2, LogSNR(), width=2, norm="none", rho=0.0, score_temperature=0.9)
  here, there = (jax.tree.map(float, LogSNR()(time[0, 0])) for time in (t, s))
  mean = np.asarray(jax.nn.softmax(logits[0, 0]) @ params["embedding"])
  noise = (np.asarray(state[0, 0]) - here.alpha * mean) / here.sigma / 0.9
  want = (
    there.alpha * (np.asarray(state[0, 0]) - here.sigma * noise) / here.alpha + there.sigma * noise
  )
  np.testing.assert_allclose(process.step(params, keys, state, logits, t, s)[0, 0], want, rtol=1e-4)


@pytest.mark.parametrize(
  "path", [path for path in PATHS.values() if path not in (PATHS["table"], PATHS["learned"])]
)
def test_no_path_divides_by_zero(path):
  """Trap 13: sigma is above 0 at t = 0 and alpha at t = 1, so that scores and their gradients are finite in float32."""
  gain = path()(jnp.array([0.0, 1.0]))
  assert float(gain.sigma[0]) > 0 and float(gain.alpha[1]) > 0 and np.isfinite(gain.log_snr).all()
  assert np.isfinite(path().snr_rate(jnp.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("projection", ["expectation", "nearest", "argmax", "sample"])
def test_the_last_step_takes_the_last_prediction(projection):
  """Trap 15: at s = 0 the token is of this call's logits, whatever the state still shows and however the noise would be made."""
  process = Embedding(V, LogSNR(), width=8, projection=projection)
  params, want = params_of(process), jnp.array([[1, 2]])
  state = process.encode(params, jnp.array([[3, 3]]))
  logits = jnp.where(want[..., None] == jnp.arange(V), 0.0, -200.0)
  after = process.step(
    params, token_keys(row_keys(0, 1), 2), state, logits, jnp.full((1, 2), 0.02), jnp.zeros((1, 2))
  )
  np.testing.assert_array_equal(process.decode(params, after), want)

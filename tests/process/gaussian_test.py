"""Gaussian processes: every codec × every path with exact denoisers, the published numbers, and mutants that must fail.

Toy B (V = 4, L = 2, H = 2.1112697 nats). The exact network answers from what the process lets it read, so `inputs` must lose nothing.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import fold, row_keys, token_keys
from diffusion_text.objective.bound import Bound, Chunks
from diffusion_text.process.distance import Distance
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import Gaussian, decoded_at
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import (
  PATHS,
  Arctangent,
  Curve,
  Flow,
  Learned,
  LogSNR,
  SquareRoot,
  Table,
  Tangent,
  VPCosine,
)
from diffusion_text.testing.oracle import Enumerable, exact_prediction
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch, Inputs, Progress, Renoises
from tests.conftest import jit_well

TOY = Enumerable.dirichlet(1, 0.7, 4, 2)
V = TOY.vocab_size
NOTHING = Enumerable(
  TOY.sequences, np.full(len(TOY.sequences), 1 / V**2), V
)  # uniform, independent tokens
CODECS = {
  "sqrt_d": functools.partial(Embedding, width=8),
  "none": functools.partial(Embedding, width=8, norm="none"),
  "unit, leave-one-out": functools.partial(
    Embedding, width=8, norm="unit", prediction="leave_one_out"
  ),
  "simplex": Simplex,
  "simplex, leave-one-out": functools.partial(Simplex, k=3.0, prediction="leave_one_out"),
  "layernorm, noise factor": functools.partial(
    Embedding, width=8, norm="layernorm", learned=False, noise_factor=4.0
  ),
  "one-hot": functools.partial(Simplex, k=1.0, encoding="one_hot", reading="raw"),
  "distance": functools.partial(Distance, width=8),
  "distance, leave-one-out": functools.partial(
    Distance, width=8, k=2.0, prediction="leave_one_out", norm="none"
  ),
}
LEVELS = tuple(12.0 - 24 * (i / 30) ** 1.5 for i in range(31))
BUILT = {
  **PATHS,
  "table": functools.partial(Table, levels=LEVELS),
}  # every path, with the options that it needs
SEEN = [
  codec for codec in CODECS if codec not in ("simplex, leave-one-out", "distance, leave-one-out")
]  # a path sees no more of these
ROWS = {f"{codec}, {path}": (CODECS[codec], BUILT[path]) for codec in SEEN for path in PATHS}
every_row = pytest.mark.parametrize("codec,path", ROWS.values(), ids=ROWS.keys())
DRAWN = jnp.asarray(TOY.sample(np.random.default_rng(3), 1000))
COSINE, FLOW = VPCosine(), Flow()


def params_of(process):
  """Those of a fresh process; a learned path is bent at random."""
  params = process.init(jax.random.key(0))
  return (
    {**params, "schedule": {"levels": jnp.sin(jnp.arange(50.0))}}
    if "schedule" in params
    else params
  )


def path_of(process):
  return process.path(params_of(process))


def softened(process):
  """Whether the network reads softmax(z), which leaves out one number per position that says nothing."""
  return isinstance(process, Distance) or getattr(process, "reading", "") == "softmax"


def recovered(process, inputs, t):
  """z from what the network reads, up to the number that softmax leaves out."""
  if softened(process):
    return jnp.log(jnp.maximum(inputs.vectors, 1e-37))
  gain = path_of(process)(t[..., None])
  if isinstance(process, Simplex):
    return inputs.vectors * process.k * jnp.sqrt(gain.alpha**2 + V * gain.sigma**2)
  variance = 1 / process.width if process.norm == "unit" else 1.0
  return inputs.vectors * jnp.where(
    t[..., None] > 0, jnp.sqrt(gain.alpha**2 * variance + gain.sigma**2), math.sqrt(variance)
  )


def evidence(process, params, inputs, t):
  """log N(z_i; alpha x_v, (k sigma)²) + constant by its definition: [B, L, V]."""
  t = jnp.broadcast_to(t, inputs.shape)
  gain = process.path(params)(t[..., None, None])
  miss = recovered(process, inputs, t)[..., None, :] - gain.alpha * process.encode(
    params, jnp.arange(V)
  )
  miss = miss - miss.mean(-1, keepdims=True) if softened(process) else miss
  return -jnp.sum((miss / (process.noise_scale * gain.sigma)) ** 2, axis=-1) / 2


def exact(process, params, language=TOY):
  """The perfect network of a language, for this process."""

  def predict(inputs, t, layout=None):
    clues = evidence(process, params, inputs, t)
    if process.prediction == "posterior":
      return exact_prediction(language.posterior(clues))
    without = lambda i: language.posterior(clues.at[:, i].set(0.0))[:, i]
    return exact_prediction(jnp.stack([without(i) for i in range(clues.shape[1])], axis=1))

  return predict


def drawn_times(process, key, rows):
  """(t, dt/dτ), [rows, 1] each: log-SNRs spread evenly by a law that is dense where tokens become known, τ being its quantile.

  The slope of t is a finite difference of the inverse curve in double precision, so that nothing here follows from `snr_rate`.
  """
  path, x = (
    path_of(process),
    np.asarray(process.encode(params_of(process), jnp.arange(V))) / process.noise_scale,
  )
  known = math.log(4 / np.mean([np.sum((a - b) ** 2) for i, a in enumerate(x) for b in x[:i]]))
  shift = 2 * math.log(process.noise_factor + process.noise_growth / 2)
  grid = np.linspace(
    path.log_snr_min, path.log_snr_max, 4001
  )  # of the path without its noise factor
  density = 0.01 + np.exp(-(((grid - shift - known) / 2.5) ** 2) / 2)
  total = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (grid[1] - grid[0])
  clock = (np.arange(rows) + float(jax.random.uniform(key))) / rows
  log_snr = np.interp(clock * total[-1], total, grid)

  def time(log_snr):
    plain = process.walk(params_of(process))
    if isinstance(process.schedule, Learned):
      levels = np.linspace(-path.log_snr_max, -path.log_snr_min, 51)
      return np.interp(-log_snr, levels, np.asarray(plain.times, np.float64))
    curve = plain.when if isinstance(plain, Curve) else lambda value: -value
    low, high = curve(path.log_snr_max), curve(path.log_snr_min)
    return np.array([(curve(value) - low) / (high - low) for value in log_snr])

  slope = (time(log_snr - 1e-4) - time(log_snr + 1e-4)) / 2e-4
  speed = slope * total[-1] / np.interp(log_snr, grid, density)
  return (jnp.asarray(values[:, None], jnp.float32) for values in (time(log_snr), speed))


def bound_draws(process, rows, language=TOY, timing=None, ends=1):
  """[rows] draws of the bound in nats per sequence.

  Given z, the mean over the tokens that it may stem from is taken exactly, Σ_v p(x_i = v | z) rate_v: the expectation is the
  same and the variance smaller, so that a line of the rate that is off by a few percent shows.
  """
  params = params_of(process)
  ids = jnp.asarray(language.sample(np.random.default_rng(3), rows))
  if timing is None:
    t, speed = drawn_times(process, jax.random.key(1), rows)
  else:
    t, speed, *_ = timing.draw(jax.random.key(1), Batch(ids), Progress())
  t, speed = (jnp.broadcast_to(x, ids.shape) for x in (t, speed))
  state = process.corrupt(params, jax.random.key(2), ids, t)
  inputs = process.inputs(params, state, t)
  logits = exact(process, params, language)(inputs, t).logits
  chance = jax.nn.softmax(language.posterior(evidence(process, params, inputs, t)), axis=-1)
  rates = jnp.stack(
    [process.rate(params, jnp.full_like(ids, v), state, t, logits) for v in range(V)], axis=-1
  )
  ends = process.ends(params, jax.random.key(3), ids, None) if ends else 0
  return np.asarray(jnp.sum(speed * jnp.sum(chance * rates, axis=-1) + ends, axis=1), np.float64)


def check_bound(process, want=TOY.entropy, rows=16_000, **how):
  """Within 3 standard errors, which are below 2 % from 64,000 rows on."""
  nats = bound_draws(process, rows=rows, **how)
  # Draws are in the order of their time, so neighbours differ by noise alone.
  error = (
    nats.std() / rows**0.5
    if "timing" in how
    else np.sum((nats[::2] - nats[1::2]) ** 2) ** 0.5 / rows
  )
  assert 3 * error < 0.02 * want * (1 if rows == 64_000 else 2)
  assert abs(nats.mean() - want) < 3 * error, (nats.mean(), want, error)


every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


@every_codec
def test_bound_is_the_entropy(codec):
  check_bound(codec(V, LogSNR()), rows=64_000)


@pytest.mark.parametrize("codec", ["sqrt_d", "simplex", "layernorm, noise factor"])
def test_decoding_at_any_level_is_a_bound(codec):
  """Tokens decoded each out of its own noisy vector cost what that says less than all vectors together, and no more: at a level where
  this is much, at the noisiest, where nothing is known, and beyond the path, where nothing changes."""
  process, rows = (
    CODECS[codec](V, LogSNR()),
    16_000,
  )  # as many as elsewhere: programs are compiled for a number of rows
  params, level = params_of(process), {"sqrt_d": -2.0, "simplex": -1.0}.get(codec, -3.0)
  ids, gain = (
    jnp.asarray(TOY.sample(np.random.default_rng(3), rows)),
    process.path(params).gain(jnp.float32(level)),
  )
  x = process.encode(params, ids)
  state = gain.alpha * x + process.noise_scale * gain.sigma * jax.random.normal(
    jax.random.key(5), x.shape
  )
  miss = state[..., None, :] - gain.alpha * process.encode(params, jnp.arange(V))
  clues = -jnp.sum((miss / (process.noise_scale * gain.sigma)) ** 2, axis=-1) / 2
  alone = -jnp.take_along_axis(jax.nn.log_softmax(clues), ids[..., None], axis=-1)[..., 0].sum(1)
  joint = (
    jnp.log(TOY.probabilities) + clues[:, 0, TOY.sequences[:, 0]] + clues[:, 1, TOY.sequences[:, 1]]
  )
  number = jnp.argmax((TOY.sequences[None] == ids[:, None]).all(-1), axis=1)
  together = -jnp.take_along_axis(jax.nn.log_softmax(joint), number[:, None], axis=-1)[:, 0]
  price = np.asarray(alone - together, np.float64)
  assert price.mean() > 0.1
  cost = bound_draws(dataclasses.replace(process, decode_at=level), rows)
  error = math.sqrt((cost.var() + price.var()) / rows)
  assert cost.mean() == pytest.approx(TOY.entropy + price.mean(), abs=3 * error) and error < 0.025
  beyond = dataclasses.replace(process, decode_at=99.0)
  np.testing.assert_array_equal(bound_draws(beyond, rows), bound_draws(process, rows))
  least = dataclasses.replace(process, decode_at=process.path(params).log_snr(jnp.float32(1)))
  assert bound_draws(least, rows).mean() == pytest.approx(2 * math.log(V), abs=0.01)


def test_decoding_is_refused_where_it_means_nothing():
  with pytest.raises(ValueError, match="which Masked has none of"):
    decoded_at(Masked(V, Linear()), 1.0)
  with pytest.raises(
    ValueError, match=r"decode_at=-12.0 must be above the path's end, log-SNR -10"
  ):
    decoded_at(Simplex(V, LogSNR()), -12.0)


@functools.cache
def mean_bound(process):
  return bound_draws(process, rows=2000, ends=0).mean()


def check_path(process):
  """The bound does not depend on the path (VDM, arXiv 2107.00630 section 5.1): the same noise at the same log-SNRs costs the same."""
  path = process.schedule
  like = dataclasses.replace(process, schedule=LogSNR(path.log_snr_max, path.log_snr_min))
  assert mean_bound(process) == pytest.approx(mean_bound(like), rel=1e-3)


@every_row
def test_bound_is_the_same_on_every_path(codec, path):
  check_path(codec(V, path()))


@every_codec
def test_knowing_nothing_costs_log_v(codec):
  check_bound(codec(V, COSINE), want=2 * np.log(V), language=NOTHING, rows=32_000)


@pytest.mark.parametrize("codec", ["sqrt_d", "simplex"])
def test_bound_with_a_time_for_each_token(codec):
  check_bound(CODECS[codec](V, FLOW), timing=Slanted(1.0), rows=40_000)


def test_bound_with_noise_that_grows():
  """TREC's: the SNR is divided by more the later it is, and what is trained on has the entropy for a bound all the same."""
  check_bound(Embedding(V, COSINE, width=8, noise_factor=1.5, noise_growth=2.0), rows=40_000)


def test_drawn_bound_and_its_variance():
  """The objective itself, with its own draws. Its standard deviation per row of two tokens is about 2.5 times the entropy here."""
  process = CODECS["sqrt_d"](V, COSINE)
  params, ids = params_of(process), jnp.asarray(TOY.sample(np.random.default_rng(4), 160_000))
  bound = Bound(process, Shared(), chunks=Chunks(32_000))
  draw = jax.jit(
    lambda key: bound.nats(params, key, Batch(ids), Progress(), exact(process, params)).sum(1)
  )
  nats = np.asarray(draw(jax.random.key(5)))
  error = nats.std() / len(nats) ** 0.5
  assert error < 0.02 / 3 * TOY.entropy and abs(nats.mean() - TOY.entropy) < 3 * error
  assert 4 < nats.std() < 7


# --- steps ----------------------------------------------------------------------------------------------------------------------


def coefficients(process, t, s):
  """(of z_t, of the projection, of fresh noise) in `towards`, [N] each for times [N], read off by feeding unit vectors."""
  params = params_of(process)
  t, s = jnp.atleast_1d(jnp.asarray(t, jnp.float32)), jnp.atleast_1d(jnp.asarray(s, jnp.float32))
  one, zero = jnp.ones((len(t), process.size)), jnp.zeros((len(t), process.size))
  feed = lambda target, state, noise: np.asarray(
    process.towards(params, target, state, t, s, noise)[:, 0], np.float64
  )
  return feed(zero, one, zero), feed(one, zero, zero), feed(zero, zero, one)


def check_marginals(process):
  """z_t ~ q(z_t | x) and P = x must give z_s ~ q(z_s | x), in mean and variance, for random (t, s)."""
  rng = np.random.default_rng(0)
  t = rng.uniform(0.02, 1, 40).astype(np.float32)
  s = t * rng.uniform(0.02, 1, 40).astype(np.float32)
  here, there = (
    jax.tree.map(np.asarray, process.walk(params_of(process))(jnp.asarray(x))) for x in (t, s)
  )
  of_state, of_target, of_noise = coefficients(process, t, s)
  np.testing.assert_allclose(of_state * here.alpha + of_target, there.alpha, rtol=1e-3, atol=1e-5)
  variance = (of_state * process.noise_scale * here.sigma) ** 2 + of_noise**2
  np.testing.assert_allclose(variance, (process.noise_scale * there.sigma) ** 2, rtol=1e-3)


@pytest.mark.parametrize("rho", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("path", BUILT.values(), ids=BUILT.keys())
def test_marginals_of_a_step(path, rho):
  check_marginals(Simplex(V, path(), rho=rho))
  check_marginals(Embedding(V, path(), rho=rho, width=2, eta=0.5 if rho is None else 1.0))


def check_step(process):
  """`step` from `corrupt` with the true token leaves `corrupt`'s marginals, drawn: per-token times, means and deviations to 1 %."""
  params, rows = params_of(process), 40_000
  ids = jnp.tile(jnp.array([[1, 3]]), (rows, 1))
  t, s = (
    jnp.broadcast_to(jnp.array([0.9, 0.4]), ids.shape),
    jnp.broadcast_to(jnp.array([0.6, 0.3]), ids.shape),
  )
  state = process.corrupt(params, jax.random.key(0), ids, t)
  logits = jnp.where(ids[..., None] == jnp.arange(V), 0.0, -200.0)
  after = process.step(params, token_keys(row_keys(7, rows), 2), state, logits, t, s)
  gain = process.schedule(s[0, :, None])
  scale = process.noise_scale * gain.sigma
  x = process.encode(params, ids[0])
  assert np.abs(np.asarray((after.mean(0) - gain.alpha * x) / scale)).max() < 4.5 / rows**0.5
  assert np.abs(np.asarray(after.std(0) / scale) - 1).max() < 0.012
  noise = np.asarray((after - gain.alpha * x) / scale).reshape(rows, -1)
  assert np.abs(np.corrcoef(noise.T) - np.eye(noise.shape[1])).max() < 0.02, (
    "the noise of one number is not that of another"
  )


@pytest.mark.parametrize("codec,rho", [("sqrt_d", None), ("simplex", 1.0)])
def test_step_draws_its_noise_per_number(codec, rho):
  check_step(CODECS[codec](V, COSINE, rho=rho))


@every_codec
def test_ends_of_time(codec):
  """t = 0 is clean exactly, t = 1 is the prior, t = s does not move, s = 0 is clean, and tokens survive `decode`."""
  process = codec(V, COSINE)
  params, ids = params_of(process), DRAWN
  zeros, keys = jnp.zeros(ids.shape), token_keys(row_keys(0, len(ids)), 2)
  clean = process.encode(params, ids)
  for state in (
    process.corrupt(params, jax.random.key(0), ids, zeros),
    process.renoise(params, keys, ids, zeros),
  ):
    np.testing.assert_array_equal(state, clean)
  np.testing.assert_array_equal(process.decode(params, clean), ids)
  logits = jnp.zeros((*ids.shape, V))
  np.testing.assert_array_equal(process.guess(params, keys, clean, logits, zeros), ids)
  noise, prior = (
    process.corrupt(params, jax.random.key(1), ids, zeros + 1),
    process.prior(params, jax.random.key(2), ids.shape),
  )
  for state in (noise, prior, process.renoise(params, keys, ids, zeros + 1)):
    assert (
      np.abs(
        np.asarray(state - process.schedule(1.0).alpha * process.centre(params)).mean((0, 1))
      ).max()
      < 0.1 * process.noise_scale
    )
    np.testing.assert_allclose(np.asarray(state).std((0, 1)), process.noise_scale, rtol=0.06)
  np.testing.assert_array_equal(
    process.step(params, keys, noise, logits, zeros + 0.5, zeros + 0.5), noise
  )
  assert not process.moves(params, keys, noise, zeros + 0.5, zeros + 0.5).any()
  ended = process.step(params, keys, noise, logits, zeros + 0.5, zeros)
  np.testing.assert_array_equal(process.encode(params, process.decode(params, ended)), ended)
  assert isinstance(process, Renoises)
  rate = process.rate(params, ids, clean, zeros, logits)
  assert not rate.any() and not process.scored(params, clean, zeros).any()


@every_codec
def test_mean_and_products_are_of_the_vectors(codec):
  """`mean`, `products` and `centre` against the vectors themselves: <z, x_v> - |x_v|² / 2 is -|z - x_v|² / 2 up to a constant."""
  process = codec(V, COSINE)
  params = params_of(process)
  x, z = (
    np.asarray(process.encode(params, jnp.arange(V)), np.float64),
    np.random.default_rng(0).normal(size=(5, process.size)),
  )
  inner, square = process.products(params, jnp.asarray(z, jnp.float32))
  difference = np.asarray(inner - square / 2) + np.sum((z[:, None] - x) ** 2, axis=-1) / 2
  np.testing.assert_allclose(
    difference, np.broadcast_to(difference[:, :1], difference.shape), rtol=1e-4, atol=1e-4
  )
  p = np.random.default_rng(1).dirichlet(np.ones(V), size=5)
  np.testing.assert_allclose(
    process.mean(params, jnp.asarray(p, jnp.float32)), p @ x, rtol=1e-4, atol=1e-4
  )
  if isinstance(
    process, Distance
  ):  # of the published distances, less their mean over the vocabulary
    table = np.asarray(process.table(params), np.float64)
    distance = -np.sum((table[:, None] - table) ** 2, axis=-1) / (2 * process.kernel_width**2)
    np.testing.assert_allclose(x, distance - distance.mean(1, keepdims=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(process.centre(params), x.mean(0), atol=1e-4)


def sampled(process, steps, rows):
  """The law of the sampler [V²]: the steps of a shared time, without the loop around them."""
  params, shape = params_of(process), (rows, 2)
  grid = Shared().grid(steps, 2)

  def step(state, number):
    t, s = jnp.broadcast_to(grid[number], shape), jnp.broadcast_to(grid[number + 1], shape)
    logits = exact(process, params)(process.inputs(params, state, t), t).logits
    keys = jax.vmap(
      jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(1), number), i))
    )
    keys = keys(jnp.arange(rows * 2).reshape(shape))
    return process.step(params, keys, state, logits, t, s), None

  run = jit_well(
    lambda: jax.lax.scan(step, process.prior(params, jax.random.key(0), shape), jnp.arange(steps))[
      0
    ]
  )
  return TOY.histogram(np.asarray(process.decode(params, run())))


def check_sampler(process, steps=512, rows=8000):
  assert (
    TOY.total_variation(sampled(process, steps, rows)) < 0.03 * (8000 / rows) ** 0.5
  )  # 0.015 of it is the draws'


SAMPLED = {
  "DDPM": CODECS["sqrt_d"](V, COSINE),
  "DDPM, drawn, leave-one-out": CODECS["unit, leave-one-out"](V, LogSNR(), projection="sample"),
  "TESS": Simplex(V, VPCosine(offset=1e-4), projection="sample", rho=1.0),
}


@pytest.mark.parametrize("process", SAMPLED.values(), ids=SAMPLED.keys())
def test_many_steps_give_the_language(process):
  check_sampler(process)


@pytest.mark.parametrize("codec,projection", [("none", "argmax"), ("simplex", "sample")])
def test_given_tokens_are_never_altered(codec, projection):
  """Through the loop: given tokens come back, S steps are S calls, and a row does not depend on its batch."""
  process = CODECS[codec](V, COSINE, projection=projection)
  params, rows = params_of(process), 40
  batch = Batch(DRAWN[:rows], given=jnp.broadcast_to(jnp.array([False, True]), (rows, 2)))
  seen = []

  def denoise(inputs, t):
    jax.debug.callback(lambda vectors: seen.append(np.asarray(vectors)[:, 1]), inputs.vectors)
    return exact(process, params)(inputs, t)

  @jax.jit
  def run(keys, batch):
    return sample(Ancestral(Shared(), 5), process, params, denoise, token_keys(keys, 2), batch)

  result = run(row_keys(0, rows), batch)
  jax.effects_barrier()
  np.testing.assert_array_equal(result.ids[:, 1], batch.ids[:, 1])
  assert int(result.calls) == 5 and len(seen) == 5
  clean = process.inputs(
    params, process.encode(params, batch.ids), jnp.zeros(batch.ids.shape)
  ).vectors[:, 1]
  for read in seen:
    np.testing.assert_array_equal(read, clean)
  other = run(
    row_keys(0, rows), jax.tree.map(lambda x: jnp.roll(x, 1, axis=0).at[:7].set(x[:7]), batch)
  )
  np.testing.assert_array_equal(other.ids[:7], result.ids[:7])


def test_the_prior_of_a_row_does_not_depend_on_its_batch():
  process = CODECS["sqrt_d"](V, COSINE)
  keys = row_keys(0, 4)
  one = jax.vmap(lambda key: process.prior({}, key, (1, 3))[0])(fold(keys, 3))
  assert one.shape == (4, 3, 8) and len(np.unique(np.asarray(one))) == one.size


@pytest.mark.parametrize("path", BUILT.values(), ids=BUILT.keys())
def test_paths(path):
  """The window is met at both ends, the log-SNR falls, the gain has that log-SNR, and the rate is its slope (finite differences)."""
  path = path(log_snr_max=7.0, log_snr_min=-9.0)
  path = path_of(Embedding(V, path)) if isinstance(path, Learned) else path
  t = jnp.linspace(0.0, 1.0, 400)
  alpha, sigma, log_snr = path(t)
  assert float(log_snr[0]) == pytest.approx(7.0, abs=1e-4) and float(log_snr[-1]) == pytest.approx(
    -9.0, abs=2e-3
  )
  assert (np.diff(log_snr) < 0).all()
  np.testing.assert_allclose(2 * jnp.log(alpha / sigma), log_snr, atol=1e-4)
  if isinstance(path, Flow):
    np.testing.assert_allclose(alpha + sigma, 1.0, rtol=1e-6)
  elif path(jnp.float32(1.0)).alpha != 1:
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
  middle, step = jnp.linspace(0.1, 0.9, 9), 1e-2
  snr = lambda t: np.exp(np.asarray(path.log_snr(t), np.float64))
  third = (
    8 * (snr(middle + step / 2) - snr(middle - step / 2))
    - (snr(middle + step) - snr(middle - step))
  ) / (6 * step)
  broken = hasattr(path, "levels") or hasattr(
    path, "shares"
  )  # piecewise linear: differences see the corners
  np.testing.assert_allclose(path.snr_rate(middle), -third, rtol=0.5 if broken else 5e-3)


def check_bayes_output(process, size=1000):
  """Trap 9: leave-one-out logits (here a unigram) and the evidence are the exact posterior, whatever the lengths of the rows."""
  params = params_of(process)
  unigram = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (size,)))
  ids, t = jnp.arange(200)[None], jnp.full((1, 200), 0.6)
  state = process.corrupt(params, jax.random.key(2), ids, t)
  gain, x = process.schedule(t[..., None, None]), process.encode(params, jnp.arange(size))
  joint = unigram - jnp.sum((state[..., None, :] - gain.alpha * x) ** 2, axis=-1) / (
    2 * gain.sigma[..., 0] ** 2
  )
  ours = process.posterior(params, state, t, jnp.broadcast_to(unigram, joint.shape))
  np.testing.assert_allclose(jax.nn.log_softmax(ours), jax.nn.log_softmax(joint), atol=2e-4)


@pytest.mark.parametrize("norm", ["none", "unit", "sqrt_d"])
def test_bayes_output(norm):
  check_bayes_output(
    Embedding(1000, LogSNR(6.0, -6.0), prediction="leave_one_out", width=16, norm=norm)
  )


# --- mutants: each breaks one line, and the named check must notice -------------------------------------------------------------


class ForgetsTheSlope(Flow):
  def snr_rate(self, t):
    return jnp.exp(self.log_snr(t)) * (self.log_snr_max - self.log_snr_min)


class MeanOverTheVector(Embedding):
  def squared_error(self, *args):
    return super().squared_error(*args) / self.size


class ForgetsTheUnitOfNoise(Simplex):
  def squared_error(self, *args):
    return super().squared_error(*args) * self.noise_scale**2


class NoLengths(Embedding):
  def products(self, params, vectors):
    return super().products(params, vectors)[0], jnp.float32(0)


class StepsToTheWrongLevel(Embedding):
  def towards(self, params, target, state, t, s, noise):
    return super().towards(params, target, state, t, t - (t - s) / 2, noise)


class OneNoiseForAll(Embedding):
  def towards(self, params, target, state, t, s, noise):
    return super().towards(
      params, target, state, t, s, jnp.broadcast_to(noise[..., :1], noise.shape)
    )


class ReadsItsEvidenceTwice(Embedding):
  def posterior(self, params, state, t, logits):
    return logits + self.evidence(params, state, t)


class NoLengthsOfDistances(Distance):
  def products(self, params, vectors):
    return super().products(params, vectors)[0], jnp.float32(0)


class ForgetsTheShare(Learned):
  """The slope of a line, whatever share of the time the bin has."""

  def bind(self, params):
    line = LogSNR(self.log_snr_max, self.log_snr_min)
    bound = super().bind(params)
    object.__setattr__(
      bound, "snr_rate", lambda t: jnp.exp(bound.log_snr(t)) * (line.log_snr_max - line.log_snr_min)
    )
    return bound


class TellsTooLittle(Simplex):
  def inputs(self, params, state, t):
    hard = state == jnp.max(state, axis=-1, keepdims=True)
    return Inputs(vectors=hard.astype(jnp.float32))


MUTANTS = [
  (MeanOverTheVector(V, COSINE, width=8), check_bound),
  (ForgetsTheUnitOfNoise(V, COSINE), check_bound),
  (ReadsItsEvidenceTwice(V, COSINE, width=8), check_bound),
  (TellsTooLittle(V, COSINE), check_bound),
  (NoLengths(V, COSINE, width=8, norm="none", prediction="leave_one_out"), check_bound),
  (NoLengths(1000, LogSNR(6.0, -6.0), prediction="leave_one_out", norm="none"), check_bayes_output),
  (Embedding(V, ForgetsTheSlope(), width=8), check_path),
  (StepsToTheWrongLevel(V, COSINE, width=8), check_marginals),
  (Embedding(V, COSINE, width=8, fixed_large=True), check_marginals),
  (Embedding(V, ForgetsTheShare(), width=8), check_path),
  (NoLengthsOfDistances(V, COSINE, width=8, norm="none", prediction="leave_one_out"), check_bound),
  (OneNoiseForAll(V, COSINE, width=8), check_step),
  (
    ReadsItsEvidenceTwice(V, COSINE, width=8),
    functools.partial(check_sampler, steps=64, rows=2000),
  ),
]


@pytest.mark.parametrize(
  "mutant,check", MUTANTS, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant)


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: Embedding(4, Linear()), "needs a path, not Linear"),
    (lambda: Embedding(1, COSINE), "vocab_size=1"),
    (lambda: Embedding(4, COSINE, prediction="score"), "prediction='score'"),
    (lambda: Embedding(4, COSINE, projection="closest"), "projection='closest'"),
    (lambda: Embedding(4, COSINE, rho=1.5), r"rho=1\.5"),
    (lambda: Embedding(4, COSINE, width=0), "width=0"),
    (lambda: Embedding(4, COSINE, norm="layer"), "norm='layer'"),
    (lambda: Embedding(4, COSINE, norm="layernorm", width=2), "width=2"),
    (
      lambda: Embedding(4, COSINE, projection="multi_hot"),
      "projection='multi_hot' is unknown to Embedding",
    ),
    (lambda: Embedding(4, COSINE, rho=0.0, eta=0.5), r"eta=0\.5"),
    (lambda: Embedding(4, COSINE, rho=0.0, fixed_large=True), "fixed_large"),
    (lambda: Embedding(4, COSINE, score_temperature=0.0), r"score_temperature=0\.0"),
    (
      lambda: Embedding(4, COSINE, score_temperature=0.9, projection="sample"),
      "projection='sample'",
    ),
    (lambda: Embedding(4, COSINE, noise_factor=0.5), r"noise_factor=0\.5"),
    (lambda: Embedding(4, COSINE, noise_growth=-0.5), r"noise_growth=-0\.5"),
    (
      lambda: Embedding(4, Learned(), noise_growth=0.5),
      r"noise_growth=0\.5 makes what a stretch of log-SNR costs depend",
    ),
    (
      lambda: Embedding(4, COSINE, noise_factor=2.0, prediction="leave_one_out"),
      r"noise_factor=2\.0",
    ),
    (lambda: Simplex(4, COSINE, encoding="hot"), "encoding='hot'"),
    (lambda: Simplex(4, COSINE, reading="hard"), "reading='hard'"),
    (lambda: Distance(4, COSINE, kernel_width=0.0), r"kernel_width=0\.0"),
    (lambda: Distance(4, COSINE, k=0.0), r"k=0\.0"),
    (lambda: Arctangent(slope=0.0), r"slope=0\.0"),
    (lambda: Arctangent(ratio=10.0), r"ratio=10\.0 ends at log-SNR -9\.2"),
    (lambda: Table(levels=(1.0,)), r"levels=\(1\.0,\)"),
    (lambda: Table(levels=(1.0, -20.0)), "levels run from"),
    (lambda: Learned(bins=1), "bins=1"),
    (lambda: Learned(floor=0.0), r"floor=0\.0"),
    (lambda: Learned(power=3.0), r"power=3\.0"),
    (lambda: Simplex(4, COSINE, k=0.0), r"k=0\.0"),
    (lambda: VPCosine(log_snr_max=-20.0), r"log_snr_min=-10\.0 must be below"),
    (lambda: VPCosine(offset=-1.0), r"offset=-1\.0"),
    (lambda: SquareRoot(offset=0.0), r"offset=0\.0"),
    (lambda: Flow(slope=0.0), r"slope=0\.0"),
    (lambda: Tangent(slope=0.0), r"slope=0\.0"),
  ],
)
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


def test_processes_are_frozen():
  for process in (CODECS["none"](V, COSINE), Simplex(V, COSINE)):
    assert isinstance(process, Gaussian) and hash(process) == hash(dataclasses.replace(process))

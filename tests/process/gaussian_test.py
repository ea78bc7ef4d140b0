"""Gaussian processes: every codec and every path with exact networks, and mutants that must fail.

Toy B (V = 4, L = 2, H = 2.1112697 nats). The exact network answers from what the process lets it
read, so `inputs` must lose nothing. Published numbers are in traps_test.py, paths in
tests/schedules.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import fold
from diffusion_text.process.distance import Distance
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.process.simplex import Simplex
from diffusion_text.schedules.gaussian import (
  PATHS,
  Curve,
  Flow,
  LogSNR,
  Noisier,
  Table,
  VPCosine,
)
from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import DataFacts, Inputs
from tests.conftest import jit_well

TOY = Enumerable.dirichlet(1, 0.7, 4, 2)
V = TOY.vocab_size
NOTHING = Enumerable.independent(V, 2)
FACTS = DataFacts(2, V)
LINE, COSINE = LogSNR(), VPCosine()
ROWS = 16_000  # most tests use this many rows: operations are compiled for a shape
KEYS = jax.random.split(jax.random.key(1), (ROWS, 2))
LEVELS = tuple(12.0 - 24 * (i / 30) ** 1.5 for i in range(31))
BUILT = {
  **{name: path for name, path in PATHS.items() if name != "noisier"},
  "table": functools.partial(Table, levels=LEVELS),
}


class Row(NamedTuple):
  """A codec, and how much larger than a state is what the network reads of it.

  Attributes:
    make: path -> process.
    softened: True if the network reads softmax(z), which leaves out one number that says nothing.
    size: squared length of a clean vector's numbers; `inputs` are z / √(alpha² size + sigma²
    noise). noise: the same of pure noise.
  """

  make: functools.partial
  softened: bool = False
  size: float = 1.0
  noise: float = 1.0


def embedding(**options) -> functools.partial:
  return functools.partial(Embedding, V, width=8, **options)


CODECS = {
  "sqrt_d": Row(embedding()),
  "none": Row(embedding(norm="none")),
  "unit, leave-one-out": Row(embedding(norm="unit", prediction="leave_one_out"), size=1 / 8),
  "layernorm": Row(embedding(norm="layernorm", learned=False)),
  "simplex": Row(functools.partial(Simplex, V), softened=True),
  "simplex, leave-one-out": Row(
    functools.partial(Simplex, V, k=3.0, prediction="leave_one_out"), softened=True
  ),
  "one-hot": Row(functools.partial(Simplex, V, k=1.0, encoding="one_hot", reading="raw"), noise=V),
  "distance": Row(functools.partial(Distance, V, width=8), softened=True),
  "distance, leave-one-out": Row(
    functools.partial(Distance, V, width=8, k=2.0, prediction="leave_one_out", norm="none"),
    softened=True,
  ),
}
every_codec = pytest.mark.parametrize("row", CODECS.values(), ids=CODECS.keys())


def params_of(process):
  return process.init(jax.random.key(0), FACTS)


def clues(row: Row, process, params, inputs: Inputs, t):
  """log N(z_i; alpha x_v, (k sigma)²) of what the network reads, less what no token changes: of the
  square |z - alpha x_v|², |z|² is left out.
  """
  gain = process.path(t[..., None])
  read = np.asarray(inputs.vectors, np.float64)
  alpha, sigma = np.asarray(gain.alpha, np.float64), np.asarray(gain.sigma, np.float64)
  x = vectors(process, params)
  if row.softened:
    state = np.log(np.maximum(read, 1e-37))
    state, x = (each - each.mean(-1, keepdims=True) for each in (state, x))
  else:
    scale = process.noise_scale * np.sqrt(alpha**2 * row.size + sigma**2 * row.noise)
    state = read * scale
  square = alpha * np.sum(x**2, axis=-1) / 2
  return alpha * (state @ x.T - square) / (process.noise_scale * sigma) ** 2


@functools.cache
def folded(number):
  """The keys of a draw, which most tests ask for."""
  return fold(KEYS, number)


def vectors(process, params) -> np.ndarray:
  return np.asarray(process.encode(params, jnp.arange(V)), np.float64)


def exact(process, language, found) -> tuple[np.ndarray, np.ndarray]:
  """(logits that the network answers, p(x_i | z)) of the clues [B, 2, V]."""
  p = language.probabilities.reshape(V, V)
  law = np.exp(found - found.max(-1, keepdims=True))
  alone = np.stack([law[:, 1] @ p.T, law[:, 0] @ p], axis=1)
  both = alone * law
  both = both / both.sum(-1, keepdims=True)
  said = both if process.prediction == "posterior" else alone
  return jnp.asarray(np.log(np.maximum(said, 1e-37)), jnp.float32), both


@functools.cache
def drawn_times(process):
  """(t, dt/dτ) [ROWS]: log-SNRs spread by a law that is dense where tokens become known.

  The slope of t is a finite difference of the inverse curve in double precision, so that nothing
  here follows from `snr_rate`.
  """
  plain = process.schedule
  x = vectors(process, params_of(process)) / process.noise_scale
  known = math.log(4 / np.mean([np.sum((a - b) ** 2) for i, a in enumerate(x) for b in x[:i]]))
  shift = float(plain.log_snr(jnp.float32(0.5)) - process.path.log_snr(jnp.float32(0.5)))
  grid = np.linspace(plain.log_snr_min, plain.log_snr_max, 4001)
  density = 0.01 + np.exp(-(((grid - shift - known) / 2.5) ** 2) / 2)
  total = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (grid[1] - grid[0])
  log_snr = np.interp((np.arange(ROWS) + 0.5) / ROWS * total[-1], total, grid)

  def time(log_snr):
    curve = plain.when if isinstance(plain, Curve) else lambda value: -value
    low, high = curve(plain.log_snr_max), curve(plain.log_snr_min)
    return np.array([(curve(value) - low) / (high - low) for value in log_snr])

  slope = (time(log_snr - 1e-4) - time(log_snr + 1e-4)) / 2e-4
  return time(log_snr), slope * total[-1] / np.interp(log_snr, grid, density)


@functools.cache
def ends_of(process):
  """`boundary_terms`, compiled once: called as it is, its loop would be compiled at each call."""
  return jax.jit(process.boundary_terms)


def bound_draws(row: Row, process, language=TOY, start=None, seed=2, t=None, boundary=True):
  """[ROWS] draws of the bound in nats per sequence.

  Given z, the mean over the tokens that it may stem from is taken exactly, Σ_v p(x_i = v | z)
  rate_v: the expectation is the same and the variance smaller, so that a line of the rate that is
  off by a few percent shows.
  """
  params = params_of(process)
  ids = jnp.asarray(language.sample(np.random.default_rng(seed), ROWS))
  t, speed = drawn_times(process) if t is None else t
  t, speed = (np.broadcast_to(x.reshape(ROWS, -1), ids.shape) for x in (t, speed))
  t = jnp.asarray(t, jnp.float32)
  state = process.corrupt(params, folded(seed), process.clean(params, ids), t)
  found = clues(row, process, params, process.inputs(params, state, t), t)
  logits, chance = exact(process, language, found)
  rates = [
    process.nelbo_rate(params, process.clean(params, jnp.full_like(ids, token)), state, t, logits)
    for token in range(V)
  ]
  rates = np.stack([np.asarray(rate, np.float64) for rate in rates], axis=-1)
  rates = (chance * rates).sum(-1)
  if start is not None:
    rates = np.where(np.asarray(t) > float(start), rates, 0.0)
  first = 0.0 if start is None else start
  terms = ends_of(process)(params, folded(30 + seed), ids, first) if boundary else 0.0
  return (speed * rates + np.asarray(terms, np.float64)).sum(1)


def check_bound(row: Row, process, want=TOY.entropy, language=TOY, draws=1, times=None):
  """Within 3 standard errors, which are below 2 % from four draws on, 4 % of one."""
  nats = np.stack([bound_draws(row, process, language, seed=2 + i, t=times) for i in range(draws)])
  # Draws are in the order of their time, so neighbours differ by noise alone.
  error = np.sum((nats[:, ::2] - nats[:, 1::2]) ** 2) ** 0.5 / nats.size
  error = nats.std() / nats.size**0.5 if times is not None else error
  assert 3 * error < 0.02 * want * (1 if draws > 3 else 2)
  assert abs(nats.mean() - want) < 3 * error, (nats.mean(), want, error)


@every_codec
def test_bound_is_the_entropy(row):
  check_bound(row, row.make(LINE), draws=4)


# Of the others conformance_test.py asks the same through the engine.
OF_THEIR_OWN = [name for name in CODECS if name not in ("sqrt_d", "simplex", "distance")]


@pytest.mark.parametrize("codec", OF_THEIR_OWN)
def test_knowing_nothing_costs_log_v(codec):
  row = CODECS[codec]
  check_bound(row, row.make(COSINE), 2 * np.log(V), NOTHING, draws=2)


@pytest.mark.parametrize("factor,growth", [(4.0, 0.0), (1.5, 2.0)])
def test_bound_of_a_training_schedule_of_its_own(factor, growth):
  """What is trained on has the entropy for a bound, whatever path steps walk."""
  row = CODECS["layernorm"]
  process = row.make(COSINE, training_schedule=Noisier(COSINE, factor, growth))
  check_bound(row, process, draws=4)


@pytest.mark.parametrize("codec", ["sqrt_d", "simplex"])
def test_bound_with_a_time_for_each_token(codec):
  """Times along a slanted line: the second token is always noisier, or done."""
  clock = 2 * (np.arange(ROWS) + 0.5)[:, None] / ROWS - np.array([0.0, 1.0])
  inside = (clock > 0) & (clock < 1)
  times = np.clip(clock, 0, 1), 2.0 * inside
  check_bound(CODECS[codec], CODECS[codec].make(Flow()), draws=3, times=times)


@pytest.mark.parametrize("codec,level", [("sqrt_d", -2.0), ("simplex", -1.0)])
def test_decoding_at_any_level_is_a_bound(codec, level):
  """Tokens decoded each out of its own vector cost what that says less than all vectors together.

  And no more: at a level where this is much, at the noisiest, where nothing is known, and beyond
  the path, where nothing changes.
  """
  row = CODECS[codec]
  process = row.make(LINE)
  params = params_of(process)
  ids = TOY.sample(np.random.default_rng(3), ROWS)
  gain = process.path.gain(jnp.float32(level))
  x = vectors(process, params)
  noise = np.random.default_rng(5).normal(size=(ROWS, 2, process.size))
  state = float(gain.alpha) * x[ids] + process.noise_scale * float(gain.sigma) * noise
  miss = state[..., None, :] - float(gain.alpha) * x
  found = -np.sum((miss / (process.noise_scale * float(gain.sigma))) ** 2, axis=-1) / 2
  norm = np.logaddexp.reduce(found, axis=-1, keepdims=True)
  alone = (norm[..., 0] - np.take_along_axis(found, ids[..., None], -1)[..., 0]).sum(1)
  sequences = TOY.sequences
  joint = np.log(TOY.probabilities) + found[:, 0, sequences[:, 0]] + found[:, 1, sequences[:, 1]]
  number = TOY.numbers(ids)
  together = np.logaddexp.reduce(joint, axis=1) - joint[np.arange(ROWS), number]
  price = alone - together
  assert price.mean() > 0.1
  cost = bound_draws(row, process, start=process.time_of(level))
  error = math.sqrt((cost.var() + price.var()) / ROWS)
  assert cost.mean() == pytest.approx(TOY.entropy + price.mean(), abs=3 * error)
  assert error < 0.03
  beyond = bound_draws(row, process, start=process.time_of(99.0))
  np.testing.assert_array_equal(beyond, bound_draws(row, process))
  least = bound_draws(row, process, start=jnp.float32(1.0))
  assert least.mean() == pytest.approx(2 * math.log(V), abs=0.01)


@functools.cache
def mean_bound(row: Row, process):
  return bound_draws(row, process, boundary=False).mean()


def check_path(row: Row, process):
  """The bound does not depend on the path (VDM, arXiv 2107.00630 section 5.1)."""
  path = process.schedule
  like = row.make(LogSNR(path.log_snr_max, path.log_snr_min))
  assert mean_bound(row, process) == pytest.approx(mean_bound(row, like), rel=1e-3)


@pytest.mark.parametrize("codec", ["sqrt_d", "simplex"])
@pytest.mark.parametrize("path", BUILT.values(), ids=BUILT.keys())
def test_bound_is_the_same_on_every_path(codec, path):
  check_path(CODECS[codec], CODECS[codec].make(path()))


# Steps.


def coefficients(process, t, s, options=None):
  """(of z_t, of the projection, of fresh noise) in `towards`, [N] each, by feeding unit vectors."""
  params = params_of(process)
  t, s = (jnp.atleast_1d(jnp.asarray(x, jnp.float32)) for x in (t, s))
  one, zero = jnp.ones((len(t), process.size)), jnp.zeros((len(t), process.size))
  options = StepOptions() if options is None else options

  def feed(target, state, noise):
    after = process.towards(params, target, state, t, s, noise, options)
    return np.asarray(after[:, 0], np.float64)

  return feed(zero, one, zero), feed(one, zero, zero), feed(zero, zero, one)


def check_marginals(process, options=None):
  """z_t ~ q(z_t | x) and P = x must give z_s ~ q(z_s | x), in mean and variance."""
  rng = np.random.default_rng(0)
  t = rng.uniform(0.02, 1, 40).astype(np.float32)
  s = t * rng.uniform(0.02, 1, 40).astype(np.float32)
  here, there = (process.schedule(jnp.asarray(x)) for x in (t, s))
  here, there = jax.tree.map(np.asarray, (here, there))
  of_state, of_target, of_noise = coefficients(process, t, s, options)
  mean = of_state * here.alpha + of_target
  np.testing.assert_allclose(mean, there.alpha, rtol=1e-3, atol=1e-5)
  variance = (of_state * process.noise_scale * here.sigma) ** 2 + of_noise**2
  np.testing.assert_allclose(variance, (process.noise_scale * there.sigma) ** 2, rtol=1e-3)


OPTIONS = {
  "posterior": StepOptions(),
  "half of it": StepOptions(eta=0.5),
  "no noise": StepOptions(rho=0.0),
  "half noise": StepOptions(rho=0.5),
  "noised anew": StepOptions(rho=1.0),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("path", BUILT.values(), ids=BUILT.keys())
def test_marginals_of_a_step(path, options):
  check_marginals(Simplex(V, path()), options)
  check_marginals(Embedding(V, path(), width=2), options)


def check_step(process, options=None):
  """A step from `corrupt` with the true token leaves `corrupt`'s marginals: means and deviations.

  The noise of one number is not that of another, and times are per token.
  """
  params = params_of(process)
  ids = jnp.broadcast_to(jnp.array([1, 3]), (ROWS, 2))
  t, s = (jnp.broadcast_to(jnp.float32(x), (ROWS, 2)) for x in ([0.9, 0.4], [0.6, 0.3]))
  state = process.corrupt(params, KEYS, process.clean(params, ids), t)
  output = jnp.where(ids[..., None] == jnp.arange(V), 0.0, -200.0)
  options = StepOptions() if options is None else options
  after = process.step_towards(params, folded(9), state, output, t, s, options)
  gain = jax.tree.map(np.asarray, process.schedule(s[0, :, None]))
  scale = process.noise_scale * gain.sigma
  noise = (np.asarray(after) - gain.alpha * vectors(process, params)[[1, 3]]) / scale
  assert np.abs(noise.mean(0)).max() < 4.5 / ROWS**0.5
  assert np.abs(noise.std(0) - 1).max() < 0.02
  correlation = np.corrcoef(noise.reshape(ROWS, -1).T)
  assert np.abs(correlation - np.eye(len(correlation))).max() < 0.035


@pytest.mark.parametrize("codec,options", [("sqrt_d", "posterior"), ("simplex", "noised anew")])
def test_step_draws_its_noise_per_number(codec, options):
  check_step(CODECS[codec].make(COSINE), OPTIONS[options])


@every_codec
def test_ends_of_time(row):
  """t = 0 is clean, t = 1 the prior, t = s stays, s = 0 is clean, tokens survive `decode`."""
  process = row.make(COSINE)
  params = params_of(process)
  ids = jnp.asarray(TOY.sample(np.random.default_rng(3), ROWS))
  clean, zeros = process.clean(params, ids), jnp.zeros(ids.shape)
  for noised in (process.corrupt, process.renoise):
    np.testing.assert_array_equal(noised(params, KEYS, clean, zeros), clean)
  np.testing.assert_array_equal(process.decode(params, clean), ids)
  flat = clean.reshape(-1, process.size)
  np.testing.assert_array_equal(process.decode(params, flat), ids.reshape(-1))
  middle = float(COSINE(jnp.float32(1)).alpha) * process.centre(params)
  noise = process.corrupt(params, KEYS, clean, zeros + 1)
  anew = process.renoise(params, KEYS, clean, zeros + 1)
  for state in (noise, process.prior(params, KEYS), anew):
    away = np.asarray(state - middle)
    assert np.abs(away.mean((0, 1))).max() < 0.1 * process.noise_scale
    np.testing.assert_allclose(away.std((0, 1)), process.noise_scale, rtol=0.06)
  output = jnp.zeros((*ids.shape, V))
  still = process.step(params, KEYS, noise, output, zeros + 0.5, zeros + 0.5)
  np.testing.assert_array_equal(still, noise)
  assert not process.may_change(params, KEYS, noise, zeros + 0.5, zeros + 0.5).any()
  ended = process.step(params, KEYS, noise, output, zeros + 0.5, zeros)
  again = process.clean(params, process.decode(params, ended))
  np.testing.assert_allclose(again, ended, rtol=1e-5, atol=1e-6)
  rate = process.nelbo_rate(params, clean, clean, zeros, output)
  assert not rate.any() and not process.has_loss(params, clean, zeros).any()


@every_codec
def test_mean_and_products_are_of_the_vectors(row):
  """<z, x_v> - |x_v|² / 2 is -|z - x_v|² / 2 up to a constant, and the mean is the mean."""
  process = row.make(COSINE)
  params = params_of(process)
  x, z = vectors(process, params), np.random.default_rng(0).normal(size=(5, process.size))
  inner, square = process.products(params, jnp.asarray(z, jnp.float32))
  difference = np.asarray(inner - square / 2) + np.sum((z[:, None] - x) ** 2, axis=-1) / 2
  difference -= difference[:, :1]
  np.testing.assert_allclose(difference, 0 * difference, atol=3e-4)
  p = np.random.default_rng(1).dirichlet(np.ones(V), size=5)
  mean = process.mean(params, jnp.asarray(p, jnp.float32))
  np.testing.assert_allclose(mean, p @ x, rtol=1e-4, atol=1e-4)


def test_distances_are_the_published_ones():
  """Less their mean over the vocabulary; the centre is the mean over tokens."""
  process = Distance(V, COSINE, width=8)
  params = params_of(process)
  table = np.asarray(process.table(params), np.float64)
  distance = -np.sum((table[:, None] - table) ** 2, axis=-1) / (2 * process.kernel_width**2)
  want = distance - distance.mean(1, keepdims=True)
  np.testing.assert_allclose(vectors(process, params), want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(process.centre(params), want.mean(0), atol=1e-4)


SAMPLED = {  # that of the posterior mean is in conformance_test.py
  "drawn, leave-one-out": ("unit, leave-one-out", LINE, StepOptions("sample")),
  "noised anew": ("simplex", VPCosine(offset=1e-4), StepOptions("sample", rho=1.0)),
}


def check_language(row: Row, process, options, steps=96):
  """Steps of the exact network from the prior give the language; 0.011 of it is the draws'."""
  params = params_of(process)
  state = process.prior(params, KEYS)

  @jit_well
  def stepped(number, state, logits, t, s):
    return process.step_towards(params, fold(KEYS, 100 + number), state, logits, t, s, options)

  read = jax.jit(lambda state, t: process.inputs(params, state, t))
  for number in range(steps):
    t, s = (np.full((ROWS, 2), 1 - (number + i) / steps, np.float32) for i in (0, 1))
    logits, _ = exact(process, TOY, clues(row, process, params, read(state, t), t))
    state = stepped(number, state, logits, t, s)
  found = TOY.histogram(np.asarray(process.decode(params, state)))
  assert TOY.total_variation(found) < 0.03


@pytest.mark.parametrize("codec,path,options", SAMPLED.values(), ids=SAMPLED.keys())
def test_many_steps_give_the_language(codec, path, options):
  row = CODECS[codec]
  check_language(row, row.make(path), options)


@pytest.mark.parametrize("projection", ["expectation", "sample", "argmax"])
def test_draws_are_made_where_tokens_end(projection):
  """A step of many tokens, one of which ends, gives each what it gets alone."""
  process = CODECS["sqrt_d"].make(COSINE)
  params, options = params_of(process), StepOptions(projection)
  output = jax.random.normal(jax.random.key(3), (6, V))
  state = jax.random.normal(jax.random.key(4), (6, 8))
  t, s = jnp.full(6, 0.5), jnp.float32([0.25, 0.25, 0.0, 0.25, 0.25, 0.25])
  keys = KEYS[:3].reshape(6)
  together = process.step_towards(params, keys, state, output, t, s, options)
  others = np.array([0, 1, 3, 4, 5])
  of_others = (x[others] for x in (keys, state, output, t, s))
  np.testing.assert_allclose(
    process.step_towards(params, *of_others, options), together[others], rtol=1e-5, atol=1e-6
  )
  token = process.decode(params, together[2:3])
  np.testing.assert_allclose(process.clean(params, token), together[2:3], rtol=1e-5, atol=1e-6)


def check_bayes_output(process, size=1000):
  """Leave-one-out logits (here a unigram) and the evidence are the exact posterior.

  Whatever the lengths of the rows.
  """
  params = process.init(jax.random.key(0), FACTS)
  unigram = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (size,)))
  ids, t = jnp.arange(200), jnp.full(200, 0.6)
  keys = KEYS[:100].reshape(-1)
  state = process.corrupt(params, keys, process.clean(params, ids), t)
  gain, x = process.schedule(t[..., None]), process.encode(params, jnp.arange(size))
  away = jnp.sum((state[..., None, :] - gain.alpha[..., None] * x) ** 2, axis=-1)
  joint = unigram - away / (2 * gain.sigma**2)
  ours = process.posterior(params, state, t, jnp.broadcast_to(unigram, joint.shape))
  np.testing.assert_allclose(ours, jax.nn.log_softmax(joint), atol=2e-4)


@pytest.mark.parametrize("norm", ["none", "unit", "sqrt_d"])
def test_bayes_output(norm):
  path = LogSNR(6.0, -6.0)
  check_bayes_output(Embedding(1000, path, prediction="leave_one_out", width=16, norm=norm))


@every_codec
def test_laws_that_the_output_says(row):
  """`leave_one_out` and `posterior` differ by the evidence, whichever the network answers."""
  process = row.make(COSINE)
  params = params_of(process)
  output = jax.random.normal(jax.random.key(3), (6, V))
  state, t = jax.random.normal(jax.random.key(4), (6, process.size)), jnp.full(6, 0.7)
  alone = process.leave_one_out(params, state, t, output)
  both = jax.nn.log_softmax(alone + process.evidence(params, state, t))
  np.testing.assert_allclose(process.posterior(params, state, t, output), both, atol=1e-5)
  said = both if process.prediction == "posterior" else alone
  np.testing.assert_allclose(said, jax.nn.log_softmax(output), atol=1e-5)
  mean = process.predicted(params, state, t, output)
  np.testing.assert_allclose(mean, process.mean(params, jnp.exp(both)), rtol=1e-3, atol=1e-4)


# Mutants: each breaks one line, and the named check must notice.


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
  def towards(self, params, target, state, t, s, noise, options):
    return super().towards(params, target, state, t, t - (t - s) / 2, noise, options)


class OneNoiseForAll(Embedding):
  def towards(self, params, target, state, t, s, noise, options):
    noise = jnp.broadcast_to(noise[..., :1], noise.shape)
    return super().towards(params, target, state, t, s, noise, options)


class ReadsItsEvidenceTwice(Embedding):
  def _with_evidence(self, params, state, t, output):
    return output + self.evidence(params, state, t)


class NoLengthsOfDistances(Distance):
  def products(self, params, vectors):
    return super().products(params, vectors)[0], jnp.float32(0)


class TellsTooLittle(Simplex):
  def inputs(self, params, state, t):
    hard = state == jnp.max(state, axis=-1, keepdims=True)
    return Inputs(vectors=hard.astype(jnp.float32))


PLAIN, SOFT = CODECS["sqrt_d"], CODECS["simplex"]
LOO = {"norm": "none", "prediction": "leave_one_out"}
MUTANTS = {
  "mean over the vector": lambda: check_bound(PLAIN, MeanOverTheVector(V, COSINE, width=8)),
  "unit of noise": lambda: check_bound(SOFT, ForgetsTheUnitOfNoise(V, COSINE)),
  "evidence twice": lambda: check_bound(PLAIN, ReadsItsEvidenceTwice(V, COSINE, width=8)),
  "tells too little": lambda: check_bound(SOFT, TellsTooLittle(V, COSINE)),
  "no lengths": lambda: check_bound(PLAIN, NoLengths(V, COSINE, width=8, **LOO)),
  "no lengths of many": lambda: check_bayes_output(NoLengths(1000, LogSNR(6.0, -6.0), **LOO)),
  "no slope": lambda: check_path(PLAIN, Embedding(V, ForgetsTheSlope(), width=8)),
  "wrong level": lambda: check_marginals(StepsToTheWrongLevel(V, COSINE, width=8)),
  "fixed large": lambda: check_marginals(
    Embedding(V, COSINE, width=8), StepOptions(fixed_large=True)
  ),
  "no lengths of distances": lambda: check_bound(
    CODECS["distance"], NoLengthsOfDistances(V, COSINE, width=8, **LOO)
  ),
  "one noise for all": lambda: check_step(OneNoiseForAll(V, COSINE, width=8)),
  "evidence twice, sampled": lambda: check_language(
    PLAIN, ReadsItsEvidenceTwice(V, COSINE, width=8), StepOptions(), steps=32
  ),
}


@pytest.mark.parametrize("broken", MUTANTS.values(), ids=MUTANTS.keys())
def test_mutants_fail(broken):
  with pytest.raises(AssertionError):
    broken()


UNIT = {"norm": "unit", "training_schedule": Noisier(COSINE, 2.0)}
REFUSED = {
  "schedule": (lambda: Embedding(4, schedule=None), "schedule"),
  "one token": (lambda: Embedding(1, COSINE), "vocab_size=1"),
  "scores": (lambda: Embedding(4, COSINE, prediction="score"), "prediction"),
  "projection": (lambda: StepOptions(projection="closest"), "projection"),
  "multi_hot": (
    lambda: Embedding(4).check_step(StepOptions("multi_hot")),
    "projection='multi_hot' is unknown to Embedding",
  ),
  "rho": (lambda: StepOptions(rho=1.5), "rho"),
  "rho and eta": (lambda: StepOptions(rho=0.0, eta=0.5), r"eta=0\.5"),
  "fixed_large": (lambda: StepOptions(rho=0.0, fixed_large=True), "fixed_large"),
  "temperature": (lambda: StepOptions(score_temperature=0.0), "score_temperature"),
  "temperature of a draw": (
    lambda: StepOptions("sample", score_temperature=0.9),
    "projection='sample'",
  ),
  "width": (lambda: Embedding(4, COSINE, width=0), "width"),
  "norm": (lambda: Embedding(4, COSINE, norm="layer"), "norm"),
  "two directions": (lambda: Embedding(4, COSINE, norm="layernorm", width=2), "width=2"),
  "other evidence": (
    lambda: Embedding(4, training_schedule=Noisier(), prediction="leave_one_out"),
    "would add other evidence",
  ),
  "other size": (lambda: Embedding(4, **UNIT), "changes how large states are"),
  "encoding": (lambda: Simplex(4, COSINE, encoding="hot"), "encoding"),
  "reading": (lambda: Simplex(4, COSINE, reading="hard"), "reading"),
  "raw and signed": (lambda: Simplex(4, COSINE, reading="raw"), "reading='raw'"),
  "k": (lambda: Simplex(4, COSINE, k=0.0), "k"),
  "kernel": (lambda: Distance(4, COSINE, kernel_width=0.0), "kernel_width"),
  "k of distances": (lambda: Distance(4, COSINE, k=0.0), "k"),
  "below the path": (lambda: Simplex(4).time_of(-12.0), r"log-SNR -12\.0 must be above"),
}


@pytest.mark.parametrize("make,match", REFUSED.values(), ids=REFUSED.keys())
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


@pytest.mark.parametrize(
  "process",
  [
    Simplex(64, LINE),
    Simplex(64, COSINE, k=2.0, encoding="one_hot"),
    Embedding(64, COSINE, training_schedule=LINE, width=32),
    Embedding(64, COSINE, width=32, norm="unit"),
  ],
  ids=["signed", "one_hot", "as_trained", "unit"],
)
def test_bound_times_are_where_a_token_is_told_from_the_others(process):
  """SNR · |x_v - x_w|² / (8 k²) = log V there, and the log-SNR falls by 2 over the width."""
  params = process.init(jax.random.key(0), DataFacts(2, 64))
  clean = np.asarray(process.encode(params, jnp.arange(64)), np.float64)
  squares = np.square(clean[:, None] - clean).sum(-1)
  apart = squares.sum() / (64 * 63) / process.noise_scale**2
  asked = process.bound_times()
  times = asked["about"] + asked["width"] * np.float32([-0.5, 0.0, 0.5])
  before, there, after = np.asarray(process.path.log_snr(jnp.asarray(times)))
  assert there == pytest.approx(math.log(8 * math.log(64) / apart), abs=0.05)
  assert before - after == pytest.approx(2, rel=0.15)

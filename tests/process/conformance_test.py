"""Processes over ids against exact laws, with no training; and mutants that must fail.

To add a process: one line in LAWS; and if its states are ids, one in ROWS, with its law written a
second time. Toy B (V = 4, L = 2, H = 2.1112697 nats) is the language of the golden numbers. The
bound as the engine draws it, and longer languages, are laws of `testing.check_process`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import fold
from diffusion_text.process import PROCESSES
from diffusion_text.process.distance import Distance
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.mixture import LEAST, Mixture, compare, excess
from diffusion_text.process.simplex import Simplex
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Cosine, Geometric, Linear, Polynomial, weight
from diffusion_text.testing.check_process import check_process
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.two_tokens import (
  Law,
  joint,
  mixture_law,
  output_of,
  two_token_bound,
)
from diffusion_text.timing import Shared
from diffusion_text.types import Process

TOY = Enumerable.dirichlet(1, 0.7, 4, 2)
V = TOY.vocab_size
LINEAR = Linear()
COSINE = Cosine()
SQUARE = Polynomial(2.0)
TOLD = np.array([-0.4, 0.15, 1.0, 0.3])
POWERS = np.array([0.6, 1.0, 2.2, 1.4])
COUNT = 16_000  # draws per case; all tests use the same flat list, so that operations compile once
CASES = 4
KEYS = jax.random.split(jax.random.key(7), CASES * COUNT)


class Row(NamedTuple):
  """A process with its parameters and its law as a test knows it."""

  process: Process
  law: Law
  params: dict


def masked(*options, cls=Masked, **named) -> Row:
  process = cls(V, *options, **named)

  def shares(t):
    alpha, noise = process.schedule(t)
    return alpha, noise, 0 * t

  return Row(process, mixture_law(shares, V, masks=True), {})


def uniform(*options, cls=Uniform, **named) -> Row:
  process = cls(V, *options, **named)

  def shares(t):
    alpha, noise = process.schedule(t)
    return alpha, 0 * t, noise

  return Row(process, mixture_law(shares, V, masks=False), {})


def mixed(*options, cls=Mixed, **named) -> Row:
  process = cls(V, *options, **named)
  return Row(process, mixture_law(process.shares, V, masks=True), {})


def own_noise(schedule, loss_order: str, theta: np.ndarray):
  """1 - alpha of every token by the papers' formulas, in float64: t [...] -> [..., V]."""

  def noise(t):
    n = np.asarray(schedule(jnp.asarray(t, jnp.float32)).noise, np.float64)[..., None]
    if loss_order == "spindle":
      return n + theta * np.sin(np.pi * n)
    return n**theta

  return noise


def token_masked(loss_order, theta, schedule, params, cls=TokenMasked, **options) -> Row:
  noise = own_noise(schedule, loss_order, theta)

  def law(t):
    lost = noise(t)
    return np.concatenate([np.eye(V) * (1 - lost)[..., None, :], lost[..., None]], axis=-1)

  return Row(cls(V, schedule, loss_order, **options), law, params)


def learned(powers, schedule=LINEAR, cls=TokenMasked) -> Row:
  params = {"power": jnp.asarray(np.log(np.expm1(powers)), jnp.float32)}
  return token_masked("learned", powers, schedule, params, cls)


def spindle(strength, told, schedule=COSINE, cls=TokenMasked) -> Row:
  params = {"information": jnp.asarray(told, jnp.float32)}
  return token_masked("spindle", strength * told, schedule, params, cls, strength=strength)


def frequency(strength, told, schedule=SQUARE, cls=TokenMasked) -> Row:
  params = {"information": jnp.asarray(told, jnp.float32)}
  theta = np.exp(-strength * told)
  return token_masked("frequency", theta, schedule, params, cls, strength=strength)


ROWS = {
  "masked": masked(),
  "masked, cosine": masked(Cosine()),
  "masked, polynomial": masked(Polynomial(2.0)),
  "masked, geometric": masked(Geometric()),
  "masked, narrow geometric": masked(Geometric(1e-2, 5.0)),
  "masked, scores": masked(prediction="score"),
  "uniform": uniform(),
  "uniform, cosine": uniform(Cosine()),
  "uniform, geometric": uniform(Geometric(1e-2, 10.0)),
  "uniform, posterior": uniform(prediction="posterior"),
  "uniform, scores": uniform(prediction="score"),
  "mixed": mixed(share=0.1),
  "mixed, cosine": mixed(Cosine(), share=0.4),
  "mixed, posterior": mixed(share=0.2, prediction="posterior"),
  "mixed, no random tokens": mixed(share=0.0),
  "mixed, constant": mixed(mixing="constant", share=0.3),
  "mixed, gamma": mixed(mixing="gamma", share=0.3),
  "mixed, epsilon": mixed(mixing="epsilon", share=0.2),
  "mixed, epsilon from the start": mixed(mixing="epsilon", share=0.2, onset=0.25),
  "token_masked, learned": learned(POWERS),
  "token_masked, spindle": spindle(0.3, TOLD),
  "token_masked, frequency": frequency(-0.5, TOLD),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def bound(row: Row, **how) -> float:
  return two_token_bound(row.process, row.law, TOY, params=row.params, **how)


def knows_nothing(log_p: np.ndarray) -> np.ndarray:
  return np.full_like(log_p, -np.log(V))


def check_bound_is_the_entropy(row: Row):
  assert abs(bound(row) - TOY.entropy) < 1e-4


def check_uniform_predictor(row: Row):
  """It costs log V; where tokens have noise of their own, log V - 1 + ∫ noise · mean hazard."""
  t = (np.arange(20_000) + 0.5) / 20_000
  lost = np.stack([row.law(t + h)[..., -1] for h in (-2e-5, 0, 2e-5)])
  if row.process.noise_is_learned or "information" in row.params:
    hazard = (lost[2] - lost[0]) / 4e-5 / lost[1]
    cost = np.log(V) - 1 + (lost[1] * hazard.mean(1, keepdims=True)).mean(0)
    want = float(TOY.probabilities @ cost[TOY.sequences].sum(1))
    assert abs(uniform_cost(row) - want) < 5e-3
  else:
    assert abs(uniform_cost(row) / 2 - np.log(V)) < 1e-4


def uniform_cost(row: Row) -> float:
  """A network that says 1 / V whatever it sees; of scores and posteriors, what that means there."""
  if row.params:
    return two_token_bound(
      row.process, row.law, TOY, params=row.params, says=knows_nothing, network_law=plain_law
    )
  return bound(row, says=knows_nothing)


def plain_law(t):
  """A law that says nothing about the token of a mask."""
  return ROWS["masked"].law(t)


@functools.cache
def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(token, t, s) of each case; the last one steps to 0."""
  rng = np.random.default_rng(0)
  t = rng.uniform(0.2, 1, CASES).astype(np.float32)
  s = (t * rng.random(CASES)).astype(np.float32)
  s[-1] = 0.0
  return rng.integers(0, V, CASES).astype(np.int32), t, s


def check_steps(row: Row):
  """corrupt to t, then step to s with the true token, is corrupt to s; and what may not change does
  not, the draw at t = 0 is the token, and the draw at t = 1 is the prior.
  """
  process, _, params = row
  ids, t, s = cases()
  wide = [jnp.asarray(np.repeat(x, COUNT)) for x in (ids, t, s)]
  state = process.corrupt(params, KEYS, wide[0], wide[1])
  sure = np.where(ids[:, None] == np.arange(V), 0.0, -60.0)
  output = said(row, np.repeat(sure, COUNT, axis=0), np.asarray(state), np.repeat(t, COUNT))
  # A step has keys of its own, as it has in a sampler.
  keys = fold(KEYS, 1)
  after = np.asarray(process.step(params, keys, state, output, wide[1], wide[2]))
  still = ~np.asarray(process.may_change(params, keys, state, wide[1], wide[2]))
  assert (after[still] == np.asarray(state)[still]).all(), "a token changed that was said not to"
  for time, found in ((t, np.asarray(state)), (s, after)):
    expect_frequencies(found, row.law(time)[np.arange(CASES), ids])
  zeros = jnp.zeros_like(wide[1])
  np.testing.assert_array_equal(process.corrupt(params, KEYS, wide[0], zeros), wide[0])
  want = row.law(np.ones(CASES))[:, 0]
  for found in (process.corrupt(params, KEYS, wide[0], zeros + 1), process.prior(params, KEYS)):
    expect_frequencies(np.asarray(found), want)


def expect_frequencies(found: np.ndarray, want: np.ndarray):
  """Of each case, the frequency of each id is what it should be: [CASES · COUNT], [CASES, S]."""
  for mine, p in zip(found.reshape(CASES, COUNT), want, strict=True):
    got = np.bincount(mine, minlength=len(p)) / COUNT
    assert len(got) == len(p), f"an id {mine.max()} that is no state"
    assert (np.abs(got - p) < 4.5 * np.sqrt(p * (1 - p) / COUNT) + 1e-4).all(), (got, p)


def said(row: Row, log_p: np.ndarray, state: np.ndarray, t: np.ndarray):
  """Logits that say the leave-one-out laws [n, V]."""
  table = row.law(t)
  return jnp.asarray(output_of(row.process, log_p, table, state), jnp.float32)


def check_steps_end_clean(row: Row):
  """The last step of any grid leaves no noise symbol, and every id is a clean one."""
  process, _, params = row
  t = jnp.full(CASES * COUNT, 0.25)
  output = jnp.zeros((CASES * COUNT, V))
  after = process.step(params, KEYS, process.prior(params, KEYS), output, t, 0 * t)
  assert int(after.max()) < V and int(after.min()) >= 0


def check_language(row: Row, steps: int = 32):
  """Steps of the exact network from the prior give the language."""
  process, _, params = row
  rows, keys = COUNT // 2, KEYS[:COUNT]
  state = process.prior(params, keys)
  for number in range(steps):
    t, s = 1 - number / steps, 1 - (number + 1) / steps
    table = row.law(np.array([t]))
    known = joint(TOY, table)[0]  # [V, S, 2]
    known = np.maximum(known, 1e-37) / np.maximum(known.sum(0), 1e-37)
    pair = np.asarray(state).reshape(rows, 2)
    log_p = np.log(known[:, pair[:, ::-1], [0, 1]])  # [V, rows, 2]
    log_p = np.moveaxis(log_p, 0, -1).reshape(-1, V)
    wide = np.broadcast_to(table, (len(log_p), *table.shape[1:]))
    output = jnp.asarray(output_of(process, log_p, wide, np.asarray(state)), jnp.float32)
    times = (jnp.full(2 * rows, time, jnp.float32) for time in (t, s))
    state = process.step(params, fold(keys, 100 + number), state, output, *times)
  found = TOY.histogram(np.asarray(state).reshape(rows, 2))
  assert TOY.total_variation(found) < 1.5 * TOY.chance_distance(rows) + 0.02


def check_visible_tokens_are_free(row: Row):
  """Where masks are the only noise, a visible token costs nothing, whatever the network says."""
  ids, t = jnp.arange(V), jnp.full(V, 0.5)
  output = jnp.asarray(np.random.default_rng(0).normal(size=(V, V)), jnp.float32)
  assert not row.process.nelbo_rate(row.params, ids, ids, t, output).any()


CHECKS = [
  check_bound_is_the_entropy,
  check_uniform_predictor,
  check_steps,
  check_steps_end_clean,
]


# The steps of these are held to the same laws below, through the engine (LAWS).
STEPS_BELOW = {"masked", "uniform", "mixed, constant", "token_masked, learned"}
CASES_OF_ROWS = {
  f"{check.__name__}-{name}": (ROWS[name], check)
  for check in CHECKS
  for name in ROWS
  if name not in STEPS_BELOW or check not in (check_steps, check_steps_end_clean)
}


@pytest.mark.parametrize("row,check", CASES_OF_ROWS.values(), ids=CASES_OF_ROWS.keys())
def test_conformance(row, check):
  check(row)


def test_many_steps_give_the_language():
  """Of the shares that no member of LAWS has; `check_steps` is enough for the other rows."""
  check_language(ROWS["mixed, gamma"])


ABSORBING = [name for name in ROWS if name.startswith(("masked", "token_masked"))]


@pytest.mark.parametrize("name", ABSORBING)
def test_visible_tokens_are_free(name):
  check_visible_tokens_are_free(ROWS[name])


@every_row
def test_evidence_is_the_law(row):
  """log q(z | x = v) up to a constant that does not depend on v."""
  process, law, params = row
  t = np.float32([0.1, 0.5, 0.9])
  for z in range(process.input_sizes.ids):
    found = process.evidence(params, jnp.full(3, z, jnp.int32), jnp.asarray(t))
    want = np.log(np.maximum(law(t)[:, :, z], 1e-37))
    possible = want > -80
    same = np.asarray(found) - want
    same = same - np.where(possible, same, np.inf).min(1, keepdims=True)
    np.testing.assert_allclose(np.where(possible, same, 0), 0, atol=2e-5)
    unlikely = np.asarray(found).max(1, keepdims=True) - np.asarray(found)
    assert (unlikely[~possible & possible.any(1, keepdims=True)] > 60).all()


@every_row
def test_laws_that_the_output_says(row):
  """`leave_one_out` gives back what was said, `posterior` adds the token's own evidence to it."""
  process, law, params = row
  rng = np.random.default_rng(1)
  t = np.repeat(np.float32([0.2, 0.7]), V)
  state = np.tile(np.arange(V, dtype=np.int32), 2)
  if process.mask_id is not None:
    state[::2] = V
  log_p = np.log(rng.dirichlet(np.ones(V), size=len(t)))
  table = law(t)
  own = np.take_along_axis(table, state[:, None, None], axis=-1)[..., 0]
  posterior = np.exp(log_p) * own
  posterior /= posterior.sum(1, keepdims=True)
  output = said(row, log_p, state, t)
  asked = params, jnp.asarray(state), jnp.asarray(t), output
  np.testing.assert_allclose(np.exp(process.posterior(*asked)), posterior, atol=2e-5)
  noisy = state == V if process.mask_id is not None else np.full(len(t), True)
  if not params:  # what a mask says of a token of its own time is not taken back
    found = np.exp(process.leave_one_out(*asked))
    np.testing.assert_allclose(found[noisy], np.exp(log_p)[noisy], atol=2e-5)


@pytest.mark.parametrize("name", ["masked", "uniform", "mixed"])
def test_leaps_jump_by_the_hazards(name):
  """Tau-leaping over a step so small that at most one jump happens is an ordinary step."""
  process, _, params = ROWS[name]
  t = jnp.full(CASES * COUNT, 0.5)
  s = t - 0.02
  state = jnp.full(CASES * COUNT, process.input_sizes.ids - 1, jnp.int32)
  log_p = np.broadcast_to(np.log([0.5, 0.2, 0.2, 0.1]), (CASES * COUNT, V))
  output = said(ROWS[name], log_p, np.asarray(state), np.asarray(t))
  counts = [
    np.bincount(np.asarray(one(params, KEYS, state, output, t, s)), minlength=V + 1)
    for one in (process.leap, process.step)
  ]
  assert (np.abs(counts[0] - counts[1]) / (CASES * COUNT) < 4e-3).all(), counts
  assert (np.asarray(counts[0][:V]) > 50).all()


NLL = {"masked", "masked, no steps"}


def test_where_the_rate_at_noise_is_the_nll():
  """Only for the linear schedule, in continuous time, of clean predictions."""
  rows = {**ROWS, "masked, no steps": masked(Polynomial(1.0)), "steps": masked(time_steps=4)}
  assert {name for name, row in rows.items() if row.process.rate_at_noise_is_nll} == NLL
  for name in NLL:
    process = rows[name].process
    ids, noise = jnp.arange(V), jnp.full(V, V, jnp.int32)
    output = jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.2, 0.2, 0.1]), (V, V)))
    rate = process.nelbo_rate({}, ids, noise, jnp.ones(V), output)
    np.testing.assert_allclose(rate, -np.log([0.5, 0.2, 0.2, 0.1]), rtol=1e-5)


def test_members_are_values():
  """Equal options are equal members with equal hashes; every member of the table is one."""
  for cls in PROCESSES.values():
    assert cls(4) == cls(4) and hash(cls(4)) == hash(cls(4)) and cls(4) != cls(5)


# Process by process, what `check_process` asks: sizes that keep four standard errors of the bound
# below a tenth of the entropy, which in discrete time no network reaches.
CUBED = {"timing": Shared(power=3.0), "rows": 1024}
STEPWISE = {"exact_law": False, "rows": 512}
LAWS = {
  "distance": (Distance(3, width=4), {"reads": "softmax", "rows": 1024, "draws": 32}),
  "embedding": (Embedding(3, width=4), {"timing": Shared(power=2.0), "draws": 32}),
  "simplex": (Simplex(3), {"reads": "softmax", "timing": Shared(power=2.0), "draws": 32}),
  "masked": (Masked(3), {"rows": 512}),
  "masked, discrete time": (Masked(3, time_steps=8), STEPWISE),
  "token_masked": (TokenMasked(3), {"rows": 512}),
  "uniform": (Uniform(3), CUBED),
  "mixed": (Mixed(3, mixing="constant", share=0.3), CUBED),
}


@pytest.mark.parametrize("process,options", LAWS.values(), ids=LAWS.keys())
def test_every_law_of_a_process(process, options):
  """From shapes to the bound and the text of 48 steps, through the engine and an exact network."""
  check_process(process, **{"draws": 16, "steps": 48, "slack": 0.03, **options})


def test_the_table_has_every_process():
  assert {type(process) for process, _ in LAWS.values()} == set(PROCESSES.values())


# Mutants: each breaks one line, and the named check must notice.


class NoCarryOver(Masked):
  def step(self, params, keys, state, output, t, s):
    after = super().step(params, keys, state, output, t, s)
    return jnp.where(self.may_change(params, keys, state, t, s), after, self.mask_id)


class SquaredWeight(Masked):
  def nelbo_rate(self, params, clean_state, state, t, output):
    return super().nelbo_rate(params, clean_state, state, t, output) * weight(self.schedule, t)


class OffByOne(Masked):
  def may_change(self, params, keys, state, t, s):
    return super().may_change(params, keys, state, t, t - (t - s) / 2)


class SamplesTheMask(Masked):
  def step(self, params, keys, state, output, t, s):
    with_mask = jnp.concatenate([output, jnp.max(output, axis=-1, keepdims=True)], axis=-1)
    return super().step(params, keys, state, with_mask, t, s)


class ScoresEverything(Masked):
  def has_loss(self, params, state, t):
    return jnp.ones(state.shape, bool)


class CountsItsOwnTokenTwice(Mixed):
  def _own_evidence(self, state, t):
    return jnp.zeros((*state.shape, self.vocab_size))


class ForgetsTheRatio(Mixed):
  def divergence(self, params, clean_state, state, t, output):
    right = super().divergence(params, clean_state, state, t, output)
    log_p = self.leave_one_out(params, state, t, output)
    own = compare(self._jumps(t)[0], clean_state, state, log_p).own
    return right - jnp.where(state == self.mask_id, 0.0, excess(-own))


class NeverDrawsAtRandom(Mixed):
  def _any_token(self, keys):
    return jnp.zeros(keys.shape, jnp.int32)


class ChangesTooRarely(Mixed):
  def may_change(self, params, keys, state, t, s):
    return super().may_change(params, keys, state, t, (t + s) / 2)


class PlainKeep(Mixed):
  """Keeps z_t as if x̂ said nothing about it."""

  def _predicted(self, shares, state, log_p):
    return jnp.maximum(shares.uniform / self.vocab_size, LEAST)


PEAKED = functools.partial(mixed, share=0.2)
MUTANTS = [
  (masked(cls=NoCarryOver), check_steps),
  (masked(cls=SquaredWeight), check_bound_is_the_entropy),
  (masked(cls=SquaredWeight), check_uniform_predictor),
  (masked(cls=OffByOne), check_steps),
  (masked(cls=OffByOne), check_steps_end_clean),
  (masked(cls=SamplesTheMask), check_steps_end_clean),
  (masked(cls=ScoresEverything), check_visible_tokens_are_free),
  (PEAKED(cls=CountsItsOwnTokenTwice, prediction="posterior"), check_bound_is_the_entropy),
  (PEAKED(cls=ForgetsTheRatio), check_bound_is_the_entropy),
  (PEAKED(cls=ForgetsTheRatio), check_uniform_predictor),
  (PEAKED(cls=NeverDrawsAtRandom), check_steps),
  (PEAKED(cls=ChangesTooRarely), check_steps),
  (PEAKED(cls=PlainKeep), check_steps),
  (PEAKED(cls=PlainKeep), check_language),
]


def named(value) -> str:
  return value.__name__ if callable(value) else type(value.process).__name__


@pytest.mark.parametrize("mutant,check", MUTANTS, ids=named)
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant)


REFUSED = {
  "mixing": (lambda: Mixed(4, mixing="half"), "mixing"),
  "all of it": (lambda: Mixed(4, share=1.0), r"share=1\.0"),
  "less than none": (lambda: Mixed(4, share=-0.1), "share"),
  "scores of masks": (lambda: Mixed(4, prediction="score"), "prediction"),
  "onset that nothing reads": (lambda: Mixed(4, onset=0.1), "onset=0.1 is read by"),
  "no onset": (lambda: Mixed(4, mixing="epsilon", onset=0.0), "onset"),
  "clean": (lambda: Uniform(4, prediction="clean"), "prediction"),
  "scores in steps": (lambda: Uniform(4, prediction="score", time_steps=4), "time_steps=4"),
  "one token": (lambda: Uniform(1), "vocab_size=1"),
  "no token": (lambda: Masked(0), "vocab_size=0"),
  "posterior": (lambda: Masked(4, prediction="posterior"), "prediction"),
  "no steps": (lambda: Masked(4, time_steps=0), "time_steps"),
  "no log-SNR": (lambda: Masked(4).time_of(1.0), "which Masked has none of"),
}


@pytest.mark.parametrize("make,word", REFUSED.values(), ids=REFUSED.keys())
def test_bad_choices_are_refused(make, word):
  with pytest.raises(ValueError, match=word):
    make()


def test_weights_of_training_are_refused_where_they_mean_nothing():
  token = (jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), jnp.ones(1))
  with pytest.raises(ValueError, match="mixing='gamma'"):
    Mixed(4, mixing="gamma").dynamic_weight({}, *token)
  assert issubclass(Mixed, Mixture) and not hasattr(Uniform(4), "dynamic_weight")

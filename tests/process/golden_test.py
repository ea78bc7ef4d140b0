"""Processes over ids against numbers that are known.

Golden values of the published bounds (toys A and B), limits of one process in another, discrete
time against continuous time, and float32 against float64.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.numerics import at_ids
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.mixture import LATEST
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Cosine, Linear, reveal_probability
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.two_tokens import (
  mixture_law,
  smooth_nodes,
  step_nodes,
  two_token_bound,
)

TOY_A = Enumerable.dirichlet(0, 0.5, 3, 4)  # H = 3.7085873970 nats
TOY_B = Enumerable.dirichlet(1, 0.7, 4, 2)  # H = 2.1112697 nats
V = TOY_B.vocab_size
COSINE = Cosine()


def bound(process, **how) -> float:
  """The bound of toy B."""
  return two_token_bound(process, law_of(process), TOY_B, **how)


def law_of(process):
  """The law of masked diffusion is written here, of mixtures it is that of their shares."""

  def masks(t):
    alpha, noise = process.schedule(t)
    return alpha, noise, 0 * t

  shares = masks if isinstance(process, Masked) else process.shares
  return mixture_law(shares, V, process.mask_id is not None)


def knows_nothing(log_p):
  return np.full_like(log_p, -np.log(V))


def poor(log_p):
  """Half as sure as the exact network."""
  logits = 0.5 * log_p
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def rate_and_slope(process, ids, state, t, logits):
  """((the sum of the rates, the rates), the slope of their sum)."""

  def total(logits):
    rate = process.nelbo_rate({}, ids, state, t, logits)
    return rate.sum(), rate

  return jax.value_and_grad(total, has_aux=True)(logits)


TIMED = {
  "masked": (Masked, {}),
  "uniform": (Uniform, {}),
  "mixed": (Mixed, {"share": 0.2}),
  "gamma": (Mixed, {"share": 0.2, "mixing": "gamma"}),
  "epsilon": (Mixed, {"share": 0.2, "mixing": "epsilon"}),
}


@pytest.mark.parametrize("cls,options", TIMED.values(), ids=TIMED.keys())
def test_discrete_time_bounds_fall_to_the_continuous_one(cls, options):
  """T = 2, 8, 64: each lower than the one before, all above the entropy, the last within 2 %.

  The network that knows nothing costs log V at each.
  """
  costs = []
  for steps in (2, 8, 64):
    process = cls(V, time_steps=steps, **options)
    costs.append(bound(process, nodes=step_nodes(steps)))
  assert all(a > b for a, b in itertools.pairwise(costs))
  assert TOY_B.entropy < costs[-1] < 1.02 * TOY_B.entropy
  nothing = bound(process, nodes=step_nodes(steps), says=knows_nothing)
  assert nothing / 2 == pytest.approx(np.log(V), abs=5e-5)


LIMITS = {
  "peaked without random tokens": (Mixed(V, COSINE, share=0.0), Masked(V, COSINE)),
  "gamma without": (Mixed(V, COSINE, mixing="gamma", share=0.0), Masked(V, COSINE)),
  "epsilon without": (Mixed(V, COSINE, mixing="epsilon", share=0.0), Masked(V, COSINE)),
  "constant without": (Mixed(V, COSINE, mixing="constant", share=0.0), Masked(V, COSINE)),
  "peaked with next to none": (Mixed(V, COSINE, share=1e-7), Masked(V, COSINE)),
  "constant, nothing else": (Mixed(V, COSINE, mixing="constant", share=1.0), Uniform(V, COSINE)),
  "gamma, nothing else": (Mixed(V, COSINE, mixing="gamma", share=1.0), Uniform(V, COSINE)),
  "scores": (Masked(V, COSINE, prediction="score"), Masked(V, COSINE)),
  "many steps": (Masked(V, COSINE, time_steps=4096), Masked(V, COSINE)),
}


@pytest.mark.parametrize("limit,process", LIMITS.values(), ids=LIMITS.keys())
def test_limits(limit, process):
  """Equal costs of the same imperfect network.

  GIDD is MDLM without uniform noise and UDLM without masks, SEDD-absorb with a normalised score is
  MDLM, D3PM tends to MDLM.
  """
  got = bound(limit, says=poor)
  want = bound(process, says=poor)
  assert got == pytest.approx(want, rel=5e-4 if limit.time_steps else 1e-4)
  assert want > TOY_B.entropy + 0.05


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_masks_arrive_at_the_noisy_end_as_the_closed_form_says(share):
  """-(alpha^(1-p))' / (1 - alpha^(1-p)) with alpha = 1 - t; a slope of e^x - 1 that is taken as a
  sum is 2 % off for p = 0.01.
  """
  process = Mixed(V, Linear(), mixing="gamma", share=share)
  t = jnp.float32([LATEST, 0.5])
  state = jnp.full(2, process.mask_id)
  found = process.bound_weight({}, jnp.zeros(2, jnp.int32), state, t)
  alpha = 1 - np.float64(t)
  want = (1 - share) * alpha**-share / (1 - alpha ** (1 - share))
  np.testing.assert_allclose(found, want, rtol=2e-6)


def test_a_share_that_does_not_vanish():
  """The ε-hybrid as published, alpha ((1 - ε) x + ε uniform) + (1 - alpha) mask, but at t = 0; at
  t = 0.1 the share was a tenth of it.
  """
  t = jnp.array([0.0, 0.05, 0.1, 0.9, 1.0])
  shares = Mixed(V, mixing="epsilon", share=0.01, onset=1e-3).shares(t)
  want = np.array([0, 0.0095, 0.009, 0.001, 0])
  np.testing.assert_allclose(shares.uniform, want, atol=1e-7)
  np.testing.assert_allclose(shares.clean, 1 - t - want, atol=1e-7)
  np.testing.assert_array_equal(shares.mask, t)
  before = Mixed(V, mixing="epsilon", share=0.01).shares(t)
  np.testing.assert_allclose(before.uniform, np.asarray(0.01 * t * (1 - t)), atol=1e-7)


def test_what_a_share_that_does_not_vanish_costs():
  """It is paid for at noise of a few times onset, or else not at all: then there is no bound. Above
  that no step mends a visible token.
  """
  process, gentle = (Mixed(V, mixing="epsilon", share=0.2, onset=onset) for onset in (1e-3, 1.0))
  early, late = smooth_nodes(0, 0.02), smooth_nodes(0.02, 1)
  paid = [bound(process, nodes=nodes) for nodes in (early, late)]
  assert sum(paid) == pytest.approx(TOY_B.entropy, abs=1e-4)
  assert paid[0] > 0.2 * TOY_B.entropy > 3 * bound(gentle, nodes=early)
  keys, state = jax.random.split(jax.random.key(0), 2000), jnp.zeros(2000, jnp.int32)
  moves = [
    np.asarray(each.may_change({}, keys, state, jnp.full(2000, 0.5), jnp.full(2000, s))).mean()
    for each, s in ((process, 0.1), (process, 0.0), (gentle, 0.1))
  ]
  assert moves[0] == 0 and moves[1] == 1 and 0.2 < moves[2] < 1


def test_a_free_normaliser_costs():
  """SEDD-absorb: a score off by a factor e^c costs e^c - 1 - c more per mask and hazard."""
  process = Masked(V, prediction="score")
  ids, state = jnp.zeros(3, jnp.int32), jnp.full(3, V, jnp.int32)
  scores = np.log([[0.5, 0.2, 0.2, 0.1]] * 3) + np.log(V) + np.array([[0.0], [0.7], [-0.7]])
  rate = process.nelbo_rate({}, ids, state, jnp.full(3, 0.25), jnp.asarray(scores, jnp.float32))
  extra = np.array([0, np.exp(0.7) - 1.7, np.exp(-0.7) - 0.3])
  np.testing.assert_allclose(rate, 4 * (np.log(2) + extra), rtol=1e-5)


SIZE = 5000
LARGE = {
  "uniform": Uniform(SIZE),
  "uniform, cosine": Uniform(SIZE, COSINE),
  "uniform, posterior": Uniform(SIZE, prediction="posterior"),
  "uniform, scores": Uniform(SIZE, prediction="score"),
  "mixed": Mixed(SIZE, share=0.1),
  "mixed, cosine": Mixed(SIZE, COSINE, share=0.4),
  "mixed, posterior": Mixed(SIZE, share=0.2, prediction="posterior"),
  "mixed, no random tokens": Mixed(SIZE, share=0.0),
  "constant": Mixed(SIZE, mixing="constant", share=0.3),
  "gamma": Mixed(SIZE, mixing="gamma", share=0.3),
  "epsilon": Mixed(SIZE, mixing="epsilon", share=0.2),
}


@pytest.mark.parametrize("process", LARGE.values(), ids=LARGE.keys())
def test_float32_is_enough(process):
  """Against float64 at V = 5000: right, wrong and masked states, confident and vague networks.

  Gradients are finite.
  """
  times = np.float32([1e-9, 1e-4, 0.3, 1 - 1e-4, 1.0])
  ids = np.full(6, 7, np.int32)
  state = np.array([7, 9, 7, 9, min(SIZE, process.input_sizes.ids - 1), 7], np.int32)
  logits = np.random.default_rng(0).normal(size=(6, SIZE)).astype(np.float32)
  logits[:2, 7] += 25
  logits[5, 9] += 25
  flat = [jnp.asarray(np.concatenate([x] * len(times))) for x in (ids, state, logits)]
  t = jnp.asarray(np.repeat(times, 6))

  (_, rate), gradient = rate_and_slope(process, flat[0], flat[1], t, flat[2])
  assert np.isfinite(rate).all() and np.isfinite(gradient).all()
  for time, got in zip(times, np.asarray(rate, np.float64).reshape(len(times), 6), strict=True):
    assert (got >= -1e-3).all() or process.prediction == "score"
    if process.prediction == "leave_one_out" and 1e-4 <= time <= 1 - 1e-4:
      want = reference_rate(process, ids, state, time, logits)
      np.testing.assert_allclose(got, want, rtol=3e-4, atol=2e-4)


@pytest.mark.parametrize("process", [Uniform(SIZE, time_steps=1000), Mixed(SIZE, time_steps=1000)])
def test_the_last_step_costs_what_the_posterior_says(process):
  """T · -log p(x | z) at t = 1 / T, where ratios of shares reach e^90; slopes are finite."""
  rng = np.random.default_rng(0)
  ids = np.arange(32, dtype=np.int32)
  state = jnp.asarray(np.where(ids < 16, ids, ids + 1))  # the true token, and another
  logits = jnp.asarray(10 * rng.normal(size=(32, SIZE)), jnp.float32)
  t = jnp.full(32, 1e-3)

  @jax.jit
  def costs(logits):
    rate = process.nelbo_rate({}, ids, state, t, logits)
    return rate.sum(), (rate, -1000 * at_ids(process.posterior({}, state, t, logits), ids))

  (_, (rate, want)), slope = jax.value_and_grad(costs, has_aux=True)(logits)
  np.testing.assert_allclose(rate, want, rtol=1e-4)
  assert np.isfinite(slope).all() and np.abs(slope).max() > 1


SURE = {
  "uniform": Uniform(V, time_steps=10),
  "constant": Mixed(V, time_steps=10, mixing="constant", share=0.3),
  "peaked": Mixed(V, time_steps=10, share=0.2),
  "gamma": Mixed(V, time_steps=10, mixing="gamma", share=0.3),
  "epsilon": Mixed(V, time_steps=10, mixing="epsilon", share=0.3),
}


@pytest.mark.parametrize("process", SURE.values(), ids=SURE.keys())
def test_a_network_that_is_sure_of_another_token_pays_for_all_of_it(process):
  """A token of p = e^-300 costs 300 nats, and what z says of it, T times in the last step of T. (It
  was no more than 69 once.)
  """
  ids, wrong = jnp.zeros(3, jnp.int32), jnp.zeros((3, V)).at[:, 1].set(300.0)
  state = jnp.array([0, 1, V if process.mask_id else 2])
  t = jnp.full(3, 0.1)
  clean, _, uniform = (np.asarray(x, np.float64) for x in process._survivors(t))
  here, there = clean[0] + uniform[0] / V, uniform[0] / V  # q(z | x = z), q(z | x another)
  (_, rate), slope = rate_and_slope(process, ids, state, t, wrong)
  says = np.array([np.log(there / here), np.log(here / there), 0])
  np.testing.assert_allclose(rate, 10 * (300 + says), rtol=1e-5)
  assert np.isfinite(slope).all() and np.abs(slope).max() > 1


@pytest.mark.parametrize("steps", [None, 10])
def test_masks_alone_cost_what_the_token_costs(steps):
  """In continuous time at t = 0.1, and in the last of ten steps: the same, as alpha is linear."""
  process, ids = Mixed(V, share=0.0, time_steps=steps), jnp.zeros(2, jnp.int32)
  wrong = jnp.zeros((2, V)).at[:, 1].set(300.0)
  (_, rate), slope = rate_and_slope(process, ids, jnp.array([V, 0]), jnp.full(2, 0.1), wrong)
  np.testing.assert_allclose(rate, [3000, 0], rtol=1e-4)
  assert np.isfinite(slope).all()


def reference_rate(process, ids, state, t, logits):
  """The bound's integrand as the plain sum over jumps, in float64.

  The weight is the process's own, which the entropies test.
  """
  shares = process._survivors if process.mask_is_final else process.shares
  clean, _, uniform = (np.float64(x) for x in shares(jnp.float32(t)))
  logits = logits.astype(np.float64)
  predicted = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
  size = logits.shape[1]
  at = jnp.full(len(ids), t, jnp.float32)
  weights = np.asarray(process.bound_weight({}, jnp.asarray(ids), jnp.asarray(state), at), float)
  total = []
  for x, z, p, w in zip(ids, state, predicted, weights, strict=True):
    q, q_hat = clean * np.eye(size)[x] + uniform / size, clean * p + uniform / size
    kl = np.where(q > 0, q * np.log(np.maximum(q, 1e-300) / q_hat), 0).sum()
    r = q[z] / q_hat[z] if z < size else 1.0
    total.append(w * (kl + r - np.log(r) - 1) if w else 0.0)
  return total


PATTERNS = np.indices((2,) * 4).reshape(4, -1).T.astype(bool)  # which tokens of toy A are lost


def exact_posterior(states: np.ndarray) -> np.ndarray:
  """p(x_i = v | the visible tokens) of toy A: states [n, 4] -> float64 [n, 4, 3]."""
  fits = (states[:, None] == TOY_A.sequences) | (states[:, None] == 3)
  law = fits.all(-1) * TOY_A.probabilities
  law = law / law.sum(1, keepdims=True)
  return np.einsum("nm,mlv->nlv", law, np.eye(3)[TOY_A.sequences])


def patterns(weights) -> float:
  """E over t and masks of Σ_masked CE · weights(number masked), at the rate of t = 1."""
  ids = np.broadcast_to(TOY_A.sequences, (16, 81, 4)).reshape(-1, 4)
  state = np.where(PATTERNS[:, None], 3, TOY_A.sequences).reshape(-1, 4).astype(np.int32)
  output = jnp.log(jnp.maximum(jnp.asarray(exact_posterior(state), jnp.float32), 1e-30))
  times = jnp.ones(ids.shape)
  rate = Masked(3).nelbo_rate({}, jnp.asarray(ids), jnp.asarray(state), times, output)
  cost = np.asarray(rate.sum(1), np.float64).reshape(16, 81) @ TOY_A.probabilities
  return float(sum(weights(k) * c for k, c in zip(PATTERNS.sum(1), cost, strict=True)))


def integral(fn, low=0.0):
  nodes = smooth_nodes(low, 1.0)
  return float((nodes.weight * fn(nodes.t)).sum() / (1 - low))


def weighted(low):
  """The chance that k given tokens are lost, times the hazard 1 / t, over t in [low, 1]."""
  return lambda k: integral(lambda t: t ** (k - 1) * (1 - t) ** (4 - k), low) if k else 0.0


GOLDEN = {
  "bound": (weighted(0.0), 3.7085873970),
  "t in [1e-3, 1]": (weighted(1e-3), 3.7096202),
  "t in [1e-2, 1]": (weighted(1e-2), 3.7188716),
  "unweighted sum": (lambda k: integral(lambda t: t**k * (1 - t) ** (4 - k)), 1.98971),
}


@pytest.mark.parametrize("weights,want", GOLDEN.values(), ids=GOLDEN.keys())
def test_golden_numbers(weights, want):
  """Masked CE at weight 1 (the linear rate at t = 1) under the published estimators of toy A."""
  assert patterns(weights) == pytest.approx(want, abs=6e-6)


def ancestral_law(steps: int) -> np.ndarray:
  """Exact law of `steps` ancestral steps on toy A: a chain over the 4^4 partly masked states."""
  states = np.indices((4,) * 4).reshape(4, -1).T
  predicted = exact_posterior(states)
  law = np.zeros(256)
  law[-1] = 1.0  # all mask
  for number in range(steps, 0, -1):
    t, s = jnp.float32(number / steps), jnp.float32((number - 1) / steps)
    reveal = float(reveal_probability(Linear(), t, s))
    masked = np.concatenate(
      [reveal * predicted, np.full((*predicted.shape[:2], 1), 1 - reveal)], axis=-1
    )
    one = np.where((states == 3)[..., None], masked, np.eye(4)[states])
    law = np.einsum("n,na,nb,nc,nd->abcd", law, *np.moveaxis(one, 1, 0), optimize=True).reshape(-1)
  return law.reshape((4,) * 4)[:3, :3, :3, :3].reshape(-1)


@pytest.mark.parametrize(
  "steps,want", [(1, 0.44769), (4, 0.14712), (16, 0.03920), (64, 0.00996), (256, 0.00250)]
)
def test_golden_total_variation_of_ancestral_steps(steps, want):
  assert TOY_A.total_variation(ancestral_law(steps)) == pytest.approx(want, abs=2e-5)


GOLDEN_B = {  # process, what the network answers, what is cut off at either end, nats
  "uniform": (Uniform(V), False, 1e-5, 2.1110886),
  "uniform, posterior": (Uniform(V), True, 1e-5, 3.37694),
  "mixed 0.1": (Mixed(V, share=0.1), False, 1e-4, 2.088871),
  "mixed 0.2": (Mixed(V, share=0.2), False, 1e-4, 2.067138),
  "mixed 0.1, posterior": (Mixed(V, share=0.1), True, 1e-6, 2.795),
  "mixed 0.2, posterior": (Mixed(V, share=0.2), True, 1e-6, 3.055),
}


class TakenAsLeaveOneOut:
  """A process whose network answers with the posterior, which it reads as leave-one-out."""

  def __init__(self, process):
    self.process = process
    self.reads_logits_as = "posterior"
    self.mask_id = process.mask_id
    self.round_time = process.round_time
    self.nelbo_rate = process.nelbo_rate


@pytest.mark.parametrize("process,twice,edge,want", GOLDEN_B.values(), ids=GOLDEN_B.keys())
def test_golden_numbers_of_random_tokens(process, twice, edge, want):
  """Read as leave-one-out, the ordinary posterior is not optimal.

  And what published code drops below t = 1e-4 is seen.
  """
  asked = TakenAsLeaveOneOut(process) if twice else process
  found = two_token_bound(asked, law_of(process), TOY_B, nodes=smooth_nodes(edge, 1 - edge))
  assert found == pytest.approx(want, abs=6e-4 if want > 2.5 else 3e-5)


@pytest.mark.parametrize(
  "twice,steps,want",
  [
    (False, 8, 2.20509),
    (False, 64, 2.12335),
    (False, 512, 2.11278),
    (True, 8, 3.18491),
    (True, 64, 3.33929),
    (True, 512, 3.37081),
  ],
)
def test_golden_numbers_of_discrete_time(twice, steps, want):
  process = Uniform(V, time_steps=steps)
  asked = TakenAsLeaveOneOut(process) if twice else process
  found = two_token_bound(asked, law_of(process), TOY_B, nodes=step_nodes(steps))
  assert found == pytest.approx(want, abs=1e-5)

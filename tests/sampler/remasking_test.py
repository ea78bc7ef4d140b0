"""Remasking against its exact law, a Markov chain over all partly masked states of a toy language;
and mutants that must fail.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import position_keys, row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler import remasking
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.remasking import Remasking
from diffusion_text.schedules.discrete import Cosine, Geometric, Level, Linear, Polynomial, time_of
from diffusion_text.testing import (
  Enumerable,
  ExactNetwork,
  check_sampler,
  exact_model,
  exact_params,
)
from diffusion_text.timing import Shared, Slanted
from diffusion_text.timing.clock import clock_of_steps
from diffusion_text.types import Canvas, IdentityHead, Model, Prediction
from tests.sampler.queries import query_of

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
PROCESS = Masked(vocab_size=3)
MODEL = Model(ExactNetwork(PROCESS), PROCESS, Shared(), Full(), chunk=8192)
SCHEDULES = (Linear(), Cosine(), Polynomial(), Geometric())
LOOP = (0.55, 0.05, 0.9)
MASK = 3
STATES = np.indices((4,) * 4).reshape(4, -1).T


def predictions() -> np.ndarray:
  """p(x_i = v | state) of every partly masked state, [256, 4, 3]."""
  agrees = ((TOY.sequences[None] == STATES[:, None]) | (STATES[:, None] == MASK)).all(-1)
  joint = np.where(agrees, TOY.probabilities, 0.0)
  law = np.einsum("bm,mlv->blv", joint, np.eye(3)[TOY.sequences])
  return law / law.sum(-1, keepdims=True)


PREDICTED = predictions()


def exact_law(steps) -> np.ndarray:
  """The law of the sequences [81] after (unmask, remask) probabilities per step, from all masks."""
  law = np.zeros(256)
  law[-1] = 1.0
  masked = (STATES == MASK)[..., None]
  for reveal, sigma in steps:
    kept = (1 - sigma) * np.eye(4)[STATES] + sigma * np.eye(4)[MASK]
    still = np.full((256, 4, 1), 1 - reveal)
    token = np.concatenate([reveal * PREDICTED, still], axis=-1)
    each = np.where(masked, token, kept).transpose(1, 0, 2)
    law = law @ np.einsum("na,nb,nc,nd->nabcd", *each).reshape(256, 256)
  return law.reshape((4,) * 4)[:3, :3, :3, :3].reshape(-1)


def remasking_steps(alphas, sigma_of):
  """(unmask, remask) per step in float64 by the paper's formulas; sigma_of(alpha_t, limit)."""
  for a, b in itertools.pairwise(alphas):
    sigma = sigma_of(a, min(1.0, (1 - b) / a) if a > 0 else 1.0)
    yield (b - (1 - sigma) * a) / (1 - a), sigma


def evenly(steps):
  return np.arange(steps + 1) / steps


def draw(sampler, rows):
  keys = row_keys(0, rows)
  result = sample(MODEL, exact_params(TOY), sampler, keys, rows=rows, length=4)
  return jax.tree.map(np.asarray, result)


def distance(ids, law):
  """Total variation to a law over what chance alone would give, and some; below 1: the same law."""
  number = (np.minimum(ids, 2) * 3 ** np.arange(4)[::-1]).sum(1)
  full = np.where((ids == MASK).any(1), 81, number)
  got = np.bincount(full, minlength=82) / len(ids)  # the last place: rows that still hold a mask
  law = np.append(law, max(1 - law.sum(), 0))
  floor = 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * len(ids))).sum() * 1.25
  return 0.5 * np.abs(got - law).sum() / floor


# --- the rule of one step ------------------------------------------------------------------------


def check_marginals(limit, unmask):
  """For random times and every sigma up to the limit: probabilities, and 1 - alpha_s masks at s."""
  rng = np.random.default_rng(0)
  t = np.append(rng.random(500), [1.0, 1.0, 0.5, 1e-3]).astype(np.float32)
  s = np.append(t[:500] * rng.random(500), [0.0, 0.9, 0.0, 5e-4]).astype(np.float32)
  for schedule, share in itertools.product(SCHEDULES, (0.0, 0.3, 1.0, rng.random(len(t)))):
    now, after = level(schedule, t), level(schedule, s)
    most = np.asarray(limit(now, after))
    for sigma in (share * most, np.minimum(share, most)):
      p = np.asarray(unmask(now, after, sigma.astype(np.float32)))
      assert (p > -1e-5).all() and (p < 1 + 1e-6).all()
      assert (sigma >= 0).all() and (sigma <= 1).all()
      masks = now.noise * (1 - p) + now.alpha * sigma
      np.testing.assert_allclose(masks, after.noise, atol=2e-6)
      assert (sigma[s == 0] == 0).all() and (p[s == 0] == 1).all()


@functools.lru_cache
def _level(schedule, times):
  return Level(*map(np.asarray, schedule(jnp.asarray(times))))


def level(schedule, t):
  return _level(schedule, tuple(t.tolist()))


def test_every_sigma_keeps_the_marginals():
  check_marginals(remasking.limit, remasking.unmask_probability)


def no_more_unmasking(now, after, sigma):
  return 1 - after.noise / np.maximum(now.noise, 1e-30)


def limit_of_the_step_before(now, after):
  return np.minimum(1.0, now.noise / np.maximum(now.alpha, 1e-30))


def no_limit(now, after):
  return np.ones_like(now.alpha)


def no_more_than_certain(now, after):
  return after.noise / np.maximum(now.alpha, 1e-30)


@pytest.mark.parametrize(
  "limit,unmask",
  [
    (no_more_than_certain, remasking.unmask_probability),
    (remasking.limit, no_more_unmasking),
    (limit_of_the_step_before, remasking.unmask_probability),
    (no_limit, remasking.unmask_probability),
  ],
)
def test_wrong_rules_fail(limit, unmask):
  with pytest.raises(AssertionError):
    check_marginals(limit, unmask)


def test_time_of_inverts_the_schedule():
  alphas = np.float32([0.1, 0.5, 0.9])
  for schedule in SCHEDULES:
    np.testing.assert_allclose(schedule(time_of(schedule, alphas)).alpha, alphas, atol=2e-5)


# --- the law of the sampler ----------------------------------------------------------------------

ROWS = 10_000
CASES = {
  "cap": (0.3, lambda a, limit: min(0.3, limit)),
  "rescale": (0.7, lambda a, limit: 0.7 * limit),
}


@pytest.mark.parametrize("strategy", CASES)
def test_law_is_the_exact_one(strategy):
  eta, sigma_of = CASES[strategy]
  law = exact_law(remasking_steps(evenly(6), sigma_of))
  assert law.sum() == pytest.approx(1.0)
  assert distance(draw(Remasking(steps=6, strategy=strategy, eta=eta), ROWS).ids, law) < 1


class NoLimit(Remasking):
  def _largest(self, now, after):
    return jnp.full(now.alpha.shape, 0.3)


def test_no_limit_leaves_masks():
  law = exact_law(remasking_steps(evenly(6), CASES["cap"][1]))
  assert distance(draw(NoLimit(steps=6, eta=0.3), 5_000).ids, law) > 1.5


def test_law_with_a_loop():
  """The clock is spent as the paper says: up to alpha_on, there, and on to 1.

  Tokens are remasked in between only.
  """
  clock, (on, off, held) = 1 - evenly(12), LOOP
  late = 1 - (1 - held) * clock / off
  alpha = np.where(clock > on, (1 - clock) * held / (1 - on), np.where(clock < off, late, held))
  inside = (clock[:-1] <= on) & (clock[1:] >= off)
  assert inside.sum() == 5
  sigmas = np.where(inside, 0.1, 0.0)
  pairs = zip(itertools.pairwise(alpha), sigmas, strict=True)
  steps = [((b - (1 - sigma) * a) / (1 - a), sigma) for (a, b), sigma in pairs]
  ids = draw(Remasking(steps=12, eta=0.1, loop=LOOP), ROWS).ids
  assert distance(ids, exact_law(steps)) < 1


def window(rows, state):
  keys = token_keys(row_keys(0, rows), 4)
  zeros = jnp.zeros(rows, jnp.int32)
  state = jnp.broadcast_to(jnp.asarray(state, jnp.int32), (rows, 4))
  return Canvas(state, jnp.ones((rows, 4), bool), keys, zeros, zeros + 4)


@pytest.mark.parametrize(
  "schedule,timing", [(Linear(), Shared()), (Cosine(), Slanted(spread=1.0))], ids=repr
)
def test_times_of_a_loop(schedule, timing):
  process = Masked(vocab_size=3, schedule=schedule)
  model = Model(ExactNetwork(process), process, timing, Full())

  @jax.jit
  def run(canvas):
    nothing = {"process": {}, "timing": {}}
    state = Remasking(steps=100, loop=LOOP).init(model, nothing, canvas)
    clock = timing.grid({}, clock_of_steps(100), canvas.lengths, 4)[0]
    return state.grid[0], clock, time_of(schedule, 0.9)

  times, clock, held = map(np.asarray, run(window(1, MASK)))
  assert (times[0] == 1).all() and (times[-1] == 0).all() and (np.diff(times, axis=0) <= 0).all()
  stands = (times[:-1] == held) & (times[1:] == held)
  np.testing.assert_allclose(schedule(held).alpha, 0.9, atol=1e-5)
  np.testing.assert_array_equal(stands, (clock[:-1] <= LOOP[0]) & (clock[1:] >= LOOP[1]))
  assert (stands.sum(0) > 5).all()


def test_no_remasking_is_the_grid():
  want, got = draw(Grid(steps=6), 200), draw(Remasking(steps=6, eta=0.0), 200)
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("eta,want", [(0.0, 0.00250), (0.008, 0.00519), (0.05, 0.01837)])
def test_many_steps_with_a_perfect_network(eta, want):
  """256 steps: remasking adds dependence errors, never repairs any of a network that makes none."""
  law = exact_law(remasking_steps(evenly(256), lambda a, limit: min(eta, limit)))
  assert TOY.total_variation(law) == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.95, 1.0])
def test_remasking_holds_the_samplers_that_guess_and_noise_again(kappa):
  """kappa · posterior + (1 - kappa) · q_s is sigma = (1 - kappa)(1 - alpha_s), at every step."""
  alphas = np.linspace(0, 1, 50)
  pairs = list(itertools.pairwise(alphas))
  other = [(kappa * (b - a) / (1 - a) + (1 - kappa) * b, (1 - kappa) * (1 - b)) for a, b in pairs]
  for (a, b), want in zip(pairs, other, strict=True):
    within = min((1 - kappa) * (1 - b), (min(1.0, (1 - b) / a) if a else 1.0) + 1e-12)
    (got,) = remasking_steps((a, b), lambda *_, sigma=within: sigma)
    np.testing.assert_allclose(want, got, atol=1e-12)


# --- one call with the true tokens ---------------------------------------------------------------


@member
class Pair(Shared):
  """A grid of one step per token, t -> s."""

  def grid(self, params, clock, lengths, length):
    grid = jnp.array([T, S, (0.0,) * 4], jnp.float32)
    return jnp.broadcast_to(grid, (lengths.shape[0], *grid.shape))


T, S = (0.9, 0.4, 0.5, 0.7), (0.6, 0.1, 0.5, 0.2)
PAIRED = MODEL._replace(timing=Pair())
TRUE = np.array([0, 2, 1, 1])
LOTS = 40_000


@functools.partial(jax.jit, static_argnums=0)
def one_call(sampler, keys):
  """(states before, after) of one call with a network that knows the tokens, [rows, 4]."""
  t = jnp.broadcast_to(jnp.array(T), keys.shape)
  ids = jnp.broadcast_to(TRUE, keys.shape)
  text = PROCESS.corrupt({}, position_keys(jax.random.key(5), *keys.shape), ids, t)
  canvas = window(len(keys), MASK)._replace(state=text, keys=keys)
  nothing = {"process": {}, "timing": {}}
  state = sampler.init(PAIRED, nothing, canvas)
  logits = jnp.where(jnp.arange(3) == ids[..., None], 0.0, -1e30)
  prediction = Prediction(logits, IdentityHead())
  needs = sampler.needs(PAIRED, nothing, canvas, state)
  query = query_of(canvas, t, needs)
  return text, sampler.step(PAIRED, nothing, canvas, state, prediction, query, needs)[0]


def check_kept(sampler):
  """From q_t(z | x), a call with the true tokens leads to q_s(z | x), place by place."""
  before, after = map(np.asarray, one_call(sampler, token_keys(row_keys(3, LOTS), 4)))
  assert ((after == TRUE) | (after == MASK)).all()
  want = np.array(S)
  got = (after == MASK).mean(0)
  assert (np.abs(got - want) < 4.5 * np.sqrt(want * (1 - want) / LOTS)).all(), (got, want)
  return ((before < MASK) & (after == MASK)).sum(0) / (before < MASK).sum(0)


def test_a_call_keeps_the_marginals():
  np.testing.assert_allclose(check_kept(Remasking(steps=2, eta=0.1)), 0.1, atol=0.012)
  check_kept(Remasking(steps=2, strategy="rescale", eta=0.8))


# min(1, (1 - alpha_s) / alpha_t) of the four places of `one_call`: the first would exceed 1.
LIMITS = np.minimum(1, np.array(S) / (1 - np.array(T)))


@pytest.mark.parametrize("strategy,eta", [("cap", 0.9), ("cap", 1.0), ("rescale", 1.0)])
def test_the_cap_binds(strategy, eta):
  """At eta above the limit exactly the limit is taken back, and the marginals stay."""
  assert (LIMITS < 0.9).sum() == 2 and LIMITS[0] == 1
  got = check_kept(Remasking(steps=2, strategy=strategy, eta=eta))
  np.testing.assert_allclose(got, np.minimum(eta, LIMITS), atol=0.02)


class TwiceTheLimit(Remasking):
  def _largest(self, now, after):
    return jnp.minimum(1.0, 2 * remasking.limit(now, after))


def test_a_cap_above_the_limit_fails():
  with pytest.raises(AssertionError):
    check_kept(TwiceTheLimit(steps=2, eta=1.0))


class NoMoreUnmasking(Remasking):
  def _of_masks(self, sigma):
    return jnp.zeros_like(sigma)


def test_remasking_without_more_unmasking_fails():
  with pytest.raises(AssertionError):
    check_kept(NoMoreUnmasking(steps=2, eta=0.1))


def test_confidence_takes_back_what_was_unlikely():
  """sigma is shared out by softmax(-p) over clean tokens, and sums to eta · limit in each row."""
  sampler = Remasking(steps=4, strategy="conf", eta=0.5)
  now, after = (
    Level(np.full((2, 4), 0.5), np.full((2, 4), 0.5)),
    Level(np.full((2, 4), 0.6), np.full((2, 4), 0.4)),
  )
  clean = np.array([[True, True, False, True], [False] * 4])
  chance = np.array([[0.9, 0.1, 0.0, 0.5], [0.0] * 4])
  sigma = sampler.sigma(now, after, clean, chance)
  share = np.exp([-0.9, -0.1, -np.inf, -0.5])
  np.testing.assert_allclose(sigma[0], 0.5 * 0.8 * share / share.sum(), rtol=1e-6)
  assert (np.asarray(sigma[1]) == 0).all()


def watched(sampler, rows):
  """[(text before a call, text after, what the sampler remembers)] of the sampling."""
  states = [np.full((rows, 4), MASK)]
  loop = host_sample(MODEL, exact_params(TOY), sampler, row_keys(0, rows), rows=rows, length=4)
  states += [np.asarray(canvas.state) for canvas in loop]
  return list(itertools.pairwise(states))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_greedy_takes_the_likeliest_whenever_it_is_revealed(temperature):
  """At temperature 0 only *when* is random: a revealed token is the likeliest, given the text."""
  sampler = Remasking(steps=6, strategy="conf", loop=(0.7, 0.2, 0.6), temperature=temperature)
  revealed, likeliest, taken_back = [], [], 0
  for before, after in watched(sampler, 60):
    chosen = (before == MASK) & (after != MASK)
    best = PREDICTED[(before * 4 ** np.arange(4)[::-1]).sum(1)].argmax(-1)
    revealed.append(after[chosen])
    likeliest.append(best[chosen])
    taken_back += ((before != MASK) & (after == MASK)).sum()
  same = np.concatenate(revealed) == np.concatenate(likeliest)
  assert taken_back > 5 and same.all() == (temperature == 0.0)


def test_what_each_token_had_is_remembered():
  """The probability that the network gave it, before temperature and top_p."""
  sampler = Remasking(steps=2, strategy="conf", temperature=0.0)
  logits = np.broadcast_to(np.log(PREDICTED[-1].astype(np.float32)), (64, 4, 3))

  @jax.jit
  def run(canvas, logits):
    nothing = {"process": {}, "timing": {}}
    state = sampler.init(MODEL, nothing, canvas)
    prediction = Prediction(logits, IdentityHead())
    query = query_of(canvas, state.t, canvas.active)
    return sampler.step(MODEL, nothing, canvas, state, prediction, query, canvas.active)

  text, then = run(window(64, MASK), logits)
  clean = np.asarray(text) < MASK
  assert 0 < clean.sum() < 256
  np.testing.assert_allclose(then.extra, np.where(clean, PREDICTED[-1].max(-1), 0.0), rtol=1e-5)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "process", [Uniform(vocab_size=3), Mixed(vocab_size=3, share=0.3)], ids=repr
)
def test_what_cannot_be_remasked_is_told_so(process):
  with pytest.raises(ValueError, match=rf"{type(process).__name__} has no masks.*kappa"):
    Remasking(steps=4).check(MODEL._replace(process=process))


@pytest.mark.parametrize(
  "bad",
  [
    {"strategy": "capped"},
    {"eta": 1.5},
    {"loop": (0.05, 0.55, 0.9)},
    {"loop": (0.5, 0.1, 1.0)},
    {"loop": (0.5,)},
    {"loop": ("a", "b", "c")},
    {"loop": 0.5},
  ],
  ids=repr,
)
def test_bad_choices_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Remasking(steps=4, **bad)


def test_the_laws_of_every_sampler():
  """Observed tokens and padding stay, a row is its own, and the calls are those that are asked."""
  sampler = Remasking(steps=6, strategy="conf", loop=(0.7, 0.2, 0.8))
  model, params = exact_model(PROCESS, TOY)
  check_sampler(
    sampler, model, params, TOY, rows=64, calls=6, only=("options", "tokens", "calls", "alone")
  )

"""Remasking against its exact law: a Markov chain over all partly masked states of toy A; and mutants that must fail."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler import remask
from diffusion_text.sampler.ancestral import Ancestral, TauLeaping
from diffusion_text.sampler.correct import PredictorCorrector
from diffusion_text.sampler.loop import Canvas
from diffusion_text.sampler.remask import Remasking
from diffusion_text.schedules.discrete import Cosine, Linear, reveal_probability, time_of, weight
from diffusion_text.testing.oracle import masked_evidence
from diffusion_text.timing import Shared, Slanted
from tests.process.conformance_test import SCHEDULES, TOY
from tests.sampler.conformance_test import draw, exact, noise_floor, quick

SHARED, PROCESS = Shared(), Masked(3, Linear())
STATES = np.indices((4,) * 4).reshape(4, -1).T
LOGITS = np.asarray(TOY.posterior(masked_evidence(jnp.asarray(STATES, jnp.int32), 3)), np.float64)
PREDICTED = np.exp(LOGITS - np.logaddexp.reduce(LOGITS, axis=-1, keepdims=True))
LOOP = (0.55, 0.05, 0.9)


def exact_law(steps) -> np.ndarray:
  """Law of the sequences of toy A [81] after (unmask probability, remask probability) per step, from all masks; and what is masked."""
  law = np.zeros(256)
  law[-1] = 1.0
  masked = (STATES == 3)[..., None]
  for reveal, sigma in steps:
    kept = (1 - sigma) * np.eye(4)[STATES] + sigma * np.eye(4)[3]
    token = np.concatenate([reveal * PREDICTED, np.full((256, 4, 1), 1 - reveal)], axis=-1)
    law = law @ np.einsum(
      "na,nb,nc,nd->nabcd", *np.where(masked, token, kept).transpose(1, 0, 2)
    ).reshape(256, 256)
  return law.reshape((4,) * 4)[:3, :3, :3, :3].reshape(-1)


def alphas(times):
  return [np.float64(Linear()(jnp.float32(t)).alpha) for t in times]


def remasking_steps(times, sigma_of):
  """(unmask, remask) per step, in numpy float64 from the paper's formulas; sigma_of(alpha_t, alpha_s, limit)."""
  for a, b in itertools.pairwise(alphas(times)):
    sigma = sigma_of(a, b, min(1.0, (1 - b) / a) if a > 0 else 1.0)
    yield (b - (1 - sigma) * a) / (1 - a), sigma


def grid(steps):
  return np.asarray(SHARED.grid(steps, 1))[:, 0]


def distance(policy, law, rows=15_000, process=PROCESS):
  """Total variation between draws of a policy and a law, over what chance alone would give (below 1: the same law)."""
  ids = draw(policy, rows, process=process).ids
  full = np.where((ids == 3).any(1), 81, (np.minimum(ids, 2) * 3 ** np.arange(4)[::-1]).sum(1))
  got = np.bincount(full, minlength=82) / rows  # the last place: rows that still hold a mask
  law = np.append(law, max(1 - law.sum(), 0))
  return 0.5 * np.abs(got - law).sum() / noise_floor(law, rows)


# --- the rule of one step ----------------------------------------------------------------------------------------------------------


def check_marginals(limit, unmask):
  """For random times and every sigma up to the limit: probabilities, and the share of masks at s is 1 - alpha_s."""
  rng = np.random.default_rng(0)
  t = np.append(rng.random(500), [1.0, 1.0, 0.5, 1e-3]).astype(np.float32)
  s = np.append(t[:500] * rng.random(500), [0.0, 0.9, 0.0, 5e-4]).astype(np.float32)
  for schedule, share in itertools.product(SCHEDULES, (0.0, 0.3, 1.0, rng.random(len(t)))):
    now, after = schedule(jnp.asarray(t)), schedule(jnp.asarray(s))
    for sigma in (share * limit(now, after), jnp.minimum(share, limit(now, after))):
      p = unmask(now, after, sigma)
      assert (
        (p > -1e-5).all() and (p < 1 + 1e-6).all() and (sigma >= 0).all() and (sigma <= 1).all()
      )
      np.testing.assert_allclose(now.noise * (1 - p) + now.alpha * sigma, after.noise, atol=2e-6)
      assert (np.asarray(sigma)[s == 0] == 0).all() and (np.asarray(p)[s == 0] == 1).all()


def test_every_sigma_keeps_the_marginals():
  check_marginals(remask.limit, remask.unmask_probability)


@pytest.mark.parametrize(
  "limit,unmask",
  [
    (remask.limit, lambda now, after, sigma: 1 - after.noise / jnp.maximum(now.noise, 1e-30)),
    (
      lambda now, after: jnp.minimum(1.0, now.noise / jnp.maximum(now.alpha, 1e-30)),
      remask.unmask_probability,
    ),
    (lambda now, after: jnp.ones_like(now.alpha), remask.unmask_probability),
  ],
  ids=["unmasks as if nothing were remasked", "the limit of the step before", "no limit"],
)
def test_wrong_rules_fail(limit, unmask):
  with pytest.raises(AssertionError):
    check_marginals(limit, unmask)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_of_inverts_the_schedule(schedule):
  for alpha in (0.1, 0.5, 0.9):
    assert float(schedule(time_of(schedule, alpha)).alpha) == pytest.approx(alpha, abs=2e-5)


# --- the law of the sampler ----------------------------------------------------------------------------------------------------------

CASES = {
  "cap": (dict(strategy="cap", eta=0.3), lambda a, b, limit: min(0.3, limit)),
  "rescale": (dict(strategy="rescale", eta=0.7), lambda a, b, limit: 0.7 * limit),
}


@pytest.mark.parametrize("case", CASES)
def test_law_is_the_exact_one(case):
  options, sigma_of = CASES[case]
  law = exact_law(remasking_steps(grid(6), sigma_of))
  assert law.sum() == pytest.approx(1.0)
  assert distance(Remasking(SHARED, 6, **options), law) < 1


def test_law_with_a_loop():
  """The clock is spent as the paper says: up to alpha_on, there, and on to 1; tokens are remasked in between only."""
  clock, (on, off, held) = grid(12), LOOP
  alpha = np.where(
    clock > on,
    (1 - clock) * held / (1 - on),
    np.where(clock < off, 1 - (1 - held) * clock / off, held),
  )
  inside = (clock[:-1] <= on) & (clock[1:] >= off)
  assert inside.sum() == 5
  sigmas = np.where(inside, 0.1, 0.0)
  steps = [
    ((b - (1 - sigma) * a) / (1 - a), sigma)
    for (a, b), sigma in zip(itertools.pairwise(alpha), sigmas, strict=True)
  ]
  assert distance(Remasking(SHARED, 12, eta=0.1, loop=LOOP), exact_law(steps)) < 1


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_loop_times(schedule):
  canvas = Canvas(jnp.full((1, 4), 3), jnp.ones((1, 4), bool), None, jnp.int32(0), None)
  for timing in (SHARED, Slanted(1.0)):
    times, remasks, _ = Remasking(timing, 100, loop=LOOP).plan(Masked(3, schedule), {}, canvas)
    assert (times[0] == 1).all() and (times[-1] == 0).all() and (np.diff(times, axis=0) <= 0).all()
    alpha = schedule(times).alpha
    np.testing.assert_allclose(alpha[:-1][remasks], 0.9, atol=1e-5)
    np.testing.assert_allclose(alpha[1:][remasks], 0.9, atol=1e-5)
    assert (remasks.sum(0) > 5).all()


def test_no_remasking_is_ancestral():
  want = draw(Ancestral(SHARED, 6), 200)
  got = draw(Remasking(SHARED, 6, eta=0.0), 200)
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("eta,want", [(0.0, 0.00250), (0.008, 0.00519), (0.05, 0.01837)])
def test_many_steps_with_a_perfect_network(eta, want):
  """256 steps: without remasking the golden 0.00250; remasking adds dependence errors, never repairs any (decoding.md, 4.12)."""
  law = exact_law(remasking_steps(grid(256), lambda a, b, limit: min(eta, limit)))
  assert TOY.total_variation(law) == pytest.approx(want, abs=2e-5)


def test_no_limit_leaves_masks():
  class NoLimit(Remasking):
    def sigma(self, now, after, clean, chance):
      return jnp.float32(0.3)

  law = exact_law(remasking_steps(grid(6), CASES["cap"][1]))
  assert distance(NoLimit(SHARED, 6, eta=0.3), law, 10_000) > 1.5


def test_confidence_takes_back_what_was_unlikely():
  """sigma is shared out by softmax(-p) over clean tokens: it sums to eta · limit in each row; p is that of the drawn token."""
  policy = Remasking(SHARED, 4, strategy="conf", eta=0.5)
  level = Linear()
  now, after = level(jnp.full((2, 4), 0.5)), level(jnp.full((2, 4), 0.4))
  clean = jnp.array([[True, True, False, True], [False] * 4])
  chance = jnp.array([[0.9, 0.1, 0.0, 0.5], [0.0] * 4])
  sigma = policy.sigma(now, after, clean, chance)
  share = np.exp([-0.9, -0.1, -np.inf, -0.5])
  np.testing.assert_allclose(sigma[0], 0.5 * 0.8 * share / share.sum(), rtol=1e-6)
  assert (sigma[1] == 0).all()

  keys = token_keys(row_keys(0, 64), 4)
  canvas = Canvas(jnp.full((64, 4), 3), jnp.ones((64, 4), bool), keys, jnp.int32(1), None)
  canvas = canvas._replace(plan=policy.plan(PROCESS, {}, canvas))
  prediction = exact(TOY)(PROCESS.inputs({}, canvas.state, None), None)
  then = quick(lambda keys: policy.advance(PROCESS, {}, canvas._replace(keys=keys), prediction))(
    keys
  )
  clean = np.asarray(then.state) < 3
  assert 0 < clean.sum() < 256
  chance = np.take_along_axis(
    np.asarray(prediction.logits), np.minimum(then.state, 2)[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(then.plan[2], np.where(clean, np.exp(chance), 0.0), rtol=1e-5)


def test_what_cannot_be_remasked_is_told_so():
  with pytest.raises(ValueError, match=r"Uniform has no masks.*predictor_corrector"):
    draw(Remasking(SHARED, 4), 2, process=Uniform(3, Linear()))


@pytest.mark.parametrize(
  "bad",
  [
    *(dict(strategy="capped"), dict(eta=1.5)),
    *(
      dict(loop=loop) for loop in ((0.05, 0.55, 0.9), (0.5, 0.1, 1.0), (0.5,), ("a", "b", "c"), 0.5)
    ),
  ],
)
def test_bad_choices_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Remasking(SHARED, 4, **bad)


# --- Ψ-samplers and tau-leaping, by the same exact law -------------------------------------------------------------------------------


def psi_steps(times, kappa):
  """(unmask, remask) of kappa · posterior + (1 - kappa) · q_s, as the definition says it."""
  for a, b in itertools.pairwise(alphas(times)):
    yield kappa * (b - a) / (1 - a) + (1 - kappa) * b, (1 - kappa) * (1 - b)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.95, 1.0])
def test_psi_of_masks_is_remasking(kappa):
  """sigma = (1 - kappa)(1 - alpha_s), within the limit: the same two probabilities at every step."""
  times = np.linspace(1, 0, 50)
  within = lambda a, b, limit: min((1 - kappa) * (1 - b), limit + 1e-12)
  np.testing.assert_allclose(
    list(psi_steps(times, kappa)), list(remasking_steps(times, within)), atol=1e-12
  )


def test_psi_has_its_law():
  assert distance(PredictorCorrector(SHARED, 6, kappa=0.5), exact_law(psi_steps(grid(6), 0.5))) < 1


def leap_steps(times, schedule):
  pairs = list(itertools.pairwise(times))
  leaps = [(t - s) * float(weight(schedule, jnp.float32(t))) for t, s in pairs[:-1]]
  t, s = pairs[-1]
  return [
    (p, 0.0) for p in (*leaps, float(reveal_probability(schedule, jnp.float32(t), jnp.float32(s))))
  ]


def test_tau_leaping_has_its_law():
  law, process = exact_law(leap_steps(grid(4), Cosine())), Masked(3, Cosine())
  assert distance(TauLeaping(SHARED, 4), law, process=process) < 1
  assert distance(Ancestral(SHARED, 4), law, process=process) > 1.5, (
    "the test does not see the leap"
  )

  class LeapsToTheEnd(TauLeaping):
    def step(self, process, params, keys, state, logits, t, s):
      return process.leap(params, keys, state, logits, t, s)

  assert distance(LeapsToTheEnd(SHARED, 4), law, process=process) > 1.5


def test_tau_leaping_tends_to_the_language():
  got = [
    TOY.total_variation(exact_law(leap_steps(grid(steps), Cosine()))) for steps in (16, 64, 256)
  ]
  assert got == pytest.approx([0.05639, 0.01382, 0.00344], abs=2e-5)


def test_linear_leaps_are_posterior_steps():
  """(t - s) / t is both the hazard's leap and the posterior's share, up to rounding."""
  want, got = (draw(kind(SHARED, 8), 500).ids for kind in (Ancestral, TauLeaping))
  assert (want == got).mean() > 0.999


def test_greedy_tail():
  """One step is the argmax everywhere; with more, only what is left at the last step is."""
  greedy = lambda steps: draw(Ancestral(SHARED, steps, greedy_tail=True), 300)
  np.testing.assert_array_equal(greedy(1).ids, np.tile(np.exp(LOGITS[-1]).argmax(-1), (300, 1)))
  plain, tail = draw(Ancestral(SHARED, 6), 300), greedy(6)
  np.testing.assert_array_equal(plain.committed, tail.committed)
  np.testing.assert_array_equal(plain.ids[tail.committed < 5], tail.ids[tail.committed < 5])
  last = tail.committed == 5
  before = np.where(last, 3, tail.ids)
  likeliest = PREDICTED[(before * 4 ** np.arange(4)[::-1]).sum(1)].argmax(-1)
  np.testing.assert_array_equal(tail.ids[last], likeliest[last])

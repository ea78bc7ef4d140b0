"""Tau-leaping and Ψ-steps reach the language for every noise; leaps of masks are posterior steps;
steps by scores are those of the published code.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.tau_leaping import TauLeaping, with_total_of
from diffusion_text.schedules.discrete import Geometric
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable

V, L, ROWS = 4, 2, 2_000
LANGUAGE = Enumerable.dirichlet(1, 0.7, V, L)


def drawn(process, sampler, rows=ROWS):
  """The sample of a network that knows the language."""
  model, params = exact_model(process, LANGUAGE)
  result = sample(model, params, sampler, jax.random.key(0), rows=rows, length=L)
  return jax.tree.map(np.asarray, result)


# GIDD-like noise, ancestral steps: 0.026 at 96 steps, 0.013 at 384.
@pytest.mark.parametrize(
  "process,most",
  [(Uniform(vocab_size=V), 0.045), (Mixed(vocab_size=V, share=0.3), 0.065)],
  ids=["uniform", "mixed"],
)
@pytest.mark.parametrize(
  "sampler", [TauLeaping(steps=96), Grid(steps=96, kappa=0.95)], ids=["tau", "psi"]
)
def test_many_steps_reproduce_the_language(process, sampler, most):
  result = drawn(process, sampler)
  assert (result.ids < V).all() and result.calls == 96
  assert LANGUAGE.total_variation(LANGUAGE.histogram(result.ids)) < most


def test_leaps_of_masks_are_posterior_steps():
  """With the linear schedule, token by token."""
  process = Masked(vocab_size=V)
  leapt, stepped = drawn(process, TauLeaping(steps=5), 64), drawn(process, Grid(steps=5), 64)
  np.testing.assert_array_equal(leapt.ids, stepped.ids)


def test_processes_without_jump_rates_are_refused():
  model, _ = exact_model(Embedding(vocab_size=V, width=4), LANGUAGE)
  with pytest.raises(ValueError, match=r"tau_leaping.* needs leap, which Embedding .*'grid'"):
    TauLeaping(steps=4).check(model)


# Scores (SEDD), which need not be those of any law.

GEOMETRIC = Geometric(sigma_min=1e-4, sigma_max=20.0)
MANY = 821


def alpha(t):
  """exp(-sigma) in float64, with sigma from 0 on."""
  return np.exp(1e-4 - 1e-4 ** (1 - t) * 20**t)


def published_analytic(scores, z, t, s):
  """graph_lib.Uniform: staggered_score · transp_transition, negative entries cut, [n, V]."""
  size, kept = scores.shape[1], alpha(t) / alpha(s)
  staggered = (kept - 1) / (size * kept) * scores.sum(1, keepdims=True) + scores / kept
  transition = (1 - kept) / size + kept * np.eye(size)[z]
  law = np.maximum(staggered * transition, 0)
  return law / law.sum(1, keepdims=True)


def scores_that_are_off(t, rows=60):
  """(scores [rows, MANY] that are off by 5 %, states): of peaked laws of the clean token."""
  rng = np.random.default_rng(0)
  law = alpha(t) * rng.dirichlet(np.full(MANY, 0.1), rows) + (1 - alpha(t)) / MANY
  z = np.array([rng.choice(MANY, p=row / row.sum()) for row in law])
  scores = law / law[np.arange(rows), z][:, None] * np.exp(0.05 * rng.normal(size=law.shape))
  scores[np.arange(rows), z] = 1.0
  return scores, z


@functools.partial(jax.jit, static_argnums=0)
def laws_by_scores(process, z, output, t, s):
  """(p(z_s) by the analytic step, x̂ of the posterior step), [n, V] each."""
  analytic = jax.nn.softmax(process.analytic_law(z, output, t, s))
  return analytic, jnp.exp(process.leave_one_out({}, z, t, output))


# Total variation between the posterior step and the published one, mean over the rows.
APART = [(0.7, 0.65, 0.0014), (0.9, 0.85, 0.242), (0.02, 0.0, 0.0)]


@pytest.mark.parametrize("t,s,apart", APART)
def test_the_analytic_step_is_the_published_one(t, s, apart):
  """And it is not our posterior step, where scores are off: they are cut at another place."""
  process = Uniform(vocab_size=MANY, prediction="score", schedule=GEOMETRIC)
  scores, z = scores_that_are_off(t)
  times = (np.full(len(z), x, np.float32) for x in (t, s))
  found, guess = laws_by_scores(process, jnp.int32(z), jnp.float32(np.log(scores)), *times)
  want = published_analytic(scores, z, t, s)
  np.testing.assert_allclose(found, want, atol=2e-4)
  after, kept = alpha(s), alpha(t) / alpha(s)
  own = np.eye(MANY)[z]
  ours = (after * np.asarray(guess) + (1 - after) / MANY) * ((1 - kept) / MANY + kept * own)
  ours /= ours.sum(1, keepdims=True)
  assert 0.5 * np.abs(ours - want).sum(1).mean() == pytest.approx(apart, rel=0.1, abs=3e-4)


def jumped(process, step, output, z, t, s, rows=40_000):
  """The law of `rows` draws of one step from state z, [V + 1]."""
  ids, times = jnp.full(rows, z), (jnp.full(rows, x, jnp.float32) for x in (t, s))
  logits = jnp.broadcast_to(jnp.float32(output), (rows, len(output)))
  run = jax.jit(getattr(process, step))
  drawn = run({}, row_keys(0, rows), ids, logits, *times)
  return np.bincount(np.asarray(drawn), minlength=len(output) + 1) / rows


@pytest.mark.parametrize("normaliser,capped", [(-0.5, False), (0.4, False), (2.0, True)])
def test_scores_of_masks_say_when_a_token_is_revealed(normaliser, capped):
  """With probability e^N (alpha_s - alpha_t) / (1 - alpha_t), cut at 1, as published; leaps too."""
  law, process = np.array([0.2, 0.5, 0.3]), Masked(vocab_size=3, prediction="score")
  output = np.log(law) + np.log(3) + normaliser
  for step in ("analytic", "leap"):  # of linear masks the two are one
    got = jumped(process, step, output, z=3, t=0.8, s=0.5)
    reveal = np.exp(normaliser) * 0.3 / 0.8
    assert (reveal > 1) == capped
    reveal = min(reveal, 1.0)
    np.testing.assert_allclose(got, np.append(reveal * law, 1 - reveal), atol=0.01)
  # Text ends without masks, whatever the scores.
  assert jumped(process, "analytic", output, z=3, t=0.1, s=0.0)[3] == 0


def test_a_leap_by_scores_is_the_published_one():
  """One-hot plus dt · sigma' / V · s_v: the scores themselves, not a law that they are near to."""
  process = Uniform(vocab_size=4, prediction="score", schedule=GEOMETRIC)
  scores, t, s = np.array([1.0, 3.0, 0.2, 0.6]), 0.8, 0.77
  rate = np.log(20 / 1e-4) * 1e-4 ** (1 - t) * 20**t
  want = (t - s) * rate / 4 * scores
  want[0] = 1 - want[1:].sum()
  assert 0.3 < want[0] < 0.9
  got = jumped(process, "leap", np.log(scores), z=0, t=t, s=s)
  np.testing.assert_allclose(got[:4], want, atol=0.01)
  at_once = jumped(process, "leap", np.log(100 * scores), z=0, t=t, s=s, rows=4_000)
  np.testing.assert_allclose(at_once[:4], [0, *(scores[1:] / 3.8)], atol=0.03)


@pytest.mark.parametrize("leap", ["euler", "analytic"])
@pytest.mark.parametrize("kind", [Uniform, Masked], ids=lambda kind: kind.__name__)
def test_steps_by_exact_scores_reproduce_the_language(kind, leap):
  process = kind(vocab_size=V, prediction="score")
  result = drawn(process, TauLeaping(steps=64, leap=leap))
  assert (result.ids < V).all()
  assert LANGUAGE.total_variation(LANGUAGE.histogram(result.ids)) < 0.05


def test_a_transform_does_not_change_when_masks_are_revealed():
  logits, other = jnp.array([[0.0, -jnp.inf, -jnp.inf]]), jnp.array([[1.0, 2.0, 0.5]])
  same = jax.nn.logsumexp(with_total_of(logits, other))
  assert float(same) == pytest.approx(float(jax.nn.logsumexp(other)), abs=1e-6)


def test_analytic_steps_need_scores():
  model, _ = exact_model(Uniform(vocab_size=V), LANGUAGE)
  with pytest.raises(ValueError, match=r"leap='analytic' steps by scores.*leave_one_out.*'grid'"):
    TauLeaping(steps=4, leap="analytic").check(model)
  model, _ = exact_model(Mixed(vocab_size=V), LANGUAGE)
  with pytest.raises(ValueError, match="needs analytic, which Mixed"):
    TauLeaping(steps=4, leap="analytic").check(model)

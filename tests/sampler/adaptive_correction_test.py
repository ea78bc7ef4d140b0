"""Adaptive correction: when masks fall and when visible tokens are drawn again, and what helps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.adaptive_correction import AdaptiveCorrection
from diffusion_text.sampler.grid import Grid
from diffusion_text.testing import Enumerable, check_sampler, exact_model
from diffusion_text.types import Canvas, IdentityHead, Prediction
from tests.sampler.queries import query_of

V, L, ROWS = 4, 3, 20_000
LANGUAGE = Enumerable.dirichlet(1, 0.7, V, L)
HYBRID = Mixed(vocab_size=V, mixing="epsilon", share=0.3)
LIKED = np.array([0.1, 0.2, 0.3, 0.4])


@functools.partial(jax.jit, static_argnums=0)
def one_call(sampler, step, keys):
  """The text after call `step`, where a 0 and two masks stood; the network always says LIKED."""
  model, params = exact_model(HYBRID, LANGUAGE)
  call = jnp.full(ROWS, step)
  text = jnp.broadcast_to(jnp.array([0, V, V], jnp.int32), (ROWS, L))
  canvas = Canvas(text, jnp.ones((ROWS, L), bool), keys, call, jnp.full(ROWS, L))
  state = sampler.init(model, params, canvas)
  state = sampler._enter(model, params, canvas, state._replace(step=call))
  said = jnp.broadcast_to(jnp.log(jnp.float32(LIKED)), (ROWS, L, V))
  needs = sampler.needs(model, params, canvas, state)
  query = query_of(canvas, state.t, needs)
  prediction = Prediction(said, IdentityHead())
  return sampler.step(model, params, canvas, state, prediction, query, needs)[0]


@pytest.mark.parametrize("step,reveal", [(0, 1 / 4), (2, 1 / 2), (3, 1.0)])
def test_one_call_is_the_published_one(step, reveal):
  """p = 1 - s/t of the masks fall, and eta (1 - p) of the visible tokens are drawn again."""
  sampler, keys = AdaptiveCorrection(steps=4, eta=0.4), token_keys(row_keys(0, ROWS), L)
  after = np.asarray(one_call(sampler, step, keys))
  got = np.bincount(after[:, 1], minlength=V + 1) / ROWS
  np.testing.assert_allclose(got, np.append(reveal * LIKED, 1 - reveal), atol=0.015)
  t = jnp.array(1 - step / 4)
  own = np.log(LIKED) + np.asarray(HYBRID.evidence({}, jnp.int32(0), t))
  posterior = np.exp(own) / np.exp(own).sum()
  chance = 0.4 * (1 - reveal)
  want = chance * posterior + (1 - chance) * np.eye(V)[0]
  got = np.bincount(after[:, 0], minlength=V + 1) / ROWS
  np.testing.assert_allclose(got, np.append(want, 0), atol=0.015)


def test_without_corrections_one_token_at_a_time_is_the_language():
  """Masks are revealed by the exact prediction, which takes few visible tokens for wrong here."""
  process = Mixed(vocab_size=V, mixing="epsilon", share=0.01)
  model, params = exact_model(process, LANGUAGE)
  sampler = AdaptiveCorrection(steps=96, eta=0.0)
  check_sampler(sampler, model, params, LANGUAGE, rows=2048, calls=96)


def test_the_laws_of_every_sampler():
  model, params = exact_model(HYBRID, LANGUAGE)
  sampler, only = AdaptiveCorrection(steps=5, eta=0.5), ("options", "tokens", "calls", "alone")
  check_sampler(sampler, model, params, LANGUAGE, rows=64, calls=5, only=only)


@pytest.mark.parametrize(
  "process,match",
  [
    (Masked(vocab_size=V), "needs shares, which Masked"),
    (Uniform(vocab_size=V), "begins with masks"),
    (Mixed(vocab_size=V, mixing="constant", share=0.5), "begins with masks"),
    (Mixed(vocab_size=V, share=0.0), "takes for right"),
  ],
  ids=repr,
)
def test_what_has_nothing_to_correct_is_refused(process, match):
  model, _ = exact_model(process, LANGUAGE)
  with pytest.raises(ValueError, match=match):
    AdaptiveCorrection(steps=4).check(model)
  Grid(steps=4).check(model)

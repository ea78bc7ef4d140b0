"""Probabilities that are clamped, at settings where the clamp binds, and one that never does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Cosine, Geometric, Linear, Polynomial

V, ROWS = 4, 20_000
LAW = np.array([0.1, 0.2, 0.3, 0.4])
KEYS = jax.random.split(jax.random.key(2), ROWS)


def stepped(process, step, params, z, t, s):
  """The law of ROWS draws of one step from state z, [V + 1]; the network says LAW."""
  output = jnp.broadcast_to(jnp.log(jnp.float32(LAW)), (ROWS, V))
  times = (jnp.full(ROWS, x, jnp.float32) for x in (t, s))
  drawn = jax.jit(getattr(process, step))(params, KEYS, jnp.full(ROWS, z), output, *times)
  return np.bincount(np.asarray(drawn), minlength=V + 1) / ROWS


MIXINGS = [
  Mixed(vocab_size=V, mixing="constant", share=0.3),
  Mixed(vocab_size=V, mixing="peaked", share=0.6, schedule=Cosine()),
  Mixed(vocab_size=V, mixing="gamma", share=0.4, schedule=Geometric()),
  Mixed(vocab_size=V, mixing="epsilon", share=0.5, schedule=Polynomial()),
  Mixed(vocab_size=V, mixing="epsilon", share=0.5, onset=0.1),
  Uniform(vocab_size=V, schedule=Geometric(sigma_min=1e-4, sigma_max=20.0)),
]


@pytest.mark.parametrize("process", MIXINGS, ids=repr)
def test_a_fresh_draw_is_a_probability_without_its_clamp(process):
  """It cuts rounding and nothing else, for any pair of times: no mass is lost in it."""
  times = np.float32(np.linspace(0.01, 1, 34))
  clean, mask, uniform = (np.asarray(x, np.float64) for x in process._survivors(times))
  s, t = np.nonzero(times[:, None] < times)
  kept = clean[t] / clean[s]
  visible = (uniform[t] - kept * uniform[s]) / np.maximum(uniform[t], 1e-30)
  stay = np.where(mask[t] > 0, mask[s] / np.maximum(mask[t], 1e-30), 1.0)
  masked = 1 - stay * (1 if process.mask_is_final else kept)
  for chance in (visible, masked):
    assert (chance > -1e-5).all() and (chance < 1 + 1e-5).all()


def test_a_leap_that_is_too_long_draws_afresh_for_sure():
  """(t - s) · rate / q_t(z) is far above 1: the law is q_t(· | x̂), the token's own included."""
  process, t, s = Uniform(vocab_size=V), 0.8, 0.1
  held = (1 - t) * LAW[0] + t / V
  assert (t - s) / (1 - t) / V / held > 3
  got = stepped(process, "leap", {}, 0, t, s)
  np.testing.assert_allclose(got[:V], (1 - t) * LAW + t / V, atol=0.015)


# Hazard times step is 4.8 for the geometric schedule, and 2.1 for token laws n^θ with θ = 3.05.
LONG = [
  (Masked(vocab_size=V, schedule=Geometric(sigma_min=1e-4, sigma_max=20.0)), {}, 0.5, 0.1),
  (TokenMasked(vocab_size=V, schedule=Linear()), {"power": jnp.full(V, 3.0)}, 0.5, 0.15),
]


@pytest.mark.parametrize("process,params,t,s", LONG, ids=["masked", "token_masked"])
def test_a_leap_that_is_too_long_reveals_for_sure(process, params, t, s):
  got = stepped(process, "leap", params, V, t, s)
  assert got[V] == 0
  np.testing.assert_allclose(got[:V], LAW, atol=0.015)
  short = stepped(process, "leap", params, V, t, t - 0.05)
  assert 0.1 < short[V] < 0.9

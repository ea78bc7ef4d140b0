"""The bound and the cross-entropy of settled tokens, against sums in numpy; mutants that fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.contrib import settled_tokens
from diffusion_text.contrib.settled_tokens import SettledTokens, settled_weights
from diffusion_text.objective.bound import Bound
from diffusion_text.process.mixed import Mixed
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Hyperschedule, Shared
from diffusion_text.types import Batch, Model, Progress, Times

V, B, N, WIDTH = 5, 4, 8, 2
PROCESS = Mixed(vocab_size=V, mixing="gamma", share=0.1)
MODEL = Model(TableNetwork(), PROCESS, Hyperschedule(kind="blocks", width=WIDTH), Full(), chunk=5)
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, N)).astype(np.int32)
# None, four, six and three tokens settled, the first of them observed in row 2; two of padding.
OBSERVED = np.zeros((B, N), bool)
OBSERVED[2, 0] = True
REAL = np.ones((B, N), np.float32)
REAL[1, 6:] = 0
SETTLED = np.arange(N) < np.array([0, 4, 6, 3])[:, None]
T = np.where(SETTLED, 0, np.float32(RNG.uniform(0.1, 0.9, (B, N))))
SPEED = np.where(SETTLED, 0, np.float32(4))
BATCH = Batch(IDS, observed=OBSERVED, weights=REAL)
TIMES = Times(*map(jnp.asarray, (T, SPEED, np.full((B, 1), 0.5, np.float32), T)))
KEY = jax.random.key(3)


def parameters():
  network = TableNetwork.params(jax.random.key(0), PROCESS.input_sizes, V, V)
  return {"network": network, "process": {}, "timing": {}}


@jax.jit
def of_bound(params):
  return Bound()(MODEL, params, KEY, BATCH, TIMES, Progress())[0].total


def by_hand(params, ramp=True):
  """Σ over rows of 4 · mean over settled tokens of w · CE, w = block / last block."""
  network = params["network"]
  logits = np.asarray(network["table"][IDS] @ network["out"], np.float64)  # what is settled is read
  cost = np.logaddexp.reduce(logits, -1) - np.take_along_axis(logits, IDS[..., None], -1)[..., 0]
  total = 0.0
  for row in range(B):
    places = [i for i in range(N) if SETTLED[row, i] and not OBSERVED[row, i] and REAL[row, i]]
    last = max(places, default=0) // WIDTH
    w = [(i // WIDTH) / last if ramp and last else 1.0 for i in places]
    total += 4 * np.mean(np.multiply(w, cost[row, places])) if places else 0.0
  return total


def check_value(objective, ramp=True):
  """The bound of the same draw, and λ times what the settled tokens cost."""
  params = parameters()
  loss, costs = jax.jit(lambda p: objective(MODEL, p, KEY, BATCH, TIMES, Progress()))(params)
  want = by_hand(params, ramp)
  np.testing.assert_allclose(loss.sums["settled"], want, rtol=1e-5)
  np.testing.assert_allclose(loss.sums["bound"], of_bound(params), rtol=1e-5)
  total = of_bound(params) + objective.settled * want
  np.testing.assert_allclose(loss.total, total, rtol=1e-5)
  assert float(loss.count) == REAL.sum() - 1 and want > 1
  assert not np.asarray(costs.nats)[SETTLED].any()


def test_the_loss_is_the_bound_and_the_settled_tokens():
  check_value(SettledTokens(settled=0.3, block=WIDTH))
  check_value(SettledTokens(), ramp=False)


def summed(settled, speed, width):
  return settled_weights(settled, speed, width) * settled.sum(1, keepdims=True)


def of_noisy_too(settled, speed, width):
  return settled_weights(jnp.asarray(REAL > 0) & ~jnp.asarray(OBSERVED), speed, width)


def no_pace(settled, speed, width):
  return settled_weights(settled, jnp.ones_like(speed), width)


def even(settled, speed, width):
  return settled_weights(settled, speed, None)


@pytest.mark.parametrize("mutant", [summed, of_noisy_too, no_pace, even])
def test_other_weights_would_be_noticed(mutant, monkeypatch):
  monkeypatch.setattr(settled_tokens, "settled_weights", mutant)
  with pytest.raises(AssertionError):
    check_value(SettledTokens(block=WIDTH))


def test_it_is_the_bound_where_no_token_is_settled():
  """One time for all of a row, as with one block of the width of the row."""
  times = TIMES._replace(t=jnp.full((B, N), 0.4), dt_dtau=jnp.ones((B, N)))
  params = parameters()
  rows = dataclasses.replace(BATCH, observed=None)
  losses = [
    jax.jit(lambda p, o=objective: o(MODEL, p, KEY, rows, times, Progress())[0].total)(params)
    for objective in (SettledTokens(block=WIDTH), Bound())
  ]
  np.testing.assert_allclose(*losses, rtol=1e-6)


def test_options_of_the_bound_that_are_not_combined_are_refused():
  for option in ({"auxiliary": 0.1}, {"detach_self_conditioned": True}):
    with pytest.raises(ValueError, match="leave them unset for 'settled_tokens'"):
      SettledTokens(**option).check(MODEL)
  SettledTokens().check(MODEL._replace(timing=Shared()))

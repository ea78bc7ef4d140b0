"""Where a bound is paid: the stretches of an exact network, and that they add up to its bound."""

import jax
import numpy as np
import pytest

from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.studies import cost_profile
from diffusion_text.testing.chain_network import chain_model
from diffusion_text.testing.languages import MarkovChain
from diffusion_text.types import Batch, Progress

ROWS, STRETCHES = 4096, 4
JOINT = np.array([[0.5, 0.1], [0.05, 0.35]])  # of the two tokens of a row


@pytest.fixture(scope="module")
def found():
  """(what rows of two tokens pay, the sum that the engine says of the same draw)."""
  chain = MarkovChain(JOINT.sum(1), JOINT / JOINT.sum(1, keepdims=True), 2)
  model, params = chain_model(Masked(vocab_size=2), chain)
  drawn = np.random.default_rng(0).choice(4, ROWS, p=JOINT.ravel())
  batch = Batch(np.stack([drawn // 2, drawn % 2], axis=1).astype(np.int32))
  key, progress = jax.random.key(1), Progress()

  @jax.jit
  def both(params, batch):
    parts = cost_profile.paid(model, params, key, batch, progress, stretches=STRETCHES)
    return parts, engine.nats(model, params, key, batch, progress)

  return jax.tree.map(np.asarray, both(params, batch))


def law(reverse=False):
  """[K]: nats per token of each stretch of t: at t a token is predicted from the other one with
  probability 1 - t, and from nothing otherwise.
  """
  whole = -(JOINT * np.log(JOINT)).sum()
  alone = np.mean([-(p * np.log(p)).sum() for p in (JOINT.sum(0), JOINT.sum(1))])
  given = whole - alone
  middle = (np.arange(STRETCHES) + 0.5) / STRETCHES
  middle = 1 - middle if reverse else middle
  return ((1 - middle) * given + middle * alone) / STRETCHES


def test_stretches_cost_what_is_not_known_there(found):
  """Within 5 standard errors; a clock that runs the other way is far off."""
  parts, _ = found
  nats = parts.nats[:, :STRETCHES] / 2
  error = nats.std(axis=0) / np.sqrt(ROWS)
  assert (np.abs(nats.mean(axis=0) - law()) < 5 * error).all()
  assert (np.abs(nats.mean(axis=0) - law(reverse=True)) > 5 * error).any()


def test_stretches_and_ends_add_up_to_the_bound(found):
  """As places do, and every scored token is in one of each."""
  parts, nats = found
  by_clock, by_place = parts.nats[:, : STRETCHES + 1], parts.nats[:, STRETCHES + 1 :]
  np.testing.assert_allclose(by_clock.sum(1), nats.sum(1), rtol=1e-5, atol=1e-6)
  # Four stretches of a row of two tokens: each token is in a stretch of its own.
  np.testing.assert_allclose(by_place[:, [0, 2]], nats, rtol=1e-6)
  np.testing.assert_array_equal(parts.weight[0], [2] * (STRETCHES + 1) + [1, 0, 1, 0])


def test_unevenness_is_what_errors_do_not_explain():
  """Of stretches 1 and 3 it is √2 / 2; with errors as large as the spread it is 0."""
  assert cost_profile.unevenness([(1.0, 0.0), (3.0, 0.0)]) == pytest.approx(np.sqrt(2) / 2)
  assert cost_profile.unevenness([(1.0, 1.5), (3.0, 1.5)]) == 0.0

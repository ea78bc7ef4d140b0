"""The parts of a bound: stretches of an exact network, and that they add up to its bound."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.studies import cost_profile
from diffusion_text.testing.chain_network import chain_model
from diffusion_text.testing.languages import MarkovChain
from diffusion_text.types import Batch, Progress

ROWS, STRETCHES, ENDS = 4096, 4, 0.125
JOINT = np.array([[0.5, 0.1], [0.05, 0.35]])  # of the two tokens of a row


@pytest.fixture(scope="module")
def found():
  """(the parts of rows of two tokens, the nats that the engine says of the same draw).

  A token costs ENDS at the ends of time. Under masks these cost nothing, which would hide mistakes.
  """
  chain = MarkovChain(JOINT.sum(1), JOINT / JOINT.sum(1, keepdims=True), 2)
  model, params = chain_model(Masked(vocab_size=2), chain)
  drawn = np.random.default_rng(0).choice(4, ROWS, p=JOINT.ravel())
  batch = Batch(np.stack([drawn // 2, drawn % 2], axis=1).astype(np.int32))
  key, progress = jax.random.key(1), Progress()

  def ends(model, params, key, batch, progress, start=0.0):
    return jnp.full(batch.ids.shape, ENDS)

  @jax.jit
  def both(params, batch):
    parts = cost_profile.parts_of(model, params, key, batch, progress, stretches=STRETCHES)
    return parts, engine.nats(model, params, key, batch, progress)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, "boundary_terms", ends)
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
  np.testing.assert_allclose(parts.nats[:, STRETCHES], 2 * ENDS)
  by_clock, by_place = parts.nats[:, : STRETCHES + 1], parts.nats[:, STRETCHES + 1 : -1]
  np.testing.assert_allclose(by_clock.sum(1), nats.sum(1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(parts.nats[:, -1], nats.sum(1), rtol=1e-6)
  # Four stretches of a row of two tokens: each token is in a stretch of its own.
  np.testing.assert_allclose(by_place[:, [0, 2]], nats, rtol=1e-6)
  np.testing.assert_array_equal(parts.weight[0], [2] * (STRETCHES + 1) + [1, 0, 1, 0, 2])


def test_unevenness_is_what_errors_do_not_explain():
  """Of stretches 1 and 3 it is √2 / 2; with errors as large as the spread it is 0."""
  assert cost_profile.unevenness([(1.0, 0.0), (3.0, 0.0)]) == pytest.approx(np.sqrt(2) / 2)
  assert cost_profile.unevenness([(1.0, 1.5), (3.0, 1.5)]) == 0.0


def test_both_tables_are_written(tmp_path, monkeypatch):
  """By name, with the bound of each run and whatever is uneven."""
  even = cost_profile.Profile([(0.5, 0.0)] * 2, (0.0, 0.0), [(1.0, 0.1)] * 2, (1.0, 0.1))
  bent = even._replace(clock=[(0.25, 0.0), (0.75, 0.0)])
  monkeypatch.setattr(cost_profile, "profile", lambda trained, _: trained)
  text = cost_profile.run(cost_profile.Settings(), {"even": even, "bent": bent}, tmp_path)
  assert (tmp_path / "cost_profile.md").read_text() == text + "\n"
  assert "| even | 0.500 / 0.500 (± 0.000) | 0.000 | 0.000 ± 0.000 | 1.000 ± 0.100 |" in text
  assert "| bent | 0.250 / 0.750 (± 0.000) | 0.707 |" in text
  assert json.loads((tmp_path / "cost_profile.json").read_text())["profiles"]["bent"]["clock"]

"""Errors of a network cost what the study says: what is added to logits costs the same as posterior
and as leave-one-out law, and a floor under probabilities does not.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.process.embedding import Embedding
from diffusion_text.studies import readouts
from diffusion_text.studies.chains import Chain
from diffusion_text.studies.readouts import READINGS, RIGHT, Bound, Error
from diffusion_text.testing.chain_network import chain_model

STEP = np.array([[0.0, 0.3, 0.7], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]])
CHAIN = Chain("short", np.array([0.2, 0.3, 0.5]), STEP, 4)
IDS = CHAIN.sample(np.random.default_rng(0), 512)
SETTINGS = readouts.Settings(draws=1, starts=2)


@pytest.fixture(scope="module")
def bounds():
  """(reading, error) -> the lowest bound."""

  def found(reading, error):
    process = Embedding(vocab_size=3, width=4, prediction=reading)
    model, params = readouts.erring(chain_model, CHAIN, process, {})
    network = params["network"] | {"error": error}
    return readouts.lowest(model, params | {"network": network}, IDS, SETTINGS)

  return found


def test_a_network_that_is_right_pays_the_entropy_either_way(bounds):
  """Mutant: one that is a little wrong."""
  law = np.log(CHAIN.initial)[IDS[:, 0]] + np.log(STEP[IDS[:, :-1], IDS[:, 1:]]).sum(1)
  for reading in READINGS:
    right, flat = bounds(reading, RIGHT), bounds(reading, Error(scale=0.5))
    error = right.rows.std() / len(IDS) ** 0.5
    assert abs(right.rows.mean() + law.mean()) < 4 * error
    assert (flat.rows - right.rows).mean() > 0.05


def test_what_is_added_costs_the_same_and_a_floor_does_not(bounds):
  """Noise on the logits is added to evidence and law alike; 5 % of unigram stay where the state
  shows the token, if the law is the posterior.
  """
  costs = {
    error: [bounds(reading, error).rows - bounds(reading, RIGHT).rows for reading in READINGS]
    for error in (Error(noise=0.5), Error(unigram=0.05))
  }
  same, floor = costs.values()
  np.testing.assert_allclose(*same, atol=2e-2)
  assert same[0].mean() > 0.05 and (floor[0] - floor[1]).mean() > 0.02
  starts = [bounds(reading, Error(unigram=0.05)).start for reading in READINGS]
  assert starts == [0, 10]  # as posterior the floor is dear at the clear end of the path


def test_logits_are_wrong_as_they_are_named():
  """And as they were, up to a constant, without an error."""
  logits, often = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]])), jnp.array([0.2, 0.2, 0.6])

  def law(error):
    return np.exp(readouts.wrong(logits, often, error))[0, 0]

  np.testing.assert_allclose(law(RIGHT), [0.5, 0.3, 0.2], rtol=1e-5)
  np.testing.assert_allclose(law(Error(unigram=0.5)), [0.35, 0.25, 0.4], rtol=1e-5)
  np.testing.assert_allclose(law(Error(scale=2.0)), np.array([25, 9, 4]) / 38, rtol=1e-5)
  assert abs(law(Error(noise=0.5)) - law(RIGHT)).max() > 0.02


def test_costs_are_paired():
  """Rows that cost much either way do not hide a difference."""
  rows = np.array([1.0, 5.0, 9.0])
  right = dict.fromkeys(READINGS, Bound(rows, 10.0))
  found = {READINGS[0]: Bound(rows + 2, 4.0), READINGS[1]: Bound(rows + 0.5, 10.0)}
  line = readouts.cells("embedding", "5 % unigram", found, right)
  assert line[2:] == ("2.00 ± 0.00", "0.50 ± 0.00", "1.50 ± 0.00", "4 / 10")


def test_a_table_has_every_error_of_every_process(tmp_path, monkeypatch):
  """A cost of 1 as posterior and of 0 as leave-one-out."""

  def stub(model, params, ids, settings):
    read = model.process.prediction == READINGS[0] and params["network"]["error"] != RIGHT
    return Bound(np.full(len(ids), 3.0) + read, 2.0)

  monkeypatch.setattr(readouts, "lowest", stub)
  text = readouts.run(readouts.Settings(rows=4), chain_model, tmp_path)
  assert (tmp_path / "readouts.md").read_text() == text + "\n"
  assert text.count("| 1.00 ± 0.00 | 0.00 ± 0.00 | 1.00 ± 0.00 | 2 / 2 |") == 15

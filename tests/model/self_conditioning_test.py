"""How the network reads its own last answer: where it is put, and what stands in for none."""

import jax
import numpy as np
import pytest

from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, InputSizes, Span

RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 12, (2, 6)).astype(np.int32)
T = np.array([[0.5, 0, 1, 0.2, 0.7, 0]] * 2, np.float32)
ESTIMATE = RANDOM.dirichlet(np.ones(11), (2, 6)).astype(np.float32)


def network_of(mode, absent):
  return small_transformer(self_conditioning=mode, absent=absent, estimate_size=11, layers=1)


def written_out(params, mode, absent, estimate):
  """[B, L, D]: the stream as model/self_conditioning.py says it in its table."""
  table = params["embedding"]
  own = params["recall"]["embedding"] if mode == "add" else table[:11]
  h = table[IDS]
  none = np.zeros(32) if absent == "zeros" else own.mean(axis=0)
  recalled = np.broadcast_to(none, h.shape) if estimate is None else estimate @ own
  mixed = h + recalled if mode == "add" else (h + recalled) / 2
  return np.where(T[..., None] > 0, mixed, h)


@pytest.mark.parametrize("absent", ["zeros", "uniform"])
@pytest.mark.parametrize("mode", ["add", "mean"])
def test_the_table_of_modes(mode, absent):
  """With an estimate and without: the answers are those of a network that embeds the mixture."""
  network = network_of(mode, absent)
  params = noisy_parameters(network, 0.5)
  plain = small_transformer(layers=1, input_sizes=InputSizes(12))
  rows = rows_of(Inputs(IDS), T)

  @jax.jit
  def both(params):
    memory = network.remember(params, ESTIMATE.reshape(-1, 11)).reshape(2, 6, 32)
    none = network.no_memory(params)
    told = network.apply(params, rows, memory=memory).features
    untold = network.apply(params, rows).features
    absent = np.zeros((2, 6, 1), np.float32) + none
    return told, untold, network.apply(params, rows, memory=absent).features

  told, untold, absent_given = both(params)
  np.testing.assert_allclose(untold, absent_given, atol=1e-6)
  read = jax.jit(lambda params: plain.apply(params, rows_of(Inputs(np.arange(12).reshape(2, 6)))))
  for estimate, features in ((ESTIMATE, told), (None, untold)):
    stream = np.float32(written_out(params, mode, absent, estimate)).reshape(12, 32)
    same = {name: params[name] for name in ("blocks", "final_norm", "head")}
    expected = read(same | {"embedding": stream}).features
    np.testing.assert_allclose(features, expected, atol=2e-4)
  assert np.abs(np.asarray(told - untold)).max() > 1e-2


def test_before_training_an_added_estimate_changes_nothing():
  network = network_of("add", "zeros")
  params = noisy_parameters(network)
  params["recall"]["embedding"] *= 0
  np.testing.assert_array_equal(network.remember(params, ESTIMATE[0]), np.zeros((6, 32)))


def test_memory_goes_where_the_tokens_stand():
  """In rows of two copies, or of tokens that are shifted, the other positions read none."""
  network = network_of("add", "uniform")
  params = noisy_parameters(network, 0.5)
  memory = RANDOM.normal(size=(2, 6, 32)).astype(np.float32)
  ids = np.concatenate([IDS, IDS], axis=1)
  t = np.concatenate([T, T], axis=1)

  @jax.jit
  def at(params, start):
    none = network.no_memory(params)
    row = np.zeros((2, 12, 1), np.float32) + none
    by_hand = jax.lax.dynamic_update_slice_in_dim(row, memory, start, axis=1)
    return network.apply(params, rows_of(Inputs(ids), t), memory=by_hand).features

  for start, copies in ((0, 2), (6, 2), (3, 1)):
    rows = rows_of(Inputs(ids), t, tokens=Span(start, start + 6), copies=copies)
    got = jax.jit(network.apply)(params, rows, memory=memory).features
    np.testing.assert_allclose(got, at(params, start), atol=1e-5)
  with pytest.raises(ValueError, match="memory of 6 tokens does not fit the 12"):
    network.apply(params, rows_of(Inputs(ids), t), memory=memory)


def test_a_network_without_it_refuses_memory():
  network = small_transformer()
  params = noisy_parameters(network)
  memory = np.zeros((2, 6, 32), np.float32)
  for refused in (
    lambda: network.apply(params, rows_of(Inputs(IDS)), memory=memory),
    lambda: network.remember(params, ESTIMATE[0]),
    lambda: network.no_memory(params),
  ):
    with pytest.raises(ValueError, match="use 'add' or 'mean'"):
      refused()

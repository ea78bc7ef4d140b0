"""Rows longer than those of training: the published factors, and what the larger base does."""

import jax
import numpy as np
import pytest

from diffusion_text.model.layers import rotary_angles
from diffusion_text.model.long_context import ntk_factor, turned_dimensions
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs

LLADA = {"base": 5e5, "trained_length": 4096, "head_width": 128}


def test_the_published_factors():
  """Of LLaDA at 8k, 16k, 24k and 32k; released code has the next whole numbers, 4, 14, 31, 55."""
  assert turned_dimensions(**LLADA) == 64
  found = [ntk_factor(length=length, **LLADA) for length in (8192, 16384, 24576, 32768)]
  np.testing.assert_allclose(found, [3.40, 13.60, 30.60, 54.40], atol=0.005)
  assert [int(np.ceil(each)) for each in found] == [4, 14, 31, 55]
  assert ntk_factor(length=4096, **LLADA) == 1.0
  llama = {"base": 5e5, "trained_length": 8192, "head_width": 128}
  llama = [ntk_factor(length=length, **llama) for length in (16384, 32768)]
  assert [int(np.ceil(each)) for each in llama] == [4, 13]
  with pytest.raises(ValueError, match="trained_length=6 is less than one turn"):
    ntk_factor(1e4, 6, 64, 32)


def test_the_slowest_pair_that_went_around_does_so_at_the_new_length():
  """One turn at the new length, as it made about one at the trained length."""
  length = 32768
  scaled = LLADA["base"] * ntk_factor(length=length, **LLADA)
  pair = turned_dimensions(**LLADA) // 2
  rates = scaled ** (-2 * pair / LLADA["head_width"])
  assert length * rates == pytest.approx(2 * np.pi)
  cos, _ = rotary_angles(np.array([[1]]), LLADA["head_width"], scaled)
  np.testing.assert_allclose(cos[0, 0, 0, pair], np.cos(rates), atol=1e-7)


def test_the_scaled_network_has_the_same_parameters():
  """And is the network of the larger base."""
  plain, scaled = small_transformer(), small_transformer(rope_scaling=7.0)
  params = noisy_parameters(plain)
  like = jax.tree.map(lambda leaf: leaf.shape, params)
  assert like == jax.tree.map(
    lambda leaf: leaf.shape, jax.eval_shape(scaled.init, jax.random.key(0))
  )
  with pytest.raises(ValueError, match=r"rope_scaling=7\.0 turns rotary positions"):
    small_transformer(rope_scaling=7.0, positions="learned", max_positions=12)
  ids = np.random.default_rng(0).integers(0, 11, (2, 12)).astype(np.int32)
  answer = [
    jax.jit(network.apply)(params, rows_of(Inputs(ids))).features
    for network in (plain, scaled, small_transformer(rope_base=70_000.0))
  ]
  np.testing.assert_array_equal(answer[1], answer[2])
  assert np.abs(answer[0] - answer[1]).max() > 1e-3

"""Rows longer than those of training: the published factors, what the larger base does, and the
slowed positions of published checkpoints against their formulas."""

import jax
import numpy as np
import pytest

from diffusion_text.model.layers import rotary_angles
from diffusion_text.model.long_context import ntk_factor, turned_dimensions
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs
from tests.model.pretrained.reference import slowed_rates

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
  network = small_transformer(width=512, rope_base=scaled)
  cos, _ = rotary_angles(np.array([[1]]), network)
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


OLD = {"original_max_position_embeddings": 64}
YARN = {"rope_kind": "yarn", "rope_trained_length": 64, "rope_factor": 8.0, "rope_gain": 1.5}
# name: (rope_scaling of a config, our options, an option read wrongly). Heads of 16 numbers.
KINDS = {
  "linear": ({"factor": 3.0}, {"rope_kind": "linear", "rope_factor": 3.0}, {"rope_factor": 1.0}),
  "dynamic": (
    {"factor": 4.0},
    {"rope_kind": "dynamic", "rope_factor": 4.0, "rope_trained_length": 8},
    {"rope_trained_length": 9},
  ),
  "llama3": (
    {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | OLD,
    {
      **{"rope_kind": "llama3", "rope_trained_length": 64, "rope_factor": 8.0},
      **{"rope_slow_turns": 1.0, "rope_fast_turns": 4.0},
    },
    {"rope_slow_turns": 0.9},
  ),
  "yarn": ({"factor": 8.0, "attention_factor": 1.5} | OLD, YARN, {"rope_fast_turns": 2.0}),
  "yarn, real places": (
    {"factor": 8.0, "attention_factor": 1.5, "truncate": False, "beta_fast": 4.0} | OLD,
    YARN | {"rope_whole_pairs": False, "rope_fast_turns": 4.0},
    {"rope_whole_pairs": True},
  ),
}
LONG = 30


@pytest.mark.parametrize("name", KINDS)
def test_slowed_positions_are_those_of_the_formula(name):
  """Cosines and sines of every pair at 30 positions, in float64 pair by pair; not with one option
  read wrongly. In a row of no more than the trained length, dynamic scaling is none."""
  scaling, options, mutant = KINDS[name]
  kind = options["rope_kind"]
  config = {"rope_theta": 500.0, "rope_scaling": scaling | {"rope_type": kind}}
  rates, gain = slowed_rates(config | {"max_position_embeddings": 8}, 16, LONG)
  angles = np.arange(LONG)[:, None] * np.array(rates)

  def ours(changes, length=LONG):
    network = small_transformer(width=64, rope_base=500.0, **(options | changes))
    return np.stack(rotary_angles(np.arange(length)[None], network))[:, 0, :, 0]

  want = gain * np.stack([np.cos(angles), np.sin(angles)])
  np.testing.assert_allclose(ours({}), want, atol=3e-6)
  assert np.abs(ours(mutant) - want).max() > 0.02
  plain = small_transformer(width=64, rope_base=500.0)
  unchanged = np.stack(rotary_angles(np.arange(8)[None], plain))[:, 0, :, 0]
  assert (np.abs(ours({}, 8) - unchanged).max() < 1e-6) == (name == "dynamic")


def test_dynamic_scaling_goes_by_each_row_and_refuses_a_cache():
  """A row keeps its angles whatever its batch holds; a cache would hold keys of another base."""
  network = small_transformer(rope_kind="dynamic", rope_factor=4.0, rope_trained_length=8)
  rows = np.stack([np.arange(12), np.minimum(np.arange(12), 7)]).astype(np.int32)
  both, alone = rotary_angles(rows, network), rotary_angles(rows[1:], network)
  np.testing.assert_array_equal(both[0][1:], alone[0])
  plain = rotary_angles(rows, small_transformer())[0]
  np.testing.assert_array_equal(both[0][1], plain[1])
  assert np.abs(both[0][0] - plain[0]).max() > 0.1
  short = rows_of(Inputs(rows))
  assert network.cache(None, short, 8).position is None
  with pytest.raises(ValueError, match=r"a cache of 9 slots would keep them .* reader whole_row"):
    network.cache(None, short, 9)


def test_a_gain_multiplies_scores_by_its_square():
  """Queries and keys are both longer: as if the queries alone were, squared."""
  network = small_transformer(rope_kind="yarn", rope_trained_length=64, rope_gain=1.3)
  params = noisy_parameters(network)
  longer = jax.tree.map(np.copy, params)
  longer["blocks"]["attention"]["query"]["kernel"] *= np.float32(1.3**2)
  ids = np.random.default_rng(0).integers(0, 11, (2, 12)).astype(np.int32)
  rows = rows_of(Inputs(ids))
  got = jax.jit(network.apply)(params, rows).features
  want = jax.jit(network.like(rope_gain=1.0).apply)(longer, rows).features
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
  "change,match",
  [
    (
      {"rope_factor": 2.0},
      "rope_factor=2.0 is not read with rope_kind='plain', but with linear, d",
    ),
    ({"rope_gain": 2.0}, "rope_gain=2.0 is not read with rope_kind='plain', but with yarn; set"),
    ({"rope_kind": "linear", "rope_trained_length": 8}, "rope_trained_length=8 is not read with"),
    (
      {"rope_kind": "dynamic", "rope_trained_length": 8, "rope_fast_turns": 4.0},
      "rope_fast_turns=4.0 is not read with rope_kind='dynamic', but with llama3, yarn; set",
    ),
    (
      {"rope_kind": "llama3", "rope_trained_length": 8, "rope_whole_pairs": False},
      "rope_whole_pairs=False is not read",
    ),
    ({"rope_kind": "longrope"}, "longrope"),
    ({"rope_kind": "yarn"}, "goes by the length of earlier training"),
    ({"rope_kind": "llama3", "rope_trained_length": 8, "rope_slow_turns": 40.0}, "below"),
    (
      {"rope_kind": "linear", "positions": "learned", "max_positions": 9},
      "rope_kind='linear' slows rotary positions",
    ),
    ({"rope_kind": "dynamic", "rope_trained_length": 8, "head_width": 2}, "at least 4 numbers"),
    ({"rope_kind": "yarn", "rope_trained_length": 8, "rope_base": 1.0}, "above 1; 10000"),
  ],
)
def test_bad_options_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    small_transformer(**change)

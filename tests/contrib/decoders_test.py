"""Every decoder by name: what no decoder may do, the calls that it makes, and the decoder next to
it, from which its tokens, its calls or its cost must tell it.
"""

import dataclasses
import functools
import types
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from configs import mdlm, udlm
from diffusion_text.context import Full, NextToken
from diffusion_text.contrib.any_order import AnyOrder, Given
from diffusion_text.contrib.decoders import DECODERS, Decoder
from diffusion_text.contrib.joint_layer import JointLayer
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.decoding import decoding_of, listed
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.loop import sample
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, DataFacts, Model

V, L, BLOCK = 11, 24, 8
# Decoders of noise that is not a mask; all others are tried on masks.
UNIFORM = {"renoise_cap", "renoise_loop", "edits", "canvas"}
ORDERED = {"speculative", "bigram_drafts"}
# Options for rows of 24 tokens, in place of those for some hundreds.
SHORT = {
  "dkv_cache": {"reader": ("queries=12",)},
  "dkv_cache_greedy": {"reader": ("queries=8", "near=1")},
  "d2_cache": {"reader": ("queries=12", "masked=6")},
  "edlm": {"sampler": ("candidates=3",)},
  "wino": {"sampler": ("revise.checks=2",)},
  "look_ahead": {"sampler": ("depth=2",)},
  "klass": {"sampler": ("budget.below=0.5",)},
  "adaptive_guidance": {"reader": ("agree=0.2",)},
}
STEPS = 6
# The calls of a row of 24 - 4 observed tokens, at 6 steps or as many as follow from the name.
CALLS = {
  **dict.fromkeys(
    ("ancestral", "psi", "remdm_cap", "remdm_rescale", "remdm_conf", "remdm_loop"), 6
  ),
  **dict.fromkeys(("renoise_cap", "renoise_loop", "maskgit", "confidence", "dream", "margin"), 6),
  **dict.fromkeys(("pc_sampler", "density", "ccd"), 6),
  **dict.fromkeys(("dkv_cache", "dkv_cache_greedy", "d2_cache"), None),
  "one_by_one": 20,
  "left_to_right": 20,
  "llada": 3 * 6,
  "free_cache": 3 * 6,
  "rcr": 6,
  "joint": 6,
  **dict.fromkeys(("dllm_cache", "dllm_by_layer"), 6),
  "edlm": 6 * 4,
}


class Made(NamedTuple):
  """A sample, in numpy, and the calls of a step."""

  ids: np.ndarray
  calls: np.ndarray
  layers: np.ndarray
  per_step: int


def network_of(process):
  network = small_transformer(
    layers=2,
    width=32,
    heads=2,
    mlp_width=32,
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  return network, noisy_parameters(network, scale=0.6)


@functools.cache
def experiment_of(kind):
  """(what a decoder asks of an experiment, the parameters)."""
  process = (Uniform if kind == "uniform" else Masked)(vocab_size=V)
  network, own = network_of(process)
  context, timing = (AnyOrder(), Given()) if kind == "ordered" else (Full(), Shared())
  model = Model(network, process, timing, context, chunk=64)
  config = (udlm if kind == "uniform" else mdlm).get_config("micro")
  groups = {"network": own, "process": {}, "timing": {}}
  scorer = {"network": noisy_parameters(network, scale=0.3, seed=1), "process": {}, "timing": {}}
  layer = {}
  if kind == "masked":
    facts = DataFacts(L, V)
    layer = jax.tree.map(
      lambda leaf: leaf + 0.3 * np.random.default_rng(2).normal(size=leaf.shape).astype(np.float32),
      JointLayer().init(model, jax.random.key(0), facts),
    )
  params = {**groups, "scorer": scorer, **layer}
  return types.SimpleNamespace(config=config, model=model), params


def batch_of(own, mates):
  """Rows of 24 tokens, 4 of them observed, the last row padded.

  Row 1 follows from `own`, the others from `mates`.
  """
  ids, observed = np.zeros((4, L), np.int32), np.zeros((4, L), bool)
  mates = np.random.default_rng(mates)
  for row, random in enumerate((mates, np.random.default_rng(own), mates, mates)):
    ids[row] = random.integers(0, V, L)
    observed[row, random.choice(L, 4, replace=False)] = True
  weights = np.ones((4, L), np.float32)
  weights[3, 17:] = 0
  return Batch(ids, observed=observed, weights=weights, segment=(weights == 0).astype(np.int32))


@functools.cache
def decoding(name, kind):
  """The decoding of a name, for short rows."""
  experiment, _ = experiment_of(kind)
  decoder, options = DECODERS[name], SHORT.get(name, {})
  scorer = None
  if decoder.has_scorer:
    causal = experiment.model._replace(context=NextToken(), timing=AtNoise())
    scorer = Other(WholeRow(), causal, "scorer")
  steps = STEPS if "steps" in str(decoder.sampler) and name != "first_hitting" else None
  if name == "rcr":
    options, steps = {"sampler": (f"revise.steps={STEPS}",)}, None
  block = BLOCK if decoder.block else None
  how = {"decoder": name, "scorer": scorer, "steps": steps, "block": block, **options}
  return decoding_of(experiment, **how)


@functools.cache
def made_by(name, kind, own=7, mates=0):
  """What a decoder makes of the rows of these seeds."""
  experiment, params = experiment_of(kind)
  chosen, batch = decoding(name, kind), batch_of(own, mates)
  keys = jnp.where(jnp.arange(4) == 1, row_keys(own, 4), row_keys(mates, 4))
  how = {"batch": batch, "reader": chosen.reader, "block": chosen.block}
  result = sample(experiment.model, params, chosen.sampler, keys, **how)
  result = jax.tree.map(np.asarray, result)
  per_step = min(chosen.reader.calls, 1) + chosen.sampler.extra_calls
  return Made(result.ids, result.row_calls, result.token_layers, per_step)


def kind_of(name):
  if name in ORDERED:
    return "ordered"
  return "uniform" if name in UNIFORM else "masked"


SEEDS = strategies.integers(0, 2**20)


@pytest.mark.parametrize("name", DECODERS)
def test_observed_tokens_stay_and_a_row_is_its_own(name):
  """Whatever the row and its mates: one program serves all examples."""

  @hypothesis.settings(max_examples=2, deadline=None, database=None, derandomize=True)
  @hypothesis.given(own=SEEDS, mates=SEEDS, others=SEEDS)
  def check(own, mates, others):
    made, batch = made_by(name, kind_of(name), own, mates), batch_of(own, mates)
    kept = batch.observed | (batch.weights == 0)
    np.testing.assert_array_equal(made.ids[kept], batch.ids[kept])
    assert (made.ids >= 0).all() and (made.ids < V).all()
    other = made_by(name, kind_of(name), own, others)
    np.testing.assert_array_equal(made.ids[1], other.ids[1])
    assert made.calls[1] == other.calls[1]

  check()
  assert (made_by(name, kind_of(name)).ids[0] != made_by(name, kind_of(name), mates=1).ids[0]).any()


@pytest.mark.parametrize("name", DECODERS)
def test_the_number_of_calls(name):
  """As many as the budget says; where the text decides, at least one token per call."""
  made = made_by(name, kind_of(name))
  want = CALLS.get(name)
  if want is not None:
    np.testing.assert_array_equal(made.calls[:3], want)
  elif name == "canvas":
    assert (made.calls <= 48).all()
  elif name == "edits":
    assert (made.calls[:3] <= 20 + 3 * 16).all()
  else:
    assert (made.calls[:3] <= 20 * made.per_step).all()
  assert (made.calls > 0).all() and (made.calls % made.per_step == 0).all()


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_not_its_neighbour(name):
  """Its tokens, its calls or what it reads are others."""
  near = DECODERS[name].near
  made, other = made_by(name, kind_of(name)), made_by(near, kind_of(name))
  assert near in DECODERS and near != name
  same = (made.ids == other.ids).all() and (made.calls == other.calls).all()
  assert not same or (made.layers != other.layers).any()


@pytest.mark.parametrize("name", ["fast_dllm_dual", "free_cache", "dllm_by_layer", "d2_cache"])
def test_padding_changes_nothing(name):
  """A row whose batch is wider by 5 tokens has the same text in the same calls."""
  experiment, params = experiment_of("masked")
  chosen, batch = decoding(name, "masked"), batch_of(7, 0)

  def wider(leaf, value):
    return np.pad(leaf, ((0, 0), (0, 5)), constant_values=value)

  wide = Batch(
    wider(batch.ids, 0),
    observed=wider(batch.observed, True),
    weights=wider(batch.weights, 0),
    segment=wider(batch.segment, 1),
  )
  how = {"reader": chosen.reader, "block": chosen.block}
  made = [
    sample(experiment.model, params, chosen.sampler, row_keys(0, 4), batch=each, **how)
    for each in (batch, wide)
  ]
  np.testing.assert_array_equal(made[1].ids[:, :L], made[0].ids)
  np.testing.assert_array_equal(made[1].row_calls, made[0].row_calls)


def test_caches_read_less():
  """Each reads fewer positions than the decoder that it speeds up."""
  names = ("fast_dllm_prefix", "fast_dllm_dual", "free_cache", "dkv_cache", "dllm_by_layer")
  for name in names:
    made = made_by(name, "masked")
    whole = made.calls * 2 * L
    assert (made.layers[:3] < whole[:3]).all(), name


def test_a_decoder_without_a_difference_would_be_noticed(monkeypatch):
  twin = dataclasses.replace(DECODERS["dream"], near="dream_again")
  monkeypatch.setitem(DECODERS, "dream_again", twin)
  monkeypatch.setitem(DECODERS, "dream", twin)
  with pytest.raises(AssertionError):
    test_a_decoder_is_not_its_neighbour("dream")


def test_the_list_has_a_line_for_each():
  lines = listed().splitlines()
  assert len(lines) == len(DECODERS) and all(len(line) < 110 for line in lines)
  assert isinstance(DECODERS["llada"], Decoder)


def test_what_is_unknown_or_missing_is_said():
  experiment, _ = experiment_of("masked")
  with pytest.raises(ValueError, match=r"fast_dlm is unknown; did you mean 'fast_dllm'"):
    decoding_of(experiment, decoder="fast_dlm")
  with pytest.raises(ValueError, match=r"edlm needs a second model.*--scorer=WORKDIR"):
    decoding_of(experiment, decoder="edlm")
  scorer = Other(WholeRow(), experiment.model, "scorer")
  with pytest.raises(ValueError, match=r"--scorer is read by --decoder=guided, edlm only"):
    decoding_of(experiment, decoder="dream", scorer=scorer)
  with pytest.raises(ValueError, match="choose one"):
    decoding_of(experiment, decoder="dream", order="margin")

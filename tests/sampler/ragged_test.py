"""An infill text alone and beside longer ones is the same text, by every sampler at every timing.

A row's schedule, keys and calls come from the row: a schedule that is stretched over the padding
of the batch moves text from call to call.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.contrib import CONTRIB
from diffusion_text.contrib.any_order import AnyOrder
from diffusion_text.contrib.context_bigrams import ContextBigrams
from diffusion_text.contrib.joint_layer import JointLayer
from diffusion_text.contrib.joint_sampler import Joint
from diffusion_text.contrib.predicted_times import GROUP, PredictedTimes, predictor
from diffusion_text.contrib.speculative import Speculative
from diffusion_text.contrib.unrolled import Redraw
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.data.prompts import infill_rows
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler import SAMPLERS
from diffusion_text.sampler.adaptive_correction import AdaptiveCorrection
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.guessed_times import GuessedTimes
from diffusion_text.sampler.look_ahead import LookAhead
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.sampler.remasking import Remasking
from diffusion_text.sampler.renoising import Renoising
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.revise import Remask
from diffusion_text.sampler.routed import Routed
from diffusion_text.sampler.self_correcting import SelfCorrecting
from diffusion_text.sampler.tau_leaping import TauLeaping
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import (
  TIMINGS,
  AtNoise,
  ByInformation,
  ByPosition,
  Converging,
  ExactCount,
  Hyperschedule,
  Independent,
  Learned,
  Poisson,
  Shared,
  Slanted,
  Tilted,
)
from diffusion_text.types import DataFacts, Model

V, LONGEST = 5, 11
MASKED, UNIFORM = Masked(vocab_size=V), Uniform(vocab_size=V)
MIXED = Mixed(vocab_size=V, mixing="epsilon", share=0.3)
VECTORS = Embedding(vocab_size=V, width=4)
TEXT = "a[5]bc"
TOGETHER = ["[6]cabca", TEXT, "e[4]"]
FACTS = DataFacts(LONGEST, V, lambda: np.arange(1, V + 1), lambda: np.arange(1, V + 1))

EACH = {
  "shared": Shared(),
  "independent": Independent(),
  "slanted": Slanted(spread=0.5),
  "tilted": Tilted(),
  "converging": Converging(levels=6),
  "wave": Hyperschedule(kind="wave", width=3),
  "hyperschedule": Hyperschedule(kind="blocks", width=2),
  "exact_count": ExactCount(),
  "at_noise": AtNoise(),
  "poisson": Poisson(levels=8),
  "by_information": ByInformation(),
  "learned": Learned(bins=4),
  "by_position": ByPosition(bins=4),
}
SAMPLED = {
  "grid": (MASKED, Grid(steps=4, skip=True, kappa=0.8)),
  "gaussian": (VECTORS, GaussianGrid(steps=4, projection="nearest")),
  "multistep": (VECTORS, Multistep(steps=4)),
  "tau_leaping": (UNIFORM, TauLeaping(steps=4, spacing="cosine")),
  "reveal": (MASKED, Reveal(revise=Remask(probability=0.3, calls=2))),
  "look_ahead": (MASKED, LookAhead(depth=2)),
  "remasking": (MASKED, Remasking(steps=4, strategy="conf", loop=(0.7, 0.2, 0.5))),
  "renoising": (UNIFORM, Renoising(steps=4, eta=0.3, loop=(0.7, 0.2, 0.5))),
  "routed": (MASKED, Routed(steps=4, rate="cosine", noise_scale=0.1)),
  "self_correcting": (UNIFORM, SelfCorrecting(steps=3, corrections=6, patience=3)),
  "adaptive_correction": (MIXED, AdaptiveCorrection(steps=4, eta=0.5)),
  "guessed_times": (VECTORS, GuessedTimes(steps=4)),
  "joint": (MASKED, Joint(steps=2)),
  # Two steps: with the random weights of these networks a step makes a rounding error a hundred to
  # a thousand times as large, so that after four steps tokens differ.
  "predicted_times": (VECTORS, PredictedTimes(steps=2)),
  "redraw": (Uniform(vocab_size=V, prediction="posterior"), Redraw(steps=3, share=0.5)),
  "speculative": (MASKED, Speculative(drafts=3), None, AnyOrder()),
  "context_bigrams": (MASKED, ContextBigrams(drafts=3), None, AnyOrder()),
}


@member
class Letters:
  """a to e are 0 to 4."""

  name = "letters"
  unknown = None

  def encode(self, text):
    """Their ids."""
    return np.array([ord(letter) - ord("a") for letter in text], np.int32)


@member
class AnyOf(Poisson):
  """The grid of one of all timings, chosen by a parameter: one program serves them all."""

  def init(self, key, facts):
    """Learned ones have learned something."""

    def moved(leaf):
      return leaf + np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32)

    each = {name: timing.init(key, facts) for name, timing in EACH.items()}
    return {"each": jax.tree.map(moved, each), "choice": jnp.int32(0)}

  def grid(self, params, clock, lengths, length):
    """Of the timing that is chosen."""
    grids = [
      timing.grid(params["each"][name], clock, lengths, length) for name, timing in EACH.items()
    ]
    return jnp.stack(grids)[params["choice"]]

  def token_times(self, params, ids, tau, counts):
    """Of the one timing that knows them."""
    return EACH["by_information"].token_times(params["each"]["by_information"], ids, tau, counts)


@member
class OverThePadding(AnyOf):
  """The schedule of a row is stretched over the width of its batch."""

  def grid(self, params, clock, lengths, length):
    """As if all rows were as long as the longest."""
    return super().grid(params, clock, jnp.full_like(lengths, length), length)


@functools.cache
def model_of(process, timing, context):
  """(a model whose network reads text, times and places, its parameters)."""
  network = small_transformer(
    layers=1,
    width=16,
    heads=2,
    mlp_width=16,
    time_conditioning="adaln",
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  params = {
    "network": noisy_parameters(network, scale=0.1),
    "process": process.init(jax.random.key(0), FACTS),
    "timing": timing.init(jax.random.key(1), FACTS),
    GROUP: noisy_parameters(predictor(network, 1), scale=0.1),
  }
  model = Model(network, process, timing, context)
  if process is MASKED:
    layer = JointLayer().init(model, jax.random.key(2), FACTS)
    params |= jax.tree.map(
      lambda leaf: leaf + jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), layer
    )
  return model, params


def infilled(model, params, sampler, texts, of):
  """[(ids, committed, calls)] of each of the texts, some of those in `of`, at every timing."""
  batch = infill_rows(Letters(), texts)
  keys = row_keys(0, 3)[np.array([of.index(text) for text in texts])]
  found = []
  for choice in range(len(EACH)):
    timing = {**params["timing"], "choice": jnp.int32(choice)}
    result = sample(model, {**params, "timing": timing}, sampler, keys, batch=batch)
    found.append([np.asarray(x) for x in (result.ids, result.committed, result.row_calls)])
  return found


def check_alone(process, sampler, timing=None, context=None, texts=TOGETHER):
  """A text beside others is the text alone, in tokens, in the calls that drew them, in their
  number."""
  model, params = model_of(process, timing or AnyOf(), context or Full())
  sampler.check(model)
  together = infilled(model, params, sampler, texts, texts)
  alone = infilled(model, params, sampler, texts[1:2], texts)
  size, row = alone[0][0].shape[1], 1
  assert size < LONGEST == together[0][0].shape[1]
  for name, (ids, committed, calls), mine in zip(EACH, together, alone, strict=True):
    np.testing.assert_array_equal(ids[row, :size], mine[0][0], f"tokens, timing {name}")
    np.testing.assert_array_equal(committed[row, :size], mine[1][0], f"calls, timing {name}")
    assert calls[row] == mine[2][0], f"number of calls, timing {name}"


def test_nobody_is_left_out():
  assert set(TIMINGS) == set(EACH) - {"wave"}
  # The wavefront asks a network of its own: recurrent_depth_test holds it to the same law.
  assert set(SAMPLED) == (set(SAMPLERS) | set(CONTRIB["sampler"])) - {"wavefront"}


@pytest.mark.parametrize("name", SAMPLED)
def test_an_infill_does_not_depend_on_its_neighbours(name):
  check_alone(*SAMPLED[name])


def test_nor_does_it_in_blocks():
  """Which count from the start of the row; the last one of the text is half padding."""
  texts = ["abcabcabc[1]d", "a[1]b[4]", "e[4]"]
  check_alone(*SAMPLED["grid"], context=Blocks(size=3), texts=texts)


@pytest.mark.parametrize("name", ["grid", "gaussian"])
def test_a_schedule_over_the_padding_would_be_noticed(name):
  with pytest.raises(AssertionError, match=r"timing (slanted|wave)"):
    check_alone(*SAMPLED[name], timing=OverThePadding())

"""Independent times that are sampled along a slope (Diffusion Forcing), one row per process: the
language comes back, and a causal network writes on past the length of any row.
"""

import jax
import numpy as np
import pytest

from diffusion_text.context import Causal, Full
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import Independent, Shared
from diffusion_text.types import DataFacts, Model

V = 3
TOY = Enumerable.dirichlet(0, 0.5, V, 4)
SLOPE = Independent(width=3)
MASKED = Masked(vocab_size=V)
PROCESSES = {  # and their samplers
  "masked": (MASKED, Grid),
  "uniform": (Uniform(vocab_size=V), Grid),
  "mixed": (Mixed(vocab_size=V), Grid),
  "embedding": (Embedding(vocab_size=V, width=4), GaussianGrid),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


def samples_of(process, sampler, timing, context=None, rows=2000):
  """Histogram of TOY's sequences, of an exact network."""
  model, params = exact_model(process, TOY, timing=timing, context=context)
  sampler.check(model)
  return TOY.histogram(
    np.asarray(sample(model, params, sampler, jax.random.key(0), rows=rows, length=4).ids)
  )


@every_process
def test_the_language_comes_back_along_a_slope(name):
  process, kind = PROCESSES[name]
  law = TOY.probabilities
  floor = 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * 2000)).sum() * 1.25
  assert TOY.total_variation(samples_of(process, kind(steps=96), SLOPE)) < floor + 0.03


def test_a_causal_network_is_exact_where_tokens_fall_one_by_one():
  """And far off where all fall together, as none sees what stands on its right."""
  law = TOY.probabilities
  floor = 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * 2000)).sum() * 1.25
  one_by_one = samples_of(MASKED, Grid(steps=8), Independent(width=1), Causal())
  together = samples_of(MASKED, Grid(steps=8), Independent(), Causal())
  assert TOY.total_variation(one_by_one) < floor < 0.5 * TOY.total_variation(together)


def first_tokens(process, kind, timing, context):
  """(tokens of rows of 4, the first 4 of rows of 9), at the same steps per token."""
  network = small_transformer(
    layers=1,
    width=16,
    heads=2,
    mlp_width=16,
    time_conditioning="adaln",
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  facts = DataFacts(4, V, lambda: np.arange(1, V + 1), lambda: np.arange(1, V + 1))
  params = {
    "network": noisy_parameters(network, scale=0.2),
    "process": process.init(jax.random.key(0), facts),
    "timing": timing.init(jax.random.key(1), facts),
  }
  model = Model(network, process, timing, context)
  found = []
  for length in (4, 9):
    sampler = kind(steps=2 * (3 + length - 1))
    result = sample(model, params, sampler, jax.random.key(2), rows=16, length=length)
    found.append(np.asarray(result.ids)[:, :4])
  return found


@every_process
def test_a_longer_row_goes_on_where_a_shorter_one_ends(name):
  """Rows beyond the length of training: what was written does not depend on what follows."""
  short, long = first_tokens(*PROCESSES[name], SLOPE, Causal())
  np.testing.assert_array_equal(short, long)
  assert len(np.unique(short, axis=0)) > 4


@pytest.mark.parametrize(
  "timing,context", [(SLOPE, Full()), (Shared(), Causal())], ids=["sees ahead", "no slope"]
)
def test_it_takes_a_slope_and_a_causal_network(timing, context):
  short, long = first_tokens(MASKED, Grid, timing, context)
  assert (short != long).any()

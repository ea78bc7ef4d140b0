"""The next token beside diffusion in blocks: the clean copy by itself, the loss written out, what
is refused, and samples through a cache."""

import dataclasses

import jax
import numpy as np
import pytest

import diffusion_text as dt
from diffusion_text.context import Blocks, Full
from diffusion_text.contrib.next_token_beside import WithNextToken, clean_copy
from diffusion_text.core.prng import stream
from diffusion_text.objective import CrossEntropy, engine
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress, Span

V, B, L = 11, 2, 12
NETWORK = small_transformer(
  window=5, full_layers=(1,), input_sizes=InputSizes(V), output_size=V, tie_embeddings=True
)
PARAMS = {"network": noisy_parameters(NETWORK), "process": {}, "timing": {}}
PROCESS = Uniform(vocab_size=V, prediction="posterior")
MODEL = Model(NETWORK, PROCESS, Shared(), Blocks(size=4, clean="causal"), chunk=8)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, V, (B, L)).astype(np.int32)
# Of the second row: two documents and padding, whose weight is 0.
SEGMENT = np.array([[0] * L, [1] * 5 + [2] * 4 + [0] * 3], np.int32)
WEIGHTS = np.float32([[1] * L, [1] * 9 + [0] * 3])
PROMPT = np.arange(L)[None] < np.array([[3], [0]])  # of the first row
BATCH = Batch(IDS, weights=WEIGHTS, segment=SEGMENT, observed=PROMPT)
SCORED = np.where(PROMPT, 0, WEIGHTS)


@pytest.fixture(scope="module")
def found():
  """(loss, the loss without next tokens, rows, answers of both copies, answers of the clean copy by
  itself), of one draw."""

  @jax.jit
  def run(params, key):
    times = engine.draw_times(MODEL, params, stream(key, "times"), BATCH, Progress())
    args = (MODEL, params, key, BATCH, times, Progress())
    loss, plain = WithNextToken(next_token=0.5)(*args)[0], CrossEntropy()(*args)[0]
    rows = engine.read(*args).rows
    both = NETWORK.apply(params["network"], dataclasses.replace(rows, answers=Span(0, 2 * L)))
    alone = NETWORK.apply(params["network"], clean_copy(rows))
    return loss, plain, both.logits, alone.logits

  return run(PARAMS, jax.random.key(3))


def test_the_clean_copy_by_itself_is_that_of_both(found):
  """It sees no noisy token, and windows count from the same positions."""
  _, _, both, alone = found
  np.testing.assert_allclose(alone, both[:, L:], atol=2e-5)
  assert np.abs(np.asarray(alone) - both[:, :L]).max() > 0.1


def next_token_cost(logits):
  """Σ weight · -log p(token i + 1 | tokens up to i) within documents, in float64; none of a
  prompt."""
  total = 0.0
  for row in range(B):
    for i in range(L - 1):
      if SEGMENT[row, i] == SEGMENT[row, i + 1]:
        scores = np.float64(logits[row, i])
        log_p = scores - np.log(np.exp(scores).sum())
        total -= SCORED[row, i + 1] * log_p[IDS[row, i + 1]]
  return total


def test_the_loss_is_that_of_the_formula(found):
  """Half of the next tokens' cost beside the cross-entropy, and what is reported; with the noisy
  copy's answers in place of the clean one's it is another."""
  loss, plain, both, alone = found
  cost = next_token_cost(alone)
  np.testing.assert_allclose(loss.total, plain.total + 0.5 * cost, rtol=1e-5)
  np.testing.assert_allclose(loss.sums["next_token"], cost, rtol=1e-5)
  np.testing.assert_allclose(loss.sums["bound"], plain.sums["bound"], rtol=1e-5)
  assert loss.count == plain.count == SCORED.sum()
  assert abs(next_token_cost(both[:, :L]) - cost) > 0.05


@pytest.mark.parametrize(
  "change,match",
  [
    ({"context": Full()}, "needs clean, which Full does not offer; use context.name='blocks'"),
    ({"context": Blocks(size=4)}, "context.clean='blocks', in which a clean token sees the one"),
  ],
)
def test_what_does_not_fit_is_refused(change, match):
  with pytest.raises(ValueError, match=match):
    WithNextToken().check(MODEL._replace(**change))


def test_samples_through_a_cache_are_those_of_whole_rows():
  """Canvas by canvas by the decoder of DiffusionGemma: every finished canvas is written once more,
  as the causal text that later ones see. Prompts end before, at and within canvases."""
  from diffusion_text.experiment.registry import construct

  section = {"name": "reveal", "score": "entropy", "temperature": 0.8, "cooling": (0.4, 8)}
  section |= {"budget": {"name": "entropy_bound", "gamma": 0.1}, "revise": "reselect"}
  sampler = construct("sampler", section)

  def text(model, reader):
    options = {"batch": Batch(ids, observed=prompt), "reader": reader}
    return np.asarray(dt.sample(model, PARAMS, sampler, jax.random.key(0), **options).ids)

  ids = RANDOM.integers(0, V, (3, L)).astype(np.int32)
  prompt = np.arange(L)[None] < np.array([[0], [4], [6]])
  whole, cached = (text(MODEL, reader) for reader in (WholeRow(), Cached()))
  np.testing.assert_array_equal(whole, cached)
  assert len(np.unique(whole[~prompt])) > 4 and (whole == ids)[prompt].all()

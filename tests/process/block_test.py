"""Block diffusion with exact denoisers: the bound of every block size is the entropy; blocks of one token are the exact likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.objective.bound import Bound, Chunks
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.ancestral import Ancestral, EventDriven
from diffusion_text.sampler.block import WholeRow, sample_blocks
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.discrete import Linear
from diffusion_text.testing.oracle import MarkovChain, exact_prediction, masked_evidence
from diffusion_text.timing import LeftToRight, PerBlock, Shared
from diffusion_text.types import Batch, Inputs, Progress

LENGTH, VOCAB = 12, 5
CHAIN = MarkovChain.branchy(2, vocab_size=VOCAB, length=LENGTH)
PROCESS = Masked(VOCAB, Linear())


def posterior(ids):
  return CHAIN.posterior(masked_evidence(ids, VOCAB))


def exact_blocks(inputs, t, layout):
  """The exact answer to a row under any block layout: each query's evidence is what the layout lets it see, nothing else."""
  from diffusion_text.kernels.layout import visible

  length = inputs.ids.shape[1]
  sees = (
    np.asarray(visible(layout, layout))
    if not isinstance(layout.block, jax.core.Tracer)
    else visible(layout, layout)
  )
  sees = jnp.broadcast_to(sees, (inputs.ids.shape[0], length, length))
  place = jnp.arange(length) % LENGTH if inputs.position is None else inputs.position[0]

  def of_query(query):
    seen = jnp.where(sees[:, query], inputs.ids, VOCAB)
    row = jnp.full((inputs.ids.shape[0], LENGTH), VOCAB)
    for copy in range(
      length // LENGTH
    ):  # the noisy and the clean copy of a token: whichever is known
      part = seen[:, copy * LENGTH : (copy + 1) * LENGTH]
      row = jnp.where(part < VOCAB, part, row)
    return jnp.take_along_axis(
      posterior(row), place[query][None, None, None].repeat(row.shape[0], 0), axis=1
    )[:, 0]

  return exact_prediction(jnp.swapaxes(jax.lax.map(of_query, jnp.arange(length)), 0, 1))


def exact_shifted(inputs, t, layout):
  """The exact answer of a causal network that reads the row shifted by one."""

  def of_query(query):
    before = jnp.where(jnp.arange(LENGTH) < query, jnp.roll(inputs.ids, -1, axis=1), VOCAB)
    return posterior(before)[:, query]

  return exact_prediction(jnp.stack([of_query(query) for query in range(LENGTH)], axis=1))


@pytest.mark.parametrize("size", [1, 2, 4, LENGTH])
def test_the_bound_of_every_block_size_is_the_entropy(size):
  rows = 12_000
  ids = jnp.asarray(CHAIN.sample(np.random.default_rng(0), rows))
  bound = Bound(PROCESS, PerBlock(size).scoring(), Chunks(8192))
  nats = np.asarray(
    jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), exact_blocks).sum(1))(
      jax.random.key(1)
    )
  )
  error = nats.std() / rows**0.5
  assert error < 0.015 * CHAIN.entropy
  assert abs(nats.mean() - CHAIN.entropy) < 3 * error


def test_documents_that_begin_within_a_block():
  """Packed rows: two independent halves, cut where no block ends. The bound is the entropy of both, and no lower."""
  half = MarkovChain.branchy(5, vocab_size=VOCAB, length=LENGTH // 2)
  rows = 12_000
  ids = np.concatenate([half.sample(np.random.default_rng(seed), rows) for seed in (0, 1)], axis=1)
  segment = jnp.broadcast_to(jnp.arange(LENGTH) // (LENGTH // 2), ids.shape)

  def predict(inputs, t, layout):
    from diffusion_text.kernels.layout import visible

    sees = jnp.broadcast_to(visible(layout, layout), (rows, 2 * LENGTH, 2 * LENGTH))

    def of_query(query):
      seen = jnp.where(sees[:, query], inputs.ids, VOCAB)
      row = jnp.minimum(seen[:, :LENGTH], seen[:, LENGTH:]).reshape(
        rows, 2, LENGTH // 2
      )  # the mask has the largest id
      mine = jnp.where(query % LENGTH < LENGTH // 2, row[:, 0], row[:, 1])
      logits = half.posterior(masked_evidence(mine, VOCAB))
      return jax.lax.dynamic_index_in_dim(logits, query % (LENGTH // 2), axis=1, keepdims=False)

    return exact_prediction(jnp.swapaxes(jax.lax.map(of_query, jnp.arange(2 * LENGTH)), 0, 1))

  batch = Batch(jnp.asarray(ids), segment=segment)
  nats = np.asarray(
    jax.jit(
      lambda key: Bound(PROCESS, PerBlock(4)).nats({}, key, batch, Progress(), predict).sum(1)
    )(jax.random.key(1))
  )
  assert abs(nats.mean() - 2 * half.entropy) < 3 * nats.std() / rows**0.5


@pytest.mark.parametrize(
  "timing,predict",
  [(PerBlock(1), exact_blocks), (LeftToRight(), exact_shifted)],
  ids=["blocks of 1", "one pass"],
)
def test_blocks_of_one_token_are_the_exact_likelihood_of_every_row(timing, predict):
  ids = CHAIN.sample(np.random.default_rng(1), 50)
  bound = Bound(PROCESS, timing.scoring())
  cost = jax.jit(
    lambda key: bound.nats({}, key, Batch(jnp.asarray(ids)), Progress(), predict).sum(1)
  )
  for seed in (0, 1):
    nats = cost(jax.random.key(seed))
    np.testing.assert_allclose(nats, -CHAIN.log_likelihood(ids), rtol=2e-5)


def test_a_leaking_mask_would_be_noticed():
  """`<=` for `<`: a noisy block that sees its own clean copy makes the bound look wonderful, and the test above fail."""

  def leaking(inputs, t, layout):
    clean = inputs.ids[:, LENGTH:]
    return exact_prediction(jnp.concatenate([posterior(clean), posterior(clean)], axis=1))

  ids = jnp.asarray(CHAIN.sample(np.random.default_rng(0), 500))
  nats = jax.jit(
    lambda key: Bound(PROCESS, PerBlock(4)).nats({}, key, Batch(ids), Progress(), leaking).sum(1)
  )(jax.random.key(1))
  assert float(nats.mean()) < 0.1 * CHAIN.entropy


@pytest.mark.parametrize("size", [1, 3, 4])
def test_block_times_and_layout(size):
  times = PerBlock(size, 0.3, 0.8).draw(
    jax.random.key(0), Batch(jnp.zeros((64, LENGTH), jnp.int32)), Progress()
  )
  t = np.asarray(times.t).reshape(64, -1, size)
  assert (t == t[:, :, :1]).all()
  if size == 1:
    assert (t == 1).all()
  else:
    assert t.min() >= 0.3 and t.max() <= 0.8
    spread = np.sort(t[:, :, 0].reshape(-1))
    np.testing.assert_allclose(np.diff(spread), 0.5 / spread.size, atol=1e-5)
  assert times.layout.noisy.shape == (1, 2 * LENGTH)
  assert PerBlock(size, 0.3, 0.8).scoring() == PerBlock(size)


def noise_free(policy):
  return WholeRow(
    PerBlock(4).denoiser(exact_blocks, None, None), Inputs(jnp.full((1, LENGTH), VOCAB))
  )


@pytest.mark.parametrize(
  "policy", [Ancestral(Shared(), 32), EventDriven(Shared(), 32)], ids=lambda p: type(p).__name__
)
def test_block_sampler_reproduces_the_chain(policy):
  """Likelihood under the truth, and the bigram law, of text drawn block by block."""
  rows = 600
  batch = Batch(jnp.zeros((rows, LENGTH), jnp.int32))
  keys = token_keys(row_keys(0, rows), LENGTH)
  ids = np.asarray(
    jax.jit(
      lambda keys: sample_blocks(policy, PROCESS, {}, noise_free(policy), keys, batch, 4).ids
    )(keys)
  )
  nll = -CHAIN.log_likelihood(ids)
  # Steps reveal neighbours together now and then: an impossible pair is rare at 32 steps, and excluded from the mean.
  assert np.isfinite(nll).mean() > 0.93
  nll = nll[np.isfinite(nll)]
  assert abs(nll.mean() - CHAIN.entropy) < 4 * nll.std() / len(nll) ** 0.5 + 0.1


def test_the_grid_of_blocks_in_the_one_loop():
  """The same timing without a block sampler: the loop walks PerBlock's grid and draws block after block."""
  batch = Batch(jnp.zeros((40, LENGTH), jnp.int32))
  timing = PerBlock(4)
  denoise = timing.denoiser(exact_blocks, None, None)
  keys = token_keys(row_keys(0, 40), LENGTH)
  result = jax.jit(lambda keys: sample(Ancestral(timing, 24), PROCESS, {}, denoise, keys, batch))(
    keys
  )
  committed = np.asarray(result.committed).reshape(40, 3, 4)
  assert (
    (committed >= 8 * np.arange(3)[:, None]) & (committed < 8 * (np.arange(3)[:, None] + 1))
  ).all()
  assert int(result.ids.max()) < VOCAB


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="block_size=5 must divide length=12; use a length of 10"):
    PerBlock(5).draw(jax.random.key(0), Batch(jnp.zeros((2, 12), jnp.int32)), Progress())
  with pytest.raises(ValueError, match="block_size=0"):
    PerBlock(0)
  with pytest.raises(ValueError, match=r"low=0\.8"):
    PerBlock(4, 0.8, 0.2)
  with pytest.raises(ValueError, match=r"steps=4 .* use 6"):
    PerBlock(4).grid(4, 12)

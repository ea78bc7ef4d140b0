"""What blocks cost: the bound of every size, documents that meet within a block, and one token at a
time.
"""

import functools

import jax
import numpy as np
import pytest

from diffusion_text.context import Blocks, NextToken
from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.check_context import check_context
from diffusion_text.testing.exact_model import exact_model, excess_of_bound
from diffusion_text.testing.languages import Enumerable, MarkovChain
from diffusion_text.testing.properties import expect_mean
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, Progress
from tests.context.broken_blocks import SeesItsOwnCleanBlock, SegmentForgotten

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)
ODD = Enumerable.dirichlet(3, 0.5, 3, 3)  # two documents of it meet within a block of two
CHAIN = MarkovChain.branchy(2, vocab_size=5, length=12)


@pytest.mark.parametrize("size", [1, 4])
def test_the_bound_of_every_size_is_the_entropy(size):
  """Of one token and of the whole row; that of 2 is among all contexts in rows_test.py."""
  check_context(Blocks(size=size), only=("bound",), rows=1024, draws=16)


def check_documents(context):
  """Two documents in a row cost what both cost apart, though the second begins within a block."""
  model, params = exact_model(Masked(3), ODD, timing=Shared(), context=context)
  found = excess_of_bound(model, params, ODD, rows=1024, draws=16, documents=2)
  expect_mean(found, 0.0, "bound of two documents less their -log p", 0.1 * ODD.entropy)


def test_documents_may_begin_within_a_block():
  check_documents(Blocks(size=2))


def test_documents_that_see_each_other_are_noticed():
  with pytest.raises(AssertionError):
    check_documents(SegmentForgotten(size=2))


@functools.partial(jax.jit, static_argnums=0)
def nats_of_rows(model, params, key, batch):
  return engine.nats(model, params, key, batch, Progress()).sum(1)


def nats(context, timing, ids, seed=0):
  """[B] nats of one draw, in the chain."""
  shift = 0 if context.reads_noisy else 1
  model, params = exact_model(
    Masked(CHAIN.vocab_size), CHAIN, timing=timing, context=context, answer_shift=shift
  )
  return np.asarray(nats_of_rows(model, params, jax.random.key(seed), Batch(ids)))


@pytest.mark.parametrize("context", [Blocks(size=1), NextToken()], ids=["blocks of 1", "one pass"])
def test_one_token_at_a_time_costs_the_exact_likelihood_of_every_row(context):
  """Whatever is drawn, and with either layout: the same numbers, row by row."""
  ids = CHAIN.sample(np.random.default_rng(1), 50)
  for seed in (0, 1):
    found = nats(context, AtNoise(), ids, seed)
    np.testing.assert_allclose(found, -CHAIN.log_likelihood(ids), rtol=2e-5)


def test_larger_blocks_are_no_likelihood_of_a_row():
  """The bound is right on average only, so the test above can fail."""
  ids = CHAIN.sample(np.random.default_rng(1), 50)
  miss = nats(Blocks(size=4), Shared(), ids) + CHAIN.log_likelihood(ids)
  assert np.abs(miss).min() > 1e-3


def test_a_leaking_mask_makes_the_bound_look_wonderful():
  """A noisy block that sees its own clean copy costs next to nothing, and the check says so."""
  ids = CHAIN.sample(np.random.default_rng(0), 100)
  leaking = SeesItsOwnCleanBlock(size=4)
  assert nats(leaking, Shared(), ids).mean() < 0.1 * CHAIN.entropy
  with pytest.raises(AssertionError, match="bound"):
    check_context(leaking, only=("bound",), rows=256, draws=4, largest_error=1.0)


@pytest.mark.parametrize("size,fix", [(5, "4, or rows of 15"), (8, "6, or rows of 16")])
def test_sizes_that_do_not_divide_the_row_are_refused(size, fix):
  ids = CHAIN.sample(np.random.default_rng(0), 2)
  match = f"size={size} must divide the 12 positions of a row; use {fix}"
  with pytest.raises(ValueError, match=match):
    nats(Blocks(size=size), Shared(), ids)

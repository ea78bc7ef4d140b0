"""Frames: what a watcher sees is what the loop does."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_text as dt
from diffusion_text.context import Blocks
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.budget import Count
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.testing import Enumerable, exact_model
from diffusion_text.types import Batch

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
KEYS = row_keys(0, 2)
OBSERVED = np.array([[True, False, False, False], [True, True, False, False]])
BATCH = Batch(jnp.array([[1, 0, 0, 0], [0, 2, 0, 0]]), observed=jnp.asarray(OBSERVED))


def frames(process, **context):
  """(the frames, the sample)."""
  model, params = exact_model(process, TOY, **context)
  found = []
  steps = dt.stream(model, params, Reveal(budget=Count()), KEYS, batch=BATCH)
  while True:
    try:
      found.append(next(steps))
    except StopIteration as stop:
      return found, stop.value, sample(model, params, Reveal(budget=Count()), KEYS, batch=BATCH)


@pytest.mark.parametrize("process", [Masked(3), Uniform(3)], ids=str)
@pytest.mark.parametrize("context", [{}, {"context": Blocks(size=2)}], ids=["full", "blocks"])
def test_one_token_less_is_open_after_each_read(process, context):
  found, made, want = frames(process, **context)
  np.testing.assert_array_equal(made.ids, want.ids)
  np.testing.assert_array_equal(found[0].open, ~OBSERVED)
  for before, after in itertools.pairwise(found):
    closed = np.asarray(before.open) & ~np.asarray(after.open)
    reads = np.asarray(after.reads) - np.asarray(before.reads)
    np.testing.assert_array_equal(closed.sum(1), reads)
    kept = ~np.asarray(before.open)
    np.testing.assert_array_equal(np.asarray(after.ids)[kept], np.asarray(before.ids)[kept])
  assert not np.asarray(found[-1].open).any()
  np.testing.assert_array_equal(found[-1].ids, made.ids)
  np.testing.assert_array_equal(found[0].ids[0, 0], 1)

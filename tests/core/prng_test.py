"""Keys: one implementation whatever JAX's default is, and seeds that are used whole or refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import (
  draw_uniform,
  make_key,
  numbered_keys,
  position_keys,
  row_keys,
  token_keys,
  wrap_keys,
)
from diffusion_text.train import named_key


@pytest.fixture(params=["rbg", "unsafe_rbg"])
def other_default(request):
  """JAX with another implementation as its default."""
  before = jax.config.jax_default_prng_impl
  jax.config.update("jax_default_prng_impl", request.param)
  yield request.param
  jax.config.update("jax_default_prng_impl", before)


def _draws(keys):
  return np.asarray(draw_uniform(token_keys(keys, 3)))


def test_draws_do_not_depend_on_the_default_implementation(other_default):
  found = _draws(row_keys(5, 4))
  named = jax.random.key_data(named_key(5, "loss", 2))
  jax.config.update("jax_default_prng_impl", "threefry2x32")
  np.testing.assert_array_equal(found, _draws(row_keys(5, 4)))
  np.testing.assert_array_equal(named, jax.random.key_data(named_key(5, "loss", 2)))


def test_keys_under_which_a_row_depends_on_its_neighbours_are_refused(other_default):
  """The reason: under such keys a mapped draw is another one in another batch."""
  keys = jax.random.split(jax.random.key(0), 4)
  alone = draw_uniform(keys[2:3])[0]
  assert draw_uniform(keys)[2] != alone, "the refusal would have no reason"
  with pytest.raises(ValueError, match=f"implementation '{other_default}'.*threefry2x32"):
    token_keys(keys, 3)
  with pytest.raises(ValueError, match=f"implementation '{other_default}'"):
    jax.jit(position_keys, static_argnums=(1, 2))(jax.random.key(0), 2, 3)


def test_a_seed_is_used_whole_or_refused():
  """JAX drops what is beyond 32 bits, so that 2**32 + 1 would be seed 1."""
  data = jax.random.key_data
  np.testing.assert_array_equal(data(make_key(2**32 - 1)), data(jax.random.key(2**32 - 1)))
  assert (data(make_key(2**31)) != data(make_key(0))).any()
  for seed in (2**32, 2**32 + 1, -1, True):
    with pytest.raises(ValueError, match=r"seed=.* must be an integer in 0 … 2\*\*32 - 1"):
      make_key(seed)
  with pytest.raises(ValueError, match="seed=4294967297"):
    named_key(2**32 + 1, "init", 0)


def test_a_row_has_its_key_in_every_batch():
  together = jax.random.key_data(row_keys(3, 6))
  apart = jax.random.key_data(numbered_keys(3, jnp.array([4, 1])))
  np.testing.assert_array_equal(apart, together[jnp.array([4, 1])])


# Keys for timings and for shapes, whose draws reach no text and no loss.
UNPINNED = {"studies/speed.py", "studies/benchmark.py", "studies/benchmark_kernels.py"}
UNPINNED |= {"studies/scaling.py", "compiler/topology.py", "core/prng.py"}


def test_the_package_makes_keys_in_one_place(root):
  """By `make_key` and `wrap_keys`, so that no default of JAX's reaches a run."""
  package = root / "diffusion_text"
  makes = re.compile(r"random\.(key|PRNGKey|wrap_key_data)\(")
  found = {
    str(path.relative_to(package))
    for path in package.rglob("*.py")
    if makes.search(path.read_text())
  }
  assert {path for path in found if not path.startswith("testing/")} <= UNPINNED
  keys = row_keys(0, 2)
  assert (wrap_keys(jax.random.key_data(keys)) == keys).all()

"""The cache with slots: what is extended equals the uncached row, wherever its tokens are kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.kernels import layout as layouts
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, Layout, Span

B, L, SIZE, SLOTS = 2, 12, 4, 15
RANDOM = np.random.default_rng(1)
CLEAN = RANDOM.integers(0, 11, (B, L)).astype(np.int32)
NOISY = np.where(RANDOM.uniform(size=(B, L)) < 0.5, 11, CLEAN).astype(np.int32)
T = RANDOM.uniform(0.1, 1, (B, L)).astype(np.float32) * (CLEAN != NOISY)
MEMORY = RANDOM.normal(size=(B, L, 32)).astype(np.float32)
# Where each place of each row is kept: any order does, and some slots stay empty.
SLOT = np.stack([RANDOM.permutation(SLOTS)[:L] for _ in range(B)]).astype(np.int32)
PLACE = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
# The second row ends after 10 tokens.
SEGMENT = np.where(np.array([[L], [10]]) > PLACE, 0, 1).astype(np.int32)

NETWORKS = {
  "plain": {},
  "grouped": {"kv_heads": 1, "qk_norm": True, "scan_layers": True},
  "two stages": {"time_conditioning": "adaln", "first_stage_layers": 1},
  "windows": {"window": 4, "full_layers": (1,), "scan_layers": True},
  "memory": {"time_conditioning": "layerwise", "self_conditioning": "add", "estimate_size": 5},
}


@functools.partial(jax.jit, static_argnums=0)
def whole(network, params, ids, t, layout, position, memory=None):
  rows = rows_of(Inputs(ids, position=position), t, layout)
  rows = dataclasses.replace(rows, tokens=Span(0, L), answers=Span(0, L))
  return network.apply(params, rows, memory=memory).features


@functools.partial(jax.jit, static_argnums=0)
def extend(network, params, cache, ids, t, layout, position, slots, memory=None):
  rows = rows_of(Inputs(ids, position=position), t, layout)
  prediction, cache = network.extend(params, rows, cache, slots, memory=memory)
  return prediction.features, cache


def empty(network, params, slots=SLOTS):
  return network.cache(params, rows_of(Inputs(CLEAN)), slots)


def in_blocks(network, params, cache, slot=SLOT):
  """[B, L, D]: block by block, its noisy tokens, and then its clean ones in the same slots."""
  with_memory = network.self_conditioning != "none"
  answers = []
  for start in range(0, L, SIZE):
    here = slice(start, start + SIZE)
    block = np.full((B, SIZE), start // SIZE, np.int32)
    noisy = Layout(SEGMENT[:, here], block, np.ones_like(block))
    clean = dataclasses.replace(noisy, noisy=np.zeros_like(block))
    where = (PLACE[:, here], slot[:, here])
    memory = MEMORY[:, here] if with_memory else None
    args = (NOISY[:, here], T[:, here], noisy)
    features, cache = extend(network, params, cache, *args, *where, memory)
    answers.append(features)
    args = (CLEAN[:, here], 0 * T[:, here], clean)
    _, cache = extend(network, params, cache, *args, *where, memory)
  return np.concatenate(answers, axis=1), cache


def uncached_blocks(network, params):
  """The same of one row: noisy tokens, and then clean ones."""

  def twice(x):
    return np.concatenate([x, x], axis=1)

  noisy = np.repeat(np.array([[1, 0]], np.int32), L, axis=1)
  layout = Layout(twice(SEGMENT), twice(PLACE // SIZE), noisy)
  ids = np.concatenate([NOISY, CLEAN], axis=1)
  t = np.concatenate([T, 0 * T], axis=1)
  memory = MEMORY if network.self_conditioning != "none" else None
  return whole(network, params, ids, t, layout, twice(PLACE), memory)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_equal_the_uncached_row(name):
  """Noisy tokens of each block see finished blocks, and finished blocks replace noisy ones."""
  network = small_transformer(**NETWORKS[name])
  params = noisy_parameters(network)
  expected = uncached_blocks(network, params)
  features, cache = in_blocks(network, params, empty(network, params))
  np.testing.assert_allclose(features, expected, atol=1e-4)
  written = np.zeros((B, SLOTS), bool)
  np.put_along_axis(written, SLOT, True, axis=1)
  np.testing.assert_array_equal(cache.written, written)
  if name == "plain":
    # Mutants: slots that nobody wrote are seen, or tokens of one block lie on those of another.
    seen = dataclasses.replace(empty(network, params), segment=np.zeros((B, SLOTS), np.int32))
    clash = np.maximum(SLOT, SLOT[:, :1])
    for cache, slot in ((seen, SLOT), (empty(network, params), clash)):
      broken = in_blocks(network, params, cache, slot)[0]
      assert np.abs(broken - expected).max() > 1e-2
  if name == "windows":
    for mutant in (network.like(window=5), network.like(full_layers=())):
      assert np.abs(uncached_blocks(mutant, params) - expected).max() > 1e-2
  if name == "memory":
    plain = network.like(self_conditioning="none", estimate_size=0)
    fewer = {group: leaves for group, leaves in params.items() if group != "recall"}
    forgotten = in_blocks(plain, fewer, cache)[0]
    assert np.abs(forgotten - expected).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_first_values_are_those_that_the_first_layer_keeps(name):
  """Whoever is near: they depend on the token, its time and its memory."""
  network = small_transformer(**NETWORKS[name])
  params = noisy_parameters(network)
  memory = MEMORY if network.self_conditioning != "none" else None
  args = (NOISY, T, layouts.materialise(Layout(), L), PLACE, PLACE)
  _, cache = extend(network, params, empty(network, params, L), *args, memory)
  rows = rows_of(Inputs(NOISY, position=PLACE), T)
  found = jax.jit(network.first_values)(params, rows, memory=memory)
  np.testing.assert_allclose(found, np.swapaxes(cache.values[0], 1, 2).reshape(B, L, -1), atol=1e-5)
  other = jax.jit(network.first_values)(params, rows_of(Inputs(CLEAN, position=PLACE), T))
  changed = np.abs(found - other).max(axis=-1) > 1e-6
  assert (changed == (NOISY != CLEAN)).all() or memory is not None


def test_left_to_right_equals_the_uncached_row():
  """One token at a time, each of which sees those before it."""
  network = small_transformer()
  params = noisy_parameters(network)
  layout = Layout(SEGMENT, PLACE, 0 * PLACE)
  expected = whole(network, params, CLEAN, 0 * T, layout, PLACE)
  cache, answers = empty(network, params), []
  for place in range(L):
    here = slice(place, place + 1)
    own = jax.tree.map(lambda field, here=here: field[:, here], layout)
    args = (CLEAN[:, here], 0 * T[:, here], own, PLACE[:, here], SLOT[:, here])
    features, cache = extend(network, params, cache, *args)
    answers.append(features)
  np.testing.assert_allclose(np.concatenate(answers, axis=1), expected, atol=1e-4)


def test_some_tokens_of_a_bidirectional_row_are_written_again():
  """In one layer, whose keys do not depend on other tokens, the rewritten row is read as a new one.

  A layout without fields is a row in which all see all; slots beyond the last are not written.
  """
  network = small_transformer(layers=1)
  params = noisy_parameters(network)
  _, cache = extend(network, params, empty(network, params), CLEAN, 0 * T, Layout(), PLACE, SLOT)
  change = np.array([[1, 5, 6, 11], [0, 2, 3, 4]])

  def take(x):
    return np.take_along_axis(x, change, axis=1)

  ids = CLEAN.copy()
  np.put_along_axis(ids, change, take(NOISY), axis=1)
  features, after = extend(
    network, params, cache, take(ids), take(T), Layout(), take(PLACE), take(SLOT)
  )
  expected = np.asarray(whole(network, params, ids, T, Layout(), PLACE))
  expected = np.take_along_axis(expected, change[..., None], axis=1)
  np.testing.assert_allclose(features, expected, atol=1e-4)
  beyond = np.full_like(change, SLOTS)
  _, same = extend(network, params, cache, take(ids), take(T), Layout(), take(PLACE), beyond)
  jax.tree.map(np.testing.assert_array_equal, same, cache)
  assert (np.asarray(after.keys) != np.asarray(cache.keys)).any()


def test_extending_in_a_loop_copies_no_cache():
  """The compiled loop updates keys and values where they are."""
  network = small_transformer(layers=2)
  params = noisy_parameters(network)
  cache = jax.eval_shape(lambda: network.cache(params, rows_of(Inputs(CLEAN)), 999))
  layout = layouts.materialise(Layout(), SIZE)

  def run(cache, ids):
    def turn(i, cache):
      position = i * SIZE + jnp.arange(SIZE, dtype=jnp.int32)[None]
      rows = rows_of(Inputs(ids, position=position), 0.0, layout)
      slots = jnp.broadcast_to(position, (B, SIZE))
      return network.extend(params, rows, cache, slots)[1]

    return jax.lax.fori_loop(0, 5, turn, cache)

  ids = jax.ShapeDtypeStruct((B, SIZE), jnp.int32)
  text = jax.jit(run, donate_argnums=0).lower(cache, ids).compile().as_text()
  shape = ",".join(str(size) for size in cache.keys[0].shape)
  lines = [line for line in text.splitlines() if f"[{shape}]" in line]
  assert lines and not [line for line in lines if " copy(" in line]


def test_what_does_not_fit_is_refused():
  network = small_transformer()
  params = noisy_parameters(network)
  cache = empty(network, params)
  with pytest.raises(ValueError, match=r"rows\.inputs\.position=None"):
    network.extend(params, rows_of(Inputs(CLEAN)), cache, SLOT)
  with pytest.raises(ValueError, match="memory is for a network that conditions on itself"):
    rows = rows_of(Inputs(CLEAN, position=PLACE))
    network.extend(params, rows, cache, SLOT, memory=MEMORY)

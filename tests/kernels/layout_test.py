"""The layout rule, its builders, and its summaries per tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.kernels import layout as layouts
from diffusion_text.types import Layout


def sentence(q, k):
  """The rule of `types.Layout`, one pair of positions at a time."""
  (q_segment, q_block, q_noisy), (k_segment, k_block, k_noisy) = q, k
  if q_segment != k_segment:
    return False
  return (q_block == k_block and q_noisy == k_noisy) or (not k_noisy and k_block < q_block)


def dense(q_layout, k_layout, L, S):
  mask = layouts.visible(q_layout, k_layout)
  return np.ones((1, L, S), bool) if mask is None else np.broadcast_to(mask, (mask.shape[0], L, S))


def square(layout, L):
  return dense(layout, layout, L, L)


def ids(length):
  one = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)),
    min_size=length,
    max_size=length,
  )
  runs = one.map(sorted)  # like a real row: equal ids side by side
  return st.one_of(one, runs)


def layout_of(rows):
  return Layout(*(jnp.array([[x[n] for x in rows]], jnp.int32) for n in range(3)))


@settings(max_examples=60, deadline=None)
@given(ids(12), ids(8))
def test_rule_is_the_sentence_is_dense_is_tiles(q, k):
  q_layout, k_layout = layout_of(q), layout_of(k)
  mask = dense(q_layout, k_layout, 12, 8)[0]
  np.testing.assert_array_equal(mask, [[sentence(a, b) for b in k] for a in q])
  for q_tile, k_tile in ((4, 2), (1, 1)):
    kinds = layouts.cut(q_layout, k_layout, 12, 8, q_tile, k_tile).kinds[0]
    tiles = mask.reshape(12 // q_tile, q_tile, 8 // k_tile, k_tile).swapaxes(1, 2)
    assert not tiles[kinds == layouts.EMPTY].any()
    assert tiles[kinds == layouts.FULL].all()
    if q_tile == k_tile == 1:  # the summary of single positions is exact
      assert not (kinds == layouts.PARTIAL).any()


@pytest.mark.parametrize("name", ["causal", "block", "noisy_clean", "packed", "packed_noisy_clean"])
def test_tiles_of_real_layouts_lose_nothing(name):
  """Where documents and blocks are longer than tiles, every empty tile is known to be empty, every
  full one to be full.
  """
  segment = jnp.array([[0] * 16 + [1] * 48])
  layout, L = {
    "causal": (layouts.causal(64), 64),
    "block": (layouts.block_causal(64, 16), 64),
    "noisy_clean": (layouts.noisy_clean(64, 16), 128),
    "packed": (layouts.packed(segment, 8), 64),
    "packed_noisy_clean": (layouts.doubled(layouts.packed(segment, 8), 64), 128),
  }[name]
  kinds = layouts.cut(layout, layout, L, L, 8, 8).kinds[0]
  tiles = square(layout, L)[0].reshape(L // 8, 8, L // 8, 8).swapaxes(1, 2)
  np.testing.assert_array_equal(kinds == layouts.EMPTY, ~tiles.any(axis=(2, 3)))
  np.testing.assert_array_equal(kinds == layouts.FULL, tiles.all(axis=(2, 3)))


def test_no_field_means_no_mask():
  assert layouts.visible(Layout(), Layout()) is None
  assert (
    layouts.visible(layouts.bidirectional(), Layout(block=jnp.zeros((1, 3), jnp.int32))) is not None
  )


def test_blocks_of_one_are_causal_and_one_block_is_bidirectional():
  np.testing.assert_array_equal(
    square(layouts.block_causal(7, 1), 7)[0], np.tril(np.ones((7, 7), bool))
  )
  assert square(layouts.block_causal(7, 7), 7).all()


def test_block_causal_and_a_shorter_last_block():
  i = np.arange(7)
  np.testing.assert_array_equal(
    square(layouts.block_causal(7, 3), 7)[0], i[None] // 3 <= i[:, None] // 3
  )


def test_prefix():
  mask = square(layouts.prefix(jnp.array([0, 1, 3, 5]), 5), 5)
  i = np.arange(5)
  for row, n in zip(mask, (0, 1, 3, 5)):
    np.testing.assert_array_equal(row, (i[None] <= i[:, None]) | ((i[None] < n) & (i[:, None] < n)))


def test_noisy_clean_is_the_three_parts_of_block_diffusion():
  L, b = 6, 2
  mask, block = square(layouts.noisy_clean(L, b), 2 * L)[0], np.arange(L) // b
  q, k = block[:, None], block[None]
  np.testing.assert_array_equal(mask[:L, :L], q == k)  # a noisy block sees itself
  np.testing.assert_array_equal(mask[:L, L:], k < q)  # and the clean blocks before it
  np.testing.assert_array_equal(mask[L:, :L], False)  # the clean copy sees nothing noisy
  np.testing.assert_array_equal(mask[L:, L:], k <= q)
  np.testing.assert_array_equal(layouts.noisy_clean_positions(3), [[0, 1, 2, 0, 1, 2]])


def test_packed_documents_count_blocks_from_their_own_start():
  segment = jnp.array([[7, 7, 7, 2, 2, 2, 2]])
  np.testing.assert_array_equal(layouts.packed_positions(segment), [[0, 1, 2, 0, 1, 2, 3]])
  mask = square(layouts.packed(segment, 2), 7)[0]
  np.testing.assert_array_equal(mask[:3, :3], square(layouts.block_causal(3, 2), 3)[0])
  np.testing.assert_array_equal(mask[3:, 3:], square(layouts.block_causal(4, 2), 4)[0])
  assert not mask[:3, 3:].any() and not mask[3:, :3].any()


@pytest.mark.parametrize("side,real", [("right", [1, 1, 1, 0, 0]), ("left", [0, 0, 1, 1, 1])])
def test_padding_is_unseen_and_no_row_is_empty(side, real):
  mask = square(layouts.padded(jnp.array([3]), 5, side), 5)[0]
  np.testing.assert_array_equal(mask, np.equal.outer(real, real))


def test_decoding_a_block_sees_the_filled_cache_and_itself():
  for noisy in (True, False):
    mask = dense(*layouts.decode_block(jnp.array([0, 3]), 4, 2, noisy=noisy), 2, 6)
    np.testing.assert_array_equal(mask[0], [[0, 0, 0, 0, 1, 1]] * 2)
    np.testing.assert_array_equal(mask[1], [[1, 1, 1, 0, 1, 1]] * 2)


def test_cached_decode_sees_what_training_on_both_copies_sees():
  L, b, i = 8, 2, 2
  q, k = layouts.decode_block(jnp.array([i * b]), L, b)
  row = square(layouts.noisy_clean(L, b), 2 * L)[0, i * b]
  np.testing.assert_array_equal(
    dense(q, k, b, L + b)[0, 0], np.r_[row[L:], row[i * b : (i + 1) * b]]
  )


def test_two_streams_of_any_order():
  rank = jnp.array([[2, 0, 1]])
  mask, r = square(layouts.two_stream(rank), 6)[0], np.array(rank[0])
  earlier, itself = r[None] < r[:, None], np.eye(3, dtype=bool)
  np.testing.assert_array_equal(
    mask, np.block([[itself, earlier], [np.zeros((3, 3), bool), earlier | itself]])
  )


def test_layouts_are_built_under_jit():
  build = jax.jit(
    lambda segment, used: (
      layouts.doubled(layouts.packed(segment, 2), 4),
      layouts.decode_block(used, 4, 2),
    )
  )
  layout, _ = build(jnp.array([[0, 0, 0, 1]]), jnp.array([2]))
  np.testing.assert_array_equal(layout.block, [[0, 0, 1, 0, 0, 0, 1, 0]])


def test_errors_quote_value_and_fix():
  with pytest.raises(ValueError, match="block_size=0 must be at least 1"):
    layouts.block_causal(4, 0)
  with pytest.raises(ValueError, match="side='top' must be 'right' or 'left'"):
    layouts.padded(jnp.array([1]), 4, "top")
  with pytest.raises(
    ValueError, match="tile=3 must divide length=4; `materialise` the layout at 6"
  ):
    layouts.tile_summary(layouts.materialise(layouts.causal(4), 4), 3)
  with pytest.raises(ValueError, match=r"shape \(1, 4\), but the row has 5 positions"):
    layouts.materialise(layouts.causal(4), 5)

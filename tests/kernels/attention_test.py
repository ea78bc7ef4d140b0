"""One table of layouts x shapes x dtypes x implementations against the reference, and what no
implementation may do.
"""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.kernels import attention as dispatch
from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels import pallas_gpu, pallas_tpu, xla
from diffusion_text.kernels.attention import attention
from diffusion_text.kernels.block_sizes import BlockSizes, compile_for
from diffusion_text.kernels.reference import MASKED, reference
from diffusion_text.types import Layout

TILES = BlockSizes(16, 16, 16, 32)
IMPLEMENTATIONS = {
  "dense": xla.attention,
  "chunked": functools.partial(xla.attention, chunk=16),
  "pallas_tpu": functools.partial(pallas_tpu.attention, block_sizes=TILES, interpret=True),
  "pallas_gpu": functools.partial(pallas_gpu.attention, block_sizes=TILES, interpret=True),
}
TILED = ("chunked", "pallas_tpu", "pallas_gpu")

L = 44  # not a multiple of a tile
SEGMENT = jnp.array([[0] * 9 + [1] * 13 + [2] * 22, [0] * 44])
# name -> layout of two rows of L positions
LAYOUTS = {
  "causal": layouts.causal(L),
  "blocks": layouts.block_causal(L, 8),
  "prefix": layouts.prefix(jnp.array([5, 30]), L),
  "noisy_clean": layouts.noisy_clean(L // 2, 4),
  "packed": layouts.packed(SEGMENT, 4),
  "packed_noisy_clean": layouts.doubled(layouts.packed(SEGMENT[:, ::2], 4), L // 2),
  "padded_right": layouts.padded(jnp.array([11, 40]), L),
  "padded_left": layouts.padded(jnp.array([11, 40]), L, "left"),
  "two_stream": layouts.two_stream(jnp.array([np.random.RandomState(0).permutation(L // 2)])),
}
# name -> (q_layout, k_layout, queries, keys): fields that are missing or shared by the rows, and
# other lengths
CROSSED = {
  "bidirectional": (Layout(), Layout(), 32, 32),
  "decode": (*layouts.decode_block(jnp.array([3, 30]), 36, 4), 4, 40),
  "some_see_nothing": (
    Layout(segment=jnp.arange(20)[None] // 4),
    Layout(segment=jnp.arange(24)[None] // 12),
    20,
    24,
  ),
}
# name -> (H, G, K, soft_cap, dtype), with the layout "packed"
SHAPES = {
  "own_heads": (2, 2, 64, None, "bfloat16"),
  "grouped": (4, 2, 20, None, "float32"),
  "one_key_head": (4, 1, 16, 3.0, "float32"),
  "one_key_head_bf16": (4, 1, 16, 3.0, "bfloat16"),
}


def arrays(L, S, H=2, G=1, K=8, dtype=jnp.float32, B=2, seed=0):
  """From numpy, since JAX compiles the draws of every shape."""
  shapes = (B, L, H, K), (B, S, G, K), (B, S, G, K), (B, L, H, K), (B, L, H)
  *values, c = map(np.random.default_rng(seed).standard_normal, shapes)
  return *(jnp.asarray(x, dtype) for x in values), jnp.asarray(c, jnp.float32)


@functools.cache  # so that cases of one shape compile once
def everything(fn, soft_cap=None):
  """Jitted (q, k, v, g, c, layouts) -> out, lse, dq, dk, dv; cotangents g of out and c of lse."""

  @jax.jit
  def run(q, k, v, g, c, q_layout, k_layout):
    value, pull = jax.vjp(
      lambda q, k, v: fn(q, k, v, q_layout, k_layout, soft_cap=soft_cap), q, k, v
    )
    return (*value, *pull((g, c)))

  return run


def check(fn, args, q_layout, k_layout, soft_cap=None):
  """`fn` against the reference in float32 on the same values."""
  got = everything(fn, soft_cap)(*args, q_layout, k_layout)
  exact = [jnp.asarray(np.asarray(x), jnp.float32) for x in args]
  want = everything(reference, soft_cap)(*exact, q_layout, k_layout)
  tolerance = 2e-5 if args[0].dtype == jnp.float32 else 2e-2
  for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, want):
    assert a.dtype == (jnp.float32 if name == "lse" else args[0].dtype), name
    a, b = np.asarray(a, np.float32), np.asarray(b)
    size = max(1.0, float(np.abs(np.where(b == np.float32(MASKED), 0, b)).max()))
    np.testing.assert_allclose(a, b, atol=tolerance * size, rtol=0, err_msg=name)


def two_rows(layout):
  """Every field set, for two rows: one type, so that all such layouts share one compilation."""
  return jax.tree.map(lambda x: jnp.tile(x, (2 // x.shape[0], 1)), layouts.materialise(layout, L))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, implementation):
  layout = two_rows(LAYOUTS[layout])
  check(IMPLEMENTATIONS[implementation], arrays(L, L), layout, layout)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", CROSSED)
def test_queries_and_keys_of_other_lengths_and_missing_fields(layout, implementation):
  q_layout, k_layout, queries, keys = CROSSED[layout]
  check(IMPLEMENTATIONS[implementation], arrays(queries, keys), q_layout, k_layout)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_dtypes(shape, implementation):
  H, G, K, soft_cap, dtype = SHAPES[shape]
  layout = LAYOUTS["packed"]
  check(
    IMPLEMENTATIONS[implementation],
    arrays(L, L, H, G, K, jnp.dtype(dtype)),
    layout,
    layout,
    soft_cap,
  )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_random_ids(seed, runs):
  rng = np.random.RandomState(seed)

  def pick(n):
    values = rng.randint(0, n, (2, L))
    return np.sort(values, axis=1) if runs else values

  q_layout, k_layout = (
    Layout(*(jnp.asarray(pick(n), jnp.int32) for n in (3, 4, 2))) for _ in range(2)
  )
  for fn in IMPLEMENTATIONS.values():
    check(fn, arrays(L, L), q_layout, k_layout)


@pytest.mark.parametrize("implementation", TILED)
def test_empty_tiles_are_computed_in_neither_pass(implementation):
  """Keys and values that no query of a tile sees are not a number: a weight of 0 would still spread
  that.
  """
  q_layout, k_layout = (
    Layout(segment=jnp.zeros((1, 32), jnp.int32)),
    Layout(segment=jnp.arange(64)[None] // 32),
  )
  q, k, v, g, c = arrays(32, 64)
  hidden = (np.arange(64) >= 32)[None, :, None, None]

  def bad(x):
    return np.where(hidden, np.float32(np.nan), x)

  out, lse, dq, dk, dv = everything(IMPLEMENTATIONS[implementation])(
    q, bad(k), bad(v), g, c, q_layout, k_layout
  )
  assert all(np.isfinite(x).all() for x in (out, lse, dq, dk, dv))
  assert not np.where(hidden, dk, 0).any() and not np.where(hidden, dv, 0).any()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_padding_has_no_influence_on_value_or_gradient(implementation):
  fn = everything({**IMPLEMENTATIONS, "reference": reference}[implementation])
  layout = two_rows(layouts.padded(jnp.array([11, 26]), L))
  real = (np.arange(L) < np.array([[11], [26]]))[:, :, None, None]
  args, other = (list(map(np.asarray, arrays(L, L, seed=seed))) for seed in (0, 1))
  # The output of padding is not read.
  args = (*args[:3], np.where(real, args[3], 0), np.where(real[..., 0], args[4], 0))
  swapped = *(np.where(real, a, 9 * b) for a, b in zip(args[:3], other)), *args[3:]
  for name, a, b in zip(
    ("out", "lse", "dq", "dk", "dv"), fn(*args, layout, layout), fn(*swapped, layout, layout)
  ):
    mask = real[..., 0] if name == "lse" else real
    np.testing.assert_array_equal(np.where(mask, a, 0), np.where(mask, b, 0), err_msg=name)
    if name in ("dq", "dk", "dv"):
      assert not np.where(mask, 0, b).any(), name


def leak(fn, length=12, b=4):
  """The largest gradient, of any noisy block's output, by the clean copy of that block or of a
  later one.
  """
  layout = layouts.noisy_clean(length, b)
  q, k, v, g, c = map(np.asarray, arrays(2 * length, 2 * length, B=1))
  run, worst = everything.__wrapped__(fn), 0.0  # traced again: the rule may have been replaced
  for i in range(length // b):
    of_block = ((np.arange(2 * length) // b == i) * np.float32(1))[None, :, None]
    *_, dk, dv = run(q, k, v, g * of_block[..., None], c * of_block, layout, layout)
    worst = max(worst, *(float(np.abs(np.asarray(x)[:, length + i * b :]).max()) for x in (dk, dv)))
  return worst


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_no_leak_from_clean_to_noisy_and_the_mutant_leaks(implementation, monkeypatch):
  fn = {**IMPLEMENTATIONS, "reference": reference}[implementation]
  assert leak(fn) == 0

  def mutant(q_segment, q_block, q_noisy, k_segment, k_block, k_noisy):
    same = (q_block == k_block) & (q_noisy == k_noisy)
    return (q_segment == k_segment) & (same | ((k_noisy == 0) & (k_block <= q_block)))

  monkeypatch.setattr(layouts, "rule", mutant)
  assert leak(fn) > 1e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_permuting_documents_permutes_outputs(implementation):
  fn = jax.jit(functools.partial(IMPLEMENTATIONS[implementation]))
  lengths = {0: 7, 1: 20, 2: 13}
  q, k, v, *_ = map(np.asarray, arrays(40, 40, B=1))

  def pack(order):
    starts = np.cumsum([0, *lengths.values()])
    index = np.concatenate([np.arange(starts[d], starts[d + 1]) for d in order])
    layout = layouts.packed(jnp.array([np.repeat(order, [lengths[d] for d in order])]), 4)
    out, lse = fn(q[:, index], k[:, index], v[:, index], layout, layout)
    return np.asarray(out)[:, np.argsort(index)], np.asarray(lse)[:, np.argsort(index)]

  for a, b in zip(pack([0, 1, 2]), pack([2, 0, 1])):
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_other_ids_do_not_compile_again(implementation):
  fn = jax.jit(IMPLEMENTATIONS[implementation])
  q, k, v, *_ = arrays(24, 24)
  for lengths in ([3, 20], [24, 1]):
    layout = layouts.padded(jnp.array(lengths), 24)
    fn(q, k, v, layout, layout)
  assert fn._cache_size() == 1


def test_attention_merged_by_log_sum_exp_is_attention_over_all_keys():
  """What a differentiable log-sum-exp is for: two calls over disjoint keys, merged, have the value
  and gradient of one.
  """
  q, k, v, g, _ = arrays(16, 48)

  def merged(q, k, v):
    parts = [
      attention(q, k[:, s], v[:, s], Layout(), Layout(), return_lse=True)
      for s in (slice(0, 20), slice(20, 48))
    ]
    weight = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)
    return sum(w[..., None] * out for w, (out, _) in zip(weight, parts))

  def whole(q, k, v):
    return attention(q, k, v, Layout(), Layout())

  both = [
    jax.jit(jax.value_and_grad(lambda *x, fn=fn: (fn(*x) * g).sum(), (0, 1, 2)))(q, k, v)
    for fn in (merged, whole)
  ]
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), *both)


def test_chunked_memory_is_linear_in_length():
  def temporary(length):
    x, layout = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32), layouts.causal(length)

    def loss(q, k, v):
      return attention(q, k, v, layout, layout).sum()

    return (
      jax.jit(jax.grad(loss, (0, 1, 2)))
      .lower(x, x, x)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  short, long = temporary(2048), temporary(8192)
  print(
    f"temporary bytes, forward and backward, 2 heads: L=2048 {short}, L=8192 {long},"
    f" one score matrix {2 * 8192**2 * 4}"
  )
  assert long < 4.5 * short and long < 8192**2 * 4 / 2


def test_dispatch_tries_in_order_and_reports_every_reason(monkeypatch):
  q, k, v, *_ = arrays(8, 8)
  call = functools.partial(attention, q, k, v, Layout(), Layout())
  # On CPU neither kernel is available.
  np.testing.assert_array_equal(call(), call(implementation="xla"))
  with pytest.raises(
    NotImplementedError, match=r"pallas_tpu: needs a TPU.*pallas_gpu: needs a GPU"
  ):
    call(implementation=("pallas_tpu", "pallas_gpu"))

  def broken(*args, **kwargs):
    raise TypeError("a bug")

  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "pallas_tpu", broken)
  with pytest.raises(TypeError, match="a bug"), compile_for("tpu"):
    call()


def test_errors_quote_value_and_fix(monkeypatch):
  q, k, v, *_ = arrays(8, 8, H=3, G=2)
  with pytest.raises(ValueError, match="2 key/value heads must divide 3 query heads"):
    attention(q, k, v, Layout(), Layout())
  with pytest.raises(
    ValueError, match=r"k_layout has a field of shape \(1, 9\); it must be \[1 or 2, 8\]"
  ):
    attention(q[:, :, :2], k, v, Layout(), layouts.causal(9))
  with pytest.raises(ValueError, match="cast them to one"):
    attention(q[:, :, :2], k.astype(jnp.bfloat16), v, Layout(), Layout())
  with pytest.raises(ValueError, match="implementation='flash' is not one of"):
    attention(q[:, :, :2], k, v, Layout(), Layout(), implementation="flash")
  # The signature forbids these shapes too, but only in tests; users have the error alone.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  with pytest.raises(ValueError, match=r"must be \[B, L, H, K\]"):
    attention(q, k[..., :4], v, Layout(), Layout())

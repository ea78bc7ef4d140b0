"""One table of layouts x shapes x dtypes x implementations against the reference, and what no implementation may do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.kernels import attention as dispatch
from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels import pallas_gpu, pallas_tpu, xla
from diffusion_text.kernels.attention import attention
from diffusion_text.kernels.block_sizes import BlockSizes
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

SEGMENT = jnp.array([[0] * 9 + [1] * 13 + [2] * 22, [0] * 44])
# name -> (q_layout, k_layout, L, S); the rows are two.
LAYOUTS = {
  "bidirectional": (Layout(), Layout(), 32, 32),
  "causal": (layouts.causal(44), layouts.causal(44), 44, 44),
  "blocks": (layouts.block_causal(44, 8), layouts.block_causal(44, 8), 44, 44),
  "prefix": (layouts.prefix(jnp.array([5, 30]), 44), layouts.prefix(jnp.array([5, 30]), 44), 44, 44),
  "noisy_clean": (layouts.noisy_clean(24, 4), layouts.noisy_clean(24, 4), 48, 48),
  "packed": (layouts.packed(SEGMENT, 4), layouts.packed(SEGMENT, 4), 44, 44),
  "packed_noisy_clean": (layouts.doubled(layouts.packed(SEGMENT, 4), 44),) * 2 + (88, 88),
  "padded": (layouts.padded(jnp.array([11, 40]), 44, "left"), layouts.padded(jnp.array([11, 40]), 44, "left"), 44, 44),
  "decode": (*layouts.decode_block(jnp.array([3, 30]), 36, 4), 4, 40),
  "two_stream": (layouts.two_stream(jnp.array([np.random.RandomState(0).permutation(20)])),) * 2 + (40, 40),
  "some_see_nothing": (Layout(segment=jnp.arange(20)[None] // 4), Layout(segment=jnp.arange(24)[None] // 12), 20, 24),
}
# name -> (H, G, K, soft_cap), with the layout "packed"
SHAPES = {"own_heads": (2, 2, 64, None), "grouped": (4, 2, 20, None), "one_key_head": (4, 1, 16, 3.0)}


def arrays(L, S, H=2, G=1, K=8, dtype=jnp.float32, B=2, seed=0):
  keys = jax.random.split(jax.random.key(seed), 5)
  shapes = (B, L, H, K), (B, S, G, K), (B, S, G, K), (B, L, H, K)
  return *(jax.random.normal(key, s).astype(dtype) for key, s in zip(keys, shapes)), jax.random.normal(keys[4], (B, L, H))


def everything(fn, soft_cap=None):
  """Jitted (q, k, v, g, c, layouts) -> out, lse, dq, dk, dv for cotangents g of out and c of lse."""

  @jax.jit
  def run(q, k, v, g, c, q_layout, k_layout):
    value, pull = jax.vjp(lambda q, k, v: fn(q, k, v, q_layout, k_layout, soft_cap=soft_cap), q, k, v)
    return (*value, *pull((g, c)))

  return run


def check(fn, args, q_layout, k_layout, soft_cap=None):
  """`fn` against the reference in float32 on the same values."""
  got = everything(fn, soft_cap)(*args, q_layout, k_layout)
  exact = [x.astype(jnp.float32) for x in args]
  want = everything(reference, soft_cap)(*exact, q_layout, k_layout)
  tolerance = 2e-5 if args[0].dtype == jnp.float32 else 2e-2
  for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, want):
    assert a.dtype == (jnp.float32 if name == "lse" else args[0].dtype), name
    size = max(1.0, float(jnp.abs(jnp.where(b == MASKED, 0, b)).max()))
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=tolerance * size, rtol=0, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, implementation):
  q_layout, k_layout, L, S = LAYOUTS[layout]
  check(IMPLEMENTATIONS[implementation], arrays(L, S), q_layout, k_layout)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_dtypes(shape, dtype, implementation):
  H, G, K, soft_cap = SHAPES[shape]
  q_layout, k_layout, L, S = LAYOUTS["packed"]
  args = arrays(L, S, H, G, K, jnp.dtype(dtype))
  check(IMPLEMENTATIONS[implementation], args, q_layout, k_layout, soft_cap)


RANDOM = {name: everything(fn) for name, fn in (*IMPLEMENTATIONS.items(), ("reference", reference))}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans(), st.sampled_from([1, 2]))
def test_random_ids(seed, runs, rows):
  rng = np.random.RandomState(seed)
  pick = lambda n, L: np.sort(rng.randint(0, n, (rows, L)), axis=1) if runs else rng.randint(0, n, (rows, L))
  q_layout, k_layout = (Layout(*(jnp.asarray(pick(n, L), jnp.int32) for n in (3, 4, 2))) for L in (40, 24))
  args = arrays(40, 24)
  want = RANDOM["reference"](*args, q_layout, k_layout)
  for name in IMPLEMENTATIONS:
    for a, b in zip(RANDOM[name](*args, q_layout, k_layout), want):
      np.testing.assert_allclose(a, b, atol=5e-5, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("implementation", TILED)
def test_empty_tiles_are_computed_in_neither_pass(implementation):
  """Keys and values that no query of a tile sees are not a number: a weight of 0 would still spread that."""
  q_layout, k_layout = Layout(segment=jnp.zeros((1, 32), jnp.int32)), Layout(segment=jnp.arange(64)[None] // 32)
  q, k, v, g, c = arrays(32, 64)
  hidden = (jnp.arange(64) >= 32)[None, :, None, None]
  bad = lambda x: jnp.where(hidden, jnp.nan, x)
  out, lse, dq, dk, dv = everything(IMPLEMENTATIONS[implementation])(q, bad(k), bad(v), g, c, q_layout, k_layout)
  assert all(bool(jnp.isfinite(x).all()) for x in (out, lse, dq, dk, dv))
  assert not jnp.where(hidden, dk, 0).any() and not jnp.where(hidden, dv, 0).any()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_padding_has_no_influence_on_value_or_gradient(implementation):
  fn = everything({**IMPLEMENTATIONS, "reference": reference}[implementation])
  layout, L = layouts.padded(jnp.array([11, 26]), 32), 32
  real = (jnp.arange(L) < jnp.array([[11], [26]]))[:, :, None, None]
  args, other = arrays(L, L), arrays(L, L, seed=1)
  args = *args[:3], jnp.where(real, args[3], 0), jnp.where(real[..., 0], args[4], 0)  # nobody reads the padding's answer
  swapped = *(jnp.where(real, a, 9 * b) for a, b in zip(args[:3], other)), *args[3:]
  for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), fn(*args, layout, layout), fn(*swapped, layout, layout)):
    mask = real[..., 0] if name == "lse" else real
    np.testing.assert_array_equal(jnp.where(mask, a, 0), jnp.where(mask, b, 0), err_msg=name)
    if name in ("dq", "dk", "dv"):
      assert not jnp.where(mask, 0, b).any(), name


def leak(fn, L=12, b=4):
  """The largest gradient, of any noisy block's output, by the clean copy of that block or of a later one."""
  layout = layouts.noisy_clean(L, b)
  q, k, v, g, c = arrays(2 * L, 2 * L, B=1)
  worst = 0.0
  for i in range(L // b):
    of_block = ((jnp.arange(2 * L) // b == i) * 1.0)[None, :, None]
    *_, dk, dv = everything(fn)(q, k, v, g * of_block[..., None], c * of_block, layout, layout)
    worst = max(worst, *(float(jnp.abs(x[:, L + i * b :]).max()) for x in (dk, dv)))
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
  q, k, v, *_ = arrays(40, 40, B=1)

  def pack(order):
    starts = np.cumsum([0, *lengths.values()])
    index = np.concatenate([np.arange(starts[d], starts[d + 1]) for d in order])
    layout = layouts.packed(jnp.array([np.repeat(order, [lengths[d] for d in order])]), 4)
    out, lse = fn(q[:, index], k[:, index], v[:, index], layout, layout)
    return out[:, np.argsort(index)], lse[:, np.argsort(index)]

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
  """What a differentiable log-sum-exp is for: two calls over disjoint keys, merged, have the value and gradient of one."""
  q, k, v, g, _ = arrays(16, 48)

  def merged(q, k, v):
    parts = [attention(q, k[:, s], v[:, s], Layout(), Layout(), return_lse=True) for s in (slice(0, 20), slice(20, 48))]
    weight = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)
    return sum(w[..., None] * out for w, (out, _) in zip(weight, parts))

  whole = lambda q, k, v: attention(q, k, v, Layout(), Layout())
  (a, pull_a), (b, pull_b) = jax.vjp(merged, q, k, v), jax.vjp(whole, q, k, v)
  for x, y in zip((a, *pull_a(g)), (b, *pull_b(g))):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_chunked_memory_is_linear_in_length():
  def temporary(L):
    x = jax.ShapeDtypeStruct((1, L, 2, 16), jnp.float32)
    loss = lambda q, k, v: attention(q, k, v, layouts.causal(L), layouts.causal(L)).sum()
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

  short, long = temporary(2048), temporary(8192)
  print(f"temporary bytes, forward and backward, 2 heads: L=2048 {short}, L=8192 {long}, one score matrix {2 * 8192**2 * 4}")
  assert long < 4.5 * short and long < 8192**2 * 4 / 2


def test_dispatch_tries_in_order_and_reports_every_reason(monkeypatch):
  q, k, v, *_ = arrays(8, 8)
  call = functools.partial(attention, q, k, v, Layout(), Layout())
  np.testing.assert_array_equal(call(), call(implementation="xla"))  # on CPU neither kernel is for us
  with pytest.raises(NotImplementedError, match="pallas_tpu: needs a TPU.*pallas_gpu: needs a GPU"):
    call(implementation=("pallas_tpu", "pallas_gpu"))

  def broken(*args, **kwargs):
    raise TypeError("a bug")

  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "pallas_tpu", broken)
  with pytest.raises(TypeError, match="a bug"):
    call()


def test_errors_quote_value_and_fix():
  q, k, v, *_ = arrays(8, 8, H=3, G=2)
  with pytest.raises(ValueError, match="2 key/value heads must divide 3 query heads"):
    attention(q, k, v, Layout(), Layout())
  with pytest.raises(ValueError, match=r"k_layout has a field of shape \(1, 9\); it must be \[1 or 2, 8\]"):
    attention(q[:, :, :2], k, v, Layout(), layouts.causal(9))
  with pytest.raises(ValueError, match="cast them to one"):
    attention(q[:, :, :2], k.astype(jnp.bfloat16), v, Layout(), Layout())
  with pytest.raises(ValueError, match=r"must be \[B, L, H, K\]"):
    attention(q, k[..., :4], v, Layout(), Layout())
  with pytest.raises(ValueError, match="implementation='flash' is not one of"):
    attention(q[:, :, :2], k, v, Layout(), Layout(), implementation="flash")

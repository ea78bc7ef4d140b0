"""Rows that count, and only those, pass through the vocabulary: values, gradients, memory, work and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_text.kernels import cross_entropy
from diffusion_text.kernels.cross_entropy import cut_cross_entropy, map_rows

N, D, V = 48, 8, 50


def make(share=0.5, n=N, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 5)
  features = jax.random.normal(keys[0], (n, D)).astype(dtype)
  kernel, bias = jax.random.normal(keys[1], (D, V)), jax.random.normal(keys[2], (V,))
  labels = jax.random.randint(keys[3], (n,), 0, V)
  return features, kernel, bias, labels, jax.random.uniform(keys[4], (n,)) < share


def dense(features, kernel, bias, labels, count, soft_cap=None):
  logits = features.astype(jnp.float32) @ kernel + bias
  logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
  return jnp.where(count, -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels], 0)


@pytest.mark.parametrize(
  "share,chunk,soft_cap",
  [
    (0.0, 7, None),
    (0.5, 1, None),
    (0.5, 7, 3.0),
    (0.5, 16, None),
    (1.1, 7, None),
    (1.1, 1000, 3.0),
  ],
)
def test_equals_dense(share, chunk, soft_cap):
  features, kernel, bias, labels, count = make(share)
  g = jax.random.normal(jax.random.key(9), (N,))

  def cut(features, kernel, bias):
    return cut_cross_entropy(
      features, kernel, labels, count, bias=bias, chunk=chunk, soft_cap=soft_cap
    )

  value, pull = jax.vjp(cut, features, kernel, bias)
  want, want_pull = jax.vjp(
    lambda f, k, b: dense(f, k, b, labels, count, soft_cap), features, kernel, bias
  )
  np.testing.assert_allclose(value, want, atol=2e-5)
  for got, expected in zip(pull(g), want_pull(g)):
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_bfloat16_features_are_scored_in_float32():
  features, kernel, bias, labels, count = make(dtype=jnp.bfloat16)
  value, pull = jax.vjp(lambda f: cut_cross_entropy(f, kernel, labels, count, bias=bias), features)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, dense(features, kernel, bias, labels, count), atol=2e-4)
  assert pull(value)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("shards", [1, 4])
def test_rows_that_do_not_count_have_no_influence_even_when_not_finite(shards):
  features, kernel, bias, labels, count = make()
  count &= jnp.arange(N) < N // 2  # with 4 shards, two have nothing to do
  broken = jnp.where(count[:, None], features, jnp.nan)

  def total(features, kernel):
    return cut_cross_entropy(
      features, kernel, labels, count, bias=bias, chunk=5, shards=shards
    ).sum()

  want, got = (jax.value_and_grad(total, (0, 1))(x, kernel) for x in (features, broken))
  jax.tree.map(np.testing.assert_array_equal, want, got)
  assert bool(jnp.isfinite(want[0])) and bool(want[1][1].any())


def test_any_tree_of_rows_integers_keys_and_closed_over_tracers():
  features, kernel, _, labels, count = make()
  keys = jax.random.split(jax.random.key(3), N)

  def total(kernel, features, offset):
    def fn(rows):
      noise = jax.vmap(lambda key: jax.random.normal(key, ()))(rows["key"])
      return {"x": (rows["x"] @ kernel).sum(-1) * noise, "y": rows["y"] + offset}

    return map_rows(fn, count, {"x": features, "y": labels, "key": keys}, chunk=10)

  out = jax.jit(total)(kernel, features, 2)  # `offset` is a tracer and an integer
  noise = jax.vmap(lambda key: jax.random.normal(key, ()))(keys)
  np.testing.assert_array_equal(out["y"], jnp.where(count, labels + 2, 0))
  np.testing.assert_allclose(
    out["x"], jnp.where(count, (features @ kernel).sum(-1) * noise, 0), atol=1e-5
  )
  grad = jax.jit(jax.grad(lambda kernel: total(kernel, features, 2)["x"].sum()))(kernel)
  np.testing.assert_allclose(
    grad, jnp.broadcast_to(((count * noise)[:, None] * features).sum(0)[:, None], (D, V)), atol=1e-5
  )


def test_differentiates_inside_scan_and_checkpoint():
  features, kernel, bias, labels, count = make()

  @jax.jit
  @jax.grad
  def grad(kernel):
    @jax.checkpoint
    def microbatch(total, part):
      x, y, c = part
      return total + cut_cross_entropy(x, kernel, y, c, bias=bias, chunk=5).sum(), None

    parts = jax.tree.map(lambda x: x.reshape(4, N // 4, *x.shape[1:]), (features, labels, count))
    return jax.lax.scan(microbatch, 0.0, parts)[0]

  want = jax.grad(lambda kernel: dense(features, kernel, bias, labels, count).sum())(kernel)
  np.testing.assert_allclose(grad(kernel), want, atol=2e-5)


@pytest.mark.parametrize("share,turns", [(0.0, 0), (0.25, 3), (1.0, 10)])
def test_only_chunks_that_are_needed_run_in_both_passes(share, turns):
  features, kernel, *_ = make(n=100)
  ran = []

  def fn(x):
    jax.debug.callback(lambda: ran.append(1))
    return (x @ kernel).sum(-1)

  count = jnp.arange(100) % 4 < 4 * share
  run = jax.jit(jax.grad(lambda x: map_rows(fn, count, x, chunk=10).sum()))
  jax.block_until_ready(run(features))
  jax.effects_barrier()
  assert len(ran) == 2 * turns  # forward and backward
  jax.block_until_ready(jax.jit(lambda x: map_rows(fn, count, x, chunk=10))(features))
  jax.effects_barrier()
  assert len(ran) == 3 * turns


def temporary_bytes(n, v, chunk=64):
  shapes = [
    jax.ShapeDtypeStruct(shape, dtype)
    for shape, dtype in (((n, 16), "f4"), ((16, v), "f4"), ((n,), "i4"), ((n,), "?"))
  ]
  loss = lambda x, w, y, c: cut_cross_entropy(x, w, y, c, chunk=chunk).sum()
  return (
    jax.jit(jax.value_and_grad(loss, (0, 1)))
    .lower(*shapes)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
  )


def test_compiler_memory_does_not_grow_with_rows_times_vocabulary():
  few, many = temporary_bytes(1024, 8192), temporary_bytes(8192, 8192)
  print(
    f"temporary bytes at V=8192, chunk 64: N=1024 {few}, N=8192 {many}, full logits {8192 * 8192 * 4}"
  )
  assert many - few < 7168 * 16 * 4 * 4  # a few copies of the features at most
  assert many < 8192 * 8192 * 4 / 16


@pytest.mark.parametrize("axes,shards", [(("data",), 2), (("data", "fsdp"), 4)])
def test_shards_gather_their_own_rows(axes, shards):
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
  features, kernel, bias, labels, count = make()
  rows, matrix = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P(None, "tensor"))
  loss = lambda f, k, y, c: cut_cross_entropy(f, k, y, c, bias=bias, chunk=5, shards=shards).sum()
  step = jax.jit(jax.value_and_grad(loss, (0, 1)), in_shardings=(rows, matrix, rows, rows))
  args = [
    jax.device_put(x, s)
    for x, s in zip((features, kernel, labels, count), (rows, matrix, rows, rows))
  ]
  got = step(*args)
  want = jax.value_and_grad(lambda f, k: dense(f, k, bias, labels, count).sum(), (0, 1))(
    features, kernel
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
  text = step.lower(*args).compile().as_text()
  assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text
  assert (
    f"f32[{N},{D}]" not in text and f"[{shards},{N // shards},{D}]" not in text
  )  # no device holds all features


def test_errors_quote_value_and_fix():
  features, kernel, _, labels, count = make()
  with pytest.raises(ValueError, match="shards=5 must divide N=48"):
    cut_cross_entropy(features, kernel, labels, count, shards=5)
  with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
    cut_cross_entropy(features, kernel, labels, count, chunk=0)
  with pytest.raises(ValueError, match="must begin with N"):
    map_rows(lambda x: x, count, features[1:])


def test_second_call_does_not_trace_again():
  features, kernel, bias, labels, count = make()
  step = jax.jit(lambda c: cut_cross_entropy(features, kernel, labels, c, bias=bias))
  step(count)
  step(~count)
  assert step._cache_size() == 1 and cross_entropy.CHUNK > 1

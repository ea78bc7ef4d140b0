"""Rows that count, and only those, pass through `fn`: values, gradients, memory, work, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_text.core import chunked
from diffusion_text.core.chunked import map_rows, sum_rows

N, D, V = 48, 8, 50


def make(share=0.5, n=N):
  """(features [n, D], (kernel [D, V], bias [V]), labels [n], count [n])."""
  random = np.random.default_rng(0)
  features = random.normal(size=(n, D)).astype(np.float32)
  consts = tuple(random.normal(size=shape).astype(np.float32) for shape in ((D, V), (V,)))
  labels = random.integers(0, V, n).astype(np.int32)
  return features, consts, labels, jnp.asarray(random.uniform(size=n) < share)


def nats(consts, rows):
  """-log p of the labels, [n]."""
  kernel, bias = consts
  features, labels = rows
  logits = features @ kernel + bias
  return jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(logits.shape[0]), labels]


def with_aux(consts, rows):
  """(loss [n], a tree with numbers, integers and vectors of each row)."""
  cost = nats(consts, rows)
  return cost**2, {"nats": cost, "label": rows[1], "pair": jnp.stack([cost, -cost], axis=-1)}


def by_map(consts, features, labels, count, **how):
  return map_rows(nats, consts, count, (features, labels), **how) ** 2


def test_map_equals_dense():
  """Values and gradients of rows and consts, for any chunk, shards and share of rows that count."""
  pulled = np.random.default_rng(9).normal(size=N).astype(np.float32)

  def loss(consts, features, labels, count, **how):
    values = map_rows(nats, consts, count, (features, labels), **how)
    return jnp.sum(values * pulled), values

  def dense(consts, features, labels, count):
    values = jnp.where(count, nats(consts, (features, labels)), 0)
    return jnp.sum(values * pulled), values

  expected = jax.jit(jax.value_and_grad(dense, (0, 1), has_aux=True))
  for chunk, shards in ((7, 1), (1000, 1), (5, 4)):
    cut = functools.partial(loss, chunk=chunk, shards=shards)
    run = jax.jit(jax.value_and_grad(cut, (0, 1), has_aux=True))
    for share in (0.0, 0.5, 1.1):
      features, consts, labels, count = make(share)
      args = (consts, features, labels, count)
      check = functools.partial(np.testing.assert_allclose, atol=3e-5, rtol=1e-5)
      jax.tree.map(check, run(*args), expected(*args))


def test_sum_equals_dense():
  """The sum and its gradients are dense ones; aux has a row for each row, zeros if uncounted."""

  def loss(consts, features, labels, count, **how):
    return sum_rows(with_aux, consts, count, (features, labels), **how)

  def dense(consts, features, labels, count):
    cost, aux = with_aux(consts, (features, labels))

    def keep(x):
      return jnp.where(count.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)

    return jnp.sum(keep(cost)), jax.tree.map(keep, aux)

  expected = jax.jit(jax.value_and_grad(dense, (0, 1), has_aux=True))
  for chunk, shards in ((7, 1), (1000, 1), (5, 4)):
    cut = functools.partial(loss, chunk=chunk, shards=shards)
    run = jax.jit(jax.value_and_grad(cut, (0, 1), has_aux=True))
    for share in (0.0, 0.5, 1.1):
      features, consts, labels, count = make(share)
      args = (consts, features, labels, count)
      check = functools.partial(np.testing.assert_allclose, atol=2e-3, rtol=2e-5)
      jax.tree.map(check, run(*args), expected(*args))
  total, aux = jax.jit(cut)(*args)  # without a gradient, the same
  np.testing.assert_allclose(total, expected(*args)[0][0], rtol=1e-5)
  np.testing.assert_array_equal(aux["label"], labels)


def test_aux_has_no_gradient():
  features, consts, labels, count = make()

  def loss(consts, factor):
    total, aux = sum_rows(with_aux, consts, count, (features, labels), chunk=7)
    return total + factor * jnp.sum(aux["nats"])

  run = jax.jit(jax.grad(loss))
  jax.tree.map(np.testing.assert_array_equal, run(consts, 0.0), run(consts, 3.0))


def test_closing_over_a_traced_array_raises():
  """Everything that a row reads is an argument. A captured value would lose its gradient."""
  features, consts, labels, count = make()

  def loss(kernel, reduce):
    def fn(_, rows):
      cost = nats((kernel, consts[1]), rows)
      return cost if reduce is map_rows else (cost, {})

    out = reduce(fn, None, count, (features, labels), chunk=7)
    return jnp.sum(out if reduce is map_rows else out[0])

  for reduce in (map_rows, sum_rows):
    with pytest.raises(Exception, match=r"trac|Tracer"):
      jax.grad(loss)(consts[0], reduce)


def test_rows_that_do_not_count_have_no_influence_even_when_not_finite():
  features, consts, labels, count = make()
  count = count & (jnp.arange(N) < N // 2)  # with 4 shards, two have nothing to do
  broken = np.where(count[:, None], features, np.nan)

  def total(features, consts, shards):
    mapped = jnp.sum(by_map(consts, features, labels, count, chunk=5, shards=shards))
    rows = (features, labels)
    return mapped + sum_rows(with_aux, consts, count, rows, chunk=5, shards=shards)[0]

  for shards in (1, 4):
    run = jax.jit(jax.value_and_grad(functools.partial(total, shards=shards), (0, 1)))
    want = run(features, consts)
    jax.tree.map(np.testing.assert_array_equal, want, run(broken, consts))
    assert np.isfinite(want[0]) and np.any(want[1][1][0])


def test_any_tree_of_rows_integers_and_keys():
  features, (kernel, _), labels, count = make()
  keys = jax.random.split(jax.random.key(3), N)

  def fn(consts, rows):
    kernel, offset = consts
    noise = jax.vmap(lambda key: jax.random.normal(key, ()))(rows["key"])
    return {"x": (rows["x"] @ kernel).sum(-1) * noise, "y": rows["y"] + offset}

  @jax.jit
  def run(kernel, offset):
    rows = {"x": features, "y": labels, "key": keys}

    def total(kernel):
      out = map_rows(fn, (kernel, offset), count, rows, chunk=10)
      return out["x"].sum(), out

    return jax.grad(total, has_aux=True)(kernel)

  grad, out = run(kernel, 2)
  noise = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.normal(key, ())))(keys))
  np.testing.assert_array_equal(out["y"], np.where(count, labels + 2, 0))
  expected = np.where(count, (features @ kernel).sum(-1) * noise, 0)
  np.testing.assert_allclose(out["x"], expected, atol=1e-5)
  slope = ((count * noise)[:, None] * features).sum(0)[:, None]
  np.testing.assert_allclose(grad, np.broadcast_to(slope, (D, V)), atol=1e-5)


def test_differentiates_inside_scan_and_checkpoint():
  features, consts, labels, count = make()

  @jax.jit
  @jax.grad
  def grad(consts):
    @jax.checkpoint
    def microbatch(total, part):
      x, y, c = part
      added = sum_rows(with_aux, consts, c, (x, y), chunk=5)[0]
      return total + added + by_map(consts, x, y, c, chunk=5).sum(), None

    parts = [x.reshape(4, N // 4, *x.shape[1:]) for x in (features, labels, count)]
    return jax.lax.scan(microbatch, 0.0, tuple(parts))[0]

  @jax.jit
  @jax.grad
  def dense(consts):
    return 2 * jnp.sum(jnp.where(count, nats(consts, (features, labels)) ** 2, 0))

  check = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
  jax.tree.map(check, grad(consts), dense(consts))


def test_only_chunks_that_are_needed_run():
  """map: once forward, once backward; sum: once, with the gradient or without."""
  features, (kernel, _), *_ = make(n=100)
  ran = []

  def fn(kernel, x):
    jax.debug.callback(lambda: ran.append(1))
    return (x @ kernel).sum(-1)

  def sums(x, count):
    return sum_rows(lambda *args: (fn(*args), ()), kernel, count, x, chunk=10)[0]

  def maps(x, count):
    return map_rows(fn, kernel, count, x, chunk=10).sum()

  passes = ((jax.grad(maps), 2), (maps, 1), (jax.grad(sums), 1), (sums, 1))
  runs = [(jax.jit(run), number) for run, number in passes]
  for share, turns in ((0.0, 0), (0.25, 3), (1.0, 10)):
    count = np.arange(100) % 4 < 4 * share
    for run, number in runs:
      ran.clear()
      jax.block_until_ready(run(features, count))
      jax.effects_barrier()
      assert len(ran) == number * turns


@pytest.mark.parametrize("reduce", [map_rows, sum_rows])
def test_compiler_memory_does_not_grow_with_rows_times_vocabulary(reduce):
  def temporary_bytes(n, v):
    def loss(consts, features, labels, count):
      if reduce is map_rows:
        return by_map(consts, features, labels, count, chunk=64).sum()
      return sum_rows(with_aux, consts, count, (features, labels), chunk=64)[0]

    types = {"f4": ((16, v), (v,), (n, 16)), "i4": ((n,),), "?": ((n,),)}
    kernel, bias, features, labels, count = (
      jax.ShapeDtypeStruct(shape, dtype) for dtype, shapes in types.items() for shape in shapes
    )
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    compiled = step.lower((kernel, bias), features, labels, count).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = temporary_bytes(1024, 8192), temporary_bytes(8192, 8192)
  print(f"temporary bytes at V=8192, chunk 64: n=1024 {few}, n=8192 {many}")
  assert many - few < 7168 * 16 * 4 * 4  # a few copies of the features at most
  assert many < 8192 * 8192 * 4 / 16


@pytest.mark.parametrize("axes,shards", [(("data",), 2), (("data", "fsdp"), 4)])
def test_shards_gather_their_own_rows(axes, shards):
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
  features, consts, labels, count = make()
  rows = NamedSharding(mesh, P(axes))
  split = (NamedSharding(mesh, P(None, "tensor")), NamedSharding(mesh, P()))

  def loss(features, consts, labels, count):
    mapped = by_map(consts, features, labels, count, chunk=5, shards=shards).sum()
    cost, aux = sum_rows(with_aux, consts, count, (features, labels), chunk=5, shards=shards)
    return mapped + cost, aux["nats"]

  def dense(features, consts, labels, count):
    cost = jnp.where(count, nats(consts, (features, labels)), 0)
    return 2 * jnp.sum(cost**2), cost

  where = (rows, split, rows, rows)
  step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), in_shardings=where)
  args = jax.tree.map(jax.device_put, (features, consts, labels, count), where)
  compiled = step.lower(*args).compile()
  want = jax.jit(jax.value_and_grad(dense, (0, 1), has_aux=True))(features, consts, labels, count)
  check = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
  jax.tree.map(check, compiled(*args), want)
  text = compiled.as_text()
  assert not any(kind in text for kind in ("all-gather", "all-to-all", "collective-permute"))
  # No device holds all features.
  assert f"f32[{N},{D}]" not in text and f"[{shards},{N // shards},{D}]" not in text


def test_errors_quote_value_and_fix():
  features, consts, labels, count = make()
  rows = (features, labels)
  with pytest.raises(ValueError, match="shards=5 must divide n=48"):
    map_rows(nats, consts, count, rows, shards=5)
  with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
    sum_rows(with_aux, consts, count, rows, chunk=0)
  with pytest.raises(ValueError, match="must begin with n"):
    map_rows(lambda _, x: x, None, count, features[1:])


def test_second_call_does_not_trace_again():
  features, consts, labels, count = make()
  step = jax.jit(lambda c: by_map(consts, features, labels, c, chunk=chunked.CHUNK))
  step(count)
  step(~count)
  assert step._cache_size() == 1

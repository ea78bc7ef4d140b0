"""The train step: accumulation, averages, keys, recompilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text import train as tr
from diffusion_text.train.step import split_rows, summed_gradients, update_ema
from diffusion_text.types import Batch, Progress

from . import toy


def _after(loss_fn, accumulation, steps=3):
  fresh, _, step, _ = toy.build(loss_fn, accumulation=accumulation)
  state, data, rows = fresh(), toy.Rows(), []
  for _ in range(steps):
    state, metrics = step(state, next(data))
    rows.append(metrics)
  return state, rows


def test_accumulation_equals_one_big_batch_with_unequal_token_counts():
  big, big_rows = _after(toy.plain_loss, 1)
  for parts in (2, 8):
    small, rows = _after(toy.plain_loss, parts)
    for a, b in zip(jax.tree.leaves((big, big_rows)), jax.tree.leaves((small, rows))):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@functools.cache
def _gradients(parts):
  return jax.jit(functools.partial(summed_gradients, toy.plain_loss, parts=parts))


def _piece(batch, i, parts):
  return jax.tree.map(lambda x: x[i], split_rows(batch, parts))


def test_the_mean_of_microbatch_means_would_not_pass():
  """Mutant: it must differ by far more than the tolerance above, or the test above is empty."""
  params, batch = toy.init_params(), next(toy.Rows())
  key, step = tr.named_key(0, "loss", 0), jnp.int32(0)
  gradient, loss = _gradients(8)(params, {}, key, batch, step)
  means = [_gradients(1)(params, {}, key, _piece(batch, i, 8), step) for i in range(8)]
  mutant = sum(g["head"]["bias"] / l.count for g, l in means) / 8
  assert np.abs(mutant - gradient["head"]["bias"] / loss.count).max() > 1e-3


def test_every_microbatch_draws_its_own_noise_from_a_common_key():
  seen = []

  def loss_fn(params, frozen, key, batch, progress):
    jax.debug.callback(
      lambda k, part: seen.append((tuple(k.tolist()), int(part))),
      jax.random.key_data(key),
      progress.part,
    )
    return toy.noisy_loss(params, frozen, key, batch, progress)

  params, key, batch = toy.init_params(), tr.named_key(0, "loss", 0), next(toy.Rows())
  _, loss = jax.jit(functools.partial(summed_gradients, loss_fn, parts=4))(
    params, {}, key, batch, jnp.int32(0)
  )
  jax.effects_barrier()
  assert sorted(seen) == [(tuple(jax.random.key_data(key).tolist()), part) for part in range(4)]
  apart = [
    toy.noisy_loss(params, {}, key, _piece(batch, i, 4), Progress(step=0, part=i, parts=4))
    for i in range(4)
  ]
  np.testing.assert_allclose(loss.count, sum(l.count for l in apart))
  np.testing.assert_allclose(loss.total, sum(l.total for l in apart), rtol=1e-5)


def test_split_rows_interleaves():
  batch = Batch(ids=jnp.arange(12)[:, None])
  np.testing.assert_array_equal(
    split_rows(batch, 3).ids[:, :, 0], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
  )
  assert split_rows(batch, 3).weights is None
  with pytest.raises(
    ValueError, match=r"12 rows does not divide into accumulation=5 .* use a multiple of 5"
  ):
    split_rows(batch, 5)


def test_ema_closed_form_with_warm_up():
  ema, weights = {"w": jnp.zeros(())}, np.array([3.0, -1.0, 4.0, 1.0, 5.0, 9.0])
  expected = 0.0
  for n, w in enumerate(weights):
    ema = update_ema(ema, {"w": jnp.float32(w)}, 0.3, jnp.int32(n))
    d = min(0.3, (1 + n) / (10 + n))
    expected = d * expected + (1 - d) * w
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-6)
  assert (1 + 3) / (10 + 3) > 0.3 > (1 + 2) / (10 + 2)  # both branches were taken


def test_step_averages_the_updated_parameters():
  fresh, _, step, _ = toy.build(ema_decay=0.9)
  before = jax.device_get(fresh().params)
  state, _ = step(fresh(), next(toy.Rows()))
  state, _ = step(state, next(toy.Rows()))  # the first update has a learning rate of 0
  d = 2 / 11
  for p0, p2, e in zip(
    jax.tree.leaves(before), jax.tree.leaves(state.params), jax.tree.leaves(state.ema)
  ):
    np.testing.assert_allclose(e, d * p0 + (1 - d) * p2, rtol=1e-4, atol=1e-6)
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, state.eval_params, state.ema))


def test_no_average():
  fresh, _, step, _ = toy.build(ema_decay=None)
  state, _ = step(fresh(), next(toy.Rows()))
  assert state.ema is None
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, state.eval_params, state.params))


def test_average_and_decay_must_agree():
  state = jax.eval_shape(lambda: tr.create_state(toy.init, toy.optimizer(), ema=False))
  step = tr.make_train_step(toy.noisy_loss, toy.optimizer(), seed=0, ema_decay=0.9)
  with pytest.raises(
    ValueError, match=r"ema_decay=0.9 but the state has no average; create it with ema=True"
  ):
    jax.eval_shape(step, state, next(toy.Rows()))


@pytest.mark.parametrize("bad", [{"accumulation": 0}, {"ema_decay": 1.0}, {"ema_decay": 0.0}])
def test_bad_arguments(bad):
  (name, value), *_ = bad.items()
  with pytest.raises(ValueError, match=f"{name}={value}"):
    tr.make_train_step(toy.noisy_loss, toy.optimizer(), seed=0, **bad)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_names_of_sums_may_not_clash(name):
  def loss_fn(params, frozen, key, batch, progress):
    loss = toy.plain_loss(params, frozen, key, batch, progress)
    return loss._replace(sums={name: loss.total})

  step = tr.make_train_step(loss_fn, toy.optimizer(), seed=0, ema_decay=0.9)
  state = jax.eval_shape(lambda: tr.create_state(toy.init, toy.optimizer()))
  with pytest.raises(ValueError, match=name):
    jax.eval_shape(step, state, next(toy.Rows()))


def test_metrics_are_sums_over_count():
  fresh, _, step, _ = toy.build(toy.plain_loss)
  batch, params = next(toy.Rows()), fresh().params
  _, metrics = step(fresh(), batch)
  loss = toy.plain_loss(params, {}, None, batch, None)
  np.testing.assert_allclose(metrics["loss"], loss.total / loss.count, rtol=1e-6)
  np.testing.assert_allclose(metrics["squares"], loss.sums["squares"] / loss.count, rtol=1e-6)
  np.testing.assert_allclose(metrics["learning_rate"], 0.0)
  gradient = jax.jit(
    jax.grad(lambda p: toy.plain_loss(p, {}, None, batch, None).total / loss.count)
  )(params)
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_a_batch_in_which_nothing_counts_gives_zero_not_nan():
  fresh, _, step, _ = toy.build(toy.plain_loss)
  batch = next(toy.Rows())
  state, metrics = step(fresh(), Batch(ids=batch.ids, weights=0 * batch.weights))
  assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and np.isfinite(metrics["param_norm"])
  assert int(state.step) == 1


def test_compiles_once():
  traces = []

  def loss_fn(*args):
    traces.append(1)
    return toy.noisy_loss(*args)

  fresh, _, step, mesh = toy.build(loss_fn)
  state, data = fresh(), toy.Rows()
  for _ in range(3):
    state, _ = step(state, tr.global_batch(next(data), mesh))
  assert len(traces) == 1 and step._cache_size() == 1


def test_loss_falls():
  _, rows = _after(toy.plain_loss, 1, steps=30)
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_named_keys_are_fixed_and_independent():
  data = jax.random.key_data
  # 0xDE211109 is zlib.crc32(b"loss").
  expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0xDE211109), 5)
  np.testing.assert_array_equal(data(tr.named_key(7, "loss", 5)), data(expected))
  others = [tr.named_key(7, "corrupt", 5), tr.named_key(7, "loss", 6), tr.named_key(8, "loss", 5)]
  assert len({tuple(data(k).tolist()) for k in [expected, *others]}) == 4


def test_what_is_frozen_is_read_and_never_moves():
  """The loss is the same, and average, moments and gradient hold no frozen parameters."""
  fresh, _, step, _ = toy.build(toy.plain_loss, start=toy.init_with_frozen_head)
  start, batch = fresh(), next(toy.Rows())
  head = jax.tree.map(np.asarray, start.frozen)
  assert set(head) == {"head"} and "head" not in start.params and "head" not in start.ema
  names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(start.opt_state)]
  assert not any("head" in name for name in names)
  state, metrics = step(start, batch)
  jax.tree.map(np.testing.assert_array_equal, state.frozen, head)
  whole, _, whole_step, _ = toy.build(toy.plain_loss)
  _, all_move = whole_step(whole(), batch)
  np.testing.assert_allclose(metrics["loss"], all_move["loss"], rtol=1e-6)
  assert float(metrics["grad_norm"]) < float(all_move["grad_norm"])
  assert set(state.eval_params) == {"embedding", "layers", "head"}

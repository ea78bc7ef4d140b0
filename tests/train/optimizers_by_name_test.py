"""Every optimizer by name: its update by hand, on many devices, after a restart, and by width."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_text import train as tr
from diffusion_text.experiment.settings import OptimizerSettings
from diffusion_text.model.matrices import input_width, matrix_axes, sides
from diffusion_text.model.transformer import Transformer
from diffusion_text.train.optimizer import OPTIMIZERS, make_optimizer
from diffusion_text.train.sharding import path_names
from diffusion_text.types import Inputs, InputSizes, Layout, Rows, Span

from . import toy

NEW = [name for name in OPTIMIZERS if name != "adamw"]  # adamw is held by the other tests
MESH = {"replica": 1, "fsdp": 4, "tensor": 2}


def toy_matrices(path, shape):
  """The layers of the toy are its matrices."""
  return ((1,), (2,)) if path == ("layers", "mlp", "kernel") else None


def made(name, **options):
  options = {"learning_rate": 0.02, "steps": 50, "schedule": "constant"} | options
  return make_optimizer(name=name, matrices=toy_matrices, **options)


# Muon.

# Axes by their names -> how one array becomes its matrices [number, inputs, outputs], by NumPy.
ARRAYS = {
  ("layers", "embed", "mlp"): ((2, 3, 6), lambda g: g),
  ("layers", "mlp", "embed"): ((2, 6, 3), lambda g: g),
  ("layers", "experts", "embed", "expert_mlp"): ((2, 2, 3, 4), lambda g: g.reshape(4, 3, 4)),
  ("layers", "embed", "heads", "head_width"): ((2, 4, 2, 3), lambda g: g.reshape(2, 4, 6)),
  ("layers", "heads", "head_width", "embed"): ((2, 2, 3, 4), lambda g: g.reshape(2, 6, 4)),
  ("embed", "fused", "heads", "head_width"): (
    (4, 3, 2, 3),
    lambda g: g.transpose(1, 0, 2, 3).reshape(3, 4, 6),
  ),
}


def newton_schulz(matrix):
  """Five steps of X ← aX + (bA + cA²)X, A = XXᵀ, of a matrix of Frobenius norm 1, in float64."""
  x = np.float64(matrix)
  wide = x.shape[0] <= x.shape[1]
  x = x if wide else x.T
  x = x / np.linalg.norm(x)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x if wide else x.T


def muon_by_hand(matrices, rate):
  """The first update of each matrix: momentum is the gradient then, up to a factor."""
  grown = np.sqrt(max(1.0, matrices.shape[2] / matrices.shape[1]))
  return np.stack([-rate * grown * newton_schulz(one) for one in matrices])


@pytest.fixture(scope="module")
def muon_updates():
  """(gradient, first update) of an array of each kind."""
  rng = np.random.default_rng(0)
  gradient = {
    "/".join(axes): rng.standard_normal(shape).astype(np.float32)
    for axes, (shape, _) in ARRAYS.items()
  }
  optimizer = make_optimizer(
    name="muon",
    learning_rate=1.0,
    steps=10,
    schedule="constant",
    matrix_learning_rate=0.3,
    weight_decay=0.0,
    clip_norm=None,
    matrices=lambda path, shape: sides(path[0].split("/")),
  )
  zeros = jax.tree.map(jnp.zeros_like, gradient)
  return gradient, jax.jit(optimizer.update)(gradient, optimizer.init(zeros), zeros)[0]


def test_names_and_parts_are_checked():
  for options, says in (
    ({"name": "lionn"}, "name='lionn' is unknown; did you mean 'lion'?; use one of adamw, lion,"),
    ({"schedule": "cosin"}, "schedule='cosin' is unknown; did you mean 'cosine'?"),
    ({"name": "muon"}, "name='muon' needs matrices="),
    (
      {"name": "schedule_free", "schedule": "cosine"},
      "schedule='cosine' with name='schedule_free'",
    ),
    ({"name": "schedule_free", "b1": 0.0}, "b1=0.0 with name='schedule_free'"),
    ({"base_width": 64}, "base_width=64 must be at least 1 and needs widths="),
    ({"momentum": 1.0}, "momentum=1.0 must lie in"),
    ({"matrix_learning_rate": 0.0}, "matrix_learning_rate=0.0 must be above 0"),
  ):
    with pytest.raises(ValueError, match=re.escape(says)):
      make_optimizer(**({"learning_rate": 1e-3, "steps": 9} | options))


@pytest.mark.parametrize("axes", ARRAYS)
def test_muon_orthogonalises_the_matrices_that_are_meant(muon_updates, axes):
  """Stacked layers and experts, heads with an axis of their own, and fused kernels."""
  gradient, updates = (tree["/".join(axes)] for tree in muon_updates)
  _, as_matrices = ARRAYS[axes]
  expected = muon_by_hand(as_matrices(gradient), 0.3)
  np.testing.assert_allclose(as_matrices(np.asarray(updates)), expected, rtol=1e-3, atol=1e-4)
  # The mutant: the array as one matrix, its first axis against all others, as if nothing were
  # stacked.
  flat = gradient.reshape(gradient.shape[0], -1)
  mutant = muon_by_hand(flat[None], 0.3).reshape(gradient.shape)
  assert np.abs(as_matrices(mutant) - expected).max() > 0.02


def test_muon_adds_momentum_as_nesterov_does():
  """Two updates: the direction is β·m̂ + (1 - β)·ĝ, both freed of their bias as optax does it."""
  rng = np.random.default_rng(1)
  first, second = rng.standard_normal((2, 1, 3, 4)).astype(np.float32)
  optimizer = made("muon", matrix_learning_rate=1.0, momentum=0.9, clip_norm=None, weight_decay=0)
  first_tree, second_tree = ({"layers": {"mlp": {"kernel": g}}} for g in (first, second))
  update = jax.jit(optimizer.update)
  _, state = update(first_tree, optimizer.init(first_tree), first_tree)
  updates, _ = update(second_tree, state, first_tree)
  mean = 0.1 * (0.9 * first + second)
  direction = 0.9 * mean / (1 - 0.9**3) + 0.1 * second / (1 - 0.9**2)
  np.testing.assert_allclose(
    updates["layers"]["mlp"]["kernel"], muon_by_hand(direction, 1.0), rtol=1e-3, atol=1e-4
  )


def network(width=16, **options):
  return Transformer(
    **{"layers": 1, "width": width, "heads": 2, "input_sizes": InputSizes(33), "output_size": 32}
    | options
  )


@pytest.mark.parametrize(
  ("options", "names"),
  [
    ({}, "key out query value up down"),
    ({"activation": "swiglu", "time_conditioning": "adaln"}, "key out query value up gate down"),
    (
      {"experts": 2, "experts_per_token": 1, "expert_width": 8, "shared_width": 8},
      "key out query value up down up down",
    ),
    ({"layers": 2, "first_stage_layers": 1, "head_transform": True}, "key out query value up down"),
  ],
)
def test_the_matrices_of_the_layers_are_found_by_the_names_of_their_axes(options, names):
  """Attention, MLP and experts; no table, head, router, bias, scale or map of the time. Widths are
  those of the layers' matrices, of every head and of the router.
  """
  shapes = jax.eval_shape(network(**options).init, jax.random.key(0))
  leaves = [(path_names(p), x.shape) for p, x in jax.tree_util.tree_leaves_with_path(shapes)]
  found = [path for path, shape in leaves if matrix_axes(path, shape)]
  assert all(path[0] == "blocks" for path in found)
  assert sorted([p for p in path if p != "kernel"][-1] for path in found) == sorted(names.split())
  wide = {path: input_width(path, shape) for path, shape in leaves}
  wide = {path: width for path, width in wide.items() if width is not None}
  assert set(wide.values()) == {16} and set(found) <= set(wide)
  others = {path[-2:] for path in wide if path not in found}
  expected = {("head", "kernel"), ("mlp", "router"), ("dense", "kernel")}
  absent = {("mlp", "router")} if "experts" not in options else set()
  absent |= {("dense", "kernel")} if "head_transform" not in options else set()
  assert others == expected - absent


# Devices, restarts, frozen parameters.


@functools.cache
def _run(name, many):
  """The states after each of three updates, and where the arrays of the last one lie."""
  mesh = tr.make_mesh(**MESH) if many else None
  fresh, abstract, step, mesh = toy.build(
    mesh=mesh, opt=made(name), start=toy.init_with_frozen_head
  )
  state, data, states = fresh(), toy.Rows(), []
  for _ in range(3):
    state, _ = step(state, tr.global_batch(next(data), mesh))
    states.append(jax.device_get(state))
  return states, jax.tree.map(lambda leaf: leaf.sharding, state), (fresh, abstract, step, mesh)


@pytest.mark.parametrize("name", NEW)
def test_every_optimizer_trains_alike_on_eight_devices(name):
  """…and what it keeps of a matrix lies where the matrix lies."""
  (*_, alone), _, _ = _run(name, False)
  (*_, state), places, _ = _run(name, True)
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(state)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  kernel = places.params["layers"]["mlp"]["kernel"]
  kept = [
    place
    for path, place in jax.tree_util.tree_leaves_with_path(places.opt_state)
    if path_names(path)[-3:] == ("layers", "mlp", "kernel")
  ]
  assert len(kept) == {"lion": 1, "muon": 1, "schedule_free": 2}[name]
  assert all(place.is_equivalent_to(kernel, 3) for place in kept)


@pytest.mark.parametrize("name", NEW)
def test_every_optimizer_goes_on_bit_by_bit_after_a_restart_and_leaves_alone_what_is_frozen(
  name, tmp_path
):
  states, _, (fresh, abstract, step, mesh) = _run(name, False)
  data = toy.Rows()
  next(data)
  with tr.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, states[0], data=data.get_state(), clock=tr.Clock())
  data = toy.Rows()
  state = tr.restore(tmp_path, abstract, data=data, clock=tr.Clock(), fresh=fresh).state
  for _ in range(2):
    state, _ = step(state, tr.global_batch(next(data), mesh))
  jax.tree.map(np.testing.assert_array_equal, states[-1], state)
  names = [path_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
  assert not any("head" in each for each in names)
  jax.tree.map(np.testing.assert_array_equal, state.frozen["head"], toy.init_params()["head"])
  moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), toy.init()[0], states[-1].eval_params)
  assert moved["layers"]["mlp"]["kernel"] and moved["embedding"]["embedding"]


# Schedule-free.


def test_schedule_free_by_hand_and_its_evaluation_weights():
  """x, y, z of arXiv:2405.15682 with Adam's second moment, in NumPy; and the average of the train
  state is x, whatever `ema_decay` is. The parameters are replaced after `init`, as those of a run
  that begins with another's weights are: z begins there. The mutant is optax alone, whose z begins
  at the parameters of `init`.
  """
  rate, b1, b2, decay = 0.1, 0.9, 0.95, 0.5
  start, stale = np.array([1.0, -2.0]), np.array([30.0, 40.0])
  goal = np.array([0.5, 3.0])
  optimizer = make_optimizer(
    name="schedule_free", learning_rate=rate, steps=9, b1=b1, b2=b2, weight_decay=decay,
    clip_norm=None, decays=lambda path: True,
  )  # fmt: skip
  alone = optax.contrib.schedule_free(
    optax.chain(
      optax.scale_by_rms(decay=b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
      optax.add_decayed_weights(decay),
      optax.scale_by_learning_rate(rate),
    ),
    learning_rate=rate,
    b1=b1,
  )
  x = y = z = start
  moment = np.zeros(2)
  params = mutant = {"w": jnp.asarray(start, jnp.float32)}
  state = optimizer.init({"w": jnp.asarray(stale, jnp.float32)})
  mutant_state = alone.init({"w": jnp.asarray(stale, jnp.float32)})
  for number in range(1, 5):
    gradient = y - goal
    moment = b2 * moment + (1 - b2) * gradient**2
    adam = gradient / (np.sqrt(moment / (1 - b2**number)) + 1e-8)
    z = z - rate * (adam + decay * y)
    x = (1 - 1 / number) * x + z / number
    y = (1 - b1) * z + b1 * x
    updates, state = optimizer.update({"w": params["w"] - goal}, state, params)
    params = optax.apply_updates(params, updates)
    updates, mutant_state = alone.update({"w": mutant["w"] - goal}, mutant_state, mutant)
    mutant = optax.apply_updates(mutant, updates)
    np.testing.assert_allclose(params["w"], y, rtol=1e-4)
    np.testing.assert_allclose(optimizer.evaluated(state, params)["w"], x, rtol=1e-4, atol=1e-5)
  assert np.abs(x - y).max() > 0.01 and np.abs(mutant["w"] - y).max() > 1


def test_the_average_of_a_schedule_free_run_is_its_own():
  """The average is x, with and without `ema_decay`; of other optimizers it is the usual one."""
  (*_, state), _, _ = _run("schedule_free", False)
  free = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
  kernel = ("layers", "mlp", "kernel")

  def at(tree):
    return functools.reduce(lambda inner, name: inner[name], kernel, tree)

  np.testing.assert_allclose(at(state.eval_params), at(free), rtol=1e-4, atol=1e-5)
  assert np.abs(at(state.params) - at(free)).max() > 1e-4
  step = tr.make_train_step(toy.plain_loss, made("schedule_free"), seed=0, ema_decay=None)
  jax.eval_shape(step, tr.create_state(toy.init, made("schedule_free"), ema=True), next(toy.Rows()))
  bare = tr.create_state(toy.init, made("schedule_free"), ema=False)
  with pytest.raises(ValueError, match=r"ema_decay=None but the state has no average; .*ema=True"):
    jax.eval_shape(step, bare, next(toy.Rows()))
  first, second, _ = _run("muon", False)[0]
  usual = at(first.ema) + (1 - 2 / 11) * (at(second.params) - at(first.ema))
  np.testing.assert_allclose(at(second.ema), usual, rtol=1e-4, atol=1e-6)


# Options of a config.


def test_the_decay_of_wsd_is_a_fraction_of_the_steps():
  options = {"learning_rate": 1.0, "schedule": "wsd", "warmup_steps": 10, "final_fraction": 0.0}
  settings = OptimizerSettings(**options, decay_fraction=0.4)
  rate = settings.make(100, decays=lambda path: True, clips=lambda path: True).learning_rate
  np.testing.assert_allclose(
    [rate(n) for n in (5, 10, 60, 80, 100)], [0.5, 1, 1, 0.5, 0], atol=1e-6
  )
  fixed = OptimizerSettings(**options, decay_steps=20)
  rate = fixed.make(100, decays=lambda path: True, clips=lambda path: True).learning_rate
  np.testing.assert_allclose([rate(n) for n in (80, 90)], [1, 0.5], atol=1e-6)


# Rates by width.


def test_rates_and_decay_by_width():
  """adamw: rate · base / width, and the product of rate and decay as it was; muon: as it was."""
  params = {"layers": {"mlp": {"kernel": jnp.ones((1, 4, 4))}}, "bias": jnp.ones(4)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  ones = jax.tree.map(jnp.ones_like, params)

  def moved(gradient, **options):
    optimizer = make_optimizer(
      learning_rate=0.1, steps=9, schedule="constant", weight_decay=0.5, clip_norm=None,
      matrices=toy_matrices, widths=lambda path, shape: None if path == ("bias",) else 4,
      **options,
    )  # fmt: skip
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return float(updates["layers"]["mlp"]["kernel"][0, 0, 0]), float(updates["bias"][0])

  np.testing.assert_allclose(moved(zeros), [-0.05, 0], rtol=1e-5)
  np.testing.assert_allclose(moved(zeros, base_width=1), [-0.05, 0], rtol=1e-5)
  np.testing.assert_allclose(moved(ones), [-0.15, -0.1], rtol=1e-5)
  np.testing.assert_allclose(moved(ones, base_width=1), [-0.025 - 0.05, -0.1], rtol=1e-5)
  muon = {"name": "muon", "matrix_learning_rate": 0.2}
  assert moved(ones, **muon) == moved(ones, **muon, base_width=1)


WIDTHS = (64, 128, 512)
HEAD_WIDTH = 32


@functools.cache
def _gradient(width):
  """(parameters, jitted (parameters, ids, seen) -> (gradient, (logits, stream))) at this width."""
  small = network(width, heads=width // HEAD_WIDTH, head_width=HEAD_WIDTH, mlp_width=2 * width)

  def loss(params, ids, seen):
    everything = Span(0, ids.shape[1])
    inputs = Inputs(jnp.where(seen, ids, 32))
    rows = Rows(inputs, jnp.where(seen, 0.0, 1.0), Layout(), None, 1, everything, everything)
    answer = small.apply(params, rows, hidden_layers=(0,))
    logits = answer.head(answer.features)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(seen, 0.0, nll)) / jnp.sum(~seen), (logits, answer.hidden[0])

  return small.init(jax.random.key(0)), jax.jit(jax.grad(loss, has_aux=True))


def _moved(width, name, base_width):
  """Root mean square of how far three updates move (logits, the stream after a layer).

  The table of tokens stays, so that only sums over the width move anything.
  """
  params, gradient = _gradient(width)
  optimizer = make_optimizer(
    name=name, learning_rate=1e-3, steps=9, schedule="constant", base_width=base_width,
    matrices=matrix_axes, widths=input_width,
  )  # fmt: skip
  update, state = jax.jit(optimizer.update), optimizer.init(params)
  rng = np.random.default_rng(0)
  ids, seen = rng.integers(0, 32, (4, 16)), rng.random((4, 16)) < 0.5
  seen_values = []
  for _ in range(4):
    slope, values = gradient(params, ids, seen)
    seen_values.append(values)
    slope["embedding"] = jnp.zeros_like(slope["embedding"])
    updates, state = update(slope, state, params)
    params = optax.apply_updates(params, updates)
  return [float(jnp.sqrt(jnp.mean((a - b) ** 2))) for a, b in zip(seen_values[-1], seen_values[0])]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_coordinates_move_alike_at_every_width(name):
  """From width 64 to 512, what three updates change in the logits and in the stream stays of one
  order with `base_width`; the mutant, one rate for all widths, grows. Lion's rates are adamw's.
  """
  by_width = np.array([_moved(width, name, 64) for width in WIDTHS])
  growth = by_width / by_width[0]
  mutant = np.array(_moved(WIDTHS[-1], name, None)) / by_width[0]
  assert growth.max() < 1.5 and growth.min() > 0.6, growth
  assert mutant[0] > 4, mutant  # the head is adamw's with muon too
  assert name == "muon" or mutant[1] > 3, mutant

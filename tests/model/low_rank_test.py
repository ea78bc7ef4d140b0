"""Changes of low rank: none at first, merged exactly, alone in the optimizer, saved, sharded."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mdlm
from diffusion_text import train
from diffusion_text.core.trees import merge, split
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.model import linear_maps
from diffusion_text.model.low_rank import LowRank
from diffusion_text.model.partition import partition_spec
from diffusion_text.model.quantized.stored import Quantized
from diffusion_text.studies.workdirs import save
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, Progress

ROWS = rows_of(Inputs(ids=np.arange(16).reshape(2, 8) % 12))
LORA = LowRank(rank=3, alpha=5.0)


@functools.cache
def program(network):
  return jax.jit(lambda params: network.apply(params, ROWS).logits)


def logits(network, params):
  return np.asarray(program(network)(params))


def begun(network, seed=0):
  return jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(seed)))


def shapes_of(network):
  return jax.eval_shape(network.init, jax.random.key(0))


def noisy(params):
  random = np.random.default_rng(0)

  def one(x):
    return x if x.dtype == np.uint8 else np.float32(x + 0.05 * random.normal(size=x.shape))

  return jax.tree.map(one, params)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_before_training_it_is_the_base_to_the_last_bit():
  base = small_transformer(time_conditioning="adaln")
  changed = base.like(low_rank=LORA)
  own, params = begun(base), begun(changed)
  bare, plain = linear_maps.plain(changed, params)
  assert bare == base
  jax.tree.map(np.testing.assert_array_equal, plain, own)
  a = params["blocks"]["mlp"]["down"]["low_rank"]["a"]
  assert a.shape == (2, 64, 3) and np.std(a) == pytest.approx(64**-0.5, rel=0.2)
  head = {"kernel": np.random.default_rng(0).normal(size=(32, 11)), "bias": np.zeros(11)}
  head = jax.tree.map(np.float32, head)
  params, own = params | {"head": head}, own | {"head": head}
  np.testing.assert_array_equal(logits(changed, params), logits(base, own))


def with_smaller_changes(tree, factor):
  """The parameters with every B times `factor`."""
  if not isinstance(tree, dict):
    return tree
  if "low_rank" not in tree:
    return {name: with_smaller_changes(inner, factor) for name, inner in tree.items()}
  a, b = (tree["low_rank"][name] for name in "ab")
  return {**tree, "low_rank": {"a": a, "b": np.float32(factor * b)}}


def in_the_last_bit(tree, seed=0):
  """Every number moved to its neighbour in float32, up or down at random."""
  random = np.random.default_rng(seed)

  def moved(x):
    return np.nextafter(x, np.float32(np.where(random.random(x.shape) < 0.5, -np.inf, np.inf)))

  return jax.tree.map(moved, tree)


def size(x):
  return np.sqrt(np.mean(np.square(x)))


@pytest.mark.parametrize("scaling", ["rank", "root_rank"])
def test_merged_logits_are_those_of_the_two_parts(scaling):
  """To 1e-5, where the changes have 0.6 and 0.4 of the size of the matrices, layers scanned or not;
  and not with the other scale, nor with kernels that are rounded to bfloat16. Where they have twice
  the size and more, to 1e-5 of the size of the logits: no merging comes nearer, as neighbours of
  the merged kernels in float32 are as far apart. Kernels are those of float64 to 2e-7."""
  lora = LowRank(rank=3, alpha=5.0, scaling=scaling)
  network = small_transformer(low_rank=lora, scan_layers=scaling == "rank", activation="swiglu")
  large = noisy_parameters(network)
  params = with_smaller_changes(large, 0.3 if scaling == "rank" else 0.1)
  bare, plain = linear_maps.plain(network, params)
  apart = logits(network, params)
  np.testing.assert_allclose(logits(bare, plain), apart, rtol=0, atol=1e-5)
  query = params["blocks"]["attention"]["query"]
  scale = 5 / 3 if scaling == "rank" else 5 / 3**0.5
  a, b = (np.float64(query["low_rank"][name]) for name in "ab")
  assert 0.3 < size(scale * a @ b) / size(query["kernel"]) < 0.7
  merged = plain["blocks"]["attention"]["query"]["kernel"]
  np.testing.assert_allclose(merged, query["kernel"] + scale * a @ b, rtol=0, atol=2e-7)
  other = LowRank(rank=3, alpha=5.0, scaling="root_rank" if scaling == "rank" else "rank")
  _, mutant = linear_maps.plain(network.like(low_rank=other), params)
  assert np.abs(logits(bare, mutant) - apart).max() > 1e-2
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), plain["blocks"])
  assert np.abs(logits(bare, plain | {"blocks": rounded}) - apart).max() > 1e-3
  merged, apart = linear_maps.plain(network, large)[1], logits(network, large)
  error = size(logits(bare, merged) - apart)
  neighbour = size(logits(bare, in_the_last_bit(merged)) - logits(bare, merged))
  assert error < 1e-5 * size(apart) and error < 1.5 * neighbour


def test_integers_under_a_low_rank_merge_too_and_the_change_alone_moves():
  """QLoRA (arXiv 2305.14314): codes lie in the frozen part, and A and B get their gradients."""
  network = small_transformer(low_rank=LORA, quantized=Quantized(bits=4, group=16), layers=1)
  params = noisy(begun(network, 1))
  bare, plain = linear_maps.plain(network, params)
  moves, rests = split({"network": params}, network.trains)
  names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(moves)}
  assert names == {"a", "b"}

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(moves):
    found = network.apply(merge(moves, rests)["network"], ROWS).logits
    return jnp.sum(found**2), found

  changes, found = gradient(moves)
  np.testing.assert_allclose(logits(bare, plain), found, atol=1e-5)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(changes))


def test_patterns_choose_the_matrices():
  network = small_transformer(low_rank=LowRank(matrices=("*/query", "blocks/mlp/d*")))
  shapes = shapes_of(network)
  with_rank = [n for n in linear_maps.names_of(shapes) if "low_rank" in linear_maps.get(shapes, n)]
  assert with_rank == ["blocks/attention/query", "blocks/mlp/down"]
  with pytest.raises(ValueError, match=r"holds 'blocks/mpl/\*', which .* blocks/attention/key, "):
    shapes_of(small_transformer(low_rank=LowRank(matrices=("blocks/mpl/*",))))
  with pytest.raises(
    ValueError, match=r"also holds 'head/kernal', which .* embedding, final_norm/"
  ):
    shapes_of(small_transformer(low_rank=LowRank(also=("head/kernal",))))
  also = network.like(low_rank=LowRank(also=("embedding", "final_norm")))
  shapes_of(also)
  assert also.trains(("network", "embedding")) and also.trains(("network", "final_norm", "scale"))
  assert not also.trains(("network", "head", "kernel")) and not network.trains(
    ("network", "embedding")
  )


def test_a_and_b_are_split_like_their_kernel():
  mesh = {"fsdp": 2, "tensor": 4}
  network = small_transformer(
    low_rank=LORA, quantized=Quantized(bits=8, group=0, scaled_inputs=True)
  )
  shapes = {"network": shapes_of(network)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    names = tuple(part.key for part in path)
    if names[-2] not in ("low_rank", "quantized"):
      continue
    kernel = tuple(partition_spec((*names[:-2], "kernel"), (2, 32, 64), mesh))
    want = {"a": (kernel[1], None), "b": (None, kernel[2]), "codes": kernel[1:]}
    want |= {"scale": (None, kernel[2]), "zero": (None, kernel[2]), "inputs": kernel[1:2]}
    assert tuple(partition_spec(names, leaf.shape, mesh)) == (None, *want[names[-1]]), names
    assert any(kernel), "a mutant that splits nothing would pass"


def config_of(tmp_path, **low_rank):
  config = mdlm.get_config("micro")
  config.model.layers = 1
  config.data.update({"length": 32, "cache_dir": str(tmp_path / "cache")})
  config.train.update({"steps": 12, "batch_size": 8, "save_every": 6, "evaluate_every": 100})
  config.train.log_every = 1
  config.evaluate.update({"batch_size": 8, "max_rows": 16})
  config.optimizer.learning_rate = 0.03
  if low_rank:
    runs.override(config, [(f"model.low_rank.{key}", value) for key, value in low_rank.items()])
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("low_rank")


def experiment_of(config):
  return build(config, devices=jax.devices()[:1])


def test_the_optimizer_holds_a_and_b_alone(folder):
  """Two moments and an average of A and B, by counting; nothing of anything else."""
  experiment = experiment_of(config_of(folder, rank=4))
  state = experiment.abstract_state()
  sizes = {"attention": 4 * (64 + 64), "mlp": 2 * (64 + 256)}
  want = 4 * sum(sizes.values())  # of rank 4
  assert count(state.params) == count(state.ema) == want
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sum(leaf.size for leaf in moments) == 2 * want
  whole = experiment_of(config_of(folder)).abstract_state()
  assert count(state.frozen) == count(whole.params) and not jax.tree.leaves(whole.frozen)


def test_a_run_learns_stops_and_goes_on_from_its_base(folder):
  """From a base in a workdir: 6 updates, a stop, 6 more; the base stays, and the loss falls."""
  base = experiment_of(config_of(folder))
  random = np.random.default_rng(0)
  params = jax.tree.map(np.asarray, jax.jit(lambda: base.init(jax.random.key(0))[0])())
  params["network"]["head"]["kernel"] = 1 * params["network"]["head"]["kernel"]
  params["network"]["head"]["kernel"] += 0.02 * random.normal(size=(64, 82)).astype(np.float32)
  save(base, params, folder / "base", {})

  def run(steps):
    config = config_of(folder, rank=4, alpha=8.0)
    config.train.update({"initialize_from": str(folder / "base"), "steps": steps})
    config.optimizer.schedule = "constant"
    return runs.train_workdir(experiment_of(config), str(folder / "run"), terminal=False)

  assert run(6).step == 6
  early = runs.load(str(folder / "run")).params
  assert run(12).step == 12
  network = runs.load(str(folder / "run")).params["network"]
  assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(network), jax.tree.leaves(early)))
  kept = {
    path: leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(network)
    if path[-1].key not in "ab"
  }
  start = dict(jax.tree_util.tree_leaves_with_path(params["network"]))
  assert kept.keys() == start.keys()
  for path, leaf in kept.items():
    np.testing.assert_array_equal(leaf, start[path])
  lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
  losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
  assert len(losses) == 12
  assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3, losses


def test_it_is_one_option_on_the_command_line(folder):
  """A part with one name needs none, and a rank that is none is refused by its key."""
  assert experiment_of(config_of(folder, rank=2)).model.network.low_rank == LowRank(rank=2)
  with pytest.raises(ValueError, match=r"config.model.low_rank.rank=0 is not valid"):
    experiment_of(config_of(folder, rank=0))
  with pytest.raises(ValueError, match=r"low_rank.ranks=2 is not read .* did you mean 'rank'"):
    experiment_of(config_of(folder, ranks=2))


def test_eight_devices_compute_what_one_does(folder):
  """The loss and the gradients of A and B over fsdp = 2, tensor = 4."""
  config = config_of(folder, rank=4)
  one = experiment_of(config)
  config.mesh = {"fsdp": 2, "tensor": 4}
  many = build(config, devices=jax.devices())
  params, frozen = jax.jit(one.init)(jax.random.key(0))
  random = np.random.default_rng(0)
  params = jax.tree.map(lambda x: np.float32(x + 0.05 * random.normal(size=x.shape)), params)
  frozen["network"]["head"]["kernel"] = np.float32(0.1 * random.normal(size=(64, 82)))
  batch = next(iter(runs.held_out(one, "validation", 8)))[0]
  batch = jax.tree.map(np.asarray, batch)
  results = []
  for experiment in (one, many):
    loss_fn = experiment.loss_fn(1.0)
    place = train.state_shardings(
      experiment.abstract_state(),
      functools.partial(partition_spec, mesh_shape=dict(experiment.mesh.shape)),
      experiment.mesh,
    )

    def mean(params, frozen, batch, loss_fn=loss_fn):
      loss = loss_fn(params, frozen, train.named_key(0, "loss", 0), batch, Progress())
      return loss.total / loss.count

    with jax.set_mesh(experiment.mesh):
      where = (place.params, place.frozen, None)
      result = jax.jit(jax.value_and_grad(mean), in_shardings=where)(params, frozen, batch)
    results.append(jax.tree.map(np.asarray, result))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), *results)

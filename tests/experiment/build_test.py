"""Configs: every one builds, every key is read, and what does not fit is refused before any compute, with the fix."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_text import train
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.build import (
  SECTIONS,
  build,
  config_from_json,
  config_json,
  make_policy,
)
from diffusion_text.experiment.run import check_sampler, load_experiment, override
from diffusion_text.timing import Shared
from diffusion_text.train.step import summed_gradients
from diffusion_text.types import Batch, Progress

CONFIGS = sorted(
  path.stem
  for path in pathlib.Path(base.__file__).parent.glob("*.py")
  if path.stem not in ("base", "__init__")
)


class AnyTokenizer:
  """A vocabulary without a text."""

  name = "any"

  def __init__(self, vocab_size=64):
    self.vocab_size = vocab_size


def sized(size="micro", **train_or_data):
  """A small config; keywords set keys of train or data."""
  config = base.config(size)
  for key, value in train_or_data.items():
    section = "train" if key in config.train else "data"
    config[section][key] = value
  return config


@pytest.mark.parametrize(
  "name,size", [(name, "small") for name in CONFIGS] + [("mdlm", size) for size in base.SIZES]
)
def test_every_config_builds(name, size):
  module = __import__(f"configs.{name}", fromlist=["get_config"])
  config = module.get_config(size)
  assert "python -m experiments.train" in module.__doc__ or "launch/" in module.__doc__, (
    "the docstring is the lab note"
  )
  experiment = build(config, tokenizer=AnyTokenizer())
  assert plan.count_parameters(experiment) > 0
  assert str(config.process.name) in plan.summary(experiment)
  again = build(config_from_json(config_json(config)), tokenizer=AnyTokenizer())
  assert config_json(again.config) == config_json(experiment.config)


def small_config(name):
  """A config of configs/, as small as it can be."""
  config = __import__(f"configs.{name}", fromlist=["get_config"]).get_config("micro")
  config.update_from_flattened_dict(
    {"data.length": 16, "train.batch_size": 8, "evaluate.batch_size": 8, "sampler.steps": 2}
  )
  config.model.update(
    {
      "layers": 1 + (config.model.anchor_layers or 0),
      "width": 16,
      "heads": 1,
      "kv_heads": 1,
      "mlp_width": 32,
    }
  )
  return config


def kind(name, *chosen):
  """What makes a config another program than those of other configs, numbers apart: of each kind one is run, the others traced."""
  c = small_config(name)
  own = (
    c.process.name,
    c.timing.name,
    *(c[section].name for section in chosen),
    c.model.self_conditioning,
  )
  return *own, bool(c.model.anchor_layers), bool(c.model.experts)


RUN = list({kind(name, "objective", "sampler"): name for name in CONFIGS}.values())
DRAWN = list(
  {kind(name, "sampler"): name for name in RUN}.values()
)  # no sampler knows the objective
SPREAD = list(
  {small_config(name).process.name: name for name in CONFIGS}.values()
)  # one of each process, on all devices


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_takes_a_step_and_a_sample(name, tmp_path):
  """One real update, on 8 devices for one config of each process, and a sample; of programs of one kind, all but one are traced."""
  config = small_config(name)
  config.data.update(
    {"tokenizer": "characters", "vocab_size": None, "cache_dir": str(tmp_path)}
  )  # some count the corpus
  experiment = build(config, devices=jax.devices() if name in SPREAD else jax.devices()[:1])
  if name not in RUN + SPREAD:
    check_sampler(experiment)
    batch = Batch(
      jax.ShapeDtypeStruct((experiment.train.batch_size, experiment.data.length), jnp.int32)
    )
    with jax.set_mesh(experiment.mesh):
      loss, *_ = jax.eval_shape(
        experiment.loss_fn(1.0),
        experiment.abstract_state().params,
        jax.random.key(0),
        batch,
        Progress(),
      )
    assert loss.shape == ()
    return
  with jax.set_mesh(experiment.mesh):
    state, metrics = one_step(experiment)
  assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))
  if name not in DRAWN + SPREAD:
    return check_sampler(experiment)
  policy = make_policy(config.sampler.to_dict(), experiment.timing)
  params = jax.device_get(state.params)
  result = experiment.sample_fn(policy)(
    params, row_keys(0, 2), Batch(jnp.zeros((2, 16), jnp.int32))
  )
  assert int(result.ids.max()) < experiment.process.vocab_size


def one_step(experiment):
  """One update on random tokens: the state after it, and its metrics."""
  shape = (experiment.train.batch_size, experiment.data.length)
  ids = np.random.default_rng(0).integers(0, experiment.process.vocab_size, shape).astype(np.int32)
  batch = train.global_batch(Batch(ids), experiment.mesh)
  return experiment.jitted_step(experiment.loss_fn(1.0))(experiment.fresh_state(), batch)


MESHES = [
  dict(fsdp=1),
  dict(fsdp=4, tensor=2),
  dict(fsdp=2, sequence=4),
  dict(replica=2, sequence=2, tensor=2),
  dict(fsdp=2, expert=4),
  dict(tensor=2, sequence=2, expert=2),
]


def gradient_on(mesh, params, batch):
  """(params, (gradient, loss), program) of the real objective, in blocks and two microbatches, and a network with experts, on a mesh of
  such a shape. Without params: random ones. At the start of training the last layer is zero, and no gradient would pass it."""
  config = sized("micro", batch_size=8, length=16, accumulation=2)
  config.mesh.update({"fsdp": 1, **mesh})
  config.evaluate.batch_size = 8
  config.timing.update({"name": "per_block", "block_size": 4})
  config.model.update(
    {
      "width": 16,
      "layers": 2,
      "experts": 4,
      "experts_per_token": 2,
      "expert_width": 16,
      "scan_layers": True,
    }
  )
  config.model.update({"balance_weight": 0.1, "router_z_weight": 0.01, "shared_width": 16})
  config.objective.chunk = 8
  experiment = build(
    config, tokenizer=AnyTokenizer(96), devices=jax.devices()[: int(np.prod(list(mesh.values())))]
  )
  if params is None:
    random = np.random.default_rng(0)
    abstract = experiment.abstract_state().params
    params = jax.tree.map(
      lambda x: random.normal(size=x.shape, scale=0.3).astype(np.float32), abstract
    )
  key, loss_fn = jax.random.key(0), experiment.loss_fn(1.0)
  with jax.set_mesh(experiment.mesh):
    grads = jax.jit(
      lambda p, b: summed_gradients(loss_fn, p, key, b, jnp.int32(0), parts=2, mesh=experiment.mesh)
    )
    placed = (
      jax.device_put(params, experiment.shardings().params),
      train.global_batch(batch, experiment.mesh),
    )
    compiled = grads.lower(*placed).compile()
    return params, jax.device_get(compiled(*placed)), compiled.as_text()


def test_every_mesh_gives_the_same_gradient():
  """On 1 and 8 devices in six shapes: same loss, same gradient of every weight."""
  random = np.random.default_rng(1)
  weights = (np.arange(16) < random.integers(8, 16, (8, 1))).astype(np.float32)
  batch = Batch(
    random.integers(0, 64, (8, 16)).astype(np.int32),
    weights=weights,
    segment=1 - weights.astype(np.int32),
  )
  params, (gradient, loss), _ = gradient_on(MESHES[0], None, batch)
  assert {"bound", "router_balance", "router_z"} <= loss.sums.keys()
  assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 0, (
    "a weight without a gradient proves nothing"
  )
  for mesh in MESHES[1:]:
    _, (other_gradient, other_loss), text = gradient_on(mesh, params, batch)
    if "tensor" in mesh or "expert" in mesh:
      # Logits, head and its gradient stay split over V = 96: nothing with all of it is gathered.
      assert not re.search(r"= \w+\[(\d+,)*96[\],].* all-gather\(", text), mesh
    for a, b in zip(jax.tree.leaves(other_loss), jax.tree.leaves(loss)):
      assert float(a) == pytest.approx(float(b), rel=1e-5), mesh
    error = jax.tree.map(
      lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), other_gradient, gradient
    )
    assert max(jax.tree.leaves(error)) < 1e-5, (mesh, error)


BAD = [
  ({"process.name": "maskd"}, "maskd.*masked"),
  ({"schedule.name": "sqrt"}, "sqrt.*linear"),
  ({"schedule.power": 2.0}, "power=2.0.*does not read"),
  ({"timing.spread": 1.0}, "spread=1.0"),
  ({"objective.weighting": "uniform"}, "weighting='uniform'"),
  ({"objective.name": "cross_entropy", "objective.weighting": "x"}, "weighting='x'"),
  ({"sampler.order": "entropy"}, "order='entropy'"),
  ({"sampler.name": "ordered", "sampler.order": "left"}, "order='left'"),
  ({"sampler.steps": 0}, "steps=0"),
  ({"sampler.temperature": -1.0}, "temperature=-1.0"),
  ({"sampler.top_p": 0.0}, "top_p=0.0"),
  ({"train.batch_size": 30}, "batch_size=30.*use 32"),
  ({"train.accumulation": 3}, "accumulation=3.*use 48"),
  ({"evaluate.batch_size": 12}, "evaluate.batch_size=12.*use 16"),
  ({"data.length": 1}, "length=1"),
  ({"data.corpus": "enwik9"}, "enwik9.*austen"),
  ({"data.corpus": "folder"}, "needs path"),
  ({"data.path": "x"}, "path='x'.*does not read"),
  ({"model.heads": 3}, "heads=3"),
  ({"model.dtype": "float64"}, "float64"),
  ({"optimizer.schedule": "linear"}, "linear"),
  ({"optimizer.warmup_steps": 10**9}, "warmup_steps=1000000000"),
  ({"mesh.tensor": 3}, "tensor=3"),
  ({"mesh.sequence": 8, "data.length": 250}, "length=250.*sequence=8; use 256"),
  ({"model.experts": 4}, "experts_per_token=0.*experts=4"),
  ({"model.experts": 4, "model.experts_per_token": 2}, "expert_width=0"),
  ({"model.shared_width": 8}, "experts=0.*shared_width"),
  ({"objective.chunk": 0}, "chunk=0"),
  (
    {"timing.name": "per_block", "timing.block_size": 48},
    "block_size=48 must divide length=256; use a length of 240",
  ),
  (
    {"timing.name": "per_block", "timing.block_size": 1, "schedule.name": "cosine"},
    "clipped times",
  ),
  ({"timing.name": "left_to_right", "process.name": "uniform"}, "clipped times.*not 'uniform'"),
  ({"timing.name": "counted", "model.time_conditioning": "adaln"}, "Counted.*told no time"),
  ({"timing.name": "counted", "process.grid": 10}, "Counted.*no process.grid"),
  ({"evaluate.timing": "counted", "schedule.name": "cosine"}, "clipped times"),
  ({"evaluate.timing": "never"}, "never.*counted"),
  ({"evaluate.timing": "independent"}, "another model"),
  ({"evaluate.timing": "shared", "timing.name": "left_to_right"}, "another model"),
  ({"evaluate.decode_at": 1.0}, "log-SNR, which Masked has none of"),
  (
    {"evaluate.decode_at": -11.0, "process.name": "simplex", "schedule.name": "log_snr"},
    "-11.0 must be above the path.s end, log-SNR -10",
  ),
  ({"process.name": "token_masked"}, "reinforce.*learned noise"),
  ({"objective.name": "cross_entropy", "process.prediction": "score"}, "prediction='clean'"),
  ({"objective.name": "cross_entropy", "timing.name": "counted"}, "inverse_time"),
  ({"process.name": "mixed", "process.mixing": "half"}, "mixing='half'"),
  ({"process.name": "uniform", "process.share": 0.5}, "share=0.5.*does not read"),
  ({"process.name": "uniform", "objective.name": "cross_entropy"}, "prediction='posterior'"),
  ({"process.name": "token_masked", "process.strength": 0.1}, "strength=0.1"),
  ({"process.strength": 0.1}, "strength=0.1.*does not read"),
  ({"objective.name": "reinforce"}, "learned noise"),
  ({"objective.name": "reweighted"}, "reweighted"),
  ({"timing.name": "hyperschedule", "timing.kind": "wave"}, "needs width"),
  ({"model.time_conditioning": "often"}, "often"),
  (
    {"model.time_conditioning": "prefix", "data.packing": "documents"},
    "'prefix'.*packing='documents'.*use 'adaln'",
  ),
  (
    {"model.time_conditioning": "prefix", "timing.name": "per_block", "timing.block_size": 4},
    "'prefix'.*PerBlock.*'adaln'",
  ),
  ({"sampler.guidance": 3}, "guidance=3.*does not read; it takes .'greedy_tail', 'steps'.$"),
  ({"sampler.timing": 3}, "timing=3.*does not read"),
  ({"process.vocab_size": 3}, "vocab_size=3.*does not read"),
]


@pytest.mark.parametrize("overrides,match", BAD, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_is_refused(overrides, match):
  config = base.config("micro")
  with config.unlocked():
    config.update_from_flattened_dict(overrides)
  with pytest.raises(ValueError, match=match):
    build(config, tokenizer=AnyTokenizer())


@pytest.mark.parametrize(
  "key,value", [("steps", "abc"), ("temperature", "warm"), ("eta.x", 1), ("a.b", 1)]
)
def test_an_override_of_a_wrong_kind_is_quoted(key, value):
  config = config_from_json(config_json(base.config("micro")))
  with pytest.raises(ValueError, match=rf"sampler.{key}={value!r} cannot be set.*configs/base.py"):
    override(config, [(f"sampler.{key}", value)])
  override(config, [("sampler.steps", 16), ("sampler.temperature", 1), ("sampler.eta", 0.5)])
  assert (config.sampler.steps, config.sampler.temperature, config.sampler.eta) == (16, 1.0, 0.5)


def test_an_option_of_a_wrong_kind_is_quoted():
  options = {"steps": 4, "temperature": 1.0, "top_p": 1.0, "name": "remasking", "eta": "abc"}
  with pytest.raises(
    ValueError, match=r"sampler\.name='remasking' cannot use eta='abc', steps=4: "
  ):
    make_policy(dict(sorted(options.items())), Shared())
  with pytest.raises(ValueError, match=r"config\.sampler cannot use .*temperature='abc'"):
    make_policy({**options, "temperature": "abc"}, Shared())


@pytest.mark.parametrize("key", ["steps", "temperature"])
def test_a_sampler_key_set_to_none(key):
  config = base.config("micro").sampler.to_dict()
  if key == "temperature":
    assert make_policy({**config, key: None}, Shared()) == make_policy(config, Shared())
  else:
    with pytest.raises(ValueError, match=r"sampler\.steps=None"):
      make_policy({**config, key: None}, Shared())


def test_a_sampler_that_does_not_fit_is_refused_before_training():
  config = sized("micro", length=32)
  check_sampler(build(config, tokenizer=AnyTokenizer()))
  config.process.name, config.sampler.name = "uniform", "remasking"
  with pytest.raises(ValueError, match="Uniform has no masks"):
    check_sampler(build(config, tokenizer=AnyTokenizer()))
  config = sized(
    "micro", length=30
  )  # in blocks, with the tail of a row, and parameters of the process counted from the corpus
  config.timing.update({"name": "per_block", "block_size": 6})
  config.process.update({"name": "token_masked", "loss_order": "frequency", "strength": 0.3})
  check_sampler(build(config, tokenizer=AnyTokenizer()))


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unread_key_is_an_error(section):
  config = base.config("micro")
  with config.unlocked():
    config[section].surplus = 1
  with pytest.raises((ValueError, TypeError), match="surplus"):
    build(config, tokenizer=AnyTokenizer())


def test_an_unknown_section_is_an_error():
  config = base.config("micro")
  with config.unlocked():
    config.modle = 1
  with pytest.raises(ValueError, match="modle"):
    build(config, tokenizer=AnyTokenizer())


def test_unknown_size_and_missing_workdir():
  with pytest.raises(ValueError, match=r"huge.*tiny"):
    base.config("huge")
  with pytest.raises(ValueError, match=r"nowhere.*experiments\.train"):
    load_experiment("nowhere")

"""Configs: every one builds, every option is read, and what does not fit is refused before any
compute, with the fix.
"""

import importlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_text import train
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment import registry
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.build import (
  SECTIONS,
  SETTINGS,
  build,
  config_from_json,
  config_json,
)
from diffusion_text.experiment.options import options_table
from diffusion_text.experiment.run import (
  check_loss,
  check_sampler,
  check_workdir,
  load_experiment,
  override,
)
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.studies.compare import is_own, merge
from diffusion_text.train.step import summed_gradients
from diffusion_text.train.workdir import flatten
from diffusion_text.types import Batch, Progress

CONFIGS = sorted(
  path.stem
  for path in pathlib.Path(base.__file__).parent.glob("*.py")
  if path.stem not in ("base", "__init__")
)
ANY = AnyVocabulary(64)


def config_of(name, size="micro"):
  """The config of a file of configs/."""
  return importlib.import_module(f"configs.{name}").get_config(size)


def changed(overrides, config=None):
  """The micro config after (dotted key, value) changes, new sections included."""
  config = base.config("micro") if config is None else config
  for key, value in overrides.items():
    *parents, last = key.split(".")
    section = config
    for name in parents:
      if name not in section:
        section[name] = {}
      section = section[name]
    with section.ignore_type():
      section[last] = value
  return config


@pytest.mark.parametrize(
  "name,size", [(name, "small") for name in CONFIGS] + [("mdlm", size) for size in base.SIZES]
)
def test_every_config_builds(name, size):
  module = importlib.import_module(f"configs.{name}")
  command = "launch/quickstart" if name == "quickstart" else "python -m experiments.train"
  assert command in module.__doc__, "the docstring is the lab note"
  config = config_of(name, size)
  experiment = build(config, tokenizer=ANY)
  assert plan.count_parameters(experiment) > 0
  assert str(config.process.name) in plan.summary(experiment)
  again = build(config_from_json(config_json(config)), tokenizer=ANY)
  assert config_json(again.config) == config_json(experiment.config)
  assert again.model == experiment.model and again.objective == experiment.objective
  assert (again.sampler, again.reader) == (experiment.sampler, experiment.reader)
  members = (again.model, again.objective, again.sampler, again.reader)
  same = (experiment.model, experiment.objective, experiment.sampler, experiment.reader)
  assert hash(members) == hash(same), "equal choices must compile once"


def small_config(name):
  """A config of configs/, as small as it can be."""
  config = config_of(name)
  first = config.model.get("first_stage_layers")
  sizes = {"layers": 2 if first else 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 32}
  config.model.update({**sizes, **({"first_stage_layers": 1} if first else {})})
  if registry.counts_steps("sampler", config.sampler.to_dict()):
    config.sampler = registry.with_steps("sampler", config.sampler.to_dict(), 2)
  config.data.length, config.train.batch_size, config.evaluate.batch_size = 16, 8, 8
  return config


def kind(name, *chosen):
  """What makes a config another program than those of other configs, numbers apart: of each kind
  one is run, the others traced.
  """
  c = small_config(name)
  parts = (c.process.name, c.timing.name, *(c[section].name for section in chosen))
  return (
    *parts,
    c.reader.name,
    bool(c.model.get("first_stage_layers")),
    bool(c.model.get("experts")),
  )


RUN = list({kind(name, "objective", "context"): name for name in CONFIGS}.values())
DRAWN = list({kind(name, "sampler", "context"): name for name in RUN}.values())
# One config of each process takes its step on all devices.
SPREAD = list({small_config(name).process.name: name for name in CONFIGS}.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_takes_a_step_and_a_sample(name, tmp_path):
  """One real update, on 8 devices for one config of each process, and a sample; of programs of one
  kind, all but one are traced.
  """
  config = small_config(name)
  # Some members count the corpus.
  config.data.update({"tokenizer": "characters", "vocab_size": None, "cache_dir": str(tmp_path)})
  experiment = build(config, devices=jax.devices() if name in SPREAD else jax.devices()[:1])
  if name not in RUN + SPREAD:
    check_sampler(experiment)
    shape = (experiment.train.batch_size, experiment.data.length)
    state = experiment.abstract_state()
    with jax.set_mesh(experiment.mesh):
      loss = jax.eval_shape(
        experiment.loss_fn(1.0),
        state.params,
        state.frozen,
        jax.random.key(0),
        Batch(jax.ShapeDtypeStruct(shape, jnp.int32)),
        Progress(),
      )
    assert loss.total.shape == ()
    return
  with jax.set_mesh(experiment.mesh):
    state, metrics = one_step(experiment)
  assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))
  if name not in DRAWN + SPREAD:
    return check_sampler(experiment)
  params = jax.device_get(state.eval_params)
  result = experiment.sample(params, row_keys(0, 2), Batch(jnp.zeros((2, 16), jnp.int32)))
  assert int(result.ids.min()) >= 0 and int(result.ids.max()) < experiment.facts.vocab_size


def one_step(experiment):
  """One update on random tokens: the state after it, and its metrics."""
  shape = (experiment.train.batch_size, experiment.data.length)
  ids = np.random.default_rng(0).integers(0, experiment.facts.vocab_size, shape).astype(np.int32)
  batch = train.global_batch(Batch(ids), experiment.mesh)
  return experiment.jitted_step(experiment.loss_fn(1.0))(experiment.fresh_state(), batch)


MADE_UP = {
  "process": {"name": "tests.testing.madeup.process:Faded", "height": 2.0},
  "timing": {"name": "tests.testing.madeup.timing:Relay"},
  "context": {"name": "tests.testing.madeup.context:Padded", "room": 3},
  "objective": {"name": "tests.testing.madeup.objective:Humble", "price": 0.2},
  "reader": {"name": "tests.testing.madeup.reader:Chorus", "voices": 2},
  "sampler": {"name": "tests.testing.madeup.sampler:Backwards"},
}


def test_members_of_a_user_train_and_sample_from_a_config():
  """Six members that nothing in the package knows, chosen as package.module:Class, all at once."""
  config = small_config("mdlm")
  for section, chosen in MADE_UP.items():
    config[section] = chosen
  experiment = build(config, tokenizer=ANY, devices=jax.devices()[:1])
  assert (experiment.model.context.room, experiment.objective.price) == (3, 0.2)
  with jax.set_mesh(experiment.mesh):
    state, metrics = one_step(experiment)
  assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))
  assert "sure" in metrics, "the objective that was asked for is another one"
  result = experiment.sample(
    jax.device_get(state.eval_params), row_keys(0, 2), Batch(jnp.zeros((2, 16), jnp.int32))
  )
  assert int(result.calls) == 2 * 16, "one token per reading, each of two voices"
  assert "height: float Gt(gt=0) = 1.0" in options_table(f"process.{MADE_UP['process']['name']}")
  with pytest.raises(ValueError, match=r"config\.process\.hieght=1 .*did you mean 'height'"):
    build(changed({"process.hieght": 1}, config), tokenizer=ANY)


# Bases, into which systems are merged.
NOT_SYSTEMS = ("comparison", "control", "quickstart", "short_texts")


@pytest.mark.parametrize("size", ["micro", "small"])
def test_a_config_owns_what_makes_it_a_system(size):
  """So that systems can be merged into one base without a list of anything."""
  usual = flatten(json.loads(config_json(base.config(size))))
  sizes = {f"model.{key}" for key in ("layers", "width", "heads", "kv_heads", "mlp_width")}
  for name in set(CONFIGS) - set(NOT_SYSTEMS):
    config = config_of(name, size)
    found = flatten(json.loads(config_json(config)))
    for key in config.owns:
      section, _, rest = key.partition(".")
      assert section in config and (not rest or rest in config[section]), (name, key)
    different = {key for key in found if found[key] != usual.get(key)} - sizes
    loose = {key for key in different if not is_own(key, config.owns)}
    loose = {key for key in loose if key.split(".")[0] not in ("data", "train")}
    # What goes with the size, as activation and the places of layers do: all systems of a
    # comparison have one network.
    assert loose <= {"model.activation", "model.full_layers"}, (name, loose)


def test_merged_systems_stay_what_they_are():
  merged = merge(config_of("comparison"), config_of("llada_moe"))
  network = build(merged, tokenizer=ANY).model.network
  assert (network.experts, network.experts_per_token, network.balance_weight) == (16, 2, 0.01)
  assert network.width == 128, "the size is the base's"
  merged = merge(config_of("comparison"), config_of("plaid"))
  model = build(merged, tokenizer=ANY).model
  assert model.self_conditioning == 0.25 and model.network.self_conditioning == "add"


MESHES = [
  dict(fsdp=1),
  dict(fsdp=4, tensor=2),
  dict(fsdp=2, sequence=4),
  dict(replica=2, sequence=2, tensor=2),
  dict(fsdp=2, expert=4),
  dict(tensor=2, sequence=2, expert=2),
]


def gradient_on(mesh, params, batch):
  """(params, (gradient, loss), program) of the real objective, in blocks and two microbatches, and
  a network with experts, on a mesh of such a shape. Without params: random ones. At the start of
  training the last layer is zero, and no gradient would pass it.
  """
  network = {"width": 16, "layers": 2, "experts": 4, "experts_per_token": 2, "expert_width": 16}
  network |= {"scan_layers": True, "balance_weight": 0.1, "router_z_weight": 0.01}
  config = changed(
    {
      **{"data.length": 16, "train.batch_size": 8, "train.accumulation": 2},
      **{"evaluate.batch_size": 8, "mesh": {"fsdp": 1, **mesh}},
      **{"context": {"name": "blocks", "size": 4}, "model.shared_width": 16, "model.chunk": 8},
      **{f"model.{key}": value for key, value in network.items()},
    }
  )
  devices = jax.devices()[: int(np.prod(list(mesh.values())))]
  experiment = build(config, tokenizer=AnyVocabulary(96), devices=devices)
  if params is None:
    random = np.random.default_rng(0)
    abstract = experiment.abstract_state().params
    params = jax.tree.map(
      lambda x: random.normal(size=x.shape, scale=0.3).astype(np.float32), abstract
    )
  key, loss_fn = jax.random.key(0), experiment.loss_fn(1.0)
  with jax.set_mesh(experiment.mesh):
    grads = jax.jit(
      lambda p, b: summed_gradients(
        loss_fn, p, {}, key, b, jnp.int32(0), parts=2, mesh=experiment.mesh
      )
    )
    placed = jax.device_put(params, experiment.shardings().params)
    batch = train.global_batch(batch, experiment.mesh)
    compiled = grads.lower(placed, batch).compile()
    return params, jax.device_get(compiled(placed, batch)), compiled.as_text()


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
  smallest = min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
  assert smallest > 0, "a weight without a gradient proves nothing"
  for mesh in MESHES[1:]:
    _, (other_gradient, other_loss), text = gradient_on(mesh, params, batch)
    if "tensor" in mesh or "expert" in mesh:
      # Logits, head and its gradient stay split over V = 96: nothing with all of it is gathered.
      assert not re.search(r"= \w+\[(\d+,)*96[\],].* all-gather\(", text), mesh
    for a, b in zip(jax.tree.leaves(other_loss), jax.tree.leaves(loss), strict=True):
      assert float(a) == pytest.approx(float(b), rel=1e-5), mesh
    error = jax.tree.map(
      lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), other_gradient, gradient
    )
    assert max(jax.tree.leaves(error)) < 1e-5, (mesh, error)


BAD = [
  ({"process.name": "maskd"}, r"config\.process\.name='maskd' is unknown; did you mean 'masked'"),
  ({"process.name": None}, r"config\.process\.name=None is unknown"),
  ({"process.schedule.name": "sqrt"}, r"schedule\.name='sqrt' is unknown; use one of .*linear"),
  (
    {"process.schedule": {"name": "linear", "power": 2.0}},
    r"config\.process\.schedule\.power=2\.0 is not read by .*linear",
  ),
  ({"process.schedule": 3}, r"schedule=3 must be a section with a name"),
  ({"timing.spread": 1.0}, r"config\.timing\.spread=1\.0 is not read"),
  ({"objective.weighting": "uniform"}, "weighting='uniform' is not read.*auxiliary"),
  ({"objective": {"name": "cross_entropy", "weighting": "x"}}, "weighting='x' is not valid"),
  ({"objective.name": "no.module:Class"}, "no.module:Class' cannot be imported"),
  ({"objective.name": "diffusion_text.types:Nothing"}, "no attribute 'Nothing'"),
  ({"objective.name": "diffusion_text.types:Span"}, "Span' is no class made by .*member"),
  ({"sampler.order": "entropy"}, "order='entropy' is not read by .*grid"),
  ({"sampler": {"name": "reveal", "score": {"name": "left"}}}, r"sampler\.score\.name='left'"),
  ({"sampler.steps": 0}, "steps=0 is not valid"),
  ({"sampler.temperature": -1.0}, r"temperature=-1\.0 is not valid"),
  ({"sampler.top_p": 0.0}, r"top_p=0\.0 is not valid"),
  ({"sampler.guidance": 3}, "guidance=3 is not read"),
  ({"sampler.name": "remasking", "process.name": "uniform"}, "Uniform has no masks"),
  ({"train.batch_size": 30}, "batch_size=30.*use 32"),
  ({"train.accumulation": 3}, "accumulation=3.*use 48"),
  ({"evaluate.batch_size": 12}, r"evaluate\.batch_size=12.*use 16"),
  ({"data.length": 1}, "length=1 is not valid"),
  ({"data.corpus": "enwik9"}, "enwik9.*austen"),
  ({"data.corpus": "folder"}, r"config\.data needs path; set it with --config\.data\.path"),
  (
    {"data.path": "x"},
    "path='x' is not read by data.corpus='austen'; set .* reads path: text8, folder, pairs",
  ),
  ({"data.corpus": "pairs"}, "data.corpus='pairs' with data.packing='stream'"),
  ({"data": 3}, r"config\.data=3 must be a section"),
  ({"model.heads": 3}, "heads=3 must divide width=64"),
  ({"model.dtype": "float64"}, "float64.*float32"),
  ({"model.chunk": 0}, r"config\.model\.chunk=0 must be"),
  ({"model.input_sizes": 3}, "input_sizes=3 is not read"),
  ({"model.first_stage_layers": 9}, "first_stage_layers=9 must be below layers=2"),
  ({"optimizer.schedule": "linear"}, "linear.*cosine"),
  ({"optimizer.warmup_steps": 10**9}, "warmup_steps=1000000000"),
  ({"optimizer.name": "muonn"}, "name='muonn' is unknown; did you mean 'muon'"),
  ({"optimizer.name": "schedule_free", "optimizer.schedule": "wsd"}, "schedule='wsd' with"),
  ({"optimizer.base_width": 64, "model.tie_embeddings": True}, "base_width=64 with"),
  ({"mesh.tensor": 3}, "tensor=3"),
  ({"mesh.sequence": 8, "data.length": 250}, "length=250.*sequence=8; use 256"),
  ({"model.experts": 4}, "experts_per_token=0.*experts=4"),
  ({"model.experts": 4, "model.experts_per_token": 2}, "expert_width=0"),
  ({"model.shared_width": 8}, "experts=0.*shared_width"),
  ({"context.name": "blocks"}, r"needs size; set it with --config\.context\.size"),
  (
    {"context": {"name": "blocks", "size": 48}},
    "context.size=48 must divide length=256; use a length of 240",
  ),
  ({"context.name": "next_token"}, "use timing.name='at_noise'"),
  ({"context.answer_shift": 2}, "answer_shift=2 is not valid"),
  (
    {"context.answer_shift": 1, "data.packing": "documents"},
    "answer_shift=1 with data.packing='documents'",
  ),
  ({"evaluate.timing": {"name": "never"}}, r"config\.evaluate\.timing\.name='never' is unknown"),
  ({"evaluate.timing": {"name": "independent"}}, "gives no bound"),
  ({"evaluate.timing": "shared"}, "evaluate.timing='shared' is not valid"),
  ({"evaluate.decode_at": 1.0}, "which Masked has none"),
  (
    {
      "evaluate.decode_at": -11.0,
      "process": {"name": "simplex", "schedule": {"name": "log_snr"}},
    },
    r"-11\.0 must be above the path's end, log-SNR -10",
  ),
  ({"evaluate.self_conditioning": 0.5}, "needs a network that conditions on itself"),
  ({"process.name": "token_masked"}, "learns it; use objective.name='score_function'"),
  ({"objective.name": "score_function"}, "needs log_corruption, which Masked"),
  ({"objective.name": "reweighted"}, "needs divergence, dynamic_weight, which Masked"),
  ({"process": {"name": "mixed", "mixing": "half"}}, "mixing='half' is not valid"),
  ({"process": {"name": "uniform", "share": 0.5}}, "share=0.5 is not read"),
  ({"process": {"name": "token_masked", "strength": 0.1}}, "strength=0.1 is not read"),
  ({"process.strength": 0.1}, "strength=0.1 is not read"),
  ({"process.vocab_size": 3}, "vocab_size=3 is not read"),
  ({"timing": {"name": "hyperschedule", "kind": "wave"}}, "needs width"),
  ({"model.time_conditioning": "often"}, "often.*adaln"),
  (
    {"model.time_conditioning": "prefix", "data.packing": "documents"},
    "'prefix'.*packing='documents'.*use 'adaln'",
  ),
  (
    {"model.time_conditioning": "prefix", "context": {"name": "blocks", "size": 4}},
    "'prefix'.*Blocks.*'adaln'",
  ),
  ({"reader.name": "classifier_free"}, r"needs reader; set it with --config\.reader\.reader"),
  ({"reader.name": "cached"}, "use reader.name='whole_row'"),
  (
    {"reader": {"name": "classifier_free", "reader": {"name": "whole"}}},
    r"config\.reader\.reader\.name='whole' is unknown; did you mean 'whole_row'",
  ),
  ({"model.self_conditioning": "add"}, "needs the probability"),
  ({"train.self_conditioning": 0.5}, "another takes none"),
  ({"train.prompt_dropout": 0.1}, "rows of data.packing='stream' have none"),
  ({"train.step": 3}, "step=3 is not read by config.train; did you mean 'steps'"),
  ({"modle": {"x": 1}}, "section 'modle' is unknown; did you mean 'model'"),
  ({"seed": -1}, r"config\.seed=-1"),
  ({"seed": "0"}, r"config\.seed='0'"),
]


@pytest.mark.parametrize("overrides,match", BAD, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_is_refused(overrides, match):
  with pytest.raises(ValueError, match=match):
    build(changed(overrides), tokenizer=ANY)


def options_of(config):
  """(section, option) of every option that the config could set."""
  for section in SECTIONS:
    kinds = SETTINGS.get(section) or registry.find(section, config[section].name)
    yield from ((section, row[0]) for row in registry.describe(kinds))


def test_values_of_a_wrong_kind_raise_value_errors_only():
  """Every option of one config, set to what it cannot be: build says so, and nothing else is
  raised.
  """
  refused = dict.fromkeys(("word", "", 0, -1, "nan", "list"), 0)
  values = {"nan": float("nan"), "list": [[]]}
  for section, option in options_of(config_of("plaid")):
    for name in refused:
      value = values.get(name, name)
      bad = changed({f"{section}.{option}": value}, config_of("plaid"))
      try:
        build(bad, tokenizer=ANY)
      except ValueError as error:
        refused[name] += 1
        assert "\n" not in str(error).strip() and "pydantic" not in str(error), error
        continue
      assert name != "nan", f"{section}.{option} takes no NaN"
  assert min(refused.values()) > 20, refused


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unread_key_is_an_error(section):
  with pytest.raises(ValueError, match=rf"config\.{section}\.surplus=1 is not read"):
    build(changed({f"{section}.surplus": 1}), tokenizer=ANY)


@pytest.mark.parametrize(
  "key,match",
  [("sampler.steps.x", "steps=4 is no section"), ("oops.b", "the config has no oops")],
)
def test_an_override_that_has_no_place_is_quoted(key, match):
  config = changed({"sampler.steps": 4})
  with pytest.raises(ValueError, match=rf"{re.escape(key)}=1 cannot be set: .*{match}"):
    override(config, [(key, 1)])
  override(config, [("sampler.steps", 16), ("sampler.temperature", 1), ("sampler.kappa", 0.5)])
  assert (config.sampler.steps, config.sampler.temperature, config.sampler.kappa) == (16, 1, 0.5)


def test_a_sampler_that_does_not_fit_is_refused_before_training():
  blocks = {"context": {"name": "blocks", "size": 6}, "data.length": 30, "reader.name": "cached"}
  # Parameters of the process are counted from the corpus.
  process = {"name": "token_masked", "loss_order": "frequency", "strength": 0.3}
  check_sampler(build(changed({**blocks, "process": process}), tokenizer=ANY))


def test_a_loss_that_does_not_fit_is_refused_before_training():
  config = changed({"objective.name": "anchored", "data.length": 16})
  with pytest.raises(ValueError, match=r"set model\.first_stage_layers"):
    check_loss(build(config, tokenizer=ANY))


def test_unknown_size_and_missing_workdir():
  with pytest.raises(ValueError, match=r"'huge' is unknown; use one of .*tiny"):
    base.config("huge")
  with pytest.raises(ValueError, match="'tinny' is unknown; did you mean 'tiny'"):
    base.config("tinny")
  with pytest.raises(ValueError, match=r"nowhere.*experiments\.train"):
    load_experiment("nowhere")


def test_a_workdir_of_an_earlier_version_is_refused(tmp_path):
  """Loading it and training on in it both name the commit that reads it."""
  old = json.loads(config_json(base.config("micro")))
  del old["context"], old["reader"]
  old["schedule"] = {"name": "linear"}
  with pytest.raises(ValueError, match="commit 3aad1fc"):
    config_from_json(json.dumps(old))
  (tmp_path / "config.json").write_text(json.dumps(old))
  with pytest.raises(ValueError, match="commit 3aad1fc"):
    check_workdir(str(tmp_path), config_json(base.config("micro")))
  train.check_workdir(str(tmp_path / "new"), config_json(base.config("micro")))
  check_workdir(str(tmp_path / "new"), config_json(base.config("micro")))


def test_number_of_steps_is_counted_by_a_sampler_or_by_its_part():
  """Comparisons ask before training whether a sampler has steps to set: once one failed after."""
  own = {"name": "grid"}
  part = {"name": "reveal", "budget": {"name": "even", "steps": 4}}
  neither = {"name": "reveal"}
  assert registry.counts_steps("sampler", own)
  assert registry.with_steps("sampler", own, 2)["steps"] == 2
  assert registry.counts_steps("sampler", part)
  assert registry.with_steps("sampler", part, 2)["budget"] == {"name": "even", "steps": 2}
  assert not registry.counts_steps("sampler", neither)
  with pytest.raises(ValueError, match="'reveal' has no steps to set"):
    registry.with_steps("sampler", neither, 2)

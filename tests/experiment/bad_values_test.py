"""Bad values: every key of five configs takes what it can use, and refuses the rest in one line.

What is accepted must train, sample and score: one step of each is traced, nothing is compiled.
"""

import importlib
import types
import typing

import jax
import ml_collections
import pytest

from diffusion_text.experiment import memory, registry
from diffusion_text.experiment.build import SECTIONS, SETTINGS, build
from diffusion_text.experiment.checks import check_loss, check_sampler
from diffusion_text.experiment.memory import check_memory
from diffusion_text.experiment.summary import AnyVocabulary, summary

ANY = AnyVocabulary(64)
SYSTEMS = ("mdlm", "bd3lm", "plaid", "tess", "llada_moe")
VALUES = (
  *("word", "", 0, -1, 0.0, -1.0, True),
  *(float("nan"), float("inf"), -float("inf")),
  *(1e9, 10**9, 1e30, 10**30, [], {}, None),
)


def small(name):
  """A config of configs/ as small as it can be, as a plain dict."""
  config = importlib.import_module(f"configs.{name}").get_config("micro")
  config.model.update({"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 32})
  if config.model.get("experts"):
    config.model.expert_width = 8
  config.sampler = registry.with_steps("sampler", config.sampler.to_dict(), 2)
  config.data.length, config.train.batch_size, config.evaluate.batch_size = 16, 8, 8
  return config.to_dict()


def built(config):
  return build(ml_collections.ConfigDict(config), tokenizer=ANY, devices=jax.devices()[:1])


def class_of(chosen):
  """A class of a table, which may be named by its module."""
  if not isinstance(chosen, str):
    return chosen
  module, _, attribute = chosen.partition(":")
  return getattr(importlib.import_module(module), attribute)


def keys_of(cls, section, place):
  """Every key that a config may set in a section: options, and options of its parts."""
  for name, info in cls.__pydantic_fields__.items():
    extra = info.json_schema_extra or {}
    if extra.get("internal"):
      continue
    yield f"{place}.{name}"
    inner, table = section.get(name), extra.get("table")
    if table is not None and isinstance(inner, dict):
      part = class_of((table() if callable(table) else table)[inner["name"]])
      yield f"{place}.{name}.name"
      yield from keys_of(part, inner, f"{place}.{name}")


def all_keys(config):
  """Every key of a config, with those that it leaves unset."""
  yield from ("seed", "owns", "model.chunk", *SECTIONS)
  for section in SECTIONS:
    if section in SETTINGS:
      yield from keys_of(SETTINGS[section], config[section], section)
    else:
      yield f"{section}.name"
      cls = registry.find(section, config[section]["name"])
      yield from keys_of(cls, config[section], section)


def with_value(config, key, value):
  """A copy of the config with another value at a dotted key."""
  *parents, last = key.split(".")
  copy = dict(config)
  place = copy
  for name in parents:
    place[name] = dict(place.get(name) or {})
    place = place[name]
  place[last] = value
  return copy


def check(experiment, seen):
  """Asks what a run is asked before it begins, of each program once."""
  check_memory(experiment)
  train, evaluate = experiment.train, experiment.evaluate
  drawn = (experiment.model, experiment.sampler, experiment.reader, experiment.data.length)
  shown = (train.batch_size, train.accumulation, train.ema_decay > 0, train.prompt_dropout > 0)
  scored = (experiment.scoring, evaluate.batch_size, evaluate.decode_at)
  learned = (experiment.model, experiment.objective, *shown, train.frozen, *scored)
  for program, trace in ((drawn, check_sampler), (learned, check_loss)):
    if program not in seen:
      assert summary(experiment)
      trace(experiment)
      seen.add(program)


def is_new(name, key):
  """True if no earlier config of SYSTEMS has the same choice at the key, so that it is tried
  here.
  """
  section = key.split(".")[0]
  config = small(name)

  def choice(config):
    inner = config.get(section)
    named = isinstance(inner, dict) and inner.get("name")
    return named, isinstance(inner, dict) and inner.get(key.partition(".")[2].split(".")[0])

  return all(choice(small(other)) != choice(config) for other in SYSTEMS[: SYSTEMS.index(name)])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_bad_value_is_used_or_refused(name):
  config, seen = small(name), set()
  check(built(config), seen)
  accepted = refused = 0
  for key in dict.fromkeys(all_keys(config)):
    if not is_new(name, key):
      continue
    for value in VALUES:
      try:
        experiment = built(with_value(config, key, value))
        check(experiment, seen)
      except ValueError as error:
        refused += 1
        text = str(error).strip()
        assert text and "\n" not in text and "pydantic" not in text, (key, value, text)
        continue
      except Exception as error:
        pytest.fail(f"{key}={value!r} raises {type(error).__name__}: {error}")
      accepted += value is not None  # which is an option that is not set
      huge = isinstance(value, int | float) and not abs(value) < 1e9  # NaN is not below, either
      allowed = key.endswith(("steps", "_every")) or key in ("seed", "train.max_seconds")
      allowed |= key.endswith("max_weight") and value not in (0, None)  # inf: no limit
      assert not huge or allowed, f"{key}={value!r} is accepted"
  assert refused > 5 * accepted, (accepted, refused)


def members():
  """Every class whose options a config may set."""
  waiting = list(SETTINGS.values())
  waiting += [
    registry.find(kind, name) for kind in registry.TABLES for name in registry.names(kind)
  ]
  found = []
  while waiting:
    cls = waiting.pop()
    if cls in found:
      continue
    found.append(cls)
    for info in cls.__pydantic_fields__.values():
      table = (info.json_schema_extra or {}).get("table")
      table = table() if callable(table) else table
      waiting += [class_of(chosen) for chosen in (table or {}).values()]
  return found


def test_every_number_has_two_limits():
  """Declared, or those of `core.options.option`; so 1e30 is refused where nobody thought of it."""
  checked = 0
  for cls in members():
    for name, info in cls.__pydantic_fields__.items():
      kinds = typing.get_args(info.annotation) or (info.annotation,)
      plain = typing.get_origin(info.annotation) in (None, types.UnionType, typing.Union)
      internal = (info.json_schema_extra or {}).get("internal")
      if internal or not plain or not {int, float} & set(kinds):
        continue
      limits = {type(limit).__name__ for limit in info.metadata}
      assert limits & {"Ge", "Gt"} and limits & {"Le", "Lt"}, f"{cls.__name__}.{name}: {limits}"
      checked += 1
  assert checked > 150, checked


TOO_LARGE = {  # for half a GiB of memory, which `device_bytes` stands for
  "data.length": (2**23, "8 rows of data.length=8388608"),
  "train.batch_size": (2**24, "train.batch_size=16777216"),
  "evaluate.batch_size": (2**24, "evaluate.batch_size=16777216"),
  "model.width": (2**20, "the parameters, their gradient"),
  "model.layers": (2**23, "the parameters, their gradient"),
  "sampler.steps": (2**24, "16777216"),
}


@pytest.mark.parametrize("key", TOO_LARGE)
def test_what_no_memory_holds_is_refused_before_it_is_allocated(key, monkeypatch):
  """The estimate is a lower bound, made from shapes alone."""
  value, match = TOO_LARGE[key]
  monkeypatch.setattr(memory, "device_bytes", lambda experiment: 2.0**29)
  config = small("mdlm")
  config["model"]["width"] = config["model"]["mlp_width"] = 1024
  experiment = built(with_value(config, key, value))
  with pytest.raises(ValueError, match=rf"not enough memory: .*{match}.* at least .* GiB; use"):
    check_memory(experiment)
    check_sampler(experiment)


def test_the_estimate_is_below_what_a_run_takes():
  """Of a small run: exactly its train state and one gradient; per row of a sampler, what its loop
  carries.
  """
  experiment = built(small("mdlm"))
  state = jax.jit(experiment.create_state)()
  arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert memory.state_bytes(experiment) == arrays + gradient
  one, many = (memory.sampling_bytes(experiment, rows) for rows in (1, 101))
  grid = 3 * 16 * 4  # times [S + 1, u] in float32
  assert (many - one) / 100 > grid
  assert memory.host_bytes() > 2**28


@pytest.mark.parametrize(
  "frozen,match",
  [
    (["network/embeding"], r"'network/embeding', which begins .* did you mean 'network/embedding'"),
    (["network/embed"], "begins the path of no parameter"),
    (["network"], "leaves no parameter that moves"),
  ],
)
def test_frozen_names_that_freeze_nothing_or_all_are_refused(frozen, match):
  """A misspelt one froze nothing, silently."""
  experiment = built(with_value(small("mdlm"), "train.frozen", ["network/embedding"]))
  check_loss(experiment)
  with pytest.raises(ValueError, match=match):
    check_loss(built(with_value(small("mdlm"), "train.frozen", frozen)))


def test_a_profile_of_no_step_of_the_run_is_refused():
  for steps in ([20_000, 20_010], [-1, 3], [5, 2]):
    with pytest.raises(ValueError, match=r"train\.profile_steps=.* of the 10000 steps of the run"):
      built(with_value(small("mdlm"), "train.profile_steps", steps))
  assert built(with_value(small("mdlm"), "train.profile_steps", [10, 15]))

"""From a config to the objects that it names. Everything is checked here, before any compute.

Each section of the config has a name that is looked up in its room's table, and options
(`registry.construct`). Sections without a name are settings. See configs/base.py for the sections,
and `python -m experiments.inspect --options=process` for options.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffusion_text import train
from diffusion_text.core.options import LARGEST
from diffusion_text.core.prng import stream
from diffusion_text.core.trees import Path, merge, split
from diffusion_text.data.packing import without_padding
from diffusion_text.data.pipeline import ANSWERING
from diffusion_text.data.words import WORDLESS
from diffusion_text.experiment import registry
from diffusion_text.experiment.settings import (
  DataSettings,
  EvaluateSettings,
  MeshSettings,
  OptimizerSettings,
  TrainSettings,
  check_sizes,
)
from diffusion_text.experiment.validation import check_members, scoring_model, without_text
from diffusion_text.model import matrices
from diffusion_text.model.flops import flops_per_token
from diffusion_text.model.partition import partition_spec
from diffusion_text.objective import engine
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.sampler.loop import Sample, sample
from diffusion_text.train.sharding import replicated, token_shards
from diffusion_text.types import (
  Batch,
  DataFacts,
  Key,
  Keys,
  Loss,
  LossFn,
  Model,
  Network,
  Objective,
  Params,
  Progress,
  Reader,
  Sampler,
  Tokenizer,
)

MEMBERS = ("process", "timing", "context", "objective", "model", "reader", "sampler")
SETTINGS = {
  "data": DataSettings,
  "train": TrainSettings,
  "evaluate": EvaluateSettings,
  "optimizer": OptimizerSettings,
  "mesh": MeshSettings,
}
SECTIONS = (*MEMBERS, *SETTINGS)


def loss(
  model: Model,
  objective: Objective,
  params: Params,
  frozen: Params,
  key: Key,
  batch: Batch,
  progress: Progress | None = None,
  *,
  prompt_dropout: float = 0.0,
) -> Loss:
  """The whole loss of a batch, differentiable in `params`.

  Args:
    model, objective: what is trained, and how.
    params, frozen: the parameters that move and those that do not (`core.trees.split`); {} if none
      are frozen.
    key: of the optimizer step, the same for all microbatches.
    batch: rows of tokens.
    progress: where in training; None is the first step, in one batch.
    prompt_dropout: probability, per row, that its observed tokens are hidden from the network.
  """
  progress = Progress() if progress is None else progress
  params = merge(params, frozen)
  batch = engine.drop_prompts(batch, stream(key, "prompt_dropout"), progress, prompt_dropout)
  times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
  result, costs = objective(model, params, key, batch, times, progress)
  return result.plus(engine.fit_times(model, params, times, costs))


def moves(model: Model, path: Path) -> bool:
  """True unless the network holds its parameter at this path fixed."""
  return path[0] != "network" or model.network.trains(path)


def init(
  model: Model,
  key: Key,
  facts: DataFacts,
  objective: Objective | None = None,
) -> Params:
  """All parameters of a model (and of an objective that has some), one nested dict of float32
  arrays.

  Args:
    model: whose members have parameters.
    key: of the run.
    facts: what members may know of the data.
    objective: makes groups of its own; None: none.
  """
  unit = model.context.unit or model.process.positions(facts.length)
  groups = {
    "network": model.network.init(stream(key, "network")),
    "process": model.process.init(stream(key, "process"), facts),
    "timing": model.timing.init(stream(key, "timing"), facts._replace(length=unit)),
  }
  if objective is not None:
    groups |= objective.init(model, stream(key, "objective"), facts)
  return groups


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that a config stands for, as objects. Building it computes nothing; only a missing
  tokenizer is learned.

  Attributes:
    model, objective: what is trained.
    scoring: the model under which the bound is reported: another timing if that of training gives
      none.
    sampler, reader: how text is made.
  """

  config: ml_collections.FrozenConfigDict
  data: DataSettings
  train: TrainSettings
  evaluate: EvaluateSettings
  tokenizer: Tokenizer
  facts: DataFacts
  mesh: Mesh
  model: Model
  scoring: Model
  objective: Objective
  sampler: Sampler
  reader: Reader
  optimizer: train.Optimizer

  # Pure functions.

  def init(self, key: Key) -> tuple[Params, Params]:
    """(params, frozen) at the start, float32."""
    return split(init(self.model, key, self.facts, self.objective), self.trainable)

  def trainable(self, path: Path) -> bool:
    """True if the parameter at this path moves: neither settings nor network freeze it."""
    return self.train.trainable(path) and moves(self.model, path)

  def loss_fn(self, tokens_per_character: float) -> LossFn:
    """The training loss. It reports `bound` in nats/token and `bits_per_character` of the training
    batch, or `surrogate` where what is summed is no bound.
    """
    own = functools.partial(
      loss, self.model, self.objective, prompt_dropout=self.train.prompt_dropout
    )
    bound = engine.is_bound(self.model, self.objective)

    def reported(
      params: Params, frozen: Params, key: Key, batch: Batch, progress: Progress
    ) -> Loss:
      result = own(params, frozen, key, batch, progress)
      sums = dict(result.sums)
      if "bound" in sums and not bound:  # it is not called what it is not
        sums["surrogate"] = sums.pop("bound")
      if "bound" in sums:
        sums["bits_per_character"] = sums["bound"] * (tokens_per_character / math.log(2))
      return result._replace(sums=sums)

    return reported

  def text_weights(self, batch: Batch) -> Float[Array, "B L"]:
    """The weight of each scored token of the text itself. The ends with which pairs and answers are
    filled up cost nats and are no text.
    """
    weights = engine.scored_weights(jax.tree.map(jnp.asarray, batch))
    if self.data.packing not in ANSWERING:
      return weights
    return without_padding(weights, batch.ids, self.tokenizer.separator)

  @functools.cached_property
  def nats_fn(self) -> Any:
    """Jitted (params, key, batch, progress) -> (nats [B], weight [B]): one draw of the bound, and
    the text's tokens, summed over each row.
    """

    def nats(params: Params, key: Key, batch: Batch, progress: Progress):
      values = engine.nats(
        self.scoring, params, key, batch, progress, decode_at=self.evaluate.decode_at
      )
      return jnp.sum(values, axis=1), jnp.sum(self.text_weights(batch), axis=1)

    return jax.jit(nats, out_shardings=replicated(self.mesh))

  def sample(
    self,
    params: Params,
    keys: Keys,
    batch: Batch,
    *,
    sampler: Sampler | None = None,
    reader: Reader | None = None,
    block: int | None = None,
    end_id: int | None = None,
  ) -> Sample:
    """The active tokens of a batch, generated. keys [B]: one per row; sampler, reader: in place of
    the config's; block: positions that are sampled together; end_id: the token that ends a row.
    """
    sampler = self.sampler if sampler is None else sampler
    reader = self.reader if reader is None else reader
    if batch.observed is None:
      reader = reader_for(reader, batch)
    how = {"batch": batch, "reader": reader, "block": block, "end_id": end_id}
    return sample(self.model, params, sampler, keys, **how)

  # Shapes and placement.

  def create_state(self) -> train.TrainState:
    """The state at step 0."""
    key = train.named_key(self.config.seed, "init", 0)
    averages = self.train.ema_decay > 0 or self.optimizer.evaluated is not None
    return train.create_state(lambda: self.init(key), self.optimizer, ema=averages)

  def abstract_state(self) -> train.TrainState:
    """Shapes, dtypes and shardings of the train state, with nothing allocated and no corpus
    read.
    """
    return self._abstract_state

  @functools.cached_property
  def _abstract_state(self) -> train.TrainState:
    """`abstract_state`, which every check of a run before its start asks for, traced once."""
    shapes = dataclasses.replace(self, facts=without_text(self.facts))
    abstract = jax.eval_shape(shapes.create_state)

    def spec(path, shape):
      return partition_spec(path, shape, dict(self.mesh.shape))

    return train.with_shardings(abstract, train.state_shardings(abstract, spec, self.mesh))

  def shardings(self) -> train.TrainState:
    """The placement of every array of the train state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

  def fresh_state(self) -> train.TrainState:
    """The state at step 0, made where it belongs: no array is ever whole on one device."""
    options = _compiled_for_one_run(self.mesh)
    return jax.jit(self.create_state, out_shardings=self.shardings(), compiler_options=options)()

  def jitted_step(self, loss_fn: LossFn) -> train.TrainStep:
    """The train step of this config for a loss, compiled over the mesh on first use; it donates its
    state.
    """
    step = train.make_train_step(
      loss_fn,
      self.optimizer,
      seed=self.config.seed,
      accumulation=self.train.accumulation,
      ema_decay=self.train.ema_decay or None,
      mesh=self.mesh,
    )
    return train.jit_train_step(step, self.shardings(), self.mesh)

  @property
  def flops_per_token(self) -> float:
    """Of a training step, forward and backward, per token of text, about: of the positions that the
    context reads, half are taken to be scored, which holds for even times; a model that conditions
    on itself has one forward pass more.
    """
    model, length = self.model, self.data.length
    read = model.context.positions_read(length)
    answered = length if model.timing.path == "jumps" else 0.5 * length
    forward = flops_per_token(model.network, length, read=read, answered=answered)
    return (4 if model.self_conditioning else 3) * self.objective.passes * forward


def _compiled_for_one_run(mesh: Mesh) -> dict[str, Any] | None:
  """Options of the compiler for a program that runs once; None: the usual ones.

  On CPU the compiler optimises less, which takes less time and gives the same bits.
  """
  on_cpu = {device.platform for device in mesh.devices.flat} == {"cpu"}
  if not on_cpu or jax.config.read("jax_disable_most_optimizations"):
    return None
  return {"xla_backend_optimization_level": 1}


def config_json(config: Any) -> str:
  """A config as JSON; `config_from_json` reads it back."""
  return json.dumps(ml_collections.ConfigDict(config).to_dict(), default=list, sort_keys=True)


def config_from_json(text: str | bytes) -> ml_collections.ConfigDict:
  """The config that `config_json` wrote.

  Raises:
    ValueError: for a config that an earlier version wrote, with the commit that still reads it.
  """
  config = ml_collections.ConfigDict(json.loads(text))
  if "context" not in config:
    raise ValueError(
      "this run was written by an earlier version, whose parameters and options had other places;"
      " commit 3aad1fc is the last that reads it"
    )
  return config


def sections(config: Any) -> dict[str, dict[str, Any]]:
  """The sections of a config as plain dicts. Raises ValueError for a section that is missing or
  unknown.
  """
  plain = ml_collections.ConfigDict(config).to_dict()
  unknown = sorted(set(plain) - {"seed", "owns", *SECTIONS})
  if unknown:
    hint = registry.nearest(unknown[0], SECTIONS)
    raise ValueError(
      f"config section {unknown[0]!r} is unknown{hint}; the sections are {', '.join(SECTIONS)}"
    )
  missing = sorted({"seed", *SECTIONS} - set(plain))
  if missing:
    raise ValueError(f"config section {missing[0]!r} is missing; start from configs/base.py")
  for name in SECTIONS:
    if not isinstance(plain[name], Mapping):
      raise ValueError(
        f"config.{name}={plain[name]!r} must be a section; start from configs/base.py, and see"
        f" python -m experiments.inspect --options={name}"
      )
  _check_owns(plain.get("owns", ()))
  if not isinstance(plain["seed"], int) or isinstance(plain["seed"], bool):
    raise ValueError(f"config.seed={plain['seed']!r} must be an integer in 0 … 2**32 - 1")
  if not 0 <= plain["seed"] < 2**32:
    raise ValueError(f"config.seed={plain['seed']} must be in 0 … 2**32 - 1")
  return {name: plain[name] for name in SECTIONS}


def _check_owns(owns: Any) -> None:
  """Raises ValueError unless `config.owns` lists sections and keys of sections."""
  listed = list(owns) if isinstance(owns, list | tuple) else [owns]
  wrong = [
    key for key in listed if not (isinstance(key, str) and key.split(".")[0] in {"seed", *SECTIONS})
  ]
  if wrong or not isinstance(owns, list | tuple):
    shown = wrong[0] if wrong else owns
    raise ValueError(
      f"config.owns holds {shown!r}, and must list sections and keys, such as ('process',"
      f" 'model.qk_norm'); the sections are {', '.join(SECTIONS)}"
    )


def _model(
  parts: Mapping[str, Any],
  members: Mapping[str, Any],
  facts: DataFacts,
  shards: int,
  self_conditioning: float,
) -> Model:
  """The model: the process, the network in its sizes, and the members that exist."""
  process = registry.construct("process", parts["process"], vocab_size=facts.vocab_size)
  options = dict(parts["model"])
  chunk = _chunk(options.pop("chunk", None))
  network = registry.construct(
    "model",
    options,
    vocab_size=facts.vocab_size,
    input_sizes=process.input_sizes,
    output_size=process.output_size,
    estimate_size=process.estimate_size,
  )
  return Model(
    network,
    process,
    members["timing"],
    members["context"],
    chunk=chunk,
    shards=shards,
    self_conditioning=self_conditioning,
  )


def _chunk(chunk: Any) -> int:
  """`config.model.chunk`, or 256 if it is not set."""
  chunk = 256 if chunk is None else chunk
  whole = isinstance(chunk, int) and not isinstance(chunk, bool)
  if not whole or not 1 <= chunk <= LARGEST:
    raise ValueError(
      f"config.model.chunk={chunk!r} must be an integer in 1 … {LARGEST}: positions whose logits"
      " exist at a time; 256 is usual on a CPU, 2048 on accelerators"
    )
  return chunk


def _facts(data: DataSettings, steps: int, tokenizer: Tokenizer) -> DataFacts:
  """What members may know of the data; texts are read when counts or words are asked for."""
  return DataFacts(
    length=data.length,
    vocab_size=tokenizer.vocab_size,
    token_counts=functools.cache(lambda: data.token_counts(tokenizer)),
    document_counts=functools.cache(lambda: data.document_counts(tokenizer)),
    steps=steps,
    words=None if data.tokenizer in WORDLESS else functools.cache(lambda: data.words(tokenizer)),
  )


def _optimizer(
  settings: OptimizerSettings, network: Network, steps: int, *, tied: bool
) -> train.Optimizer:
  """The optimizer of all parameters, those of the network and of the other members.

  tied: True if the head of the network is the table that embeds the tokens.

  Raises:
    ValueError: for rates that depend on the width where one table is input and output.
  """
  if settings.base_width is not None and tied:
    raise ValueError(
      f"config.optimizer.base_width={settings.base_width} with"
      " config.model.tie_embeddings=True: one table is read by tokens, at a rate that does not"
      " depend on the width, and by the head, at one that does; use tie_embeddings=False, or leave"
      " base_width unset"
    )
  return settings.make(
    steps,
    decays=network.decays,
    # A learned timing is fitted to a loss of its own, in other units, which must not shrink the
    # steps of the network.
    clips=lambda path: path[0] != "timing",
    matrices=matrices.matrix_axes,
    widths=matrices.input_width,
  )


def build(config: Any, *, tokenizer: Tokenizer | None = None, devices: Any = None) -> Experiment:
  """Checks the whole config and makes every object.

  Args:
    config: a ConfigDict with the sections of configs/base.py.
    tokenizer: that of a checkpoint; None makes it from the config.
    devices: for the mesh; None: all.

  Raises:
    ValueError: in one line, for a section that is missing or unknown, an option that nobody reads,
      and values that are out of range or do not fit together.
  """
  parts = sections(config)
  made = {
    name: registry.settings(cls, parts[name], f"config.{name}") for name, cls in SETTINGS.items()
  }
  data, settings, evaluate = made["data"], made["train"], made["evaluate"]
  mesh = made["mesh"].make(devices)
  check_sizes(data, settings, evaluate, mesh)
  data.make_corpus()
  members = {
    kind: registry.construct(kind, parts[kind], train_steps=settings.steps)
    for kind in ("timing", "context", "objective", "reader", "sampler")
  }
  # The options of the process are checked before a tokenizer is learned.
  registry.construct("process", parts["process"], vocab_size=2)
  tokenizer = data.make_tokenizer() if tokenizer is None else tokenizer
  facts = _facts(data, settings.steps, tokenizer)
  model = _model(parts, members, facts, token_shards(mesh), settings.self_conditioning or 0.0)
  scoring = scoring_model(model, evaluate)
  check_members(model, scoring, members, data, settings, facts)
  tied = bool(parts["model"].get("tie_embeddings"))
  optimizer = _optimizer(made["optimizer"], model.network, settings.steps, tied=tied)
  return Experiment(
    config=ml_collections.FrozenConfigDict(config),
    data=data,
    train=settings,
    evaluate=evaluate,
    tokenizer=tokenizer,
    facts=facts,
    mesh=mesh,
    model=model,
    scoring=scoring,
    objective=members["objective"],
    sampler=members["sampler"],
    reader=members["reader"],
    optimizer=optimizer,
  )

"""From a config to the objects it names: the only place that knows all folders. Everything is checked here, before any compute.

Each section of the config has a `name` that is looked up in its folder's table, and options that become keyword arguments. An option
that is None is not passed; one that the choice does not take is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from diffusion_text import train
from diffusion_text.core.prng import token_keys
from diffusion_text.data.packing import without_padding
from diffusion_text.data.token_arrays import token_arrays
from diffusion_text.data.tokenizers import build_tokenizer, tokenizer_from_bytes
from diffusion_text.experiment.registry import construct, present, strict
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.experiment.validation import check_objective, check_times, scoring_times
from diffusion_text.model.cache import CachedBlocks
from diffusion_text.model.experts import counted_tokens
from diffusion_text.model.flops import flops_per_token
from diffusion_text.model.partition import partition_spec
from diffusion_text.model.transformer import Network, TransformerConfig
from diffusion_text.objective import OBJECTIVES, Bound
from diffusion_text.objective.bound import Chunks, scored_weights
from diffusion_text.objective.conditioning import Conditioning, conditionings
from diffusion_text.process import PROCESSES
from diffusion_text.process.gaussian import decoded_at
from diffusion_text.sampler import SAMPLERS
from diffusion_text.sampler.block import WholeRow, pad_rows, sample_blocks
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import Policy, Sample, sample
from diffusion_text.schedules.discrete import SCHEDULES
from diffusion_text.timing import TIMINGS, bind_times
from diffusion_text.train.sharding import replicated, row_shards, token_shards
from diffusion_text.types import (
  Batch,
  Key,
  LearnedTimes,
  Loss,
  LossFn,
  Params,
  PredictsTimes,
  Process,
  Progress,
  Timing,
)

SECTIONS = (
  "data",
  "process",
  "schedule",
  "timing",
  "objective",
  "model",
  "optimizer",
  "train",
  "mesh",
  "evaluate",
  "sampler",
)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """`config.train`, checked; what each key means is said in configs/base.py."""

  steps: int
  batch_size: int
  accumulation: int
  ema_decay: float
  log_every: int
  evaluate_every: int
  save_every: int
  keep: int
  profile_steps: tuple[int, int]
  max_seconds: float | None = None
  restore_from: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """`config.evaluate`, checked; what each key means is said in configs/base.py."""

  split: str
  batch_size: int
  num_draws: int
  max_rows: int
  timing: str | None = None
  self_conditioning: float | None = None
  decode_at: float | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that a config stands for, as objects. Building it computes nothing; only a missing tokenizer is trained."""

  config: ml_collections.FrozenConfigDict
  data: DataSettings
  train: TrainSettings
  evaluate: EvaluateSettings
  tokenizer: Any
  process: Process
  timing: Timing
  objective: Callable[..., Loss]
  bound: Bound
  told: Conditioning  # in training
  told_scored: Conditioning  # where the bound is reported
  network: Network
  optimizer: train.Optimizer
  mesh: Mesh

  # --- pure functions ---------------------------------------------------------------------------------------------------------

  def init_params(self, key: Key, process: Params | None = None) -> Params:
    """{"network": …, "process": …}, and "timing" of a learned one, float32. process: those of the process, if made already."""
    network_key, process_key = jax.random.split(key)
    process = self.process.init(process_key) if process is None else process
    params = {"network": self.network.init(network_key), "process": process}
    timing = self.timing
    return (
      {**params, "timing": timing.init(jax.random.fold_in(key, 2))}
      if isinstance(timing, LearnedTimes)
      else params
    )

  def loss_fn(self, tokens_per_character: float) -> LossFn:
    """The training loss; reports `bound` in nats/token and `bits_per_character` of the training batch, or `surrogate` under a
    timing whose loss is no bound."""

    def loss(params: Params, key: Key, batch: Batch, progress: Progress) -> Loss:
      dropout_key = jax.random.fold_in(jax.random.fold_in(key, 3), progress.part)
      dropout_key = dropout_key if self.network.config.dropout else None
      weights = batch.weights
      predict = lambda inputs, t, layout: self.network.apply(
        params["network"], inputs, t, layout, dropout_key, counted_tokens(weights, inputs.shape)
      )
      batch, predict = (
        self.told.batch(key, batch, progress),
        self.told.predict(predict, key, batch, progress),
      )
      result = bind_times(self.objective, params)(params["process"], key, batch, progress, predict)
      if "bound" not in result.sums:
        return result
      if (
        self.timing.scoring() != self.timing
      ):  # clipped times: what was summed is no bound, and is not called one
        sums = {
          "surrogate" if name == "bound" else name: value for name, value in result.sums.items()
        }
        return result._replace(sums=sums)
      bits = result.sums["bound"] * (tokens_per_character / math.log(2))
      return result._replace(sums={**result.sums, "bits_per_character": bits})

    return loss

  def text_weights(self, batch: Batch) -> jax.Array:
    """float32 [B, L]: the weight of each scored token of the text itself. The padding of pairs costs nats and is no text."""
    weights = scored_weights(batch)
    return (
      without_padding(weights, batch.ids, self.tokenizer.separator)
      if self.data.packing == "pairs"
      else weights
    )

  def nats_fn(self) -> Callable[..., Any]:
    """Jitted (params, key, batch, progress) -> (nats [B], weight [B]): one draw of the bound and the text's tokens, summed over each
    row."""

    def nats(params: Params, key: Key, batch: Batch, progress: Progress):
      predict = lambda inputs, t, layout: self.network.apply(
        params["network"], inputs, t, layout, None
      )
      predict = self.told_scored.predict(predict, key, batch, progress)
      values = bind_times(self.bound, params).nats(params["process"], key, batch, progress, predict)
      return jnp.sum(values, axis=1), jnp.sum(self.text_weights(batch), axis=1)

    return jax.jit(nats, out_shardings=replicated(self.mesh))

  def sample_fn(
    self, policy: Policy, *, cached: bool = True
  ) -> Callable[[Params, Key, Batch], Sample]:
    """Jitted (params, keys [B], batch) -> Sample. Timings in blocks go block by block over a clean cache; cached=False reads the whole
    row at every call instead, for the same tokens."""
    timing, process = self.timing, self.process
    size = timing.sampled_in_blocks
    recalls = self.network.config.width if self.network.config.self_conditioning != "none" else 0

    def run(params: Params, keys_B: Key, batch: Batch) -> Sample:
      length = batch.ids.shape[1]
      batch = batch if size is None else pad_rows(batch, -length % size)
      keys = token_keys(keys_B, batch.ids.shape[1])
      predict = lambda inputs, t, layout: self.network.apply(
        params["network"], inputs, t, layout, None
      )
      prior = process.prior(params["process"], jax.random.key(0), (1, batch.ids.shape[1]))
      noise = process.inputs(params["process"], prior, jnp.ones((1, 1)))
      denoise, walked = timing.denoiser(predict, batch.segment, noise), bind_times(policy, params)
      if size is None:
        return sample(walked, process, params["process"], denoise, keys, batch, recalls=recalls)
      reader = (
        CachedBlocks(self.network, params["network"], noise, timing.shifted)
        if cached
        else WholeRow(denoise, noise)
      )
      result = sample_blocks(
        walked, process, params["process"], reader, keys, batch, size, recalls=recalls
      )
      return result._replace(ids=result.ids[:, :length], committed=result.committed[:, :length])

    return jax.jit(run)

  # --- shapes and placement ---------------------------------------------------------------------------------------------------

  def create_state(self, process: Params | None = None) -> train.TrainState:
    """The state at step 0; process: parameters of the process that were made already."""
    key = train.named_key(self.config.seed, "init", 0)
    return train.create_state(
      lambda: self.init_params(key, process), self.optimizer, ema=self.train.ema_decay > 0
    )

  def abstract_state(self) -> train.TrainState:
    """Shapes, dtypes and shardings of the train state, with nothing allocated."""
    process = self.process
    if (
      getattr(process, "counts", None) is not None
    ):  # shapes need no corpus: a checkpoint can be loaded where there is none
      process = dataclasses.replace(process, counts=lambda: np.zeros(process.vocab_size))
    abstract = jax.eval_shape(
      self.create_state, jax.eval_shape(lambda: process.init(jax.random.key(0)))
    )
    spec = lambda path, shape: partition_spec(path, shape, dict(self.mesh.shape))
    return train.with_shardings(abstract, train.state_shardings(abstract, spec, self.mesh))

  def jitted_step(self, loss_fn: LossFn) -> train.TrainStep:
    """The train step of this config for a loss, compiled over the mesh on first use; it donates its state."""
    settings = self.train
    step = train.make_train_step(
      loss_fn,
      self.optimizer,
      seed=self.config.seed,
      accumulation=settings.accumulation,
      ema_decay=settings.ema_decay or None,
      mesh=self.mesh,
    )
    return train.jit_train_step(step, self.shardings(), self.mesh)

  def shardings(self) -> train.TrainState:
    """The placement of every array of the train state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

  def fresh_state(self) -> train.TrainState:
    """The state at step 0, made where it belongs: no array is ever whole on one device.

    Only the parameters of the process, which are small, are made on the host first: they may be counted from the corpus.
    """
    _, process_key = jax.random.split(train.named_key(self.config.seed, "init", 0))
    process = jax.tree.map(np.asarray, self.process.init(process_key))
    return jax.jit(self.create_state, out_shardings=self.shardings())(process)

  @property
  def flops_per_token(self) -> float:
    """Of a training step, forward and backward, about: rows of noisy ‖ clean tokens are read twice (their attention is counted
    dense), an objective may read each row more than once (`reads`), there is one forward pass more if the network is told its own
    answer, and half of the tokens are scored, which holds for the linear schedule (all, for one token per block)."""
    blocks = self.timing.sampled_in_blocks
    read = flops_per_token(self.network.config, self.data.length, scored_fraction=0.0)
    doubled = 2 if blocks is not None and not self.timing.shifted else 1
    scored = (
      flops_per_token(
        self.network.config, self.data.length, scored_fraction=1.0 if blocks == 1 else 0.5
      )
      - read
    )
    predicts = isinstance(self.timing, PredictsTimes)
    of_times = 3 * flops_per_token(self.timing.reader.config, self.data.length) if predicts else 0.0
    return of_times + (4 if self.told.self_conditioning else 3) * getattr(
      self.objective, "reads", 1
    ) * (doubled * read + scored)


def config_json(config: Any) -> str:
  """A config as JSON; `config_from_json` reads it back."""
  return json.dumps(ml_collections.ConfigDict(config).to_dict(), default=list, sort_keys=True)


def config_from_json(text: str | bytes) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(json.loads(text))


def make_tokenizer(data: DataSettings) -> Any:
  """The tokenizer of `data.tokenizer_path`, or one learned from the training split."""
  if data.tokenizer_path is not None:
    path = pathlib.Path(data.tokenizer_path)
    if not path.exists():
      raise ValueError(
        f"data.tokenizer_path={data.tokenizer_path!r} is not there; make it with python -m experiments.tokenize"
      )
    return tokenizer_from_bytes(path.read_bytes())
  return build_tokenizer(data.tokenizer, data.vocab_size, data.make_corpus().documents("train"))


def token_counts(data: DataSettings, tokenizer: Any) -> np.ndarray:
  """[V]: how often each token occurs in the training split."""
  corpus = token_arrays(data.make_corpus(), tokenizer, "train", data.cache)
  return np.bincount(corpus.tokens, minlength=tokenizer.vocab_size)


def asked(choice: Any, **offers: Any) -> dict[str, Any]:
  """Those of the offers that a choice has a field for: what the config does not say and only some choices need to know."""
  return {
    name: value
    for name, value in offers.items()
    if name in getattr(choice, "__dataclass_fields__", {})
  }


def make_process(
  section: Mapping[str, Any], data: DataSettings, tokenizer: Any, schedule: Any
) -> Process:
  """The process of a `config.process` section."""
  given = {"vocab_size": tokenizer.vocab_size, "schedule": schedule}
  given |= asked(PROCESSES.get(section["name"]), counts=lambda: token_counts(data, tokenizer))
  return construct(PROCESSES, section, "process.name", **given)


def make_policy(section: Mapping[str, Any], timing: Timing) -> Policy:
  """The sampler of a `config.sampler` section; for timings in blocks, that of one block, whose tokens share a time."""
  timing = timing.within_block()
  options = dict(section)
  keys = ("temperature", "top_p", "guidance_scale", "guidance_space")
  guidance = strict(Guidance, present({key: options.pop(key, None) for key in keys}), "sampler")
  if options["steps"] is None or options["steps"] < 1:
    raise ValueError(f"sampler.steps={options['steps']} must be at least 1; 64 is a good start")
  return construct(SAMPLERS, options, "sampler.name", timing=timing, guidance=guidance)


def build(config: Any, *, tokenizer: Any = None, devices: Any = None) -> Experiment:
  """Checks the whole config and makes every object. `tokenizer`: the one of a checkpoint; None makes it from the config.

  Raises ValueError for a section that is missing or unknown, an option that nobody reads, or values that do not fit together.
  """
  c = ml_collections.FrozenConfigDict(config)
  if unknown := set(c) ^ {"seed", *SECTIONS}:
    raise ValueError(
      f"config sections {sorted(unknown)} are unknown or missing; start from configs/base.py, which has every key"
    )
  sections = {name: c[name].to_dict() for name in SECTIONS}
  data = strict(DataSettings, present(sections["data"]), "data")
  settings = strict(TrainSettings, present(sections["train"]), "train")
  evaluate = strict(EvaluateSettings, present(sections["evaluate"]), "evaluate")
  mesh = train.make_mesh(**sections["mesh"], devices=devices)
  offers = {
    "length": data.length,
    "counts": lambda: np.zeros(1),
  }  # counts: until there is a tokenizer
  timing = construct(
    TIMINGS,
    sections["timing"],
    "timing.name",
    **asked(TIMINGS.get(sections["timing"]["name"]), **offers),
  )
  schedules = getattr(
    PROCESSES.get(sections["process"]["name"]), "schedules", SCHEDULES
  )  # some processes choose from paths
  schedule = construct(schedules, sections["schedule"], "schedule.name")
  warmup = {"warmup_steps": min(settings.steps // 20, 2500)}
  # A learned timing is fitted to a loss of its own, in other units, which must not shrink the steps of the network.
  clips = lambda path: path[0] != "timing"
  optimizer = train.make_optimizer(
    **{**warmup, **present(sections["optimizer"])}, steps=settings.steps, clips=clips
  )
  make_policy(sections["sampler"], timing)
  scoring = scoring_times(timing, evaluate.timing)
  for drawn in (timing, scoring):
    check_times(drawn, sections)
  check_sizes(data, settings, evaluate, mesh)
  row = Batch(jax.ShapeDtypeStruct((1, data.length), jnp.int32))
  jax.eval_shape(
    lambda batch: timing.draw(jax.random.key(0), batch, Progress()).t, row
  )  # sizes that the timing refuses
  data.make_corpus()

  tokenizer = make_tokenizer(data) if tokenizer is None else tokenizer
  if asked(timing, counts=None):
    timing = dataclasses.replace(
      timing, counts=functools.cache(lambda: token_counts(data, tokenizer))
    )
  process = make_process(sections["process"], data, tokenizer, schedule)
  sizes = {name: getattr(process, name) for name in ("vocab_size", "input_size", "estimate_size")}
  model = {"scan_layers": None, **present(sections["model"]), **sizes}
  network = Network.create(strict(TransformerConfig, model, "model"))
  if isinstance(timing, PredictsTimes):
    timing = dataclasses.replace(
      timing, reader=Network.create(reader_config(network.config, timing.layers))
    )
  options = sections["objective"]
  if options["chunk"] < 1:
    raise ValueError(
      f"objective.chunk={options['chunk']} must be at least 1 position; 256 suits a CPU, 2048 an accelerator"
    )
  chunks = Chunks(options.pop("chunk"), token_shards(mesh))
  told, told_scored = conditionings(
    options, network.config.self_conditioning, evaluate.self_conditioning, timing, chunks
  )
  given = {"process": process, "timing": timing, "chunks": chunks}
  given |= asked(OBJECTIVES.get(options["name"]), train_steps=settings.steps)
  objective = construct(OBJECTIVES, options, "objective.name", **given)
  check_objective(options["name"], objective, process, timing)
  bound = Bound(
    process if evaluate.decode_at is None else decoded_at(process, evaluate.decode_at),
    scoring,
    chunks,
  )
  objects = (
    tokenizer,
    process,
    timing,
    objective,
    bound,
    told,
    told_scored,
    network,
    optimizer,
    mesh,
  )
  return Experiment(c, data, settings, evaluate, *objects)


def reader_config(network: TransformerConfig, layers: int) -> TransformerConfig:
  """The network that predicts times: as wide as the one that it serves, told the clock, one number per token."""
  plain = {name: field.default for name, field in TransformerConfig.__dataclass_fields__.items()}
  kept = {
    name: getattr(network, name)
    for name, default in plain.items()
    if default is dataclasses.MISSING
  }
  one = {
    "vocab_size": 1,
    "layers": layers,
    "time_conditioning": "adaln",
    "tie_embeddings": False,
    "dropout": 0.0,
  }
  return TransformerConfig(**{**kept, **one})


def check_sizes(
  data: DataSettings, settings: TrainSettings, evaluate: EvaluateSettings, mesh: Mesh
) -> None:
  """Sizes that must divide one another, refused here rather than deep in a compiled step."""
  shards = row_shards(mesh)
  unit = shards * settings.accumulation
  if settings.accumulation < 1 or settings.batch_size % unit:
    up = -(-settings.batch_size // unit) * unit if unit > 0 else shards
    raise ValueError(
      f"train.batch_size={settings.batch_size} does not divide into train.accumulation={settings.accumulation} microbatches over"
      f" {shards} devices (replica × fsdp); use {up}"
    )
  if evaluate.batch_size % shards:
    up = -(-evaluate.batch_size // shards) * shards
    raise ValueError(
      f"evaluate.batch_size={evaluate.batch_size} does not divide over {shards} devices (replica × fsdp); use {up}"
    )
  if data.length % (positions := mesh.shape["sequence"]):
    raise ValueError(
      f"data.length={data.length} does not divide over mesh.sequence={positions}; use {-(-data.length // positions) * positions}"
    )
  if data.length < 2:
    raise ValueError(
      f"data.length={data.length} must be at least 2 tokens; 256 is usual for characters"
    )

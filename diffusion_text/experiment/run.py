"""What the command lines do, over files: train a config in a workdir, load a workdir, score it,
sample from it.

A workdir holds config.json, checkpoints/ (state, data position, clock, tokenizer, config),
metrics.jsonl and TensorBoard files.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffusion_text import train
from diffusion_text.core.options import LARGEST
from diffusion_text.core.prng import row_keys, wrap_keys
from diffusion_text.data.packing import pair_rows
from diffusion_text.data.pipeline import (
  EvaluationBatches,
  TrainIterator,
  evaluation_batches,
  train_iterator,
)
from diffusion_text.data.prompts import infill_rows, prompt_rows
from diffusion_text.data.token_arrays import TokenArrays
from diffusion_text.data.tokenizers import TextSize, characters, text_size
from diffusion_text.evaluate.likelihood import Likelihood, evaluate
from diffusion_text.experiment.build import (
  SECTIONS,
  Experiment,
  build,
  config_from_json,
  config_json,
)
from diffusion_text.experiment.checks import (
  check_loss,
  check_place,
  check_sampler,
  check_start,
  checkpoint_directory,
  checkpoints,
  saved_tokenizer,
  trained_directory,
)
from diffusion_text.experiment.memory import check_memory, check_scoring_memory
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.sampler.loop import Sample
from diffusion_text.train.storage import as_path
from diffusion_text.types import Batch, Params, Reader, Sampler

log = logging.getLogger(__name__)

# Keys that a run may change when it is continued in the same workdir.
MAY_DIFFER = (
  "train.steps",
  "train.max_seconds",
  "train.log_every",
  "train.evaluate_every",
  "train.save_every",
  "train.keep",
  "train.initialize_from",
  "train.profile_steps",
  "train.wandb",
  "evaluate",
  "sampler",
  "reader",
  "owns",
  "mesh",
  "data.path",
  "data.data_dir",
  "data.tokenizer_path",
  "data.cache_dir",
  "model.scan_layers",
  "model.attention",
)


def arrays(experiment: Experiment, split: str) -> TokenArrays:
  """The tokens of a split, from the cache if they are there."""
  return experiment.data.tokens(experiment.tokenizer, split)


def _scored_batches(experiment: Experiment, split: str) -> EvaluationBatches:
  """All batches of a split. Raises ValueError for sizes that do not fit the corpus."""
  return evaluation_batches(
    arrays(experiment, split),
    length=experiment.data.length,
    batch_size=experiment.evaluate.batch_size,
    packing_kind=experiment.data.packing,
    answer_multiple=experiment.data.answer_multiple,
  )


def held_out_rows(
  experiment: Experiment, split: str, max_rows: int | None = None
) -> Iterator[Batch]:
  """Batches on the host over a split ("all": over all of them), in order; at most `max_rows` rows,
  rounded up to whole batches.
  """
  size, batches = experiment.evaluate.batch_size, _scored_batches(experiment, split)
  count = len(batches) if max_rows is None else min(len(batches), -(-max_rows // size))
  yield from itertools.islice(batches, count)


def held_out(
  experiment: Experiment, split: str, max_rows: int | None = None
) -> Iterator[tuple[Batch, TextSize]]:
  """(global batch, size of the text scored in it) of `held_out_rows`, over the devices of all
  processes.
  """
  settings = experiment.evaluate
  places = train.row_places(experiment.mesh, settings.batch_size)
  bytes_of_unknown = arrays(experiment, split).bytes_of_unknown
  for batch in held_out_rows(experiment, split, max_rows):
    weights = np.asarray(experiment.text_weights(batch))
    counted = text_size(experiment.tokenizer, batch.ids, weights, bytes_of_unknown)
    local = jax.tree.map(lambda leaf: leaf[places], batch)
    yield train.global_batch(local, experiment.mesh, settings.batch_size), counted


def score(
  experiment: Experiment,
  params: Params,
  *,
  split: str,
  num_draws: int,
  max_rows: int | None = None,
  nats_fn=None,
) -> Likelihood:
  """The bound of a split. `nats_fn`: in place of `experiment.nats_fn`.

  Raises:
    ValueError: for a batch that cannot fit in memory, and sizes that do not fit the corpus.
  """
  check_scoring_memory(experiment)
  with jax.set_mesh(experiment.mesh):
    key = train.named_key(experiment.config.seed, "evaluate", 0)
    return evaluate(
      nats_fn or experiment.nats_fn, params, held_out(experiment, split, max_rows), key, num_draws
    )


def training_data(experiment: Experiment) -> tuple[TokenArrays, TrainIterator]:
  """The training tokens, and this process's endless batches of them. Raises ValueError for sizes
  that do not fit the corpus.
  """
  data = experiment.data
  corpus = arrays(experiment, "train")
  iterator = train_iterator(
    corpus,
    length=data.length,
    batch_size=experiment.train.batch_size,
    seed=experiment.config.seed,
    packing_kind=data.packing,
    random_offset=data.random_offset and data.packing == "stream",
    short_rows=data.short_rows,
    answer_multiple=data.answer_multiple,
    places=train.row_places(experiment.mesh, experiment.train.batch_size),
  )
  return corpus, iterator


def tokens_per_character(experiment: Experiment, corpus: TokenArrays) -> float:
  """Tokens that a training row scores for each character of text in it; of pairs, padding is scored
  and is no text.
  """
  if experiment.data.packing != "pairs":
    return len(corpus.tokens) / corpus.characters
  rows = pair_rows(corpus.tokens, corpus.offsets, experiment.data.length, corpus.separator)
  batch = rows.rows(np.arange(rows.count))
  real = np.asarray(experiment.text_weights(batch))
  return float((~batch.observed).sum()) / characters(experiment.tokenizer, batch.ids, real)


def abstract_params(experiment: Experiment, dtype: str = "float32") -> tuple[Params, Params]:
  """(params, frozen) of an experiment as shapes with shardings; the network's in `dtype`, except
  integers."""
  state = experiment.abstract_state()

  def network_in(tree: Params) -> Params:
    if "network" not in tree:
      return tree

    def held(x):
      own = dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
      return jax.ShapeDtypeStruct(x.shape, own, sharding=x.sharding)

    return {**tree, "network": jax.tree.map(held, tree["network"])}

  return network_in(state.params), network_in(state.frozen)


def prepare(
  experiment: Experiment, workdir: str, lock: train.WorkdirLock | None = None
) -> tuple[TokenArrays, TrainIterator, str]:
  """(the corpus, this process's batches, what the run would begin with), once everything is checked
  that can be refused. Writes nothing but token arrays in the cache; all processes must call it.
  lock: the one that the run will take; None: one that nobody takes.

  Raises:
    ValueError: for a sampler or a loss that does not fit, metrics for a package that is not
      installed, a run that needs more memory than there is, a workdir of another config or
      tokenizer or in use, sizes that do not fit the corpus, and checkpoints of another model or
      data; if that happens to one of several processes, on all.
  """

  def check() -> tuple[TokenArrays, TrainIterator]:
    train.check_wandb(experiment.train.wandb)
    check_place(workdir, lock)
    check_memory(experiment)
    check_sampler(experiment)
    check_loss(experiment)
    check_workdir(workdir, config, _may_differ(workdir), write=False)
    _scored_batches(experiment, experiment.evaluate.split)
    return training_data(experiment)

  lock = train.WorkdirLock(workdir) if lock is None else lock
  config = config_json(experiment.config)
  corpus, iterator = train.multihost.together(check)
  tokens = {
    "the tokenizer": experiment.tokenizer.fingerprint,
    "the training text": corpus.content,
  }
  train.multihost.check_same({"the config": config, **tokens})
  return corpus, iterator, check_start(experiment, workdir, iterator)


def _may_differ(workdir: str) -> tuple[str, ...]:
  """Keys that may change; a workdir without a checkpoint holds nothing that another config could
  spoil.
  """
  started = train.latest_step(checkpoints(workdir)) is not None
  return MAY_DIFFER if started else ("seed", *SECTIONS)


def _claim(experiment: Experiment, workdir: str) -> None:
  """Writes the config to a workdir that this run holds, once nothing can be refused any more."""
  config, together = config_json(experiment.config), train.multihost.together
  together(lambda: check_workdir(workdir, config, _may_differ(workdir)))
  together(lambda: train.check_shared(workdir))


def _begin(
  experiment: Experiment, workdir: str, iterator: TrainIterator, clock: train.Clock
) -> train.Restored:
  """The state that a run begins with: its own, one that it continues, or one with the weights of
  another run.
  """
  settings = experiment.train

  def fresh() -> train.TrainState:
    state = experiment.fresh_state()
    if settings.initialize_from is None:
      return state
    source = checkpoint_directory(settings.initialize_from, "initialize_from")
    state, report = train.initialize(source, state)
    log.info("%s", report)
    return state

  return train.restore(
    checkpoints(workdir),
    experiment.abstract_state(),
    data=iterator,
    clock=clock,
    fresh=fresh,
    restore_from=None
    if settings.restore_from is None
    else checkpoint_directory(settings.restore_from, "restore_from"),
  )


def train_workdir(
  experiment: Experiment,
  workdir: str,
  *,
  terminal: bool | None = None,
  stall_seconds: float | None = None,
  wrap_step: Callable[[train.TrainStep], train.TrainStep] = lambda step: step,
) -> train.Result:
  """Trains until the config's last step (or a signal), going on from the workdir's newest
  checkpoint if there is one.

  Raises what `prepare` raises, before anything is trained or written. The workdir is held until the
  end, so that no other run writes in it. stall_seconds: of several processes, see
  `train.LoopSettings`. wrap_step: what the loop calls in place of the compiled train step, for
  meters.
  """
  lock = train.WorkdirLock(workdir)
  corpus, iterator, _ = prepare(experiment, workdir, lock)
  config, settings, mesh = experiment.config, experiment.train, experiment.mesh
  with lock, jax.set_mesh(mesh):
    _claim(experiment, workdir)
    clock = train.Clock(devices=jax.device_count())
    restored = _begin(experiment, workdir, iterator, clock)
    loss_fn = experiment.loss_fn(tokens_per_character(experiment, corpus))
    assets = {"tokenizer": experiment.tokenizer.to_bytes(), "config": config_json(config).encode()}
    with (
      train.Checkpointer(
        checkpoints(workdir), max_to_keep=settings.keep, keep_best="validation_bound", assets=assets
      ) as saver,
      train.MetricsWriter(
        workdir,
        resume_step=restored.resume_step,
        wandb=settings.wandb,
        config=config.to_dict(),
      ) as writer,
      train.reporter(settings.steps, terminal=terminal) as report,
    ):
      return train.train(
        restored.state,
        iterator,
        wrap_step(experiment.jitted_step(loss_fn)),
        loop_settings(experiment, workdir, stall_seconds if jax.process_count() > 1 else None),
        checkpointer=saver,
        hooks=[train.Hook(settings.evaluate_every, _evaluation_hook(experiment))],
        clock=clock,
        place=lambda batch: train.global_batch(batch, mesh, settings.batch_size),
        write=writer,
        report=report,
        evaluated=restored.evaluated,
      )


def loop_settings(
  experiment: Experiment, workdir: str, stall_seconds: float | None = None
) -> train.LoopSettings:
  """The loop's settings: how long, how often, and what the MFU is measured against."""
  settings = experiment.train
  first, last = settings.profile_steps
  peak = train.peak_flops(jax.devices()[0].device_kind)
  return train.LoopSettings(
    steps=settings.steps,
    log_every=settings.log_every,
    save_every=settings.save_every,
    max_seconds=settings.max_seconds,
    profile_steps=(first, last) if last > first else None,
    profile_dir=str(as_path(workdir) / "profile") if last > first else None,
    flops_per_token=experiment.flops_per_token,
    peak_flops=None if peak is None else peak * jax.device_count(),
    stall_seconds=stall_seconds,
  )


def _evaluation_hook(experiment: Experiment):
  nats_fn, settings = experiment.nats_fn, experiment.evaluate

  def hook(step: int, params: Params) -> dict[str, float]:
    result = score(
      experiment,
      params,
      split=settings.split,
      num_draws=settings.num_draws,
      max_rows=settings.max_rows,
      nats_fn=nats_fn,
    )
    log.info("step %d %s: %s", step, settings.split, result)
    return {
      "validation_bound": result.nats_per_token,
      "validation_bits_per_character": result.bits_per_char,
      "validation_bits_per_character_error": result.bits_per_char_error,
    }

  return hook


@dataclasses.dataclass(frozen=True)
class Trained:
  """A workdir, loaded: the experiment and its parameters (the average, if one was kept)."""

  experiment: Experiment
  params: Params
  step: int


def override(config: ml_collections.ConfigDict, overrides: Any) -> None:
  """Sets (dotted key, value) pairs in place; parts that the config lacks, as in
  process.schedule.name, are made.

  Raises:
    ValueError: for a section that there is not, and a key below something that is no section.
  """
  for key, value in overrides:
    *parents, last = key.split(".")
    section = config
    for number, name in enumerate(parents):
      if name not in section and number == 0:
        raise ValueError(
          f"{key}={value!r} cannot be set: the config has no {name}; its sections are"
          f" {', '.join(sorted(section))}"
        )
      if section.get(name) is None:
        section[name] = ml_collections.ConfigDict()
      section = section[name]
      if not isinstance(section, ml_collections.ConfigDict):
        raise ValueError(f"{key}={value!r} cannot be set: {name}={section!r} is no section")
    with section.unlocked(), section.ignore_type():
      section[last] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


def load_experiment(workdir: str, overrides: Any = (), *, all_devices: bool = False) -> Experiment:
  """The experiment of a workdir, with the tokenizer that was saved with its checkpoints, on one
  device or on all of this run's.

  overrides: (dotted key, value) pairs set before building, e.g. ("sampler.steps", 16). Raises
  ValueError for a workdir without a checkpoint and for a value that its key cannot have.
  """
  directory = trained_directory(workdir)
  config = config_from_json(train.read_asset(directory, "config"))
  config.mesh = ml_collections.ConfigDict({"fsdp": -1})
  override(config, overrides)
  if all_devices:  # nothing trains here: a batch of training need not divide over these devices
    config.train.update({"accumulation": 1, "batch_size": config.evaluate.batch_size})
  devices = jax.devices() if all_devices else jax.devices()[:1]
  return build(
    config,
    tokenizer=saved_tokenizer(workdir),
    devices=devices,
  )


def load(
  workdir: str, overrides: Any = (), *, all_devices: bool = False, dtype: str = "float32"
) -> Trained:
  """Loads the newest readable checkpoint of a workdir. Raises ValueError or CheckpointError with
  what is wrong and where.

  dtype: that the network's parameters are held in; "bfloat16" halves their memory. Those of the
  process stay float32.
  """
  experiment = load_experiment(workdir, overrides, all_devices=all_devices)
  directory = checkpoints(workdir)
  params = train.restore_params(directory, *abstract_params(experiment, dtype))
  return Trained(experiment, params, train.latest_step(directory))


def open_rows(
  tokenizer: Any,
  num: int,
  length: int | None,
  prompts: Sequence[str] = (),
  infills: Sequence[str] = (),
) -> Batch:
  """`num` rows for each prompt or infill text (or of nothing at all), as a batch on the host.

  length: tokens of a row; None, for infill texts only, is that of the longest text.
  """
  if prompts and infills:
    raise ValueError(
      "give prompts or infill texts, not both: a prompt is an infill text with its hole at the end"
    )
  if num < 1:
    raise ValueError(f"num={num} must be at least 1 sample")
  if length is not None and length > LARGEST:
    raise ValueError(f"length={length} is more than {LARGEST} tokens; use shorter rows")

  def repeated(texts):
    return [text for text in texts for _ in range(num)]

  if infills:
    return infill_rows(tokenizer, repeated(infills), length or None)
  return prompt_rows(tokenizer, repeated(prompts or [""]), length)


def generate(
  trained: Trained,
  batch: Batch,
  *,
  num: int,
  seed: int,
  sampler: Sampler | None = None,
  reader: Reader | None = None,
) -> tuple[list[str], Sample]:
  """Texts of the rows, padding left out, and the sample itself. Sample s of every text has the key
  of row s alone.
  """
  keys = row_keys(seed, num)
  keys = wrap_keys(jnp.tile(jax.random.key_data(keys), (batch.ids.shape[0] // num, 1)))
  experiment = trained.experiment
  reader = reader_for(experiment.reader if reader is None else reader, batch)
  drawn = experiment.sample(trained.params, keys, batch, sampler=sampler, reader=reader)
  result = jax.tree.map(np.asarray, drawn)
  real = np.ones(batch.ids.shape, bool) if batch.weights is None else np.asarray(batch.weights) > 0
  return [experiment.tokenizer.decode(row[keep]) for row, keep in zip(result.ids, real)], result


def read_run_config(workdir: str) -> ml_collections.ConfigDict | None:
  """The config that a workdir belongs to; None for a new workdir. Raises ValueError for one that an
  earlier version wrote.
  """
  path = as_path(workdir) / "config.json"
  return config_from_json(path.read_text()) if path.exists() else None


def check_workdir(
  workdir: str, config: str, may_differ: Sequence[str] = MAY_DIFFER, *, write: bool = True
) -> None:
  """Writes the config to the workdir, or holds the one that is there against it.

  Raises:
    ValueError: for a workdir of another config, with every key that differs, and for one that an
      earlier version wrote.
  """
  read_run_config(workdir)
  train.check_workdir(workdir, config, may_differ, write=write)

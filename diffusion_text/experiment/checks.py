"""What a run refuses before it begins. The dry run of a command asks the same questions as the run.

Nothing here computes with parameters, and nothing is written except token arrays in the cache.
"""

from __future__ import annotations

import base64
import dataclasses
import os

import jax
import jax.numpy as jnp

from diffusion_text import train
from diffusion_text.core.prng import make_key, row_keys
from diffusion_text.core.trees import merge
from diffusion_text.data.pipeline import TrainIterator
from diffusion_text.data.tokenizers import tokenizer_from_bytes
from diffusion_text.experiment import registry
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.memory import check_memory, check_sampling_memory
from diffusion_text.train.storage import as_path, is_remote
from diffusion_text.types import Batch, Params, Progress, Tokenizer


def checkpoints(workdir: str) -> str:
  """Where a workdir keeps its checkpoints."""
  return os.path.join(workdir, "checkpoints")


def checkpoint_directory(path: str, key: str) -> str:
  """A workdir or a directory of checkpoints -> the directory of checkpoints.

  Raises:
    ValueError: if there is none; quotes the option `key` that names the path.
  """
  inner = checkpoints(path)
  chosen = inner if train.latest_step(inner) is not None else path
  if train.latest_step(chosen) is None:
    raise ValueError(
      f"train.{key}={path!r} has no checkpoint; give a workdir that experiments.train has written"
    )
  return chosen


def trained_directory(workdir: str) -> str:
  """The checkpoints of a workdir. Raises ValueError if there are none."""
  directory = checkpoints(workdir)
  if train.latest_step(directory) is None:
    raise ValueError(
      f"--workdir={workdir}: there is no checkpoint in {directory}; train one with python -m"
      f" experiments.train"
    )
  return directory


def saved_tokenizer(workdir: str) -> Tokenizer:
  """The tokenizer that a run was trained with. Raises ValueError for a workdir without a
  checkpoint.
  """
  return tokenizer_from_bytes(train.read_asset(trained_directory(workdir), "tokenizer"))


def check_tokenizer(experiment: Experiment, directory: str) -> None:
  """Raises ValueError if the checkpoints in `directory`, if any, were trained with another
  tokenizer than the experiment's.
  """
  if train.latest_step(directory) is None:
    return
  saved = tokenizer_from_bytes(train.read_asset(directory, "tokenizer"))
  if saved.fingerprint != experiment.tokenizer.fingerprint:
    run = directory.removesuffix("/").removesuffix("/checkpoints")
    raise ValueError(
      f"{directory} was trained with the {saved.name} tokenizer {saved.fingerprint} (V ="
      f" {saved.vocab_size}), but the config gives"
      f" {experiment.tokenizer.name} {experiment.tokenizer.fingerprint} (V ="
      f" {experiment.tokenizer.vocab_size}): its ids would mean"
      f" other text. Write its own to a file with python -m experiments.tokenize --workdir={run}"
      " --output=tokenizer, and train in a new workdir with"
      f" --config.train.initialize_from={run} --config.data.tokenizer_path=tokenizer"
    )


def _without_shardings(tree: Params) -> Params:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def check_sampler(experiment: Experiment) -> None:
  """Raises ValueError if the config's sampler cannot sample: one row is sampled in the abstract,
  and nothing is computed.
  """
  check_sampling_memory(experiment)
  state = _without_shardings(experiment.abstract_state())
  row = Batch(jax.ShapeDtypeStruct((1, experiment.data.length), jnp.int32))
  keys = jax.eval_shape(lambda: row_keys(0, 1))
  jax.eval_shape(experiment.sample, state.eval_params, keys, row)


def check_loss(experiment: Experiment) -> None:
  """Raises ValueError if no training step or score can be made: one of each is traced in the
  abstract, and nothing is computed.
  """
  check_memory(experiment)
  state = experiment.abstract_state()
  _check_frozen(experiment, state)
  rows = experiment.train.batch_size
  row = Batch(jax.ShapeDtypeStruct((rows, experiment.data.length), jnp.int32))
  if experiment.data.packing == "pairs":
    row = dataclasses.replace(row, observed=jax.ShapeDtypeStruct(row.ids.shape, bool))
  with jax.set_mesh(experiment.mesh):
    jax.eval_shape(experiment.jitted_step(experiment.loss_fn(1.0)), state, row)
    key = jax.eval_shape(lambda: make_key(0))
    jax.eval_shape(experiment.nats_fn, state.eval_params, key, row, Progress())


def _check_frozen(experiment: Experiment, state: train.TrainState) -> None:
  """Raises ValueError for a name of `train.frozen` that no parameter has, and if nothing moves."""
  settings = experiment.train
  paths = train.shapes_by_path(merge(state.params, state.frozen))
  for name in settings.frozen:
    if not any(path == name or path.startswith(f"{name}/") for path in paths):
      tops = sorted({"/".join(path.split("/")[:2]) for path in paths})
      raise ValueError(
        f"train.frozen holds {name!r}, which begins the path of no parameter"
        f"{registry.nearest(name, [*tops, *paths])}; paths begin with {', '.join(tops)}"
      )
  if not jax.tree.leaves(state.params):
    raise ValueError(f"train.frozen={settings.frozen} leaves no parameter that moves; freeze fewer")


def check_place(workdir: str, lock: train.WorkdirLock) -> None:
  """Raises ValueError for a workdir that another run holds, or that this one could not write."""
  lock.check()
  if is_remote(workdir):
    return
  path = as_path(workdir)
  for place in (path, *path.parents):
    if place.exists():
      if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise ValueError(f"--workdir={workdir}: {place} cannot be written; use another workdir")
      return


def check_start(experiment: Experiment, workdir: str, iterator: TrainIterator) -> str:
  """What the run would begin with, in words. All processes must call it.

  Raises:
    ValueError: for a checkpoint of another tokenizer, of other shapes or of other data, and for a
      place without checkpoints.
    CheckpointError: for checkpoints that cannot be read.
  """
  directory, settings = checkpoints(workdir), experiment.train
  step = train.latest_step(directory)
  if step is not None:
    check_tokenizer(experiment, directory)
    _check_resumable(experiment, directory, iterator)
    return f"would go on from step {step}"
  if settings.restore_from is not None:
    source = checkpoint_directory(settings.restore_from, "restore_from")
    check_tokenizer(experiment, source)
    _check_resumable(experiment, source, iterator)
    return f"new, would continue {source} from step {train.latest_step(source)}"
  if settings.initialize_from is not None:
    source = checkpoint_directory(settings.initialize_from, "initialize_from")
    check_tokenizer(experiment, source)
    saved, shapes = train.newest_shapes(source)
    report = train.compared(f"{source}/{saved}", shapes, experiment.abstract_state())
    return f"new, with the {report}"
  return "new"


def _check_resumable(experiment: Experiment, directory: str, iterator: TrainIterator) -> None:
  """Raises ValueError if the newest readable checkpoint is of other shapes or of other data."""
  step, there = train.newest_shapes(directory)
  state = experiment.abstract_state()
  here = {"params": state.params, "ema": state.ema, "frozen": state.frozen or None}
  for item, tree in here.items():
    if (tree is None) != (item not in there):
      which = ("keeps", "does not") if tree is None else ("lacks", "needs")
      raise ValueError(
        f"{directory}/{step} {which[0]} {item!r} arrays and this config {which[1]}: train.ema_decay"
        " and train.frozen must be those of the run, or take its weights alone with"
        " train.initialize_from"
      )
    if tree is None:
      continue
    wanted, found = train.shapes_by_path(tree), train.shapes_by_path(there[item])
    for path in sorted(wanted.keys() | found.keys()):
      if wanted.get(path) != found.get(path):
        raise ValueError(
          f"{directory}/{step} has {path}: {found.get(path, 'missing')} where this config has"
          f" {wanted.get(path, 'nothing')}; a run goes on with its own model, and a new one takes"
          " what fits with train.initialize_from"
        )
  extra = train.read_extra(directory)
  iterator.set_state(base64.b64decode(extra["data"][0]))

"""The least memory that a run needs, found from shapes before anything is allocated.

Every number here is a lower bound: what is refused cannot run, and what passes may still be too
large.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.control_groups import memory_bytes
from diffusion_text.model.partition import memory
from diffusion_text.sampler.loop import Loop
from diffusion_text.train.sharding import row_shards
from diffusion_text.types import Batch, Params, Reader, Sampler

GIB = 2**30


def tree_bytes(tree: Any) -> float:
  """Bytes of all arrays of a tree of shapes, of which each array is whole."""
  return sum(math.prod(leaf.shape) * _item_bytes(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _item_bytes(dtype: Any) -> int:
  # A typed key is two numbers.
  return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize


def state_bytes(experiment: Experiment) -> float:
  """Bytes per device of the train state: parameters, average, optimizer. With the gradient, which
  is alive beside them.
  """
  state = experiment.abstract_state()
  mesh = dict(experiment.mesh.shape)
  leaves = [*jax.tree.leaves(state), *jax.tree.leaves(state.params)]
  return sum(
    memory(leaf.shape, leaf.sharding.spec, mesh) / 4 * _item_bytes(leaf.dtype) for leaf in leaves
  )


def trained_bytes(experiment: Experiment) -> float:
  """Bytes per device of the rows of one step: the tokens, and of one microbatch the input of each
  layer, which the backward pass keeps.
  """
  settings, shards = experiment.train, row_shards(experiment.mesh)
  kept = _stream(experiment) * experiment.model.network.layers / settings.accumulation
  return settings.batch_size / shards * (kept + 4 * experiment.data.length)


def scored_bytes(experiment: Experiment) -> float:
  """Bytes per device of a batch that is scored: the tokens, and one residual stream."""
  rows = experiment.evaluate.batch_size / row_shards(experiment.mesh)
  return rows * (_stream(experiment) + 4 * experiment.data.length)


def _stream(experiment: Experiment) -> float:
  """Bytes per device of the residual stream of one row."""
  network = experiment.model.network
  numbers = experiment.data.length * network.width / experiment.mesh.shape["sequence"]
  return numbers * (2 if network.dtype == "bfloat16" else 4)


def sampling_bytes(
  experiment: Experiment,
  rows: int,
  length: int | None = None,
  *,
  params: Params | None = None,
  sampler: Sampler | None = None,
  reader: Reader | None = None,
) -> float:
  """Bytes that sampling `rows` rows keeps from call to call: parameters, states, grids, caches."""
  if params is None:
    state = experiment.abstract_state().eval_params
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
  loop = Loop(
    experiment.model,
    experiment.sampler if sampler is None else sampler,
    experiment.reader if reader is None else reader,
  )
  shape = (1, length or experiment.data.length)
  ids, observed = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)
  keys = jax.eval_shape(lambda: row_keys(0, 1))
  fixed = jax.eval_shape(loop.fixed, params, keys, Batch(ids, observed=observed))
  carry = jax.eval_shape(loop.start, params, fixed)
  return tree_bytes(params) + rows * (tree_bytes(fixed) + tree_bytes(carry))


def device_bytes(experiment: Experiment) -> float | None:
  """Memory of one device in bytes; None where it is not known. CPU devices share their host's."""
  devices = [d for d in experiment.mesh.devices.flat if d.process_index == jax.process_index()]
  if not devices:
    return None
  if devices[0].platform == "cpu":
    whole = host_bytes()
    return None if whole is None else whole / len(devices)
  limit = (devices[0].memory_stats() or {}).get("bytes_limit")
  return None if limit is None else float(limit)


def host_bytes() -> float | None:
  """Memory of this machine, or of this container, in bytes; None where it is not known."""
  whole, _ = memory_bytes()
  return None if math.isinf(whole) else whole


def check_memory(experiment: Experiment) -> None:
  """Raises ValueError if a training run cannot fit in the memory of its devices, with the part that
  is too large.
  """
  _check(
    experiment,
    state_bytes(experiment),
    "the parameters, their gradient, average and optimizer",
    "a smaller model.width or model.layers, or more devices",
  )
  _check(
    experiment,
    trained_bytes(experiment),
    f"train.batch_size={experiment.train.batch_size} rows of data.length={experiment.data.length}",
    "shorter rows, fewer rows, or more train.accumulation",
  )
  check_scoring_memory(experiment)


def check_sampling_memory(
  experiment: Experiment, rows: int = 1, length: int | None = None, **choices: Any
) -> None:
  """Raises ValueError if `rows` rows cannot be sampled in the memory of a device. choices: params,
  sampler and reader as in `sampling_bytes`.
  """
  length = length or experiment.data.length
  sampler = choices.get("sampler") or experiment.sampler
  _check(
    experiment,
    sampling_bytes(experiment, rows, length, **choices),
    f"{rows} rows of {length} tokens under {sampler}",
    "fewer sampler steps, shorter rows or fewer rows at a time",
  )


def check_scoring_memory(experiment: Experiment) -> None:
  """Raises ValueError if `evaluate.batch_size` rows cannot be scored at a time in the memory of the
  devices.
  """
  _check(
    experiment,
    scored_bytes(experiment),
    f"evaluate.batch_size={experiment.evaluate.batch_size} rows of"
    f" data.length={experiment.data.length}",
    "fewer rows at a time",
  )


def _check(experiment: Experiment, needed: float, what: str, fix: str) -> None:
  limit = device_bytes(experiment)
  if limit is not None and needed > limit:
    raise ValueError(
      f"not enough memory: {what} take at least {needed / GIB:,.1f} GiB of a device, which has"
      f" {limit / GIB:,.1f} GiB; use {fix}"
    )

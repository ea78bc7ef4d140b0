"""What a config would do, said before it is done: parameters, placement, FLOPs, memory. Nothing is
allocated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from diffusion_text.experiment.build import Experiment
from diffusion_text.model.flops import flops_per_token
from diffusion_text.model.partition import memory
from diffusion_text.train.sharding import path_names, row_shards


@dataclasses.dataclass(frozen=True)
class AnyVocabulary:
  """Stands in for a tokenizer where no text is read: shapes only, or tokens drawn at random."""

  vocab_size: int
  name: str = "random"


class Weight(NamedTuple):
  """One parameter: its path, shape, placement, and bytes of its float32 copy on one device."""

  path: str
  shape: tuple[int, ...]
  spec: str
  bytes_per_device: float


def weights(experiment: Experiment) -> Iterator[Weight]:
  """Every parameter, in the order of the tree."""
  mesh_shape = dict(experiment.mesh.shape)
  for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.abstract_state().params):
    spec = leaf.sharding.spec
    yield Weight(
      "/".join(path_names(path)), leaf.shape, str(tuple(spec)), memory(leaf.shape, spec, mesh_shape)
    )


def count_parameters(experiment: Experiment) -> int:
  return sum(math.prod(weight.shape) for weight in weights(experiment))


def parameter_table(experiment: Experiment) -> str:
  """One line per parameter: path, shape, count, sharding."""
  rows = [(w.path, str(w.shape), f"{math.prod(w.shape):,}", w.spec) for w in weights(experiment)]
  rows = [
    ("parameter", "shape", "count", "sharded over"),
    *rows,
    ("total", "", f"{count_parameters(experiment):,}", ""),
  ]
  widths = [max(len(row[column]) for row in rows) for column in range(4)]
  return "\n".join(
    f"{path:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}  {spec}".rstrip()
    for path, shape, count, spec in rows
  )


def activation_bytes(experiment: Experiment) -> float:
  """Rough bytes per device that the backward pass of one microbatch keeps: per layer 1 (remat
  "full"), about 10 ("dots") or about 16 widths (none) of each token, attention probabilities where
  the dense mask is used without remat, and one chunk of logits.
  """
  network, settings = experiment.model.network, experiment.train
  rows = settings.batch_size / settings.accumulation / row_shards(experiment.mesh)
  itemsize = 2 if network.dtype == "bfloat16" else 4
  widths = {
    "full": 1,
    "dots": 8 + network.sizes.mlp_width / network.width,
    "none": 12 + 2 * network.sizes.mlp_width / network.width,
  }[network.remat]
  kept = rows * experiment.data.length * network.width * network.layers * widths * itemsize
  scores = (
    0
    if network.remat != "none"
    else rows * network.sizes.heads * experiment.data.length**2 * network.layers * itemsize
  )
  return kept + scores + experiment.model.chunk * network.output_size * 8


def summary(experiment: Experiment) -> str:
  """The plan of a run in a few lines."""
  network, settings, data = experiment.model.network, experiment.train, experiment.data
  count = count_parameters(experiment)
  copies = 4 + (settings.ema_decay > 0)  # parameters, gradient, two moments, average
  state = copies * sum(weight.bytes_per_device for weight in weights(experiment))
  tokens = settings.batch_size * data.length
  read = experiment.model.context.positions_read(data.length)
  forward = flops_per_token(network, data.length, read=read, answered=data.length)
  mesh = (
    " × ".join(f"{axis} {size}" for axis, size in experiment.mesh.shape.items() if size > 1)
    or "1 device"
  )
  config = experiment.config
  return "\n".join(
    (
      f"system       {config.process.name} process, {config.timing.name} timing,"
      f" {config.context.name} context, {config.objective.name} objective",
      f"data         {data.corpus}, {experiment.tokenizer.name} tokenizer with V ="
      f" {experiment.facts.vocab_size},"
      f" rows of {data.length} ({data.packing})",
      f"network      {network.layers} layers × {network.width}, {network.sizes.heads} heads,"
      f" {count:,} parameters, {network.dtype}",
      f"training     {settings.steps:,} steps × {settings.batch_size} rows ="
      f" {settings.steps * tokens:,} tokens"
      + (f", at most {settings.max_seconds:.0f} s" if settings.max_seconds else ""),
      f"FLOPs        {forward:.3g} per token forward with all logits,"
      f" {experiment.flops_per_token * tokens:.3g} per training step",
      f"devices      {experiment.mesh.devices.size} ×"
      f" {experiment.mesh.devices.flat[0].device_kind}: {mesh}",
      f"memory       per device: {state / 2**20:,.1f} MiB of parameters, gradient, optimizer and"
      f" average;"
      f" about {activation_bytes(experiment) / 2**20:,.1f} MiB of activations",
      f"sampler      {experiment.sampler}",
      f"reader       {experiment.reader}",
    )
  )

"""Checkpoints of other libraries, read as (options, parameters) of our transformer, and written."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pydantic

from diffusion_text.model.pretrained import (
  bert,
  dit,
  dream,
  gpt2,
  llada,
  llama,
  mapping,
  timed_dit,
)
from diffusion_text.model.pretrained.family import Architecture, Config, Family, differences
from diffusion_text.model.pretrained.weights import INDEX, SINGLE, Weights, open_weights
from diffusion_text.model.transformer import Transformer
from diffusion_text.types import Params

FAMILIES: dict[str, Family] = {
  family.name: family
  for family in (
    gpt2.FAMILY,
    llama.FAMILY,
    llada.FAMILY,
    dream.FAMILY,
    bert.FAMILY,
    timed_dit.MDLM,  # before the same without time
    dit.WHOLE_ROW,
    dit.BLOCKS,
    timed_dit.SEDD,
    timed_dit.UDLM,
    timed_dit.DUO,
    timed_dit.GIDD,
  )
}
SHARD = 2 << 30  # bytes of a file; checkpoints above it are written in several
# Options of how a network is run, which no checkpoint holds.
RUN_ONLY = ("attention", "dropout", "dtype", "remat", "scan_layers")


class Pretrained(NamedTuple):
  """Weights in our tree.

  Attributes:
    family: A key of `FAMILIES`.
    architecture: What the config says, in our options.
    params: Of `architecture.network`, float32 arrays of numpy.
    noise_id: The token whose embedding is copied to row V, which stands for a lost token.
    unread: Names of tensors that are no weights.
    weights: The files.
  """

  family: Family
  architecture: Architecture
  params: Params
  noise_id: int
  unread: tuple[str, ...]
  weights: Weights

  @property
  def network(self) -> Transformer:
    """The transformer."""
    return self.architecture.network


def family_of(config: Config) -> Family:
  """The family of a config. Raises ValueError for one that is unknown."""
  kind = config.get("model_type")
  for family in FAMILIES.values():
    if kind in family.model_types if family.matches is None else family.matches(config):
      return family
  known = [kind for family in FAMILIES.values() for kind in family.model_types]
  known = ", ".join(dict.fromkeys(known))
  raise ValueError(
    f"config.json has model_type={kind!r}, which is not read; those that are: {known}"
  )


def read(
  path: str | pathlib.Path, *, mask_id: int | None = None, noise_id: int | None = None
) -> Pretrained:
  """The weights at a path, read tensor by tensor into our tree.

  Memory grows by at most 1.2 times the float32 parameters, or by 24 MiB more than they take where
  that is more (tests/model/pretrained/published_test.py). Names, shapes and dtypes are checked
  before a number is read.

  Args:
    path: a folder, a .safetensors file or a .gguf file.
    mask_id: the token that stands for a lost one; None: that of the config, if it has one. The
      network reads it and never answers with it.
    noise_id: the token whose embedding is read where nothing is known; None: the mask, or the token
      that the config begins texts with, or else ends them with.

  Raises:
    ValueError: for files that are damaged or pickled, a family that is unknown, a feature that the
      transformer does not have, and tensors that are missing, left over, of another shape or dtype.
  """
  weights = open_weights(path)
  family = family_of(weights.config)
  architecture = family.architecture(weights.config, weights.shapes)
  if mask_id is not None:
    architecture = architecture._replace(mask_id=mask_id)
  entries = family.entries(architecture, weights.shapes)
  network = _network(architecture, weights.place)
  folding, names = family.folding, weights.shapes
  folded = {} if folding is None else folding.shapes(weights.config, architecture, names)
  made = () if folding is None else folding.made
  unread = mapping.check(network, entries, weights, family.buffers, folded, made)
  noise_id = _noise(architecture, weights.config) if noise_id is None else noise_id
  params = mapping.fill(network, entries, weights, noise_id)
  if folding is not None:
    folding.fold(params, functools.partial(mapping.whole, weights), names)
  return Pretrained(family, architecture, params, noise_id, unread, weights)


def write(
  folder: str | pathlib.Path,
  family: Family,
  architecture: Architecture,
  params: Params,
  *,
  more: Mapping[str, Any] | None = None,
  shard_bytes: int = SHARD,
) -> list[pathlib.Path]:
  """The files written: config.json, and one or several safetensors files of float32 with an index.

  Args:
    folder: made if it is not there.
    family, architecture: of the weights.
    params: of `architecture.network`, or of one that reads the same tables.
    more: what else config.json is to hold, such as bos_token_id.
    shard_bytes: the size of a file, about.

  Raises:
    ValueError: for a folder that holds a checkpoint, and options that the family cannot write.
  """
  folder = pathlib.Path(folder).expanduser()
  config = checked_config(family, architecture) | dict(more or {})
  for name in ("config.json", SINGLE, INDEX):
    if (folder / name).exists():
      raise ValueError(f"{folder / name} is there already; write to another folder")
  folder.mkdir(parents=True, exist_ok=True)
  entries = family.entries(architecture, {})
  named = mapping.tensors(params, entries, architecture.mask_id)
  if family.folding is not None:
    named = itertools.chain(named, family.folding.unfold(params))
  files = _write_tensors(folder, named, shard_bytes)
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  return [folder / "config.json", *files]


def checked_config(family: Family, architecture: Architecture) -> dict[str, Any]:
  """What config.json says of these options.

  Raises:
    ValueError: for options that the family cannot write.
  """
  config = family.config(architecture)
  names = {entry.name: None for entry in family.entries(architecture, {})}
  again = family.architecture(config, names)
  ours = _complete(architecture)
  said = again.options | {"mask_id": again.mask_id}
  # First what the family says, as these options may make no network together with ours.
  differ = differences({key: ours[key] for key in said}, said)
  differ = differ or differences(ours, _complete(again))
  if differ:
    raise ValueError(
      f"family={family.name!r} cannot write a network with {differ}; choose another family"
    )
  return config


def architecture_of(network: Transformer) -> Architecture:
  """The architecture of a network that answers with V tokens, all options and sizes filled in.

  Raises:
    ValueError: for several ids that are never answered: one of them would be the mask.
  """
  if len(network.unanswered) > 1:
    raise ValueError(
      f"model.unanswered={network.unanswered} are several ids, and a checkpoint names one mask;"
      " keep one of them"
    )
  sizes = network.sizes._asdict() | {"head_bias": network.has_head_bias}
  inner = ("input_sizes", "output_size", "estimate_size", "unanswered", *RUN_ONLY)
  own = {name: value for name, value in vars(network).items() if name not in inner}
  own = {name: value for name, value in own.items() if not name.startswith("_")}
  return Architecture(own | sizes, network.output_size, next(iter(network.unanswered), None))


def _complete(architecture: Architecture) -> dict[str, Any]:
  """All options of a network, those that are left out at their defaults, and the mask."""
  complete = architecture_of(architecture.network)
  return complete.options | {"mask_id": complete.mask_id}


def _network(architecture: Architecture, place: str) -> Transformer:
  """The network. Raises ValueError, in one line, for options that make none."""
  try:
    return architecture.network
  except pydantic.ValidationError as error:
    said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    raise ValueError(f"{place}: what config.json says makes no network: {said}") from None


def _noise(architecture: Architecture, config: Config) -> int:
  for token in (architecture.mask_id, config.get("bos_token_id"), config.get("eos_token_id")):
    if isinstance(token, int):
      return token
  return 0


def _write_tensors(
  folder: pathlib.Path, named: Iterator[tuple[str, np.ndarray]], shard_bytes: int
) -> list[pathlib.Path]:
  """The safetensors files; at most one of them is in memory at a time."""
  from safetensors.numpy import save_file  # only these files need it

  held: dict[str, np.ndarray] = {}
  shards: list[tuple[pathlib.Path, list[str]]] = []
  total = size = 0

  def flush():
    path = folder / f"part-{len(shards) + 1}.safetensors"
    save_file(held, path, metadata={"format": "pt"})
    shards.append((path, list(held)))
    held.clear()

  for name, values in named:
    if held and size + values.nbytes > shard_bytes:
      flush()
      size = 0
    held[name] = values
    size, total = size + values.nbytes, total + values.nbytes
  flush()
  if len(shards) == 1:
    return [shards[0][0].rename(folder / SINGLE)]
  files, places = [], {}
  for number, (path, names) in enumerate(shards, 1):
    name = f"model-{number:05}-of-{len(shards):05}.safetensors"
    files.append(path.rename(folder / name))
    places |= dict.fromkeys(names, name)
  index: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": places}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
  return [*files, folder / INDEX]

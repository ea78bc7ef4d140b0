"""The linear maps of the layers, by name: how each is kept, which of them move, and the plain tree.

A network may keep the matrices of its layers as integers (quantized/) and change them by low rank
(low_rank.py), both at once too. Their arrays lie in the tree of parameters beside or in place of
the kernel, as plain arrays. `plain` is the tree of the same network without either.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from diffusion_text.model import low_rank
from diffusion_text.model.low_rank import LowRankMap, change
from diffusion_text.model.options import TransformerOptions
from diffusion_text.model.quantized import observed, stored
from diffusion_text.model.quantized.observed import Observed
from diffusion_text.model.quantized.stored import QuantizedMap, kernel_of
from diffusion_text.types import Params

KERNEL = "kernel"
LAYERS = "blocks"
OBSERVED = observed.NAME


def names_of(tree: Mapping[str, Any]) -> tuple[str, ...]:
  """The linear maps of the layers of a tree of parameters, as in "blocks/attention/query"."""
  found = []

  def walk(place: Any, path: tuple[str, ...]) -> None:
    if not isinstance(place, Mapping):
      return
    if LAYERS in path and {KERNEL, stored.NAME, OBSERVED} & place.keys():
      found.append("/".join(path))
      return
    for name, inner in place.items():
      walk(inner, (*path, name))

  walk(tree, ())
  return tuple(found)


def chosen(patterns: Sequence[str], names: Sequence[str], where: str) -> tuple[str, ...]:
  """The names that one of the patterns matches.

  Raises:
    ValueError: for a pattern that matches none, with the names; `where` is the option's place.
  """
  found = {
    pattern: [name for name in names if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns
  }
  for pattern, matched in found.items():
    if not matched:
      raise ValueError(
        f"{where}.matrices holds {pattern!r}, which is the name of no linear map of a layer; they"
        f" are {', '.join(names)}"
      )
  return tuple(name for name in names if any(name in matched for matched in found.values()))


def rewrite(body: nnx.Module, config: TransformerOptions, rngs: nnx.Rngs) -> None:
  """Gives the linear maps of a body what the options say: integers, a low rank, statistics.

  Raises:
    ValueError: for a pattern without a matrix, a prefix without a parameter, and groups that do
      not divide a matrix.
  """
  if config.quantized is None and config.low_rank is None and not config.observed:
    return
  parameters = nnx.to_pure_dict(nnx.state(body))
  names = names_of(parameters)
  maps = {name: operator.attrgetter(name.replace("/", "."))(body) for name in names}
  shapes = {name: each.kernel[...].shape for name, each in maps.items()}
  if config.observed:
    for name in names:
      maps[name].observed = nnx.data(Observed(shapes[name]))
  if config.quantized is not None:
    for name in chosen(config.quantized.matrices, names, "model.quantized"):
      config.quantized.check(shapes[name], name)
      maps[name].quantized = nnx.data(QuantizedMap(maps[name].kernel[...], config.quantized))
      maps[name].kernel = nnx.data(None)
  if config.low_rank is not None:
    _check_also(config.low_rank.also, parameters)
    for name in chosen(config.low_rank.matrices, names, "model.low_rank"):
      maps[name].low_rank = nnx.data(LowRankMap(config.low_rank, shapes[name], rngs=rngs))


def _check_also(prefixes: Sequence[str], parameters: Mapping[str, Any]) -> None:
  """Raises ValueError for a prefix of `low_rank.also` that no parameter has."""
  found = jax.tree_util.tree_leaves_with_path(parameters)
  names = ["/".join(part.key for part in path) for path, _ in found]
  for prefix in prefixes:
    if not any(_within(name, prefix) for name in names):
      raise ValueError(
        f"model.low_rank.also holds {prefix!r}, which no parameter's path begins with; outside of"
        f" layers they are {', '.join(name for name in names if not _within(name, LAYERS))}"
      )


def _within(name: str, prefix: str) -> bool:
  return name == prefix or name.startswith(f"{prefix}/")


def trains(config: TransformerOptions, path: Sequence[str]) -> bool:
  """True if the parameter at `path` (names from the root) moves in training.

  Integers and their grids never do. With a low rank, A, B and what `low_rank.also` names do.
  """
  inner = path[1:]
  if stored.NAME in inner:
    return False
  if config.low_rank is None or low_rank.NAME in inner:
    return True
  return any(_within("/".join(inner), prefix) for prefix in config.low_rank.also)


def plain(network: Any, params: Params) -> tuple[Any, Params]:
  """(the network without a low rank and without integers, its parameters: kernels alone).

  It computes what the network computes, up to the rounding of float32, and up to that of
  activations where they are rounded.
  """
  bare = dataclasses.replace(network, low_rank=None, quantized=None)
  return bare, _plain(network, params)


def _plain(config: TransformerOptions, tree: Any) -> Any:
  if not isinstance(tree, Mapping):
    return tree
  if not {low_rank.NAME, stored.NAME} & tree.keys():
    return {name: _plain(config, inner) for name, inner in tree.items()}
  rest = {name: leaf for name, leaf in tree.items() if name not in (low_rank.NAME, stored.NAME)}
  if stored.NAME in tree:
    rest[KERNEL] = kernel_of(tree[stored.NAME], config.quantized)
  if low_rank.NAME in tree:
    added = tree[low_rank.NAME]
    rest[KERNEL] = rest[KERNEL] + change(added["a"], added["b"], config.low_rank)
  return rest


def statistics(gradient: Params) -> dict[str, dict[str, Any]]:
  """name -> statistics (quantized/observed.py) of a gradient by an observed network."""
  return {
    name: get(gradient, name)[observed.NAME]
    for name in names_of(gradient)
    if observed.NAME in get(gradient, name)
  }


def get(tree: Params, name: str) -> Any:
  """The group of a linear map, by its name."""
  for part in name.split("/"):
    tree = tree[part]
  return tree


def put(tree: Params, name: str, group: Any) -> Params:
  """A tree with another group at a name; the tree itself stays as it is."""
  first, _, rest = name.partition("/")
  return {**tree, first: put(tree[first], rest, group) if rest else group}

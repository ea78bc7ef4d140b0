"""One tree of parameters, split into trained and frozen parameters and merged again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Path = tuple[str, ...]  # names of the nested dicts, e.g. ("network", "head", "kernel")


def split(params: Any, trainable: Callable[[Path], bool]) -> tuple[Any, Any]:
  """(params, frozen): the leaves of a nested dict whose path is `trainable`, and the other leaves.

  A group may be split between the two, leaf by leaf. Both results are dicts. A nested dict without
  leaves in one result is left out of that result.
  """
  moves, rests = _split(params, trainable, ())
  return ({} if moves is None else moves), ({} if rests is None else rests)


def merge(params: Any, frozen: Any) -> Any:
  """The tree that `split` has split. Raises ValueError if a leaf is on both sides."""
  return _merge(params, frozen, ())


def _split(tree: Any, trainable: Callable[[Path], bool], path: Path) -> tuple[Any, Any]:
  if not isinstance(tree, dict):
    return (tree, None) if trainable(path) else (None, tree)
  if not tree:  # a group without parameters is no reason to freeze it
    return tree, None
  parts = {name: _split(value, trainable, (*path, name)) for name, value in tree.items()}
  sides = []
  for side in (0, 1):
    kept = {name: part[side] for name, part in parts.items() if part[side] is not None}
    sides.append(kept or None)
  return sides[0], sides[1]


def _merge(params: Any, frozen: Any, path: Path) -> Any:
  if not isinstance(params, dict) or not isinstance(frozen, dict):
    raise ValueError(f"parameter {'/'.join(path)} is both trained and frozen; keep one of the two")
  merged = dict(frozen)
  for name, value in params.items():
    both = name in frozen
    merged[name] = _merge(value, frozen[name], (*path, name)) if both else value
  return merged

"""Copies between the tensors of a checkpoint and our tree of parameters: an entry per tensor and
layer.

Our arrays are stacked over layers, with kernels [D_in, D_out]; most checkpoints hold one tensor per
layer, with kernels [D_out, D_in]. Each of our arrays is made once and filled a few rows at a time.
Our table of tokens has one row more than theirs, row V, which is read in place of a lost token.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_text.core.prng import make_key
from diffusion_text.model.pretrained.weights import Weights
from diffusion_text.model.transformer import Transformer
from diffusion_text.types import Params

Path = tuple[str, ...]
EMBEDDING = ("embedding",)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of a checkpoint, or a part of one, and its place in our tree.

  Attributes:
    name: Of the tensor.
    path: Of our array.
    layer: The number of the layer, for an array that is stacked over layers.
    transposed: True if theirs is [D_out, D_in].
    part: (k, n): part k of n equal ones along the axis of outputs. None: the whole tensor.
    plus: What is added to theirs to make ours.
  """

  name: str
  path: Path
  layer: int | None = None
  transposed: bool = False
  part: tuple[int, int] | None = None
  plus: float = 0.0


def layer_entries(
  layers: int, prefix: str, table: Mapping[str, Path], *, transposed: bool = True
) -> list[Entry]:
  """The entries of all layers.

  Args:
    layers: how many.
    prefix: of the names, with {} for the number of the layer.
    table: rest of a name -> path inside "blocks".
    transposed: whether kernels are [D_out, D_in].
  """
  return [
    Entry(
      prefix.format(layer) + name,
      ("blocks", *path),
      layer,
      transposed=transposed and path[-1] == "kernel",
    )
    for layer in range(layers)
    for name, path in table.items()
  ]


def check(
  network: Transformer,
  entries: Sequence[Entry],
  weights: Weights,
  buffers: Sequence[str] = (),
  folded: Mapping[str, tuple[int, ...]] | None = None,
  made: Collection[Path] = (),
) -> tuple[str, ...]:
  """The names of tensors that are left unread because they are no weights.

  Args:
    network: that the weights are for.
    entries: the tensors that are read.
    weights: the files.
    buffers: patterns of names of tensors that are no weights.
    folded: names and shapes of other tensors that are read (`family.Folding`).
    made: our arrays that these fill.

  Raises:
    ValueError: for a tensor that is missing, that nothing reads, of another shape, or without
      numbers, by its name.
  """
  shapes, ours = weights.shapes, _shapes(network)
  wanted = {entry.name: _their_shape(entry, ours[entry.path]) for entry in entries}
  wanted |= folded or {}
  missing = [name for name in wanted if name not in shapes]
  if missing:
    known = ", ".join(sorted(shapes)[:3]) or "none"
    raise ValueError(
      f"{weights.place} lacks the tensor {missing[0]} ({len(missing)} of {len(wanted)} are missing;"
      f" its {len(shapes)} tensors begin with {known}); is it of model_type"
      f" {weights.config.get('model_type')!r}, and complete?"
    )
  others = sorted(shapes.keys() - wanted.keys())
  unread = [name for name in others if any(re.search(pattern, name) for pattern in buffers)]
  extra = [name for name in others if name not in unread]
  if extra:
    raise ValueError(
      f"{weights.place} holds {extra[0]} {list(shapes[extra[0]])}, which nothing here reads"
      f" ({len(extra)} such tensors); its numbers would be lost, so the network is another one than"
      f" config.json says: model_type={weights.config.get('model_type')!r}"
    )
  for name, want in wanted.items():
    if want != shapes[name]:
      raise ValueError(
        f"{weights.place}: {name} is {list(shapes[name])}, and config.json makes it {list(want)};"
        " the two belong to different checkpoints"
      )
    weights.check(name)
  untouched = ours.keys() - {entry.path for entry in entries} - set(made)
  if untouched:
    raise ValueError(f"no tensor fills {'/'.join(sorted(untouched)[0])} of the network")
  return tuple(unread)


def fill(network: Transformer, entries: Sequence[Entry], weights: Weights, noise_id: int) -> Params:
  """Our tree, float32 arrays of numpy, read tensor by tensor.

  Row V of the table of tokens becomes a copy of row `noise_id`.
  """
  arrays = {path: np.empty(shape, np.float32) for path, shape in _shapes(network).items()}
  for entry in entries:
    target = arrays[entry.path]
    target = target if entry.layer is None else target[entry.layer]
    target = target[:-1] if entry.path == EMBEDDING else target
    for rows, values in weights.chunks(entry.name):
      if entry.part is not None:
        rows, values = _part(entry, rows, values, weights.shapes[entry.name])
      if entry.plus:  # in float64, so that taking it off again gives the same numbers
        values = np.float32(values.astype(np.float64) + entry.plus)
      if entry.transposed:
        target[:, rows] = values.T
      else:
        target[rows] = values
  table = arrays[EMBEDDING]
  table[-1] = table[noise_id]
  return _nested(arrays)


def _part(
  entry: Entry, rows: Any, values: np.ndarray, shape: tuple[int, ...]
) -> tuple[Any, np.ndarray]:
  """(rows within the entry's part, the numbers of a chunk that belong to the part)."""
  k, n = entry.part
  if not entry.transposed:
    width = shape[-1] // n
    return rows, values[..., k * width : (k + 1) * width]
  width = shape[0] // n
  rows = np.arange(shape[0])[rows]
  here = rows // width == k
  return rows[here] - k * width, values[here]


def tensors(
  params: Params, entries: Sequence[Entry], mask_id: int | None
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, values) of every tensor of a checkpoint, made one after the other from our tree.

  Row V of our table becomes row `mask_id` of theirs, as it is what the process reads for a mask. If
  `mask_id` is None, row V is left out.
  """
  by_name: dict[str, list[Entry]] = {}
  for entry in entries:
    by_name.setdefault(entry.name, []).append(entry)
  for name, parts in by_name.items():
    values = [_theirs(params, entry, mask_id) for entry in parts]
    joined = (
      values[0] if len(values) == 1 else np.concatenate(values, 0 if parts[0].transposed else -1)
    )
    yield name, np.ascontiguousarray(joined)


def whole(weights: Weights, name: str) -> np.ndarray:
  """A whole tensor, float32."""
  tensor = np.empty(weights.shapes[name], np.float32)
  for rows, values in weights.chunks(name):
    tensor[rows] = values
  return tensor


def _theirs(params: Params, entry: Entry, mask_id: int | None) -> np.ndarray:
  leaf = params
  for name in entry.path:
    leaf = leaf[name]
  values = np.asarray(leaf if entry.layer is None else leaf[entry.layer], np.float32)
  if entry.path == EMBEDDING:
    last, values = values[-1], values[:-1]
    if mask_id is not None:
      values = values.copy()
      values[mask_id] = last
  if entry.plus:
    values = np.float32(values.astype(np.float64) - entry.plus)
  return values.T if entry.transposed else values


def _shapes(network: Transformer) -> dict[Path, tuple[int, ...]]:
  tree = jax.eval_shape(network.init, make_key(0))
  return {
    tuple(part.key for part in path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _their_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
  shape = shape if entry.layer is None else shape[1:]
  if entry.path == EMBEDDING:
    shape = (shape[0] - 1, *shape[1:])
  times = 1 if entry.part is None else entry.part[1]
  shape = (*shape[:-1], shape[-1] * times)
  return shape[::-1] if entry.transposed else shape


def _nested(arrays: Mapping[Path, np.ndarray]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, array in arrays.items():
    place = tree
    for name in path[:-1]:
      place = place.setdefault(name, {})
    place[path[-1]] = array
  return tree

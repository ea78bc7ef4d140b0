"""Files of weights: names, shapes and rows of tensors, read a few megabytes at a time.

A checkpoint is a folder with config.json and model.safetensors (or the shards that
model.safetensors.index.json lists), one safetensors file beside its config.json, or a GGUF file.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F32", "F16", "BF16")
CHUNK = 1 << 20  # numbers that are read at a time: 4 MiB of float32

# Rows of a tensor (its first axis), and what they hold, float32.
Chunk = tuple[Any, np.ndarray]


@runtime_checkable
class Weights(Protocol):
  """An opened checkpoint.

  Attributes:
    place: The file or folder, for messages.
    config: What config.json holds (of a GGUF file: its metadata, by the names of config.json).
    shapes: The shape of every tensor by its name.
  """

  place: str
  config: Mapping[str, Any]
  shapes: Mapping[str, tuple[int, ...]]

  def check(self, name: str) -> None:
    """Raises ValueError for a tensor whose numbers cannot be read."""

  def chunks(self, name: str) -> Iterator[Chunk]:
    """(rows, values) of a tensor, float32, at most `CHUNK` numbers at a time."""


class Safetensors:
  """Tensors of one or several safetensors files; see `Weights`."""

  def __init__(self, folder: pathlib.Path, files: list[pathlib.Path], config: Mapping[str, Any]):
    """Reads the headers. Raises ValueError for a file that is damaged, and for a name that two
    files have."""
    self.place = str(files[0] if len(files) == 1 else folder)
    self.config = config
    self._slices: dict[str, Any] = {}
    for path in files:
      opened = _opened(path)
      for name in opened.keys():  # noqa: SIM118, which is no dict
        if name in self._slices:
          raise ValueError(f"{path} holds {name!r}, which another file of {folder} holds too")
        self._slices[name] = opened.get_slice(name)
    self.shapes = {name: tuple(each.get_shape()) for name, each in self._slices.items()}

  def check(self, name: str) -> None:
    """Raises ValueError for a tensor that does not hold floating-point numbers."""
    dtype = self._slices[name].get_dtype()
    if dtype not in DTYPES:
      raise ValueError(
        f"{self.place}: {name} has dtype {dtype}, and weights are read as {', '.join(DTYPES)}; save"
        " the checkpoint in one of these"
      )

  def chunks(self, name: str) -> Iterator[Chunk]:
    """(rows, values), see `Weights`."""
    tensor, shape = self._slices[name], self.shapes[name]
    if len(shape) < 2:
      yield slice(None), np.asarray(tensor[:], np.float32)
      return
    step = max(1, CHUNK // int(np.prod(shape[1:])))
    for start in range(0, shape[0], step):
      stop = min(start + step, shape[0])
      yield slice(start, stop), np.asarray(tensor[start:stop], np.float32)


def open_weights(path: str | pathlib.Path) -> Weights:
  """The checkpoint at a path, its tensors not yet read.

  Raises:
    ValueError: for a path without weights, torch pickles (with the command that converts them), and
      files that are damaged.
  """
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise ValueError(
      f"{path} is not there; give a folder of weights, a .safetensors or .gguf file on this disk"
      " (docs/pretrained.md has two to begin with)"
    )
  if path.is_file() and path.suffix == ".gguf":
    from diffusion_text.model.pretrained.gguf_weights import GGUF

    return GGUF(path)
  if path.is_file() and path.suffix in PICKLES:
    raise ValueError(_pickled(path))
  if path.is_file():
    return Safetensors(path.parent, [path], _config(path.parent))
  if (path / INDEX).exists():
    return Safetensors(path, _shards(path), _config(path))
  if (path / SINGLE).exists():
    return Safetensors(path, [path / SINGLE], _config(path))
  ggufs = sorted(path.glob("*.gguf"))
  if len(ggufs) == 1:
    return open_weights(ggufs[0])
  pickles = [each for each in sorted(path.iterdir()) if each.suffix in PICKLES]
  if pickles:
    raise ValueError(_pickled(pickles[0]))
  raise ValueError(
    f"{path} holds neither {SINGLE} nor {INDEX} nor one .gguf file; give the folder that does"
  )


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file holds. Raises ValueError if it holds no JSON."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} holds no JSON ({error}); is the download complete?") from error


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
  listed = read_json(folder / INDEX).get("weight_map", {})
  files = [folder / name for name in sorted(set(listed.values()))]
  missing = [file.name for file in files if not file.exists()]
  if missing or not files:
    raise ValueError(
      f"{folder / INDEX} lists {missing[0] if missing else 'no file'}, which is not there; is the"
      " download complete?"
    )
  return files


def _config(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / "config.json"
  if not path.exists():
    raise ValueError(f"{path} is not there; weights are read by what it says of the network")
  return read_json(path)


def _opened(path: pathlib.Path) -> Any:
  import safetensors  # only this reader needs it

  try:
    return safetensors.safe_open(path, "np")
  except safetensors.SafetensorError as error:
    head = path.open("rb").read(2)
    if head in (b"PK", b"\x80\x02"):
      raise ValueError(_pickled(path)) from error
    raise ValueError(
      f"{path} is no whole safetensors file ({error}); is the download complete?"
    ) from error


def _pickled(path: pathlib.Path) -> str:
  load = f"torch.load('{path}', map_location='cpu', weights_only=True)"
  whole = "{k: v.clone().contiguous() for k, v in " + load + ".items()}"
  save = f"s.save_file({whole}, '{path.with_name(SINGLE)}')"
  return (
    f"{path} is a torch pickle, which may run code when it is opened; where it is trusted, convert"
    f' it: python -c "import torch, safetensors.torch as s; {save}"'
  )

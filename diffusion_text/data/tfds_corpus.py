"""Reading a prepared tensorflow-datasets set, without TensorFlow and without the network.

The set is opened from its directory and not by its name: a lookup by name imports the set's code,
and for hub sets it asks the network for minutes before it fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_text.data import splits
from diffusion_text.data.text_files import Row, text_problem

RECORDS_AT_ONCE = 1024


def prepared_directory(name: str, data_dir: str | None) -> Path:
  """The directory with the `dataset_info.json` of `set[/config][:version]`.

  Without a version in the name it is the newest version.

  Raises:
    FileNotFoundError: If the set is not prepared.
    ValueError: If the set has several configs and the name has none, or if the set was not prepared
      as array_record.
  """
  root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
  path, _, version = name.partition(":")
  found = _versions(root / path, version)
  if not found and "/" not in path and (root / path).is_dir():
    configs = {
      config.name: _versions(config, version)
      for config in sorted((root / path).iterdir())
      if config.is_dir()
    }
    configs = {config: versions for config, versions in configs.items() if versions}
    if len(configs) > 1:
      raise ValueError(
        f"name={name!r} has several configs on disk; "
        f"use one of {', '.join(f'{path}/{config}' for config in configs)}"
      )
    found = next(iter(configs.values()), [])
  if not found:
    raise FileNotFoundError(
      f"name={name!r} is not prepared under data_dir={str(root)!r}; prepare it with\n  "
      f"{_command(name, root)}"
    )
  directory = found[-1]
  file_format = _info(directory).get("fileFormat", "tfrecord")
  if file_format != "array_record":
    raise ValueError(
      f"{directory} was prepared with file_format={file_format!r}, which cannot be read by index; "
      f"remove it and prepare it with\n  {_command(name, root)}"
    )
  return directory


def documents(directory: Path, split: str, field: str) -> Iterator[Row]:
  """The text of each record of a split, in stored order, as `str`.

  Args:
    directory: A prepared set.
    split: "train", "validation", "test" or "all".
    field: The feature with the text.

  Raises:
    ValueError: For a set without the feature, one whose feature is no text, one without the split,
      and one with two splits for one of ours.
  """
  import tensorflow_datasets as tfds  # takes seconds

  builder = tfds.builder_from_directory(directory)
  if field not in (builder.info.features or {}):
    held = sorted(builder.info.features or {})
    raise ValueError(
      f"{directory} has no feature field={field!r}, it holds {held}; "
      "set field= to the one with the text"
    )
  own = splits.own_splits(list(builder.info.splits), str(directory))
  if "train" not in own and split not in own and not (split == splits.ALL and own):
    raise ValueError(
      f"{directory} has only the splits {sorted(builder.info.splits)}; "
      f"split={split!r} cannot be carved without a train"
    )
  source = builder.as_data_source(split=split_instruction(split, own))
  for begin in range(0, len(source), RECORDS_AT_ONCE):
    end = min(begin + RECORDS_AT_ONCE, len(source))
    for number, record in enumerate(source.__getitems__(range(begin, end)), begin + 1):
      text = record[field]
      if not isinstance(text, bytes | str):
        raise ValueError(
          f"{directory}: feature field={field!r} holds {type(text).__name__}, not text; "
          "set field= to a Text feature"
        )
      if isinstance(text, bytes):
        text = text.decode("utf-8", errors="surrogateescape")
      yield Row(number, text, text_problem(text, f"field={field!r}"))


def origin(directory: Path, split: str) -> str:
  """Which slice of the set a split is, and which of the set's splits are not read."""
  names = [part["name"] for part in _info(directory).get("splits", [])]
  own = splits.own_splits(names, str(directory))
  unread = sorted(set(names) - set(own.values()))
  if split not in own and "train" not in own and split != splits.ALL:
    return f"{directory}: nothing, it has only the splits {sorted(names)}"
  carved = "" if split in own or split == splits.ALL else f", which stands in for a {split} split"
  return f"{directory}: {split_instruction(split, own)}{carved}" + (
    f"; not read: {', '.join(unread)}" if unread and split == "train" else ""
  )


def content(directory: Path, memo: Path | None) -> str:
  """A hash of the names and bytes of the prepared files. memo: see `splits.content`."""
  marks = [
    f"{path.name}:{splits.file_digest(path, memo)}"
    for path in sorted(directory.iterdir())
    if path.is_file()
  ]
  return hashlib.sha256("|".join(marks).encode()).hexdigest()


def split_instruction(split: str, own: Mapping[str, str]) -> str:
  """The slice of a set for one of our splits, in the notation of tensorflow-datasets.

  Args:
    split: "train", "validation", "test" or "all".
    own: Our name -> the set's name, for the splits that the set has.
  """
  if split == splits.ALL:
    return "+".join(own[name] for name in splits.SPLITS if name in own)
  left = 100
  carved = {}
  for name, percent in (("test", 5), ("validation", 2)):
    if name not in own:
      carved[name] = (left - percent, left)
      left -= percent
  if split in own and split != "train":
    return own[split]
  begin, end = carved.get(split, (0, left))
  return own["train"] if (begin, end) == (0, 100) else f"{own['train']}[{begin}%:{end}%]"


def _info(directory: Path) -> dict[str, Any]:
  return json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))


def _versions(directory: Path, version: str) -> list[Path]:
  """Prepared versions below `directory`, oldest first."""
  found = [
    path.parent
    for path in directory.glob("*/dataset_info.json")
    if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
  ]
  found = [path for path in found if version in ("", path.name)]
  return sorted(found, key=lambda path: tuple(int(number) for number in path.name.split(".")))


def _command(name: str, root: Path) -> str:
  builder = f"tfds.builder({name!r}, data_dir={str(root)!r}, file_format='array_record')"
  return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'

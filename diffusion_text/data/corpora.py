"""Where text comes from.

A corpus yields the documents of a split as `str`, in a fixed order. Its `identity()` is a string
that changes when the source changes; the names of cached token files contain it. Text is never
normalised: the model sees the file as it is.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Protocol

from diffusion_text.core.options import member
from diffusion_text.data import pair_files, tfds_corpus

SPLITS = ("train", "validation", "test")

# Austen's six novels: 10,304 paragraphs, 7 of them empty, between the novels. There are 4,007,105
# characters with line ends: 93.0 % train, 2.0 % validation, 5.0 % test.
AUSTEN_PARAGRAPHS = {"train": (0, 9659), "validation": (9659, 9842), "test": (9842, 10304)}
AUSTEN_CHARACTERS = {
  "train": 3_726_564,
  "validation": 80_470,
  "test": 200_071,
}
# The first paragraph of each novel, after an empty one. The splits cut Persuasion only.
AUSTEN_NOVELS = {
  "sense_and_sensibility": 0,
  "pride_and_prejudice": 1865,
  "mansfield_park": 3992,
  "emma": 5834,
}
AUSTEN_NOVELS |= {"northanger_abbey": 8211, "persuasion": 9268}
AUSTEN_SHA256 = "39397e3b3736c343fba95d41f60b878e3a7ec9a5cc545c76a3d861b0b18bbc49"

# Which hundredths of the training documents replace a split that a folder does not have.
CARVED_HUNDREDTHS = {"test": range(0, 5), "validation": range(5, 7)}

SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}


class Corpus(Protocol):
  """Documents by split."""

  def documents(self, split: str) -> Iterator[str]:
    """The documents of "train", "validation" or "test".

    Raises:
      ValueError, FileNotFoundError: Before the first document.
    """

  def identity(self) -> str:
    """A string that changes if the source changes."""


def check_split(split: str) -> None:
  """Raises ValueError for anything but the three splits."""
  if split not in SPLITS:
    raise ValueError(f"split={split!r} is not a split; use one of {', '.join(SPLITS)}")


@member
class Austen:
  """Jane Austen's six novels (public domain, shipped with the package), one document per paragraph.

  The order is Sense and Sensibility, Pride and Prejudice, Mansfield Park, Emma, Northanger Abbey,
  Persuasion. The test split is the last 5 % of the characters and the validation split the 2 %
  before it, both cut at a paragraph (`AUSTEN_PARAGRAPHS`); they are the last part of Persuasion.
  The three splits, each document followed by a newline, are the file, byte for byte.
  """

  def documents(self, split: str) -> Iterator[str]:
    """Paragraphs, in the order of the books."""
    check_split(split)
    packed = resources.files("diffusion_text.data").joinpath("austen.txt.xz").read_bytes()
    begin, end = AUSTEN_PARAGRAPHS[split]
    # The file ends with a newline, so the piece after the last newline is no paragraph.
    return iter(lzma.decompress(packed).decode("utf-8").split("\n")[begin:end])

  def sources(self, split: str) -> tuple[tuple[str, ...], list[int]]:
    """(names of the novels, number of the novel of each document of the split)."""
    check_split(split)
    begins = list(AUSTEN_NOVELS.values())
    return tuple(AUSTEN_NOVELS), [
      bisect.bisect_right(begins, place) - 1 for place in range(*AUSTEN_PARAGRAPHS[split])
    ]

  def identity(self) -> str:
    """The sha256 of the uncompressed file."""
    return f"austen:{AUSTEN_SHA256}"


@member
class Text8:
  """A file that is one long string, such as text8.

  The splits are three contiguous parts: 90 %, 5 % and 5 % of the characters. For the full
  100,000,000 characters of text8 these are the usual 90 M, 5 M and 5 M. Each split is one document,
  so no separator is ever added.
  """

  path: str

  def documents(self, split: str) -> Iterator[str]:
    """One document. Raises FileNotFoundError if there is no such file."""
    check_split(split)
    with _existing_text8(self.path).open(encoding="utf-8", newline="") as file:
      text = file.read()
    first, second = len(text) * 90 // 100, len(text) * 95 // 100
    part = {"train": text[:first], "validation": text[first:second], "test": text[second:]}[split]
    return iter([part] if part else [])

  def identity(self) -> str:
    """The path, size and time of the file."""
    return f"text8:{_file_identity(_existing_text8(self.path))}"


@member
class Folder:
  """A local folder of `.txt`, `.jsonl` and `.parquet` files.

  A document is a non-empty line of a `.txt` file, or `field` in a row of the others. The name of a
  folder above a file, or the beginning of the file's name, selects the split: train/training,
  validation/valid/val/dev or test (`test/a.txt`, `dev.jsonl`, `devset.csv`,
  `train-00000-of-00003.parquet`). All other files belong to train. Files are read in the order of
  their paths. If no file belongs to test (validation), 5 % (2 %) of the training documents replace
  it, chosen by a hash of their text, and are left out of train. Equal documents are always in the
  same split.
  """

  path: str
  field: str = "text"

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split.

    Raises:
      FileNotFoundError: For a missing or empty folder.
      ValueError: For a missing field or a split without text.
    """
    check_split(split)
    files = self._files()
    return _not_empty(
      self._read(files, split),
      f"{self.path} has no text for split={split!r}; it holds {_counts(files)}. Add more",
    )

  def identity(self) -> str:
    """The field, and a hash of the path, size and time of every file."""
    return f"folder:{self.field}:{_files_identity(self._files())}"

  def _files(self) -> dict[str, list[Path]]:
    return _files_by_split(self.path, tuple(_READERS))

  def _read(self, files: dict[str, list[Path]], split: str) -> Iterator[str]:
    return _of_split(
      files,
      split,
      lambda path: _READERS[path.suffix](path, self.field),
      key=lambda document: document,
    )


@member
class Tfds:
  """A tensorflow-datasets set that is prepared on disk.

  Examples are `lm1b`, `wikipedia/20230601.en` and `tiny_shakespeare:1.0.0`. The last 5 % of the
  training records replace a missing test split. The 2 % before them (or the last 2 %) replace a
  missing validation split. These records are left out of train. TensorFlow and the network are not
  needed: a set that is not prepared as array_record fails at once, with the command that prepares
  it.

  Attributes:
    dataset: `set[/config][:version]`. Without a version: the newest version on disk.
    data_dir: Where sets are prepared. None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    field: The text feature.
  """

  dataset: str
  data_dir: str | None = None
  field: str = "text"

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split.

    Raises:
      FileNotFoundError: If the set is not prepared.
      ValueError: For a wrong field, a wrong file format or an empty split.
    """
    check_split(split)
    directory = tfds_corpus.prepared_directory(self.dataset, self.data_dir)
    documents = tfds_corpus.documents(directory, split, self.field, SPLIT_NAMES)
    return _not_empty(
      documents,
      f"{self.dataset} has no records for split={split!r}; it is too small to carve one from. "
      "Use a larger set",
    )

  def identity(self) -> str:
    """The field, the prepared directory and the time of preparation."""
    directory = tfds_corpus.prepared_directory(self.dataset, self.data_dir)
    return f"tfds:{self.field}:{_file_identity(directory / 'dataset_info.json')}"


@member
class Pairs:
  """Pairs of a source and a target, such as sentences and their translations.

  A document is the source and the target, with a newline between them. Tatoeba's `fra.txt` needs no
  options. For the E2E challenge, `path` is the folder with trainset.csv, devset.csv and
  testset_w_refs.csv, with source="mr" and target="ref". A line break within a source or target is
  read as a space. Pairs with an empty source or target are left out.

  Files belong to splits as in `Folder`. The documents that replace a missing split are chosen by a
  hash of the *source*: all targets of one source are in the same split. Pairs come in the order of
  this hash, and all pairs with the same source are neighbours. The first pairs of a split are
  therefore a fair sample even if the files are sorted.

  Attributes:
    path: A file, or a folder of files: `.tsv` or `.txt` (columns between tabs), `.csv` or `.jsonl`.
    source: The number of the source's column, from 0, or the name of its field. None: column 0, or
      the field "source".
    target: The same for the target. None: column 1, or the field "target".
    max_characters: Pairs with a longer source or target are left out of every split.
  """

  path: str
  source: str | None = None
  target: str | None = None
  max_characters: int | None = None

  def __post_init__(self):
    if self.max_characters is not None and self.max_characters < 1:
      raise ValueError(
        f"data.max_characters={self.max_characters} must be at least 1; "
        "None keeps pairs of any length"
      )

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split, source and target with a newline between them.

    Raises:
      FileNotFoundError: For a missing path.
      ValueError: For a missing field or a split without pairs.
    """
    return (f"{source}\n{target}" for source, target in self.pairs(split))

  def pairs(self, split: str) -> list[tuple[str, str]]:
    """(source, target) of every pair of a split. Raises the same errors as `documents`."""
    check_split(split)
    files = self._files()
    own = _of_split(
      files,
      split,
      lambda path: pair_files.read(path, self.source, self.target),
      key=lambda pair: pair[0],
    )

    def fits(text):
      return bool(text) and (self.max_characters is None or len(text) <= self.max_characters)

    kept = [(source, target) for source, target in own if fits(source) and fits(target)]
    if not kept:
      raise ValueError(
        f"{self.path} has no pairs for split={split!r} with max_characters={self.max_characters}; "
        f"it holds {_counts(files)}. Add more"
      )
    # Stable: the targets of one source stay in the order of the file.
    return sorted(kept, key=lambda pair: (_hash(pair[0]), pair[0]))

  def identity(self) -> str:
    """The options, and a hash of the path, size and time of every file."""
    options = f"{self.source}:{self.target}:{self.max_characters}"
    return f"pairs:{options}:{_files_identity(self._files())}"

  def _files(self) -> dict[str, list[Path]]:
    path = Path(self.path)
    if path.is_file():
      return {split: [path] if split == "train" else [] for split in SPLITS}
    return _files_by_split(self.path, pair_files.SUFFIXES)


CORPORA = {"austen": Austen, "text8": Text8, "folder": Folder, "tfds": Tfds, "pairs": Pairs}


def _existing_text8(path: str) -> Path:
  if not Path(path).is_file():
    raise FileNotFoundError(
      f"path={path!r} is not a file; "
      "download http://mattmahoney.net/dc/text8.zip, unzip it, and give the path of the file "
      "`text8`"
    )
  return Path(path)


def _file_identity(path: Path) -> str:
  status = path.stat()
  return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"


def _files_identity(files: dict[str, list[Path]]) -> str:
  marks = [f"{split}:{_file_identity(path)}" for split, paths in files.items() for path in paths]
  return hashlib.sha256("|".join(marks).encode()).hexdigest()


def _files_by_split(folder: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
  root = Path(folder)
  kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
  if not root.is_dir():
    raise FileNotFoundError(
      f"path={folder!r} is not a folder; give the folder that holds {kinds} files"
    )
  files: dict[str, list[Path]] = {split: [] for split in SPLITS}
  for path in sorted(root.rglob("*")):
    if path.suffix in suffixes and path.is_file():
      files[_split_of(path.relative_to(root))].append(path)
  if not any(files.values()):
    raise FileNotFoundError(
      f"path={folder!r} holds no {kinds} file; put the text there in one of these forms"
    )
  return files


def _hash(text: str) -> int:
  return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _of_split(
  files: dict[str, list[Path]],
  split: str,
  read: Callable[[Path], Iterator],
  key: Callable[..., str],
) -> Iterator:
  """The documents of a split, from its own files or from the training files.

  `read` yields the documents of a file. A split without files gets the training documents whose
  `key` has a hash in CARVED_HUNDREDTHS, and the training split is left with the others.
  """
  carved = {name: share for name, share in CARVED_HUNDREDTHS.items() if not files[name]}
  source = files[split] or files["train"]
  for path in source:
    for document in read(path):
      if source is files["train"]:
        hundredth = _hash(key(document)) % 100
        if next((name for name, share in carved.items() if hundredth in share), "train") != split:
          continue
      yield document


def _split_of(relative: Path) -> str:
  """The split that a path names: its folders first, then the beginning of the file's name."""
  for part in relative.parts[:-1]:
    if part.lower() in SPLIT_NAMES:
      return SPLIT_NAMES[part.lower()]
  word = re.match(r"[a-z]*", relative.name.lower()).group().removesuffix("set")
  return SPLIT_NAMES.get(word, "train")


def _counts(files: dict[str, list[Path]]) -> str:
  return ", ".join(f"{len(paths)} file(s) for {split}" for split, paths in files.items())


def _not_empty(documents: Iterator[str], message: str) -> Iterator[str]:
  """The same documents. The first is read now, so that errors come before any work is done."""
  first = next(documents, None)
  if first is None:
    raise ValueError(message)
  return _chain(first, documents)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
  yield first
  yield from rest


def _read_txt(path: Path, field: str) -> Iterator[str]:
  del field  # plain text has none
  with path.open(encoding="utf-8") as file:
    for line in file:
      if line.strip():
        yield line.removesuffix("\n")


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(
          f"{path}:{number} is not JSON ({error}); write one JSON object per line"
        ) from error
      if not isinstance(row, dict) or not isinstance(row.get(field), str):
        held = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
          f"{path}:{number} has no text in field={field!r}, it holds {held}; "
          "set field= to the one with the text"
        )
      if row[field]:
        yield row[field]


def _read_parquet(path: Path, field: str) -> Iterator[str]:
  import pyarrow.parquet  # heavy, and only this reader needs it

  file = pyarrow.parquet.ParquetFile(path)
  if field not in file.schema_arrow.names:
    raise ValueError(
      f"{path} has no column field={field!r}, it holds {file.schema_arrow.names}; "
      "set field= to the one with the text"
    )
  kind = file.schema_arrow.field(field).type
  if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
    raise ValueError(
      f"{path}: column field={field!r} holds {kind}, not text; set field= to a column of strings"
    )
  for batch in file.iter_batches(columns=[field]):
    yield from (text for text in batch.column(0).to_pylist() if text)


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}

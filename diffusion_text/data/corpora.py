"""Where text comes from.

A corpus yields the documents of a split as `str`, in a fixed order. Its `identity()` is a string
that changes when the content of the source changes, and not when the source moves; the names of
cached token files contain it. Text is never normalised: the model sees the file as it is.
"""

from __future__ import annotations

import bisect
import lzma
import zlib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Protocol

from diffusion_text.core.options import member, option
from diffusion_text.data import conversations, pair_files, splits, text_files, tfds_corpus
from diffusion_text.data.splits import ALL, SPLITS
from diffusion_text.data.text_files import BadRows, Row

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

# Where the parts of a file of one long string begin and end, in hundredths.
_TEXT8_HUNDREDTHS = {"train": (0, 90), "validation": (90, 95), "test": (95, 100), ALL: (0, 100)}

# Which hundredths of the training documents replace a split that a folder does not have.
CARVED_HUNDREDTHS = {"test": range(0, 5), "validation": range(5, 7)}

_SKIP = "refuse: a row that cannot be read is an error; skip: it is left out, and said"


class Corpus(Protocol):
  """Documents by split."""

  def documents(self, split: str) -> Iterator[str]:
    """The documents of "train", "validation" or "test", or "all" of them.

    Raises:
      ValueError, FileNotFoundError: Before the first document.
    """

  def identity(self, memo: Path | None = None) -> str:
    """A string that changes if the content of the source changes.

    memo: a folder that keeps the hashes of files, so that a file is read again only if it changed.
    """

  def origin(self, split: str) -> str:
    """Where the documents of a split come from, and why they are in it, in one line."""


def check_split(split: str) -> None:
  """Raises ValueError for anything but the three splits and "all"."""
  if split not in (*SPLITS, ALL):
    raise ValueError(f"split={split!r} is not a split; use one of {', '.join(SPLITS)}, {ALL}")


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
    begin, end = _austen_paragraphs(split)
    # The file ends with a newline, so the piece after the last newline is no paragraph.
    return iter(lzma.decompress(packed).decode("utf-8").split("\n")[begin:end])

  def sources(self, split: str) -> tuple[tuple[str, ...], list[int]]:
    """(names of the novels, number of the novel of each document of the split)."""
    check_split(split)
    begins = list(AUSTEN_NOVELS.values())
    return tuple(AUSTEN_NOVELS), [
      bisect.bisect_right(begins, place) - 1 for place in range(*_austen_paragraphs(split))
    ]

  def identity(self, memo: Path | None = None) -> str:
    """The sha256 of the uncompressed file."""
    del memo  # the file is part of the package
    return f"austen:{AUSTEN_SHA256}"

  def origin(self, split: str) -> str:
    """The paragraphs of the split."""
    begin, end = _austen_paragraphs(split)
    return f"paragraphs {begin} to {end - 1} of the six bundled novels, a fixed split"


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
    text = text_files.whole_text(_existing_text8(self.path))
    begin, end = _TEXT8_HUNDREDTHS[split]
    part = text[len(text) * begin // 100 : len(text) * end // 100]
    return iter([part] if part else [])

  def identity(self, memo: Path | None = None) -> str:
    """A hash of the file."""
    return f"text8:{splits.file_digest(_existing_text8(self.path), memo)}"

  def origin(self, split: str) -> str:
    """The part of the file."""
    begin, end = _TEXT8_HUNDREDTHS[split]
    return f"{self.path}: {begin} % to {end} % of its characters, a fixed split"


@member
class Folder:
  """A local folder of `.txt`, `.jsonl` and `.parquet` files, or one such file.

  A document is a line of a `.txt` file, or `field` in a row of the others; one without anything but
  spaces is left out. A word in the name of a file or of a folder above it selects the split:
  train/training, validation/valid/val/dev or test (`test/a.txt`, `ptb.test.txt`, `devset.csv`,
  `train-00000-of-00003.parquet`). Files that name no split belong to train, unless others name
  train: then they are refused, as is a file that names two splits. Links are followed, hidden files
  and folders are not read. Files are read in the order of their paths. If no file belongs to test
  (validation), 5 % (2 %) of the training documents replace it, chosen by a hash of their text, and
  are left out of train. Equal documents are then in the same split.

  Attributes:
    path: The folder or file.
    field: The field or column with the text.
    bad_rows: What to do with a row that cannot be read: "refuse" or "skip".
  """

  path: str
  field: str = "text"
  bad_rows: BadRows = option("refuse", _SKIP)

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split.

    Raises:
      FileNotFoundError: For a missing or empty folder.
      ValueError: For a missing field, a row that cannot be read, a file whose split is ambiguous,
        and a split without text.
    """
    check_split(split)
    files = self._files()
    return not_empty(
      _of_split(files, split, self._read, key=_itself),
      f"{self.path} has no text for split={split!r}; it holds {files.counts()}. Add text, or a "
      f"file whose name says {split}",
    )

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the splits and contents of the files."""
    return f"folder:{self.field}:{self.bad_rows}:{splits.content(self._files(), memo)}"

  def origin(self, split: str) -> str:
    """The files of the split, or what stands in for them."""
    return _origin(self._files(), split, "of their text")

  def _files(self) -> splits.Files:
    return splits.find(self.path, tuple(_READERS))

  def _read(self, path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
      raise ValueError(f"{path} is no file of text; use {', '.join(_READERS)}")
    rows = _READERS[suffix](path, self.field)
    documents = text_files.checked(f"{path}:", rows, self.bad_rows)
    return (document for document in documents if document.strip())


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
    bad_rows: As of `Folder`.
  """

  dataset: str
  data_dir: str | None = None
  field: str = "text"

  bad_rows: BadRows = option("refuse", _SKIP)

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split.

    Raises:
      FileNotFoundError: If the set is not prepared.
      ValueError: For a wrong field, a wrong file format, a row that cannot be read or an empty
        split.
    """
    check_split(split)
    directory = self._directory()
    rows = tfds_corpus.documents(directory, split, self.field)
    return not_empty(
      text_files.checked(f"{directory}, split {split!r}, record ", rows, self.bad_rows),
      f"{self.dataset} has no records for split={split!r}; it is too small to carve one from. "
      "Use a larger set",
    )

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the prepared files."""
    content = tfds_corpus.content(self._directory(), memo)
    return f"tfds:{self.field}:{self.bad_rows}:{content}"

  def origin(self, split: str) -> str:
    """The slice of the set."""
    return tfds_corpus.origin(self._directory(), split)

  def _directory(self) -> Path:
    return tfds_corpus.prepared_directory(self.dataset, self.data_dir)


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
    bad_rows: As of `Folder`.
  """

  path: str
  source: str | None = None
  target: str | None = None
  max_characters: int | None = None
  bad_rows: BadRows = option("refuse", _SKIP)

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
      ValueError: For a missing field, a row that cannot be read, a file whose split is ambiguous,
        and a split without pairs.
    """
    return (f"{source}\n{target}" for source, target in self.pairs(split))

  def pairs(self, split: str) -> list[tuple[str, str]]:
    """(source, target) of every pair of a split. Raises the same errors as `documents`."""
    check_split(split)
    files = self._files()
    own = _of_split(files, split, self._read, key=_source)

    def fits(text):
      return bool(text) and (self.max_characters is None or len(text) <= self.max_characters)

    kept = [(source, target) for source, target in own if fits(source) and fits(target)]
    if not kept:
      raise ValueError(
        f"{self.path} has no pairs for split={split!r} with max_characters={self.max_characters}; "
        f"it holds {files.counts()}. Add pairs, or a file whose name says {split}"
      )
    # Stable: the targets of one source stay in the order of the file.
    return sorted(kept, key=lambda pair: (_hash(pair[0]), pair[0]))

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the splits and contents of the files."""
    options = f"{self.source}:{self.target}:{self.max_characters}:{self.bad_rows}"
    return f"pairs:{options}:{splits.content(self._files(), memo)}"

  def origin(self, split: str) -> str:
    """The files of the split, or what stands in for them."""
    return _origin(self._files(), split, "of their source")

  def _files(self) -> splits.Files:
    return splits.find(self.path, pair_files.SUFFIXES)

  def _read(self, path: Path) -> Iterator[tuple[str, str]]:
    return pair_files.read(path, self.source, self.target, self.bad_rows)


@member
class Conversations(Folder):
  """Conversations for instruction tuning: `.jsonl` files, in splits as of `Folder`.

  A document is the list of messages of a row, as JSON; `data.conversations` has its tokens.

  Attributes:
    field: The field with the messages, {"role": …, "content": …} each.
  """

  field: str = "messages"

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the splits and contents of the files."""
    return f"conversations:{super().identity(memo)}"

  def _files(self) -> splits.Files:
    return splits.find(self.path, (".jsonl",))

  def _read(self, path: Path) -> Iterator[str]:
    rows = (conversations.messages_of(row, self.field) for row in text_files.json_rows(path))
    return text_files.checked(f"{path}:", rows, self.bad_rows)


CORPORA = {"austen": Austen, "text8": Text8, "folder": Folder, "tfds": Tfds, "pairs": Pairs}
CORPORA["conversations"] = Conversations


def carved(split: str, key: str, held: tuple[str, ...]) -> bool:
  """True if a training document with this key belongs to `split`.

  held: the splits that have documents of their own; CARVED_HUNDREDTHS of the training documents
  replace the others.
  """
  hundredth = _hash(key) % 100
  for name, share in CARVED_HUNDREDTHS.items():
    if name not in held and hundredth in share:
      return split == name
  return split == "train"


def carved_origin(split: str, held: tuple[str, ...], by: str) -> str:
  """What `carved` does to a split, in words. by: what is hashed, as in "of their text"."""
  missing = [name for name in CARVED_HUNDREDTHS if name not in held]
  if split == "train":
    shares = [f"{len(CARVED_HUNDREDTHS[name])} % that stand in for {name}" for name in missing]
    return f", without the {' and the '.join(shares)}" if shares else ""
  share = len(CARVED_HUNDREDTHS[split])
  return f"{share} % of the training documents stand in, chosen by a hash {by}"


def _existing_text8(path: str) -> Path:
  file = Path(path).expanduser()
  if not file.is_file():
    raise FileNotFoundError(
      f"path={path!r} is not a file; "
      "download http://mattmahoney.net/dc/text8.zip, unzip it, and give the path of the file "
      "`text8`"
    )
  return file


def _austen_paragraphs(split: str) -> tuple[int, int]:
  every = (AUSTEN_PARAGRAPHS["train"][0], AUSTEN_PARAGRAPHS["test"][1])
  return every if split == ALL else AUSTEN_PARAGRAPHS[split]


def _hash(text: str) -> int:
  return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _itself(document: str) -> str:
  return document


def _source(pair: tuple[str, str]) -> str:
  return pair[0]


def _of_split(
  files: splits.Files,
  split: str,
  read: Callable[[Path], Iterator],
  key: Callable[..., str],
) -> Iterator:
  """The documents of a split, from its own files or from the training files.

  `read` yields the documents of a file. A split without files gets the training documents that are
  `carved` for it by their `key`, and the training split is left with the others.
  """
  held = tuple(name for name in SPLITS if files.of[name])
  if split == ALL or (split != "train" and split in held):
    for path in files.read_for(split):
      yield from read(path)
    return
  for path in files.of["train"]:
    yield from (document for document in read(path) if carved(split, key(document), held))


def _origin(files: splits.Files, split: str, by: str) -> str:
  held = tuple(name for name in SPLITS if files.of[name])
  if split in (ALL, *held):
    rest = carved_origin(split, held, by) if split == "train" else ""
    return splits.describe(files, split) + rest
  if "train" not in held:
    return f"{files.root}: nothing, and there is no training document to stand in"
  return f"no file of {files.root} names {split}: {carved_origin(split, held, by)}"


def not_empty(documents: Iterator[str], message: str) -> Iterator[str]:
  """The same documents. The first is read now, so that errors come before any work is done."""
  first = next(documents, None)
  if first is None:
    raise ValueError(message)
  return _chain(first, documents)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
  yield first
  yield from rest


def _txt(path: Path, field: str) -> Iterator[Row]:
  del field  # plain text has none
  return text_files.lines(path)


def _jsonl(path: Path, field: str) -> Iterator[Row]:
  return _of_field(text_files.json_rows(path), field)


def _parquet(path: Path, field: str) -> Iterator[Row]:
  return _of_field(text_files.parquet_rows(path, field), field)


def _of_field(rows: Iterator[Row], field: str) -> Iterator[Row]:
  for row in text_files.with_fields(rows, (field,), "set field= to the one with the text"):
    yield row if row.problem is not None else row._replace(value=row.value[0])


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}

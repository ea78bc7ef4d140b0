"""A corpus of one's own in Python: any iterable of texts or of rows, or data sets of the `datasets`
package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_text.data import corpora, splits, text_files
from diffusion_text.data.splits import ALL, SPLITS
from diffusion_text.data.text_files import BadRows, Row


class Documents:
  """The documents of a Python object.

  Splits that the object does not have are carved from train as in `corpora.Folder`: 5 % (2 %) of
  the documents, chosen by a hash of their text, replace test (validation).
  """

  def __init__(self, documents: Any, field: str = "text", bad_rows: BadRows = "refuse"):
    """Makes the corpus.

    Args:
      documents: A finite iterable of texts, or of rows that map names to values, such as a
        `datasets.Dataset`; it is training text. Or a mapping of split names (train, validation,
        valid, val, dev, test) to such iterables, such as a `datasets.DatasetDict`. An object that
        can be iterated only once, such as a generator, is read into memory now.
      field: Which value of a row is the text.
      bad_rows: "refuse" or "skip" a row that is no text.

    Raises:
      ValueError: For a text in place of an iterable of texts, unknown splits, and two names for one
        split.
    """
    self._field = field
    self._bad_rows = bad_rows
    named = documents if isinstance(documents, Mapping) else {"train": documents}
    self._unread = sorted(str(name) for name in named if name not in splits.SPLIT_NAMES)
    own = splits.own_splits(list(named), "documents=")
    if not own:
      raise ValueError(
        f"documents= has the splits {self._unread}; name them train, validation and test"
      )
    self._parts = {split: _repeatable(named[name], name) for split, name in own.items()}

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split, those that are nothing but spaces left out.

    Raises:
      ValueError: For a row that is no text, with its number, and a split without text.
    """
    corpora.check_split(split)
    return corpora.not_empty(
      self._read(split),
      f"documents= has no text for split={split!r}; it has {', '.join(self._parts)}. Add more",
    )

  def identity(self, memo: Path | None = None) -> str:
    """A hash of every document."""
    del memo  # there are no files
    digest = hashlib.sha256()
    for split in self._parts:
      for document in self._own(split):
        digest.update(f"{split}:{len(document)}:".encode() + document.encode("utf-8"))
    return f"documents:{digest.hexdigest()}"

  def origin(self, split: str) -> str:
    """The object, or what stands in for the split."""
    held = tuple(self._parts)
    unread = f"; not read: {', '.join(self._unread)}" if self._unread and split == "train" else ""
    if split in (ALL, *held):
      rest = corpora.carved_origin(split, held, "of their text") if split == "train" else ""
      return f"documents given in Python{rest}{unread}"
    if "train" not in held:
      return "nothing, and there is no training document to stand in"
    return corpora.carved_origin(split, held, "of their text")

  def _read(self, split: str) -> Iterator[str]:
    held = tuple(self._parts)
    if split == ALL or (split != "train" and split in held):
      for name in SPLITS:
        if name in held and split in (name, ALL):
          yield from self._own(name)
    elif "train" in held:
      for document in self._own("train"):
        if corpora.carved(split, document, held):
          yield document

  def _own(self, split: str) -> Iterator[str]:
    rows = (self._row(number, value) for number, value in enumerate(self._parts[split], 1))
    documents = text_files.checked(f"documents=, {split}, number ", rows, self._bad_rows)
    return (document for document in documents if document.strip())

  def _row(self, number: int, value: Any) -> Row:
    if not isinstance(value, Mapping):
      return Row(number, value, text_files.text_problem(value, "the place of a text"))
    if self._field not in value:
      held = sorted(map(str, value))
      return Row(
        number, None, f"has no field={self._field!r}, it holds {held}; set field= to the text"
      )
    text = value[self._field]
    return Row(number, text, text_files.text_problem(text, f"field={self._field!r}"))


def _repeatable(part: Any, name: str) -> Iterable[Any]:
  """The part itself, or a list of what it yields if it can be iterated only once."""
  if isinstance(part, str | bytes) or not isinstance(part, Iterable):
    raise ValueError(
      f"documents= for {name} is {part!r:.60}, which is no iterable of texts; use a list of texts, "
      "or corpora.Folder for a folder or file"
    )
  return list(part) if iter(part) is part else part

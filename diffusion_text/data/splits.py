"""Which file of a folder belongs to which split, and why; the identity of files is their content.

A file whose name or folder says two things is refused, and so is a file that says nothing beside
files that say train: text that is held out must never be trained on by accident.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_text.data import text_files

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
ALL = "all"  # every document, whatever its split

# A word in the name of a file or folder (or the name of a split of a data set) -> our split.
SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
  "devtest": "test",
}
# Words for text that is held out without saying for what.
_HELD_OUT = {"eval", "evaluation", "heldout", "holdout"}
_HASH_BYTES = 1 << 20
_SHOWN = 4  # files that a description names
_SETTLED_SECONDS = 2.0


class Files(NamedTuple):
  """The files of a folder by split.

  Attributes:
    root: The folder, or the one file.
    of: Split -> files, in the order in which they are read.
    why: File -> what put it in its split, as in "its name says test".
    unread: What was found and is not read, each with its reason.
  """

  root: Path
  of: dict[str, list[Path]]
  why: dict[Path, str]
  unread: list[str]

  def read_for(self, split: str) -> list[Path]:
    """The files of one split, or of ALL."""
    return [path for name in SPLITS if split in (name, ALL) for path in self.of[name]]

  def counts(self) -> str:
    """How many files each split has, for messages."""
    return ", ".join(f"{len(paths)} file(s) for {split}" for split, paths in self.of.items())


def find(location: str, suffixes: Sequence[str]) -> Files:
  """The files of a folder (links followed, hidden ones left out), or one file, by split.

  Args:
    location: A folder or a file; `~` is the home folder.
    suffixes: The endings that are read, in lower case; upper case counts as equal.

  Raises:
    FileNotFoundError: For a missing folder, one without such a file, and a link to nothing.
    ValueError: For a file whose split is ambiguous, and a file in two splits.
  """
  root = Path(location).expanduser()
  *others, last = suffixes
  kinds = f"{', '.join(others)} or {last}" if others else last
  if root.is_file():
    split, reason = _split_of(root, (root.stem,))
    why = {root: reason or "it is the only file"}
    return Files(root, {name: [root] * (name == (split or "train")) for name in SPLITS}, why, [])
  if not root.is_dir():
    here = "" if root.is_absolute() else f" in {Path.cwd()}"
    raise FileNotFoundError(
      f"path={location!r} is not a folder{here}; give the folder that holds {kinds} files (if it"
      " has moved: its new place, data.path for training and --path of experiments.evaluate)"
    )
  paths, unread = _walk(root, suffixes)
  if not paths:
    raise FileNotFoundError(
      f"path={location!r} holds no {kinds} file; put the text there in one of these forms"
      + (f" (not read: {_few(unread)})" if unread else "")
    )
  found = {path: _split_of(path, path.relative_to(root).with_suffix("").parts) for path in paths}
  _refuse_unnamed(found)
  of: dict[str, list[Path]] = {split: [] for split in SPLITS}
  why: dict[Path, str] = {}
  first: dict[Path, Path] = {}  # where a file was met first, whatever the links to it are called
  for path, (split, reason) in found.items():
    split = split or "train"
    twin = first.setdefault(path.resolve(), path)
    if twin is path:
      of[split].append(path)
      why[path] = reason or "no name says another split"
    elif twin in of[split]:
      unread.append(f"{path.relative_to(root)} (the same file as {twin.relative_to(root)})")
    else:
      raise ValueError(
        f"{path} and {twin} are the same file, but their names say two splits; remove one of them"
      )
  return Files(root, of, why, unread)


def describe(files: Files, split: str) -> str:
  """The files of a split and what put them there, in one line."""
  reasons: dict[str, list[str]] = {}
  for path in files.read_for(split):
    name = path.name if path == files.root else str(path.relative_to(files.root))
    reasons.setdefault(files.why[path], []).append(name)
  parts = [f"{_few(names)} ({reason})" for reason, names in reasons.items()]
  unread = f"; not read: {_few(files.unread)}" if files.unread and split == "train" else ""
  return f"{files.root}: {', '.join(parts) or 'no file'}{unread}"


def content(files: Files, memo: Path | None) -> str:
  """A hash of the splits, the order and the bytes of the files, whatever they are called.

  memo: a folder that keeps the hash of each file, so that only files that have changed are read.
  """
  marks = []
  first: dict[str, tuple[str, Path]] = {}
  for split in SPLITS:
    for path in files.read_for(split):
      digest = file_digest(path, memo)
      marks.append(f"{split}:{digest}")
      other, twin = first.setdefault(digest, (split, path))
      if other != split:
        _warn(f"data: {path} and {twin} hold the same bytes, but belong to {split} and {other}")
  return hashlib.sha256("|".join(marks).encode()).hexdigest()


def file_digest(path: Path, memo: Path | None) -> str:
  """The sha256 of the bytes of a file.

  memo: see `content`. A file counts as unchanged if its place, size and time of change are. A file
  that has changed just now is not kept: its next change could have the same time.
  """
  status = path.stat()
  place = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
  kept = None if memo is None else memo / hashlib.sha256(place.encode()).hexdigest()[:32]
  if kept is not None and kept.exists():
    return kept.read_text(encoding="ascii")
  digest = hashlib.sha256()
  with text_files.opened(path) as file:
    while block := file.read(_HASH_BYTES):
      digest.update(block)
  if kept is not None and time.time() - status.st_mtime > _SETTLED_SECONDS:
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Another process may write the same file at the same time.
    handle, draft = tempfile.mkstemp(dir=kept.parent)
    with open(handle, "w", encoding="ascii") as file:
      file.write(digest.hexdigest())
    os.replace(draft, kept)
  return digest.hexdigest()


def own_splits(names: Sequence[str], where: str) -> dict[str, str]:
  """Our split -> its name in a data set with these splits. Names that we do not know are left out.

  Raises:
    ValueError: If two names stand for the same split of ours.
  """
  own: dict[str, str] = {}
  for name in names:
    split = SPLIT_NAMES.get(name)
    if split in own:
      raise ValueError(
        f"{where} has {own[split]!r} and {name!r}, which both are {split}; keep one of them"
      )
    if split is not None:
      own[split] = name
  return own


def _walk(root: Path, suffixes: Sequence[str]) -> tuple[list[Path], list[str]]:
  """(files that are read, in order; what is not read, and why)."""
  paths, unread = [], []
  others: dict[str, int] = {}
  above = {str(root): {os.path.realpath(root)}}  # the folders above, to notice links in a circle
  for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
    here = Path(folder).relative_to(root)
    unread += [f"{here / name}/ (hidden)" for name in folders if name.startswith(".")]
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in list(folders):
      inner, real = os.path.join(folder, name), os.path.realpath(os.path.join(folder, name))
      if real in above[folder]:
        folders.remove(name)
        unread.append(f"{here / name}/ (a link to a folder above)")
      above[inner] = above[folder] | {real}
    for name in names:
      path = Path(folder) / name
      if path.suffix.lower() not in suffixes:
        ending = path.suffix.lower() or "no ending"
        others[ending] = others.get(ending, 0) + 1
      elif name.startswith("."):
        unread.append(f"{here / name} (hidden)")
      elif not path.exists():
        raise FileNotFoundError(f"{path} is a link to nothing; mend or remove it")
      else:
        paths.append(path)
  unread += [f"{count} file(s) with {ending}" for ending, count in sorted(others.items())]
  return sorted(paths), unread


def _refuse(error: OSError) -> None:
  raise ValueError(
    f"{error.filename} cannot be read ({error.strerror}); mend or move it"
  ) from error


def _split_of(path: Path, parts: Sequence[str]) -> tuple[str | None, str | None]:
  """(the split that the names of a file and its folders say, which of them says so) or Nones."""
  said: dict[str, str] = {}
  held_out = False
  for place, part in enumerate(parts):
    words = list(_words(part))
    pairs = {first + second for first, second in itertools.pairwise(words)}
    held_out = held_out or bool(_HELD_OUT & ({*words} | pairs))
    for word in words:
      if word in SPLIT_NAMES:
        reason = f"its {'name' if place == len(parts) - 1 else 'folder'} says {word}"
        said.setdefault(SPLIT_NAMES[word], reason)
  if len(said) > 1 or (held_out and set(said) <= {"train"}):
    both = " and ".join(said) if len(said) > 1 else "held-out text, but not which split"
    raise ValueError(
      f"{path} is ambiguous: its name or folder says {both}; rename it so that it says exactly one "
      "of train, validation and test"
    )
  return next(iter(said.items()), (None, None))


def _words(name: str) -> Iterator[str]:
  """The words of a name in lower case: "ptb.test-01" and "wikiTestSet" both hold "test"."""
  for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
    yield word.lower().removesuffix("set") or word.lower()


def _refuse_unnamed(found: Mapping[Path, tuple[str | None, str | None]]) -> None:
  """Raises ValueError for a file that names no split beside files that name train."""
  named = next((path for path, (split, _) in found.items() if split == "train"), None)
  unnamed = next((path for path, (split, _) in found.items() if split is None), None)
  if named is not None and unnamed is not None:
    raise ValueError(
      f"{unnamed} is ambiguous: it names no split, while {named} says train; rename it to "
      f"train-{unnamed.name} (or validation-, test-), or move it out of the folder"
    )


@functools.lru_cache(maxsize=256)
def _warn(message: str) -> None:
  """Logs a warning once in a process."""
  log.warning("%s", message)


def _few(names: Sequence[str]) -> str:
  """Some of the names, and the number of the others."""
  more = len(names) - _SHOWN
  return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

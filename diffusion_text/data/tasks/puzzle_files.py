"""Examples from files by split: pairs of a prompt and an answer, and solved puzzles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusion_text.core.options import member, option
from diffusion_text.data import splits
from diffusion_text.data.corpora import CARVED_HUNDREDTHS, carved, carved_origin, check_split
from diffusion_text.data.splits import ALL, SPLITS
from diffusion_text.data.tasks.contract import Example
from diffusion_text.data.tasks.generated import Generated
from diffusion_text.data.text_files import Row


@dataclasses.dataclass(frozen=True)
class PuzzleFiles:
  """Files of a task, of which every row is checked by the task's own verifier.

  The words in the names of files say their split, as for `corpora.Folder`. Where no file says test
  (validation), 5 % (2 %) of the training puzzles stand in, chosen by a hash of their group.

  Attributes:
    task: The task; None: rows are not verified.
    path: A file or a folder.
    suffixes: Endings that are read.
    rows: The rows of a file, their value (prompt, answer).
    group: The group of a prompt, which is in one split.
  """

  task: Any
  path: str
  suffixes: tuple[str, ...]
  rows: Callable[[Path], Iterator[Row]]
  group: Callable[[str], str]

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split in the order of the files, all answers of a prompt together.

    Raises:
      FileNotFoundError: For a missing path.
      ValueError: For a row that is no example, with file, line and fix, and for a split without
        examples.
    """
    check_split(split)
    files = self._found()
    return _examples(self, split, splits.content(files, None))

  def identity(self, memo: Path | None = None) -> str:
    """The options of the task without its path, and a hash of the files."""
    options = "" if self.task is None else repr(self.task).replace(repr(self.path), "path")
    return f"{options}:{splits.content(self._found(), memo)}"

  def origin(self, split: str) -> str:
    """The files of a split, or what stands in for them."""
    files = self._found()
    held = tuple(name for name in SPLITS if files.of[name])
    if split in (ALL, *held):
      rest = carved_origin(split, held, "of their prompt") if split == "train" else ""
      return splits.describe(files, split) + rest
    return f"no file of {self.path} names {split}: {carved_origin(split, held, 'of their prompt')}"

  def read(self, split: str) -> tuple[Example, ...]:
    """`examples`, without the memory of earlier calls."""
    files = self._found()
    held = tuple(name for name in SPLITS if files.of[name])
    own = split == ALL or split in held
    found: dict[str, Example] = {}
    for path in files.read_for(split if own else "train"):
      for number, (prompt, answer) in self._checked(path):
        cut = split != ALL and (split == "train" or not own)
        if cut and not carved(split, self.group(prompt), held):
          continue
        before = found.get(prompt, Example(prompt, (), f"{path}:{number}"))
        if answer not in before.answers:
          found[prompt] = before._replace(answers=(*before.answers, answer))
    if not found:
      share = CARVED_HUNDREDTHS.get(split, range(0))
      raise ValueError(
        f"{self.path} has no example for split={split!r} (a missing split is {len(share)} % of"
        f" train); add examples, or a file whose name says {split}"
      )
    return tuple(found.values())

  def _found(self) -> splits.Files:
    return splits.find(self.path, self.suffixes)

  def _checked(self, path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    for row in self.rows(path):
      problem = row.problem
      if problem is None and self.task is not None:
        prompt, answer = row.value
        verdict = self.task.verify(Example(prompt, (answer,)), answer)
        if not verdict.right:
          problem = f"is no solved puzzle: the answer {answer!r} {verdict.reason}"
      if problem is not None:
        raise ValueError(f"{path}:{row.number} {problem}; mend or remove the row")
      yield row.number, row.value


@member
class MadeOrRead(Generated):
  """The base of tasks whose puzzles a generator makes, or files of `path` hold.

  Attributes:
    path: Files in place of the generator.
  """

  path: str | None = option(None, "a file or folder of solved puzzles; unset: generated")

  def files(self) -> PuzzleFiles:
    """The files of `path`."""
    raise NotImplementedError

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, from the files or the generator."""
    return super().examples(split) if self.path is None else self.files().examples(split)

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the files."""
    return super().identity(memo) if self.path is None else self.files().identity(memo)

  def origin(self, split: str) -> str:
    """The files or the generator."""
    return super().origin(split) if self.path is None else self.files().origin(split)


@functools.lru_cache(maxsize=16)
def _examples(files: PuzzleFiles, split: str, content: str) -> tuple[Example, ...]:
  del content  # part of the key: files may change while this process runs
  return files.read(split)

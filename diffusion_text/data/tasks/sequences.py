"""Sequence to sequence from files by path: translation, data to text, rewriting, word problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from diffusion_text.core.options import member, option
from diffusion_text.data import pair_files
from diffusion_text.data.tasks.contract import (
  RIGHT,
  Example,
  Verdict,
  malformed,
  verdict_by_match,
  wrong,
)
from diffusion_text.data.tasks.puzzle_files import PuzzleFiles
from diffusion_text.data.text_files import Row, json_rows, lines, with_fields

_MARK = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@member
class Pairs:
  """Any pairs of a source and a target in files: translation, paraphrase, simplification.

  The files are those of `corpora.Pairs` and belong to splits in the same way: columns between tabs
  (`.tsv`, `.txt`), `.csv` or `.jsonl`. All targets of a source are answers of one example, and a
  source is in one split where splits are carved. A text that is no answer has the reward
  0.9 · `token_f1`.

  Attributes:
    path: A file or a folder.
    source: The number of the source's column, from 0, or the name of its field.
    target: The same for the target.
    max_characters: Pairs with a longer source or target are left out of every split.
  """

  metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "reward", "exact_match", "copied")
  default_fields: ClassVar[tuple[str | None, str | None]] = (None, None)

  path: str = option(..., "a file or folder of pairs")
  source: str | None = option(None, "column number (from 0) or field of the source")
  target: str | None = option(None, "column number (from 0) or field of the target")
  max_characters: int | None = option(None, "pairs with a longer side are left out", ge=1)

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, in the order of the files."""
    return self._files().examples(split)

  def verify(self, example: Example, text: str) -> Verdict:
    """1 for one of the known targets, less for another."""
    return verdict_by_match(example, text)

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the files."""
    return f"{self!r}".replace(repr(self.path), "path") + self._files().identity(memo)

  def origin(self, split: str) -> str:
    """The files of the split."""
    return self._files().origin(split)

  def _files(self) -> PuzzleFiles:
    return PuzzleFiles(None, self.path, pair_files.SUFFIXES, self._rows, str)

  def _rows(self, path: Path) -> Iterator[Row]:
    source, target = self.default_fields
    named = path.suffix.lower() in (".csv", ".jsonl")
    rows = pair_files.rows(
      path,
      self.source or (source if named else None),
      self.target or (target if named else None),
    )
    for row in rows:
      if row.problem is not None or self._fits(row.value):
        yield row

  def _fits(self, pair: tuple[str, str]) -> bool:
    return all(
      text and (self.max_characters is None or len(text) <= self.max_characters) for text in pair
    )


@member
class Summaries(Pairs):
  """Documents and their summaries, scored by ROUGE, otherwise as `Pairs`."""

  metrics: ClassVar[tuple[str, ...]] = ("rouge_l", "rouge_1", "rouge_2", "reward")


@member
class DataToText(Pairs):
  """Records and sentences that say them: "name[Blue Spice], area[riverside]" (E2E, arXiv
  1706.09254). The fields of csv files are mr and ref.

  A sentence is right if it is a known one. The reward of another is 0.9 times the share of the
  record's values that it holds, word for word; yes and no values (familyFriendly) are left out.
  """

  metrics: ClassVar[tuple[str, ...]] = ("reward", "bleu", "rouge_l", "exact_match")
  default_fields: ClassVar[tuple[str | None, str | None]] = ("mr", "ref")

  def verify(self, example: Example, text: str) -> Verdict:
    """See the class."""
    if text in example.answers:
      return RIGHT
    values = re.findall(r"\[([^\]]*)\]", example.prompt)
    values = [value for value in values if value.lower() not in ("yes", "no")]
    missing = [value for value in values if value.lower() not in text.lower()]
    share = 1 - len(missing) / max(len(values), 1)
    reason = f"does not say {missing[0]}" if missing else "is none of the known answers"
    return Verdict(0.9 * share * bool(text.strip()), bool(text.strip()), reason)


@member
class SplitAndRephrase(Pairs):
  """A long sentence, and the same in two (WikiSplit, arXiv 1808.09468). "<::::>" stands between the
  two sentences of a target, and is what an answer must have once.
  """

  def verify(self, example: Example, text: str) -> Verdict:
    """As of `Pairs`, and 0 without exactly one mark between two texts."""
    if [bool(part.strip()) for part in text.split("<::::>")] != [True, True]:
      return malformed("is not two sentences with <::::> between")
    return verdict_by_match(example, text)


@member
class Concepts:
  """Words, and a sentence that has them all (CommonGen, arXiv 1911.03705).

  A folder of files in twos: `train_src.txt` with the words of line n, `train_trg.txt` with the
  sentence. A sentence is right if it is a known one. The reward of another is 0.9 times the share
  of words of which a word of the sentence begins with all letters but the last (so that "dances"
  and "dancing" have "dance"; published scores lemmatise instead).

  Attributes:
    path: The folder.
  """

  metrics: ClassVar[tuple[str, ...]] = ("reward", "bleu", "rouge_l", "exact_match")

  path: str = option(..., "a folder with train_src.txt, train_trg.txt, test_src.txt …")

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, in the order of the files."""
    return self._files().examples(split)

  def verify(self, example: Example, text: str) -> Verdict:
    """See the class."""
    if text in example.answers:
      return RIGHT
    words = re.findall(r"\w+", text.lower())
    concepts = example.prompt.lower().split()
    missing = [
      concept for concept in concepts
      if not any(word.startswith(concept[: max(len(concept) - 1, 2)]) for word in words)
    ]  # fmt: skip
    share = 1 - len(missing) / max(len(concepts), 1)
    reason = f"has no form of {missing[0]}" if missing else "is none of the known answers"
    return Verdict(0.9 * share * bool(words), bool(words), reason)

  def identity(self, memo: Path | None = None) -> str:
    """A hash of the files."""
    return f"Concepts{self._files().identity(memo)}"

  def origin(self, split: str) -> str:
    """The files of the split."""
    return self._files().origin(split)

  def _files(self) -> PuzzleFiles:
    return PuzzleFiles(None, self.path, (".txt",), _twos, str)


def _twos(path: Path) -> Iterator[Row]:
  """The rows of a file of sources with those of its file of targets; none for one of targets."""
  if not path.stem.endswith("_src"):
    return
  other = path.with_name(f"{path.stem.removesuffix('_src')}_trg{path.suffix}")
  if not other.is_file():
    raise ValueError(f"{path} has no file of targets; put it beside, as {other.name}")
  sources, targets = list(lines(path)), list(lines(other))
  if len(sources) != len(targets):
    shorter = path if len(sources) < len(targets) else other
    raise ValueError(
      f"{shorter}:{min(len(sources), len(targets)) + 1} is missing: {path.name} has {len(sources)}"
      f" lines and {other.name} {len(targets)}; line n of one belongs to line n of the other"
    )
  for source, target in zip(sources, targets):
    problem = source.problem or target.problem
    yield Row(source.number, (source.value, target.value), problem)


@member
class WordProblems:
  """Word problems with a number as their answer (GSM8K, arXiv 2110.14168).

  Files are `.jsonl` with question and answer, or `.txt` with lines question||thoughts #### answer.
  An answer is "thoughts #### 72"; the number after "####" alone is verified, commas aside.

  Attributes:
    path: A file or a folder.
    thoughts: text: as they are; equations: what stands between << and >> alone (arXiv 2402.07754);
      none: the number alone.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid")

  path: str = option(..., "a file or folder: .jsonl, or .txt with question||thoughts #### answer")
  thoughts: Literal["text", "equations", "none"] = option("equations", "what precedes the answer")

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, in the order of the files."""
    return self._files().examples(split)

  def verify(self, example: Example, text: str) -> Verdict:
    """The number after the last "####" is that of the known answer."""
    number = _final(text)
    if number is None:
      return malformed("has no number after ####")
    known = _final(example.answers[0])
    return RIGHT if number == known else wrong(f"ends in {number:g}, and must end in {known:g}")

  def identity(self, memo: Path | None = None) -> str:
    """The options, and a hash of the files."""
    return f"WordProblems:{self.thoughts}:{self._files().identity(memo)}"

  def origin(self, split: str) -> str:
    """The files of the split."""
    return self._files().origin(split)

  def _files(self) -> PuzzleFiles:
    return PuzzleFiles(None, self.path, (".jsonl", ".txt"), self._rows, str)

  def _rows(self, path: Path) -> Iterator[Row]:
    fields = ("question", "answer")
    if path.suffix.lower() == ".jsonl":
      rows = with_fields(json_rows(path), fields, "each line must have question and answer")
    else:
      rows = (
        row if row.problem is not None else row._replace(value=row.value.partition("||")[::2])
        for row in lines(path)
      )
    for row in rows:
      problem, pair = row.problem, row.value
      if problem is None and _final(pair[1]) is None:
        problem = f"has the answer {pair[1][-40:]!r}, which must end in #### and a number"
      if problem is None:
        question, answer = (" ".join(text.split()) for text in pair)
        pair = (question, self._written(answer))
      yield row._replace(value=pair, problem=problem)

  def _written(self, answer: str) -> str:
    thoughts, _, number = answer.rpartition("####")
    number = number.strip()
    if self.thoughts == "equations":
      thoughts = " ".join(_MARK.findall(thoughts))
    kept = "" if self.thoughts == "none" else thoughts.strip()
    return f"{kept} #### {number}".strip()


def _final(text: str) -> float | None:
  """The number after the last "####", or None."""
  _, mark, rest = text.rpartition("####")
  found = _NUMBER.search(rest) if mark else None
  return None if found is None else float(found[0].replace(",", ""))

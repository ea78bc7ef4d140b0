"""The words in the middle of a passage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.corpora import Austen, Folder, check_split
from diffusion_text.data.tasks.contract import Example, Verdict, verdict_by_match

HOLE = "_____"


@member
class Infilling:
  """Words of a text, given what is before and after them. The prompt is "It is a truth _____
  acknowledged, that", the answer "universally".

  One passage is taken of each document that is long enough, where a seed says. The splits are those
  of the text. The reward of a filling that is not the author's is 0.9 · `token_f1`.

  Attributes:
    path: A folder or a file as of `corpora.Folder`. None: the bundled novels.
    hole: Words of the hole.
    context: Words on each side of it.
    seed: Of the places.
  """

  metrics: ClassVar[tuple[str, ...]] = ("reward", "exact_match", "bleu")

  path: str | None = option(None, "text as of data.corpus=folder; unset: the bundled novels")
  hole: int = option(3, "words of the hole", ge=1, le=1000)
  context: int = option(8, "words on each side", ge=1, le=1000)
  seed: int = option(0, "of the places", ge=0)

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, in the order of the documents.

    Raises:
      ValueError: If no document is long enough.
    """
    check_split(split)
    found = {}
    for number, document in enumerate(self._text().documents(split)):
      words = [word for word in document.split() if word != HOLE]
      spare = len(words) - self.hole - 2 * self.context
      if spare < 0:
        continue
      begin = random.Random(f"{self.seed}:{number}").randint(0, spare)
      left = words[begin : begin + self.context]
      stop = begin + self.context + self.hole
      middle = " ".join(words[begin + self.context : stop])
      prompt = " ".join([*left, HOLE, *words[stop : stop + self.context]])
      found.setdefault(prompt, Example(prompt, (middle,), f"document {number + 1} of {split}"))
    if not found:
      raise ValueError(
        f"no document of split={split!r} has {self.hole + 2 * self.context} words; use a smaller"
        " data.task.hole or data.task.context"
      )
    return tuple(found.values())

  def verify(self, example: Example, text: str) -> Verdict:
    """1 for the author's words, less for others."""
    return verdict_by_match(example, text)

  def identity(self, memo: Path | None = None) -> str:
    """The options, and that of the text."""
    return f"{self.hole}:{self.context}:{self.seed}:{self._text().identity(memo)}"

  def origin(self, split: str) -> str:
    """That of the text."""
    return f"passages of {self._text().origin(split)}"

  def _text(self) -> Austen | Folder:
    return Austen() if self.path is None else Folder(self.path)

"""Sums and products of several digits, written with the least significant digit first."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.tasks.contract import RIGHT, Example, Verdict, malformed, wrong
from diffusion_text.data.tasks.generated import Generated
from diffusion_text.data.tasks.puzzle_files import MadeOrRead, PuzzleFiles
from diffusion_text.data.text_files import Row, lines


@member
class Addition(Generated):
  """The sum of numbers of `digits` digits each, all with the least significant digit first.

  12 + 39 is the prompt "21+93" with the answer "15". A sum does not end in 0 unless it is "0", so
  there is one answer. Prompts with the same numbers in another order are in one split.

  Attributes:
    digits: Digits of each number, the most significant one not 0.
    terms: How many numbers.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "positions")

  digits: int = option(3, "of each number", ge=1, le=30)
  terms: int = option(2, "numbers that are added", ge=2, le=10)

  def draw(self, rng: random.Random) -> tuple[int, ...]:
    """The numbers."""
    return tuple(_number(rng, self.digits) for _ in range(self.terms))

  def group(self, puzzle: tuple[int, ...]) -> str:
    """The numbers without their order."""
    return "+".join(map(str, sorted(puzzle)))

  def example(self, rng: random.Random, puzzle: tuple[int, ...]) -> Example:
    """See the class."""
    return Example("+".join(map(backwards, puzzle)), (backwards(sum(puzzle)),))

  def solve(self, prompt: str) -> str:
    """The sum."""
    return backwards(sum(_forwards(part) for part in prompt.split("+")))

  def verify(self, example: Example, text: str) -> Verdict:
    """The text is the sum, without zeros after it."""
    if not re.fullmatch(r"\d+", text):
      return malformed("is no number")
    return RIGHT if text == self.solve(example.prompt) else wrong("is not the sum")


@member
class Multiplication(MadeOrRead):
  """The product of two numbers of `digits` digits each, with the least significant digit first.

  12 · 39 is the prompt "21*93". The answer has 2 · digits digits, with zeros at its end if need be:
  "8640". With `thoughts`, the partial products and their sums come before it, as in the files of
  Deng et al. 2024 (arXiv 2405.14838) without their spaces: "801+0630####8640". The product
  after "####" alone is verified. Prompts with the same numbers are in one split.

  Attributes:
    digits: Digits of each number, the most significant one not 0.
    thoughts: Write the partial products.
    path: Files of these authors, prompt||thoughts #### product, in place of the generator.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "exact_match")

  digits: int = option(2, "of each number", ge=1, le=30)
  thoughts: bool = option(False, "write the partial products before the product")

  def draw(self, rng: random.Random) -> tuple[int, int]:
    """The numbers."""
    return _number(rng, self.digits), _number(rng, self.digits)

  def group(self, puzzle: tuple[int, int]) -> str:
    """The numbers without their order."""
    return "*".join(map(str, sorted(puzzle)))

  def example(self, rng: random.Random, puzzle: tuple[int, int]) -> Example:
    """See the class."""
    prompt = "*".join(backwards(number, self.digits) for number in puzzle)
    return Example(prompt, (self.solve(prompt),))

  def solve(self, prompt: str) -> str:
    """The product, after the thoughts if they are asked for."""
    first, second = prompt.split("*")
    a, b = _forwards(first), _forwards(second)
    product = backwards(a * b, len(first) + len(second))
    if not self.thoughts:
      return product
    written, total = [], 0
    for place, digit in enumerate(second):
      part = a * int(digit) * 10**place
      total += part
      written.append(backwards(part, len(first) + place + 1))
      if 0 < place < len(second) - 1:
        written[-1] += f"({backwards(total, len(first) + place + 1)})"
    return f"{'+'.join(written)}####{product}"

  def verify(self, example: Example, text: str) -> Verdict:
    """The product after the thoughts, if any, is right; the thoughts are not checked."""
    *thoughts, product = text.split("####")
    if not re.fullmatch(r"\d+", product) or len(thoughts) != self.thoughts:
      return malformed("is no product" + " after ####" * self.thoughts)
    expected = self.solve(example.prompt).split("####")[-1]
    return RIGHT if product == expected else wrong("is not the product")

  def files(self) -> PuzzleFiles:
    """The files of `path`."""
    return PuzzleFiles(self, self.path, (".txt",), self._rows, self._file_group)

  def _rows(self, path: Path) -> Iterator[Row]:
    for row in lines(path):
      prompt, bars, answer = (row.value or "").replace(" ", "").partition("||")
      thoughts, _, product = answer.partition("####")
      problem = row.problem
      if problem is None and not (bars and re.fullmatch(r"\d+\*\d+", prompt) and product):
        problem = f"holds {row.value!r}, and must be number * number||thoughts #### product"
      kept = f"{thoughts}####{product}" if self.thoughts else product
      yield row._replace(value=(prompt, kept), problem=problem)

  def _file_group(self, prompt: str) -> str:
    first, second = map(_forwards, prompt.split("*"))
    return self.group((first, second))


def backwards(number: int, digits: int = 0) -> str:
  """A number with its least significant digit first, with zeros at the end up to `digits`."""
  return str(number)[::-1].ljust(digits, "0")


def _forwards(text: str) -> int:
  return int(text[::-1])


def _number(rng: random.Random, digits: int) -> int:
  return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)

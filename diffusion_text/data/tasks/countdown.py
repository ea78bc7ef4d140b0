"""Countdown: reach a target with given numbers and the four operations."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.tasks.contract import RIGHT, Example, Verdict, malformed, wrong
from diffusion_text.data.tasks.puzzle_files import MadeOrRead, PuzzleFiles
from diffusion_text.data.text_files import Row, lines

_NUMBERS = (1, 99)
_TARGETS = (10, 100)
_EQUATION = re.compile(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,9})")


@member
class Countdown3(MadeOrRead):
  """Countdown: three numbers of 1 … 99 and a target of 10 … 100, each number used exactly once.

  The prompt is "92,22,39,75", the target last. The answer is one equation for each operation,
  whose results are numbers from then on: "92+22=114,114-39=75". Numbers stay whole and are never
  negative. The form is that of HKUNLP/diffusion-vs-ar (arXiv 2410.14157). Any right sequence of
  equations is accepted. Puzzles with the same numbers and target are in one split.

  Attributes:
    numbers: How many.
    path: Files of lines prompt|answer in the same form, in place of the generator.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "exact_match")

  numbers: int = option(3, "numbers of a puzzle", ge=2, le=6)

  def draw(self, rng: random.Random) -> tuple[tuple[int, ...], list[str], int]:
    """(numbers, equations, target)."""
    while True:
      numbers = tuple(rng.randint(*_NUMBERS) for _ in range(self.numbers))
      left, equations = list(numbers), []
      while len(left) > 1:
        a, b = rng.sample(range(len(left)), 2)
        first, second = left[a], left[b]
        choices = list(_results(first, second))
        if not choices:
          break
        sign, result = rng.choice(choices)
        equations.append(f"{first}{sign}{second}={result}")
        left = [n for i, n in enumerate(left) if i not in (a, b)] + [result]
      if len(left) == 1 and _TARGETS[0] <= left[0] <= _TARGETS[1]:
        return numbers, equations, left[0]

  def group(self, puzzle: tuple[tuple[int, ...], list[str], int]) -> str:
    """The numbers without their order, and the target."""
    numbers, _, target = puzzle
    return f"{sorted(numbers)}={target}"

  def example(self, rng: random.Random, puzzle: tuple[tuple[int, ...], list[str], int]) -> Example:
    """See the class."""
    numbers, equations, target = puzzle
    return Example(",".join(map(str, (*numbers, target))), (",".join(equations),))

  def solve(self, prompt: str) -> str | None:
    """An answer, found by trying all; None if there is none."""
    *numbers, target = map(int, prompt.split(","))
    found = _search(numbers, target)
    return None if found is None else ",".join(found)

  def verify(self, example: Example, text: str) -> Verdict:
    """Every equation holds and uses numbers that are there; the last result is the target."""
    *left, target = map(int, example.prompt.split(","))
    steps = [_EQUATION.fullmatch(part) for part in text.split(",")]
    if not all(steps) or len(steps) != len(left) - 1:
      return malformed(f"is not {len(left) - 1} equations such as 1+2=3 between commas")
    result = None
    for step in steps:
      first, sign, second, result = int(step[1]), step[2], int(step[3]), int(step[4])
      for number in (first, second):
        if number not in left:
          return wrong(f"{step[0]} uses {number}, which is not there or used up")
        left.remove(number)
      if dict(_results(first, second)).get(sign) != result:
        return wrong(f"{step[0]} does not hold in whole numbers from 0 up")
      left.append(result)
    return RIGHT if result == target else wrong(f"the last result is {result}, not {target}")

  def files(self) -> PuzzleFiles:
    """The files of `path`."""
    return PuzzleFiles(self, self.path, (".txt",), self._rows, self._file_group)

  def _rows(self, path: Path) -> Iterator[Row]:
    for row in lines(path):
      prompt, bar, answer = (row.value or "").partition("|")
      problem = row.problem
      if problem is None and not (bar and re.fullmatch(r"\d+(,\d+)+", prompt)):
        problem = f"holds {row.value!r}, and must be numbers,target|equations"
      if problem is None and prompt.count(",") != self.numbers:
        problem = f"has {prompt.count(',')} numbers, and data.task.numbers={self.numbers}"
      yield row._replace(value=(prompt, answer), problem=problem)

  def _file_group(self, prompt: str) -> str:
    *numbers, target = map(int, prompt.split(","))
    return self.group((tuple(numbers), [], target))


@member
class Countdown4(Countdown3):
  """Countdown with four numbers, otherwise as `Countdown3`."""

  numbers: int = option(4, "numbers of a puzzle", ge=2, le=6)


@member
class Countdown5(Countdown3):
  """Countdown with five numbers, otherwise as `Countdown3`."""

  numbers: int = option(5, "numbers of a puzzle", ge=2, le=6)


def _results(first: int, second: int) -> Iterator[tuple[str, int]]:
  """(operation, result) of every operation whose result is a whole number from 0 up."""
  yield "+", first + second
  if first >= second:
    yield "-", first - second
  yield "*", first * second
  if second and first % second == 0:
    yield "/", first // second


def _search(numbers: list[int], target: int) -> list[str] | None:
  if len(numbers) == 1:
    return [] if numbers[0] == target else None
  for a, b in itertools.permutations(range(len(numbers)), 2):
    rest = [n for i, n in enumerate(numbers) if i not in (a, b)]
    for sign, result in _results(numbers[a], numbers[b]):
      found = _search([*rest, result], target)
      if found is not None:
        return [f"{numbers[a]}{sign}{numbers[b]}={result}", *found]
  return None

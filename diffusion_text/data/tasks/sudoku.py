"""Sudoku of 4 × 4 and 9 × 9 cells, as two lines of digits."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.tasks.contract import RIGHT, Example, Verdict, malformed, wrong
from diffusion_text.data.tasks.puzzle_files import MadeOrRead, PuzzleFiles
from diffusion_text.data.text_files import Row, csv_rows, with_fields

_FIX = "the header must name the two columns puzzle,solution"


@member
class Sudoku9(MadeOrRead):
  """Sudoku of 9 × 9 cells. The prompt is 81 digits, 0 for an empty cell, and the answer 81 digits.

  A generated puzzle has exactly one solution: clues are taken away in random order, unless a second
  solution appears, until `clues` are left (or none can be taken away). Puzzles with the same
  solution are in one split. Puzzles from files are verified, but that they have no other solution
  is not: any grid that keeps the clues and the rules is right.

  Attributes:
    clues: Clues that are left, or more.
    train_size: As of `Generated`, and smaller there: each clue that goes needs a search.
    path: csv files with columns puzzle,solution, in place of the generator.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "positions")
  box: ClassVar[int] = 3

  clues: int = option(36, "clues of a puzzle", ge=17, le=80)
  train_size: int = option(2_000, "examples of the training split", ge=1)
  held_out_size: int = option(200, "examples of validation and of test, each", ge=1)

  def draw(self, rng: random.Random) -> str:
    """A solved grid, by search in random order."""
    return next(solutions("0" * self.box**4, rng))

  def group(self, puzzle: str) -> str:
    """The solved grid."""
    return puzzle

  def example(self, rng: random.Random, puzzle: str) -> Example:
    """The grid without some cells, and the grid."""
    cells, left = list(puzzle), len(puzzle)
    for place in rng.sample(range(len(cells)), len(cells)):
      if left <= self.clues:
        break
      kept, cells[place] = cells[place], "0"
      if count_solutions("".join(cells), 2) == 2:
        cells[place] = kept
      else:
        left -= 1
    return Example("".join(cells), (puzzle,))

  def solve(self, prompt: str) -> str | None:
    """The first solution in the order of digits; None if there is none."""
    return next(solutions(prompt), None)

  def verify(self, example: Example, text: str) -> Verdict:
    """All clues are kept, and each row, column and box has every digit once."""
    side = self.box**2
    if len(text) != side**2 or not set(text) <= set(_digits(side)):
      return malformed(f"is not {side**2} digits from 1 to {side}")
    for place, (clue, digit) in enumerate(zip(example.prompt, text)):
      if clue not in ("0", digit):
        return wrong(
          f"changes the clue {clue} in row {place // side + 1}, column {place % side + 1}"
        )
    for name, cells in _units(self.box):
      if len({text[place] for place in cells}) < side:
        return wrong(f"has a digit twice in {name}")
    return RIGHT

  def files(self) -> PuzzleFiles:
    """The files of `path`."""
    return PuzzleFiles(self, self.path, (".csv",), self._rows, str)

  def _rows(self, path: Path) -> Iterator[Row]:
    side = self.box**2
    allowed = set("0" + _digits(side))
    for row in with_fields(csv_rows(path), ("puzzle", "solution"), _FIX):
      problem = row.problem
      if problem is None:
        puzzle = row.value[0]
        if len(puzzle) != side**2 or not set(puzzle) <= allowed:
          problem = (
            f"has the puzzle {puzzle!r}, and must have {side**2} digits, 0 for an empty cell"
          )
      yield row._replace(problem=problem)


@member
class Sudoku4(Sudoku9):
  """Sudoku of 4 × 4 cells, with the digits 1 … 4, otherwise as `Sudoku9`.

  There are 288 solved grids. They are shared out over the splits, so a test puzzle has a solution
  that is no training puzzle's. With 6 clues there are enough puzzles for all sizes.
  """

  box: ClassVar[int] = 2

  clues: int = option(6, "clues of a puzzle", ge=4, le=15)
  train_size: int = option(5_000, "examples of the training split", ge=1)


def solutions(puzzle: str, rng: random.Random | None = None) -> Iterator[str]:
  """All grids that a puzzle may stand for, by search at the cell with the fewest candidates.

  Args:
    puzzle: side² digits, 0 for an empty cell; side is 4 or 9.
    rng: Tries digits in random order. None: in their order.
  """
  side = round(len(puzzle) ** 0.5)
  peers = _peers(round(side**0.5))
  every = (1 << side) - 1
  grid = [0] * side**2
  free = [every] * side**2
  for place, digit in enumerate(puzzle):
    if digit != "0":
      bit = 1 << (int(digit) - 1)
      if not free[place] & bit:
        return
      _place(grid, free, peers, place, bit)
  yield from _extend(grid, free, peers, rng)


def count_solutions(puzzle: str, most: int) -> int:
  """The number of solutions, counted up to `most`."""
  count = 0
  for _ in solutions(puzzle):
    count += 1
    if count == most:
      break
  return count


def _extend(
  grid: list[int],
  free: list[int],
  peers: tuple[tuple[int, ...], ...],
  rng: random.Random | None,
) -> Iterator[str]:
  best, fewest = -1, 99
  for place, bit in enumerate(grid):
    if not bit:
      count = free[place].bit_count()
      if count < fewest:
        best, fewest = place, count
        if count <= 1:
          break
  if best < 0:
    yield "".join(str(bit.bit_length()) for bit in grid)
    return
  bits = [1 << i for i in range(free[best].bit_length()) if free[best] >> i & 1]
  if rng is not None:
    rng.shuffle(bits)
  for bit in bits:
    next_grid, next_free = grid.copy(), free.copy()
    _place(next_grid, next_free, peers, best, bit)
    yield from _extend(next_grid, next_free, peers, rng)


def _place(
  grid: list[int], free: list[int], peers: tuple[tuple[int, ...], ...], place: int, bit: int
) -> None:
  grid[place] = bit
  for peer in peers[place]:
    free[peer] &= ~bit


def _digits(side: int) -> str:
  return "".join(str(n) for n in range(1, side + 1))


@functools.cache
def _units(box: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
  """(name, places) of every row, column and box."""
  side = box**2
  units = []
  for n in range(side):
    units.append((f"row {n + 1}", tuple(n * side + i for i in range(side))))
    units.append((f"column {n + 1}", tuple(i * side + n for i in range(side))))
    top, left = n // box * box, n % box * box
    inside = tuple((top + i // box) * side + left + i % box for i in range(side))
    units.append((f"box {n + 1}", inside))
  return tuple(units)


@functools.cache
def _peers(box: int) -> tuple[tuple[int, ...], ...]:
  return tuple(
    tuple({peer for _, cells in _units(box) if place in cells for peer in cells} - {place})
    for place in range(box**4)
  )

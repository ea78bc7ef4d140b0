"""3-SAT and boolean formulas."""

from __future__ import annotations

import random
import re
import string
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.tasks.contract import RIGHT, Example, Verdict, malformed, wrong
from diffusion_text.data.tasks.generated import Generated

_LITERAL = re.compile(r"([+-])([a-z])")


@member
class Satisfiability(Generated):
  """3-SAT: values of the variables a, b, c … that make every clause true.

  The prompt is clauses of three literals each, "+a-b+d,-a-c+d", where -b is "not b". The answer is
  a bit for each variable in the order of the alphabet, "1001". An assignment is drawn first and
  clauses that it makes false are drawn again, so a formula always has one; any satisfying
  assignment is right. Formulas with the same clauses are in one split.

  Attributes:
    variables: How many; 5, 7 and 9 are usual (arXiv 2410.14157).
    clauses: Clauses of a formula; about 4.2 per variable is hardest at large sizes.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "exact_match")

  variables: int = option(5, "variables of a formula", ge=3, le=20)
  clauses: int = option(20, "clauses of a formula", ge=1, le=200)

  def draw(self, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """(assignment, clauses)."""
    names = string.ascii_lowercase[: self.variables]
    values = "".join(rng.choice("01") for _ in names)
    clauses: list[str] = []
    while len(clauses) < self.clauses:
      chosen = sorted(rng.sample(names, 3))
      clause = "".join(rng.choice("+-") + name for name in chosen)
      if _holds(clause, values):
        clauses.append(clause)
    return values, tuple(clauses)

  def group(self, puzzle: tuple[str, tuple[str, ...]]) -> str:
    """The clauses without their order."""
    return ",".join(sorted(puzzle[1]))

  def example(self, rng: random.Random, puzzle: tuple[str, tuple[str, ...]]) -> Example:
    """See the class."""
    return Example(",".join(puzzle[1]), (puzzle[0],))

  def solve(self, prompt: str) -> str | None:
    """The first satisfying assignment, by trying variable after variable; None if there is none."""
    return _assign(prompt.split(","), "", self.variables)

  def verify(self, example: Example, text: str) -> Verdict:
    """Every clause has a literal that is true."""
    if not re.fullmatch(rf"[01]{{{self.variables}}}", text):
      return malformed(f"is not {self.variables} bits")
    false = [clause for clause in example.prompt.split(",") if not _holds(clause, text)]
    return wrong(f"makes the clause {false[0]} false") if false else RIGHT


def _holds(clause: str, values: str) -> bool:
  return any(
    values[ord(name) - ord("a")] == ("1" if sign == "+" else "0")
    for sign, name in _LITERAL.findall(clause)
  )


def _assign(clauses: list[str], values: str, variables: int) -> str | None:
  """`values` with the rest of the variables, or None. A clause whose literals are all false and
  have values is a dead end.
  """
  known = set(string.ascii_lowercase[: len(values)])
  for clause in clauses:
    if set(re.findall(r"[a-z]", clause)) <= known and not _holds(clause, values):
      return None
  if len(values) == variables:
    return values
  return _assign(clauses, values + "0", variables) or _assign(clauses, values + "1", variables)


@member
class BooleanFormula(Generated):
  """The value of a boolean formula of 0, 1, & (and), | (or), ^ (either), ! (not) and brackets.

  The prompt is "((1&0)|!(0^1))". The answer is the value of every operation, always of the leftmost
  one whose operands are known, so that the last bit is the value of the formula: here "0100" for &,
  ^, !, |. All bits are verified. Equal formulas are in one split.

  Attributes:
    operations: The number of operations, and of bits of an answer.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "positions")

  operations: int = option(6, "operations of a formula", ge=1, le=100)

  def draw(self, rng: random.Random) -> str:
    """The formula."""
    return _formula(rng, self.operations)

  def group(self, puzzle: str) -> str:
    """The formula."""
    return puzzle

  def example(self, rng: random.Random, puzzle: str) -> Example:
    """See the class."""
    return Example(puzzle, (self.solve(puzzle),))

  def solve(self, prompt: str) -> str:
    """The value of every operation, by repeated replacement of what holds no bracket."""
    bits, rest = "", prompt
    pattern = re.compile(r"\(([01])([&|^])([01])\)|!([01])")
    while (found := pattern.search(rest)) is not None:
      if found[4] is not None:
        value = 1 - int(found[4])
      else:
        a, b = int(found[1]), int(found[3])
        value = {"&": a & b, "|": a | b, "^": a ^ b}[found[2]]
      bits += str(value)
      rest = rest[: found.start()] + str(value) + rest[found.end() :]
    return bits

  def verify(self, example: Example, text: str) -> Verdict:
    """Every value is right."""
    if not re.fullmatch(rf"[01]{{{self.operations}}}", text):
      return malformed(f"is not {self.operations} bits")
    return RIGHT if text == self.solve(example.prompt) else wrong("has a wrong value")


def _formula(rng: random.Random, operations: int) -> str:
  if operations == 0:
    return rng.choice("01")
  if rng.random() < 0.2:
    return "!" + _formula(rng, operations - 1)
  left = rng.randrange(operations)
  sign = rng.choice("&|^")
  return f"({_formula(rng, left)}{sign}{_formula(rng, operations - 1 - left)})"

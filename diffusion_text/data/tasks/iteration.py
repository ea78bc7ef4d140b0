"""Tasks that need as many steps as their prompt says: iterated functions, parity; and look-up."""

from __future__ import annotations

import random
import re
import string
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.tasks.contract import RIGHT, Example, Verdict, malformed, wrong
from diffusion_text.data.tasks.generated import Generated


@member
class Composition(Generated):
  """A function, applied again and again: f(x), f(f(x)) … as many values as `times`.

  The prompt is a table and a start: "cadb:b" is f(a) = c, f(b) = a, f(c) = d, f(d) = b, from b. The
  answer is "acd" for three times, or without `thoughts` the last value alone. The same table and
  start are in one split.

  Attributes:
    symbols: Values of the function.
    times: How often it is applied.
    thoughts: Write all values.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "positions")

  symbols: int = option(6, "values of the function", ge=2, le=26)
  times: int = option(4, "how often the function is applied", ge=1, le=100)
  thoughts: bool = option(True, "write every value; otherwise the last alone")

  def draw(self, rng: random.Random) -> str:
    """The table and the start."""
    names = string.ascii_lowercase[: self.symbols]
    return "".join(rng.choice(names) for _ in names) + ":" + rng.choice(names)

  def group(self, puzzle: str) -> str:
    """The prompt."""
    return puzzle

  def example(self, rng: random.Random, puzzle: str) -> Example:
    """See the class."""
    return Example(puzzle, (self.solve(puzzle),))

  def solve(self, prompt: str) -> str:
    """The values, by look-up."""
    table, _, value = prompt.partition(":")
    values = ""
    for _ in range(self.times):
      value = table[ord(value) - ord("a")]
      values += value
    return values if self.thoughts else value

  def verify(self, example: Example, text: str) -> Verdict:
    """Every value is right."""
    size = self.times if self.thoughts else 1
    if not re.fullmatch(rf"[a-{string.ascii_lowercase[self.symbols - 1]}]{{{size}}}", text):
      return malformed(f"is not {size} of the {self.symbols} values")
    return RIGHT if text == self.solve(example.prompt) else wrong("has a wrong value")


@member
class Parity(Generated):
  """The parity of a row of bits. The prompt is "10110"; the answer is the parity up to each bit,
  "11011", or without `thoughts` of all bits, "1". Equal prompts are in one split.

  Attributes:
    bits: Bits of a prompt.
    thoughts: Write the parity up to each bit.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "positions")

  bits: int = option(20, "bits of a prompt", ge=2, le=1000)
  thoughts: bool = option(True, "write the parity up to each bit; otherwise of all alone")

  def draw(self, rng: random.Random) -> str:
    """The bits."""
    return "".join(rng.choice("01") for _ in range(self.bits))

  def group(self, puzzle: str) -> str:
    """The prompt."""
    return puzzle

  def example(self, rng: random.Random, puzzle: str) -> Example:
    """See the class."""
    return Example(puzzle, (self.solve(puzzle),))

  def solve(self, prompt: str) -> str:
    """The parities, one bit after the other."""
    parities, parity = "", 0
    for bit in prompt:
      parity ^= int(bit)
      parities += str(parity)
    return parities if self.thoughts else str(parity)

  def verify(self, example: Example, text: str) -> Verdict:
    """Every parity is right."""
    size = self.bits if self.thoughts else 1
    if not re.fullmatch(rf"[01]{{{size}}}", text):
      return malformed(f"is not {size} bit(s)")
    return RIGHT if text == self.solve(example.prompt) else wrong("has a wrong parity")


@member
class Needles(Generated):
  """Keys with values, and the value of one key. The prompt is "fk=813 qz=450 … ?qz", the answer
  "450". Keys are two letters, all different. Prompts are in one split with those that hold the same
  pairs and ask for another.

  Attributes:
    pairs: Pairs of a prompt: 8 characters each with a value of 3 digits.
    value_digits: Digits of a value.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid")

  pairs: int = option(8, "keys of a prompt", ge=1, le=600)
  value_digits: int = option(3, "digits of a value", ge=1, le=9)

  def draw(self, rng: random.Random) -> tuple[str, ...]:
    """The pairs."""
    every = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    values = [f"{rng.randrange(10**self.value_digits):0{self.value_digits}}"
              for _ in range(self.pairs)]  # fmt: skip
    return tuple(f"{key}={value}" for key, value in zip(rng.sample(every, self.pairs), values))

  def group(self, puzzle: tuple[str, ...]) -> str:
    """The pairs without their order."""
    return " ".join(sorted(puzzle))

  def example(self, rng: random.Random, puzzle: tuple[str, ...]) -> Example:
    """See the class."""
    key, _, value = rng.choice(puzzle).partition("=")
    return Example(f"{' '.join(puzzle)} ?{key}", (value,))

  def solve(self, prompt: str) -> str:
    """The value after the key."""
    *pairs, question = prompt.split(" ")
    return dict(pair.split("=") for pair in pairs)[question[1:]]

  def verify(self, example: Example, text: str) -> Verdict:
    """The text is the value after the key."""
    if not re.fullmatch(rf"\d{{{self.value_digits}}}", text):
      return malformed(f"is not {self.value_digits} digit(s)")
    key = example.prompt.rpartition("?")[2]
    found = re.search(rf"(?:^| ){key}=(\d+)", example.prompt)
    return RIGHT if found is not None and found[1] == text else wrong("is not the value of the key")

"""The grammar of a compiled program's text: computations, and the instructions in them.

The text differs by the line of jax. Up to 0.10 an element of a tuple is an instruction of its own,
`%i = get-tuple-element(%p), index=4`. From 0.12 on it may stand where it is used, as `%p#4`. Here
both read the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  `shape` is HLO text such as `bf16[8,128]{1,0:T(8,128)S(1)}`, or a tuple of such shapes.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool


def read_computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """({computation: its instructions in order}, the name of the entry or "") of a program."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    head = re.match(
      r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$|(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line
    )
    if head and not line.startswith(" "):
      current = head.group(2) or head.group(4)
      computations[current] = []
      entry = current if line.startswith("ENTRY") else entry
    elif line.startswith("  ") and current is not None:
      instruction = _instruction(line)
      if instruction is not None:
        computations[current].append(instruction)
  return {name: list(_with_elements(body)) for name, body in computations.items()}, entry


def _with_elements(body: list[Instruction]) -> Iterator[Instruction]:
  """The instructions, and before the first use of `tuple#k` an instruction of that name."""
  shapes = {}
  for instruction in body:
    for operand in instruction.operands:
      of, mark, index = operand.rpartition("#")
      if mark and operand not in shapes:
        shapes[operand] = elements(shapes[of])[int(index)]
        yield Instruction(
          operand, shapes[operand], "get-tuple-element", (of,), f", index={index}", False
        )
    shapes[instruction.name] = instruction.shape
    yield instruction


def elements(shape: str) -> list[str]:
  """The shapes that a tuple's shape is made of: of `(f32[2], (s32[], u32[]))` they are two."""
  inside = re.sub(r"/\*.*?\*/", "", shape.strip())[1:-1]
  found, depth, start = [], 0, 0
  for place, letter in enumerate(inside):
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and depth == 0:
      found.append(inside[start:place].strip())
      start = place + 1
  return [*found, inside[start:].strip()]


def _close(text: str, start: int) -> int:
  """The place of the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if depth == 0:
      return place
  return len(text) - 1


def _instruction(line: str) -> Instruction | None:
  match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if match is None:
    return None
  rest = line[match.end() :]
  end = _close(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  opening = rest.find("(")
  closing = _close(rest, opening)
  operands, opcode = rest[opening + 1 : closing], rest[:opening]
  # Constants and parameters have no operands. The text in their parentheses is kept with the
  # attributes.
  leaf = opcode in ("constant", "parameter")
  names = () if leaf else tuple(re.findall(r"%([\w.\-]+(?:#\d+)*)", operands))
  return Instruction(
    match.group(2),
    shape,
    opcode,
    names,
    (operands + ")" if leaf else "") + rest[closing + 1 :],
    bool(match.group(1)),
  )

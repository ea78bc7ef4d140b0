"""SCAN: commands in words, and the actions that they stand for."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from diffusion_text.core.options import member, option
from diffusion_text.data.tasks.contract import RIGHT, Example, Verdict, malformed, wrong
from diffusion_text.data.tasks.puzzle_files import MadeOrRead, PuzzleFiles
from diffusion_text.data.text_files import Row, lines

_ACTIONS = {"walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP", "turn": ""}
_TURNS = {"left": "I_TURN_LEFT", "right": "I_TURN_RIGHT"}
_TIMES = {"": 1, "twice": 2, "thrice": 3}
_LINE = re.compile(r"IN: (.+) OUT: (.+)")
_PHRASE = re.compile(
  r"(walk|look|run|jump|turn)(?: (opposite|around))?(?: (left|right))?(?: (twice|thrice))?"
)


@member
class Scan(MadeOrRead):
  """SCAN (Lake & Baroni 2018, arXiv 1711.00350): "jump left after walk twice" is I_WALK I_WALK
  I_TURN_LEFT I_JUMP.

  Without a path, commands are drawn from the grammar: one phrase, or two with "and" or "after".
  Of the 20,910 commands, 85 % may be for training. A prompt has one right answer, which an
  interpreter of the grammar finds.

  Attributes:
    path: The published files, "IN: … OUT: …", in place of the generator. Their names say the split;
      use one kind (simple, length, addprim_jump) at a time.
    train_size: As of `Generated`.
  """

  metrics: ClassVar[tuple[str, ...]] = ("right", "valid", "reward")

  train_size: int = option(10_000, "examples of the training split", ge=1)

  def draw(self, rng: random.Random) -> str:
    """A command."""
    join = rng.choice((" and ", " after ")) if rng.random() < 0.9 else ""
    return _phrase(rng) + (join + _phrase(rng) if join else "")

  def group(self, puzzle: str) -> str:
    """The command."""
    return puzzle

  def example(self, rng: random.Random, puzzle: str) -> Example:
    """See the class."""
    return Example(puzzle, (self.solve(puzzle),))

  def solve(self, prompt: str) -> str | None:
    """The actions; None for what is no command."""
    first, join, second = (*re.split(r" (and|after) ", prompt), "", "")[:3]
    one = _phrase_actions(first)
    other = _phrase_actions(second) if join else []
    if one is None or other is None:
      return None
    return " ".join(other + one if join == "after" else one + other)

  def verify(self, example: Example, text: str) -> Verdict:
    """The text is the actions of the command."""
    words = text.split(" ")
    if not set(words) <= {*_TURNS.values(), *filter(None, _ACTIONS.values())}:
      return malformed("holds a word that is no action")
    return RIGHT if text == self.solve(example.prompt) else wrong("is not what the command says")

  def files(self) -> PuzzleFiles:
    """The files of `path`."""
    return PuzzleFiles(self, self.path, (".txt",), self._rows, str)

  def _rows(self, path: Path) -> Iterator[Row]:
    for row in lines(path):
      found = _LINE.fullmatch(row.value or "")
      problem = row.problem
      if problem is None and found is None:
        problem = f"holds {row.value!r}, and must be IN: … OUT: …"
      yield row._replace(value=found and found.groups(), problem=problem)


def _phrase(rng: random.Random) -> str:
  action = rng.choice(list(_ACTIONS))
  # A turn needs a side; of the other actions a quarter has none.
  alone = action != "turn" and rng.random() < 0.25
  how = rng.choice(("opposite ", "around ", ""))
  side = "" if alone else f" {how}{rng.choice(('left', 'right'))}"
  times = rng.choice(("", " twice", " thrice"))
  return f"{action}{side}{times}"


def _phrase_actions(phrase: str) -> list[str] | None:
  """The actions of one phrase, by the table of Lake & Baroni; None for what is none."""
  found = _PHRASE.fullmatch(phrase)
  if found is None:
    return None
  action, how, side, times = found.groups("")
  if (how or action == "turn") and not side:
    return None
  do = [_ACTIONS[action]] if _ACTIONS[action] else []
  turn = [_TURNS[side]] if side else []
  once = {"": turn + do, "opposite": turn * 2 + do, "around": (turn + do) * 4}[how]
  return once * _TIMES[times]

"""Tasks whose examples are drawn by a seeded generator, and can be solved by construction."""

from __future__ import annotations

import functools
import hashlib
import random
from pathlib import Path
from typing import Any

from diffusion_text.core.options import member, option
from diffusion_text.data.corpora import check_split
from diffusion_text.data.splits import ALL, SPLITS
from diffusion_text.data.tasks.contract import Example

# Hundredths of all groups of puzzles.
_HELD_OUT = {"test": range(0, 10), "validation": range(10, 15)}
_PATIENCE = 20_000  # draws in a row that give nothing new
_VERSION = 1  # part of every identity; raise it when a generator draws other puzzles


def split_of(group: str) -> str:
  """The split of a group of puzzles, by a hash of its name: 85 % train, 5 % validation, 10 % test.

  It depends on nothing else, so train and test are disjoint for all seeds and sizes.
  """
  hundredth = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
  return next((name for name, share in _HELD_OUT.items() if hundredth in share), "train")


@member
class Generated:
  """The base of tasks with a generator: sizes, seed and splits.

  A subclass has `draw`, `group` and `example`, and a `solve` that knows nothing of the generator.

  Attributes:
    seed: Of the generator.
    train_size: Examples of the training split.
    held_out_size: Examples of validation and of test, each.
  """

  seed: int = option(0, "of the generator", ge=0)
  train_size: int = option(20_000, "examples of the training split", ge=1)
  held_out_size: int = option(500, "examples of validation and of test, each", ge=1)

  def draw(self, rng: random.Random) -> Any:
    """A puzzle, as cheap as may be: most draws for a held-out split belong to another."""
    raise NotImplementedError

  def group(self, puzzle: Any) -> str:
    """The name of all puzzles that count as the same, which are in one split."""
    raise NotImplementedError

  def example(self, rng: random.Random, puzzle: Any) -> Example:
    """The puzzle as text, with its answer."""
    raise NotImplementedError

  def examples(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, all with different prompts.

    Raises:
      ValueError: If there are not so many different ones.
    """
    check_split(split)
    names = SPLITS if split == ALL else (split,)
    return tuple(example for name in names for example in _generate(self, name))

  def identity(self, memo: Path | None = None) -> str:
    """The class and its options."""
    del memo  # there is no file
    return f"{_VERSION}:{self!r}"

  def origin(self, split: str) -> str:
    """The generator."""
    return f"drawn by {self!r}, split {split} by a hash of the puzzle"


@functools.lru_cache(maxsize=16)
def _generate(task: Generated, split: str) -> tuple[Example, ...]:
  rng = random.Random(f"{task.seed}:{split}")
  wanted = task.train_size if split == "train" else task.held_out_size
  found: dict[str, Example] = {}
  idle = 0
  while len(found) < wanted:
    before = len(found)
    puzzle = task.draw(rng)
    if split_of(task.group(puzzle)) == split:
      example = task.example(rng, puzzle)
      found.setdefault(example.prompt, example._replace(place=f"{split} example {before}"))
    idle = 0 if len(found) > before else idle + 1
    if idle > _PATIENCE:
      raise ValueError(
        f"{task!r} has only about {len(found)} different examples for split={split!r}, and {wanted}"
        " are asked for; use larger puzzles, or a smaller train_size and held_out_size"
      )
  return tuple(found.values())

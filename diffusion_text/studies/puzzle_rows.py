"""Small tasks whose answers can be checked, as rows of tokens: a problem that is observed and an
answer of fixed length behind it.

The studies of decoders that need a right answer measure with these (`guided`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from diffusion_text.data.tasks.sudoku import Sudoku4
from diffusion_text.types import Batch

SUDOKU_CLUES = 6


class Puzzle(NamedTuple):
  """A task.

  Attributes:
    name: its name in tables.
    vocab_size: V.
    prompt: the tokens of a row that are observed, at its start.
    answer: the tokens of the answer behind them; of each problem one answer is right.
    train, test: a generator and a number of rows -> int32 [B, prompt + answer].
  """

  name: str
  vocab_size: int
  prompt: int
  answer: int
  train: Callable[[np.random.Generator, int], Int[np.ndarray, "B N"]]
  test: Callable[[np.random.Generator, int], Int[np.ndarray, "B N"]]

  @property
  def length(self) -> int:
    """N."""
    return self.prompt + self.answer

  def batch(self, ids: Int[np.ndarray, "B N"]) -> Batch:
    """The rows with their problems observed."""
    return Batch(ids, np.broadcast_to(np.arange(self.length) < self.prompt, ids.shape))

  def batches(self, rows: int, seed: int) -> Iterator[Batch]:
    """Endless batches of rows of training."""
    rng = np.random.default_rng(seed)
    while True:
      yield self.batch(self.train(rng, rows))


def sums(rng: np.random.Generator, rows: int, digits: int) -> Int[np.ndarray, "B N"]:
  """int32 [B, 3 · digits + 1]: rows of a, b and a + b, least significant digits first."""
  a, b = rng.integers(0, 10, (2, rows, digits))
  total, carry = np.zeros((rows, digits + 1), int), np.zeros(rows, int)
  for place in range(digits):
    here = a[:, place] + b[:, place] + carry
    total[:, place], carry = here % 10, here // 10
  total[:, digits] = carry
  return np.concatenate([a, b, total], axis=1).astype(np.int32)


def sum_puzzle(digits: int) -> Puzzle:
  """Sums of two numbers. Test rows are drawn like those of training; of few digits some are the
  same.
  """

  def rows(rng, number):
    return sums(rng, number, digits)

  return Puzzle(f"sums of {digits} digits", 10, 2 * digits, digits + 1, rows, rows)


def sudoku_puzzle(train_size: int = 20_000, test_size: int = 500) -> Puzzle:
  """Sudoku of 4 × 4 cells with 6 clues: 16 digits, 0 for an empty cell, and the 16 digits of the
  only solution. No solution of a test row is one of training.
  """
  task = Sudoku4(clues=SUDOKU_CLUES, train_size=train_size, held_out_size=test_size)

  def drawn(split):
    def rows(rng, number):
      texts = [each.prompt + each.answers[0] for each in task.examples(split)]
      ids = np.array([list(map(int, text)) for text in texts], np.int32)
      return ids[rng.choice(len(ids), number, replace=number > len(ids))]

    return rows

  return Puzzle("Sudoku 4 × 4", 5, 16, 16, drawn("train"), drawn("test"))

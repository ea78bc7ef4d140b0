"""Small tasks whose answers can be checked, as rows of tokens: a problem that is observed and an
answer of fixed length behind it.

The studies of decoders that need a right answer measure with these (`guided`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from diffusion_text.data.tasks.contract import Example
from diffusion_text.data.tasks.countdown import Countdown3
from diffusion_text.data.tasks.sudoku import Sudoku4
from diffusion_text.types import Batch

SUDOKU_CLUES = 6
FILL = "_"  # behind a text that is shorter than its room
COUNTDOWN = "0123456789+-*/=," + FILL
COUNTDOWN_PROMPT, COUNTDOWN_ANSWER = len("99,99,99,100"), len("50*98=4900,4900/49=100")


class Puzzle(NamedTuple):
  """A task.

  Attributes:
    name: its name in tables.
    vocab_size: V.
    prompt: the tokens of a row that are observed, at its start.
    answer: the tokens of the answer behind them.
    train, test: a generator and a number of rows -> int32 [B, prompt + answer], with one right
      answer each.
    right: rows -> whether their answers are, any right one.
  """

  name: str
  vocab_size: int
  prompt: int
  answer: int
  train: Callable[[np.random.Generator, int], Int[np.ndarray, "B N"]]
  test: Callable[[np.random.Generator, int], Int[np.ndarray, "B N"]]
  right: Callable[[Int[np.ndarray, "B N"]], Bool[np.ndarray, " B"]]

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
  return np.concatenate([a, b, _total(a, b)], axis=1).astype(np.int32)


def _total(a: Int[np.ndarray, "B n"], b: Int[np.ndarray, "B n"]) -> Int[np.ndarray, "B m"]:
  """The digits [B, n + 1] of a + b."""
  digits = a.shape[1]
  total, carry = np.zeros((len(a), digits + 1), int), np.zeros(len(a), int)
  for place in range(digits):
    here = a[:, place] + b[:, place] + carry
    total[:, place], carry = here % 10, here // 10
  total[:, digits] = carry
  return total


def sum_puzzle(digits: int) -> Puzzle:
  """Sums of two numbers. Test rows are drawn like those of training; of few digits some are the
  same.
  """

  def rows(rng, number):
    return sums(rng, number, digits)

  def right(ids):
    a, b, total = np.split(ids, (digits, 2 * digits), axis=1)
    return (total == _total(a, b)).all(1)

  return Puzzle(f"sums of {digits} digits", 10, 2 * digits, digits + 1, rows, rows, right)


def sudoku_puzzle(train_size: int = 20_000, test_size: int = 500) -> Puzzle:
  """Sudoku of 4 × 4 cells with 6 clues: 16 digits, 0 for an empty cell, and the 16 digits of the
  only solution. No solution of a test row is one of training.
  """
  task = Sudoku4(clues=SUDOKU_CLUES, train_size=train_size, held_out_size=test_size)
  return _text_puzzle("Sudoku 4 × 4", task, "01234", 16, 16)


def countdown_puzzle(train_size: int = 50_000, test_size: int = 500) -> Puzzle:
  """Countdown with three numbers, as text that is filled up. Several answers may be right, and any
  is. No numbers of a test row are, with their target, those of one of training.
  """
  task = Countdown3(train_size=train_size, held_out_size=test_size)
  return _text_puzzle("Countdown, 3 numbers", task, COUNTDOWN, COUNTDOWN_PROMPT, COUNTDOWN_ANSWER)


def _text_puzzle(
  name: str, task: Countdown3 | Sudoku4, alphabet: str, prompt: int, answer: int
) -> Puzzle:
  """A task in characters; problems and answers that are shorter than their room are filled up."""
  numbers = {character: number for number, character in enumerate(alphabet)}

  @functools.cache
  def all_rows(split):
    texts = [
      each.prompt.ljust(prompt, FILL) + each.answers[0].ljust(answer, FILL)
      for each in task.examples(split)
    ]
    return np.array([[numbers[character] for character in text] for text in texts], np.int32)

  def drawn(split):
    def rows(rng, number):
      ids = all_rows(split)
      return ids[rng.choice(len(ids), number, replace=number > len(ids))]

    return rows

  def one(row):
    text = "".join(alphabet[number] for number in row)
    example = Example(text[:prompt].rstrip(FILL), ())
    return task.verify(example, text[prompt:].rstrip(FILL)).right

  def right(ids):
    return np.array([one(row) for row in ids.tolist()])

  length = (prompt, answer)
  return Puzzle(name, len(alphabet), *length, drawn("train"), drawn("test"), right)

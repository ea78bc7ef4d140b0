"""The tasks and the measures of the studies of second models: sums are sums, scorers that are to
know a chain know it, rows hide what they say.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import NextToken
from diffusion_text.process.masked import Masked
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.scorer import token_log_probs
from diffusion_text.studies import any_order, energy, puzzle_rows
from diffusion_text.studies.chains import CHAINS, SMOOTHING
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, Model, Query


def test_sums_are_sums():
  """Least significant digits first, the carry of the last one behind them."""
  puzzle = puzzle_rows.sum_puzzle(6)
  ids = puzzle.test(np.random.default_rng(0), 64)
  number = 10 ** np.arange(7, dtype=np.int64)
  a, b, total = ids[:, :6] @ number[:6], ids[:, 6:12] @ number[:6], ids[:, 12:] @ number
  np.testing.assert_array_equal(a + b, total)
  batch = puzzle.batch(ids)
  np.testing.assert_array_equal(batch.observed.sum(0), np.repeat([64, 0], [12, 7]))
  assert puzzle.right(ids).all()
  ids[::2, 12] = (ids[::2, 12] + 1) % 10
  np.testing.assert_array_equal(puzzle.right(ids), np.arange(64) % 2 == 1)


def test_sudokus_are_solved_and_no_solution_is_in_both_splits():
  """The answer keeps the clues, and every row, column and box has all four digits."""
  puzzle = puzzle_rows.sudoku_puzzle(train_size=40, test_size=20)
  train, test = (make(np.random.default_rng(0), 20) for make in (puzzle.train, puzzle.test))
  for ids in (train, test):
    clues, grid = ids[:, :16], ids[:, 16:].reshape(-1, 4, 4)
    assert ((clues == 0) | (clues == ids[:, 16:])).all()
    assert ((clues > 0).sum(1) >= puzzle_rows.SUDOKU_CLUES).all()
    boxes = grid.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)
    for units in (grid, grid.swapaxes(1, 2), boxes):
      np.testing.assert_array_equal(np.sort(units), np.tile([1, 2, 3, 4], (20, 4, 1)))
  assert not {tuple(row) for row in train[:, 16:]} & {tuple(row) for row in test[:, 16:]}
  assert puzzle.right(test).all()
  test[:10, [16, 17]] = test[:10, [17, 16]]
  np.testing.assert_array_equal(puzzle.right(test), np.arange(20) >= 10)


def test_countdown_accepts_every_right_answer():
  """Of the form of the task, filled up; with the numbers of a sum in the other order it is another
  row and right, and with a wrong result, or a piece of filling within, it is not."""
  puzzle = puzzle_rows.countdown_puzzle(train_size=200, test_size=40)
  ids = puzzle.test(np.random.default_rng(0), 40)
  assert ids.shape == (40, puzzle.length) and puzzle.right(ids).all()
  alphabet, width = puzzle_rows.COUNTDOWN, puzzle.prompt
  texts = ["".join(alphabet[number] for number in row) for row in ids]

  def rows(change):
    made = [text[:width] + change(text[width:]) for text in texts]
    return np.array([list(map(alphabet.index, text)) for text in made], np.int32)

  other = rows(lambda text: re.sub(r"^(\d+)\+(\d+)=", r"\2+\1=", text))
  assert (other != ids).any(1).sum() > 5 and puzzle.right(other).all()
  assert not puzzle.right(rows(lambda text: text.replace("=", "=1", 1)[:-1])).any()
  assert not puzzle.right(rows(lambda text: text.replace(",", "_", 1))).any()


@pytest.mark.parametrize("name", CHAINS)
def test_the_exact_scorer_knows_the_chain(name):
  """Through the reader that the study uses; the NLL of the table is that of the chain, smoothed."""
  chain = CHAINS[name]()
  size = len(chain.initial)
  ids = chain.sample(np.random.default_rng(0), 32)
  model = Model(
    energy.BigramNetwork(vocab_size=size), Masked(vocab_size=size), AtNoise(), NextToken()
  )
  exact = {"network": {"table": energy.bigram_table(chain)}, "process": {}}
  params = {"process": {}, "exact": exact}
  scorer = Other(reader=WholeRow(), model=model, group="exact")
  masks = jnp.full(ids.shape, size)
  everywhere = jnp.ones(ids.shape, bool)
  query = Query(masks, jnp.ones(ids.shape), jnp.int32(0), everywhere, Batch(ids), masks)
  score = functools.partial(jax.jit, static_argnums=(0, 1))(token_log_probs)
  got = np.asarray(score(scorer, model, params, query, ids)).sum(1)
  with np.errstate(divide="ignore"):
    log_p = np.log(chain.initial[ids[:, 0]])
    log_p = log_p + np.log(chain.transition[ids[:, :-1], ids[:, 1:]]).sum(1)
  np.testing.assert_allclose(got, log_p, rtol=1e-4)
  smoothed = chain.nll(ids)
  assert np.abs(smoothed + log_p).max() < 2 * chain.length * SMOOTHING / chain.initial.min()
  invalid = np.roll(ids, 1, axis=1)
  assert chain.nll(invalid).mean() > smoothed.mean() + 1


def test_rows_hide_as_many_tokens_as_they_say():
  ids = np.zeros((8, 40), np.int32)
  for share, count in ((0.5, 20), (0.95, 38)):
    hidden = ~any_order.problem(ids, share, 0).observed
    np.testing.assert_array_equal(hidden.sum(1), count)
    assert (hidden[0] != hidden[1]).any()

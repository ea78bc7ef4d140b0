"""Minimal pairs: which of two sentences a model finds likelier, by bounds that share their noise.

The bounds of two sentences that differ in a word are drawn with the same times and the same noise
at every position, so that much of the noise of the difference cancels (as in diffusion
classifiers, arXiv 2303.16203, with pairs of grammar, BLiMP, arXiv 1912.00582).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Float

from diffusion_text.evaluate.likelihood import NatsFn
from diffusion_text.types import Batch, Key, Params, Progress


@dataclasses.dataclass(frozen=True)
class MinimalPairs:
  """How often the right one of two sentences has the lower bound.

  Attributes:
    differences: float64 [pairs], bound of the wrong sentence minus that of the right one in nats,
      the mean over draws.
    spreads: float64 [pairs], the standard deviation of a draw of the difference; 0 for one draw.
    num_draws: Draws of time and noise for each pair.
  """

  differences: Float[np.ndarray, " n"]
  spreads: Float[np.ndarray, " n"]
  num_draws: int

  @property
  def accuracy(self) -> float:
    """The share of pairs whose difference is above 0; 0 counts half."""
    return float(np.mean((self.differences > 0) + 0.5 * (self.differences == 0)))

  @property
  def standard_error(self) -> float:
    """Of the accuracy, over pairs."""
    share = self.accuracy
    return math.sqrt(share * (1 - share) / len(self.differences))

  def __str__(self) -> str:
    return (
      f"accuracy {self.accuracy:.3f} ± {self.standard_error:.3f}, difference"
      f" {self.differences.mean():.3f} nats, of which a draw has the spread"
      f" {self.spreads.mean():.3f} ({len(self.differences)} pairs, {self.num_draws} draws each)"
    )


def minimal_pairs(
  nats_fn: NatsFn,
  params: Params,
  pairs: Iterable[tuple[Batch, Batch]],
  key: Key,
  num_draws: int = 16,
  *,
  shared: bool = True,
) -> MinimalPairs:
  """The bounds of pairs of rows, with shared noise.

  Args:
    nats_fn: See `likelihood.NatsFn`: its noise must depend on key, row and position alone.
    params: The parameters of the model.
    pairs: Batches of right sentences with batches of wrong ones, row by row, of the same shape.
    key: A random key.
    num_draws: Draws of time and noise for each row.
    shared: False draws each sentence's noise by itself, to see what sharing is worth.

  Raises:
    ValueError: For no pairs, batches of two shapes, and num_draws < 1.
  """
  if num_draws < 1:
    raise ValueError(f"num_draws={num_draws} must be at least 1")
  drawn = []
  for number, (right, wrong) in enumerate(pairs):
    if right.ids.shape != wrong.ids.shape:
      raise ValueError(
        f"batch {number} has right sentences {right.ids.shape} and wrong ones {wrong.ids.shape};"
        " noise is shared by row and position, so fill both up to one shape"
      )
    batch_key = jax.random.fold_in(key, number)
    other_key = batch_key if shared else jax.random.fold_in(batch_key, 1)
    draws = []
    for draw in range(num_draws):
      progress = Progress(part=draw, parts=num_draws)
      ours, _ = nats_fn(params, batch_key, right, progress)
      theirs, _ = nats_fn(params, other_key, wrong, progress)
      draws.append(np.asarray(theirs, np.float64) - np.asarray(ours, np.float64))
    drawn.append(np.stack(draws))
  if not drawn:
    raise ValueError("there are no pairs; give at least one")
  values = np.concatenate(drawn, axis=1)
  spreads = values.std(axis=0, ddof=1) if num_draws > 1 else np.zeros(values.shape[1])
  return MinimalPairs(values.mean(axis=0), spreads, num_draws)

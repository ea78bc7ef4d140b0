"""How much a drawn bound varies by its own noise, the text left aside: which estimator gives the
same number for fewer draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from diffusion_text.evaluate.likelihood import NatsFn
from diffusion_text.types import Batch, Key, Params, Progress


@dataclasses.dataclass(frozen=True)
class NoiseVariance:
  """An estimator of the bound, from `rows` rows with `num_draws` independent draws of all times and
  noise each.

  mean ± standard_error: nats per token; the error is that of times and noise for this very text, so
  estimators can be compared. alone: variance, nats², of one draw of one row's nats, within rows
  over draws. together: the same per row when a batch is drawn at once, Var(sum of a batch) / rows;
  below `alone` where times are spread evenly over the batch. together_error: its relative standard
  error, for normal sums. note: what else to know, "" if nothing.
  """

  name: str
  mean: float
  standard_error: float
  alone: float
  together: float
  together_error: float
  rows: int
  num_draws: int
  note: str = ""

  def of_independent_rows(self, name: str) -> NoiseVariance:
    """The same estimator if each row drew its time for itself: rows then vary together as much as
    alone. Needs no more draws.
    """
    error = self.standard_error * math.sqrt(self.alone / self.together) if self.together else 0.0
    return dataclasses.replace(
      self, name=name, standard_error=error, together=self.alone, together_error=0.0
    )


def noise_variance(
  name: str, nats: Sequence[np.ndarray], weights: Sequence[np.ndarray], note: str = ""
) -> NoiseVariance:
  """The `NoiseVariance` of drawn values.

  nats: for each batch, float [draws, rows], sums over rows; draws are independent, rows of a draw
  need not be. weights: for each batch, float [rows], 0 = padding. Raises ValueError for fewer than
  2 draws or if nothing was scored.
  """
  draws, rows = nats[0].shape[0], sum(int((weight > 0).sum()) for weight in weights)
  if draws < 2:
    raise ValueError(f"num_draws={draws} has no variance; use at least 2, 8 is a good start")
  total = sum(float(weight.sum()) for weight in weights)
  if total == 0:
    raise ValueError(
      "no token was scored: every position is given or padding; check the batch's `given` and"
      " `weights`"
    )
  alone = sum(float(values.var(axis=0, ddof=1).sum()) for values in nats)
  of_batches = np.array([values.sum(axis=1).var(ddof=1) for values in nats])
  together = float(of_batches.sum())
  return NoiseVariance(
    name=name,
    mean=sum(float(values.mean(axis=0).sum()) for values in nats) / total,
    standard_error=math.sqrt(together / draws) / total,
    alone=alone / rows,
    together=together / rows,
    # Each batch's variance has draws - 1 degrees of freedom: its own relative variance is 2 /
    # (draws - 1).
    together_error=math.sqrt(2 / (draws - 1) * float((of_batches**2).sum())) / together
    if together
    else 0.0,
    rows=rows,
    num_draws=draws,
    note=note,
  )


def measure(
  name: str,
  nats_fn: NatsFn,
  params: Params,
  batches: Iterable[tuple[Batch, int]],
  key: Key,
  num_draws: int,
  note: str = "",
) -> NoiseVariance:
  """Draws every batch `num_draws` times, each with a key of its own: draw d of batch b has
  fold_in(fold_in(key, b), d).
  """
  if num_draws < 2:
    raise ValueError(f"num_draws={num_draws} has no variance; use at least 2, 8 is a good start")
  nats, weights = [], []
  for number, (batch, _) in enumerate(batches):
    keys = [jax.random.fold_in(jax.random.fold_in(key, number), draw) for draw in range(num_draws)]
    draws = [nats_fn(params, key, batch, Progress()) for key in keys]
    nats.append(np.stack([np.asarray(values, np.float64) for values, _ in draws]))
    weights.append(np.asarray(draws[0][1], np.float64))
  if not nats:
    raise ValueError("there is no held-out batch; use a longer text or a smaller data.length")
  return noise_variance(name, nats, weights, note)


def table(rows: Sequence[NoiseVariance]) -> str:
  """Lines of text, one per estimator; ratios are to the first."""
  first = rows[0]
  lines = [f"{'estimator':<28}{'nats/token':>20}{'one row':>12}{'row of a batch':>22}{'ratio':>8}"]
  for row in rows:
    together = f"{row.together:.4g}" + (
      f" ± {100 * row.together_error:.0f} %" if row.together_error else ""
    )
    ratio = f"{row.together / first.together:.3f}" if first.together else "-"
    mean = f"{row.mean:.4f} ± {row.standard_error:.4f}"
    lines.append(
      f"{row.name:<28}{mean:>20}{row.alone:>12.4g}{together:>22}{ratio:>8}  {row.note}".rstrip()
    )
  lines.append(
    f"variances in nats² of one draw of a row's nats, over times and noise only ({first.rows}"
    f" rows, {first.num_draws} draws each);"
    f" the ratio, of rows of a batch, is to {first.name!r}"
  )
  return "\n".join(lines)

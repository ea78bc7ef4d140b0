"""The bound on held-out text, with its standard error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from diffusion_text.types import Array, Batch, Key, Params, Progress

# (params, key, batch, progress) -> (nats [B], weight [B]), sums over each row, or [B, K], over each
# of its K parts.
NatsFn = Callable[[Params, Key, Batch, Progress], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """An upper bound on -log p of a text.

  Attributes:
    nats_per_token: The estimate of the bound.
    standard_error: Its standard error over rows.
    tokens: Number of scored tokens.
    characters: Number of scored characters of the original text, for any tokenizer.
    rows: Number of rows with a scored token.
    num_draws: Draws of time and noise for each row.
    bytes: Number of scored bytes of the original text in UTF-8.
  """

  nats_per_token: float
  standard_error: float
  tokens: float
  characters: float
  rows: int
  num_draws: int
  bytes: float

  @property
  def perplexity(self) -> float:
    """exp(nats per token), an upper bound on the perplexity.

    inf beyond the range of float64, which the bound of an untrained Gaussian process may exceed.
    """
    return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

  @property
  def bits_per_char(self) -> float:
    """The bound in bits per character of the original text."""
    return self.nats_per_token * self.tokens / self.characters / math.log(2)

  @property
  def bits_per_char_error(self) -> float:
    """The standard error of `bits_per_char`."""
    return self.standard_error * self.tokens / self.characters / math.log(2)

  @property
  def bits_per_byte(self) -> float:
    """The bound in bits per byte of the original text in UTF-8."""
    return self.nats_per_token * self.tokens / self.bytes / math.log(2)

  def as_dict(self) -> dict[str, float | None]:
    """Every number under its name, for JSON; None for an infinite perplexity, which JSON lacks."""
    return {
      **dataclasses.asdict(self),
      "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
      "bits_per_char": self.bits_per_char,
      "bits_per_char_error": self.bits_per_char_error,
      "bits_per_byte": self.bits_per_byte,
    }

  def __str__(self) -> str:
    return (
      f"bound {short(self.nats_per_token)} ± {short(self.standard_error)} nats/token, "
      f"perplexity <= {short(self.perplexity, 2)}, {short(self.bits_per_char)} ± "
      f"{short(self.bits_per_char_error)} bits/char, {short(self.bits_per_byte)} bits/byte "
      f"({self.rows} rows, {self.tokens:.0f} tokens, {self.characters:.0f} characters, "
      f"{self.bytes:.0f} bytes, {self.num_draws} draw{'s' * (self.num_draws > 1)} each)"
    )


def short(value: float, digits: int = 4) -> str:
  """A number with a fixed number of digits after the point, or as "1.23e+300" from a million on."""
  return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def estimate(
  nats_B: Float[np.ndarray, " B"], weight_B: Float[np.ndarray, " B"]
) -> tuple[float, float]:
  """(Σ nats / Σ weight, its standard error), by the delta method with rows as independent clusters.

  The error covers the choice of the held-out text and the draws of time and noise. Low-discrepancy
  times make the contribution of the draws smaller than this formula assumes, so the true error is
  smaller.
  """
  total = float(weight_B.sum())
  if total == 0:
    raise ValueError(
      "no token was scored: every position is observed or padding; "
      "check the batch's `observed` and `weights`"
    )
  ratio = float(nats_B.sum()) / total
  rows = int((weight_B > 0).sum())
  residual = nats_B - ratio * weight_B
  spread = rows / max(rows - 1, 1) * float((residual**2).sum())
  return ratio, math.sqrt(spread) / total


class Rows(NamedTuple):
  """The bound of each of R rows, the mean over draws.

  Attributes:
    nats: float64 [R], of the row, or [R, K], of its parts.
    weight: float64 [R], its scored tokens, or [R, K], those of its parts.
    sizes: (characters, bytes) of the text of each batch.
  """

  nats: Float[np.ndarray, "R ..."]
  weight: Float[np.ndarray, "R ..."]
  sizes: Sequence[tuple[float, float]]


def by_row(
  nats_fn: NatsFn,
  params: Params,
  batches: Iterable[tuple[Batch, tuple[float, float]]],
  key: Key,
  num_draws: int = 1,
) -> Rows:
  """The bound of each row of all batches.

  All draws of a batch together are spread evenly over time. The result is a deterministic function
  of the key: batch b uses fold_in(key, b).

  Args:
    nats_fn: See `NatsFn`; it should be jitted.
    params: The parameters of the model.
    batches: Pairs of a batch and the size of its text, (characters, bytes).
    key: A random key.
    num_draws: Draws of time and noise for each row.

  Raises:
    ValueError: If there is no batch, or num_draws < 1.
  """
  if num_draws < 1:
    raise ValueError(
      f"num_draws={num_draws} must be at least 1; more draws shrink the standard error of each row"
    )
  nats, weights, sizes = [], [], []
  for number, (batch, size) in enumerate(batches):
    batch_key = jax.random.fold_in(key, number)
    draws = [
      nats_fn(params, batch_key, batch, Progress(part=draw, parts=num_draws))
      for draw in range(num_draws)
    ]
    nats.append(np.mean([np.asarray(values, np.float64) for values, _ in draws], axis=0))
    weights.append(np.asarray(draws[0][1], np.float64))
    sizes.append(size)
  if not nats:
    raise ValueError("there is no held-out batch; use a longer text or a smaller data.length")
  return Rows(np.concatenate(nats), np.concatenate(weights), sizes)


def evaluate(
  nats_fn: NatsFn,
  params: Params,
  batches: Iterable[tuple[Batch, tuple[float, float]]],
  key: Key,
  num_draws: int = 1,
) -> Likelihood:
  """The bound on all batches, as `by_row` draws it. Raises ValueError where it does."""
  nats_R, weight_R, sizes = by_row(nats_fn, params, batches, key, num_draws)
  ratio, error = estimate(nats_R, weight_R)
  characters, size_in_bytes = np.sum(sizes, axis=0).tolist()
  return Likelihood(
    nats_per_token=ratio,
    standard_error=error,
    tokens=float(weight_R.sum()),
    characters=characters,
    rows=int((weight_R > 0).sum()),
    num_draws=num_draws,
    bytes=size_in_bytes,
  )

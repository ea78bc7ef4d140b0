"""What texts cost, beside what they are: calls, positions and attention as against no cache, tokens
per call, useful tokens, entropy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from diffusion_text.sampler.records import Sample
from diffusion_text.types import Batch, Model


class CostReport(NamedTuple):
  """Means over the rows that were generated, and ratios of their sums.

  Attributes:
    rows: the rows of which a token was generated.
    calls: network calls of a row.
    fills: network calls of the batch that only filled a cache; not among `calls`.
    tokens_per_call: generated tokens / calls.
    token_layers: positions that the network read for a row, in all layers and calls.
    relative_layers: the same / what it would be if each call read the row once, as a whole.
    attention: pairs of a query and a key of a row, in all layers and calls.
    relative_attention: the same / what it would be if each call read the row once, as a whole.
    tokens: generated tokens of a row.
    useful_tokens: those before the first end token of the row; all, where none is given.
    entropy: nats, of the token frequencies of a row's generated tokens before its first end token.
      Rows without any are left out.
  """

  rows: int
  calls: float
  fills: int
  tokens_per_call: float
  token_layers: float
  relative_layers: float
  attention: float
  relative_attention: float
  tokens: float
  useful_tokens: float
  entropy: float

  def line(self) -> str:
    """The report in one line of text."""
    return (
      f"{self.calls:.1f} calls a row, {self.tokens_per_call:.2f} tokens a call,"
      f" {self.relative_layers:.3f} of the token-layers and {self.relative_attention:.3f} of the"
      f" attention of whole rows, {self.useful_tokens:.1f} of {self.tokens:.1f} tokens before the"
      f" end, token entropy {self.entropy:.3f} nats"
    )


def cost_report(
  sample: Sample, model: Model, *, batch: Batch | None = None, end_id: int | None = None
) -> CostReport:
  """The cost of a sample, on the host.

  Calls are compared at equal number with those of an uncached reader: never compare decoders at
  equal steps, as one step of guidance or of a scorer is several calls.

  Args:
    sample: its arrays are read from the device.
    model: whose layers and positions they are.
    batch: what the sample was drawn for, so that observed tokens and padding are no generated
      ones; None: every token was generated.
    end_id: the token that ends a text; None: a text ends with its row.
  """
  ids, made = np.asarray(sample.ids), _generated(np.asarray(sample.ids), batch)
  useful = made if end_id is None else made & ~_after_end(ids, made, end_id)
  rows = made.any(1)
  calls = np.asarray(sample.row_calls, np.float64)[rows]
  layers = np.asarray(sample.token_layers, np.float64)[rows]
  attention = np.asarray(sample.attention, np.float64)[rows]
  positions = model.process.positions(ids.shape[1])
  whole = max(calls.sum(), 1.0) * model.network.layers * positions
  frequent = [_entropy(row[use]) for row, use in zip(ids, useful, strict=True) if use.any()]
  return CostReport(
    rows=int(rows.sum()),
    calls=_mean(calls),
    fills=int(sample.fills),
    tokens_per_call=float(made.sum() / max(calls.sum(), 1.0)),
    token_layers=_mean(layers),
    relative_layers=float(layers.sum() / whole),
    attention=_mean(attention),
    relative_attention=float(attention.sum() / (whole * positions)),
    tokens=_mean(made.sum(1)[rows]),
    useful_tokens=_mean(useful.sum(1)[rows]),
    entropy=_mean(frequent),
  )


def _generated(ids: Int[Array, "B L"], batch: Batch | None) -> np.ndarray:
  made = np.ones(ids.shape, bool)
  if batch is not None and batch.observed is not None:
    made &= ~np.asarray(batch.observed)
  if batch is not None and batch.weights is not None:
    made &= np.asarray(batch.weights) > 0
  return made


def _after_end(ids: np.ndarray, made: np.ndarray, end_id: int) -> np.ndarray:
  """True from the first generated end token on."""
  return np.cumsum(made & (ids == end_id), axis=1) > 0


def _entropy(ids: np.ndarray) -> float:
  p = np.unique(ids, return_counts=True)[1] / len(ids)
  return float(-(p * np.log(p)).sum())


def _mean(values) -> float:
  return float(np.mean(values)) if len(values) else 0.0

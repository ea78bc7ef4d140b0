"""The table of a control study: how often the attribute is found, and what the text costs under an
autoregressive judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from diffusion_text.core.prng import make_key
from diffusion_text.evaluate.text_metrics import distinct_n, token_entropy
from diffusion_text.experiment.run import Trained
from diffusion_text.studies.control import BATCH, Judged, Settings, Steered
from diffusion_text.types import Batch, Progress

Price = Callable[[np.ndarray], np.ndarray]


def nats_per_token(judge: Trained) -> Price:
  """ids [N, L] -> [N], what each row costs under the judge in nats per token; exact for a judge
  that reads from left to right.
  """
  key, nats_fn = make_key(0), judge.experiment.nats_fn

  def price(ids: Int[np.ndarray, "N L"]) -> Float[np.ndarray, " N"]:
    rows = []
    with jax.set_mesh(judge.experiment.mesh):
      for first in range(0, len(ids), BATCH):
        nats, weight = nats_fn(judge.params, key, Batch(ids[first : first + BATCH]), Progress())
        rows.append(np.asarray(nats) / np.asarray(weight))
    return np.concatenate(rows)

  return price


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table.

  Attributes:
    name: what the line is about.
    success: share of rows that the evaluator takes for the target, with its standard error over
      rows.
    guide: the same by the guide; NaN if it reads no clean text.
    nats: per token by the judge, with its standard error over rows.
    entropy, distinct_2: of the tokens, see `evaluate.text_metrics`.
    calls: network calls of a row.
  """

  name: str
  success: float
  success_error: float
  guide: float
  nats: float
  nats_error: float
  entropy: float
  distinct_2: float
  calls: int

  def line(self, unguided: Row) -> str:
    """A line of a markdown table."""
    success = f"{100 * self.success:.0f} ± {100 * self.success_error:.0f} %"
    more = f"{100 * (self.nats / unguided.nats - 1):+.0f} %"
    cells = (
      self.name,
      success,
      f"{100 * self.guide:.0f} %",
      f"{self.nats:.3f} ± {self.nats_error:.3f}",
      more,
      f"{self.entropy:.2f}",
      f"{self.distinct_2:.2f}",
      str(self.calls),
    )
    return f"| {' | '.join(cells)} |"


def measured(name: str, ids: np.ndarray, steered: Steered, price: Price, calls: int = 0) -> Row:
  """The line of rows ids [N, L]."""
  nats, root = price(ids), len(ids) ** 0.5
  success = _share(steered.evaluator, ids, steered.target)
  timed = steered.guide.classifier.timed
  return Row(
    name=name,
    success=success,
    success_error=(success * (1 - success)) ** 0.5 / root,
    guide=float("nan") if timed else _share(steered.guide, ids, steered.target),
    nats=float(nats.mean()),
    nats_error=float(nats.std() / root),
    entropy=token_entropy(ids),
    distinct_2=distinct_n(ids, 2),
    calls=calls,
  )


def _share(judged: Judged, ids: np.ndarray, target: int) -> float:
  return float(np.mean(judged.answers(ids) == target))


COLUMNS = (
  "strength",
  "success (evaluator)",
  "success (guide)",
  "judge, nats/token",
  "more",
  "token entropy",
  "distinct-2",
  "network calls",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def verdict(rows: Sequence[Row]) -> str:
  """Whether some strength raises success by 30 points at no more than 20 % more nats per token than
  the first row, which is unguided.
  """
  unguided, *guided = rows
  fluent = [row for row in guided if row.nats <= 1.2 * unguided.nats]
  if not fluent:
    return "no strength keeps within 20 % more nats per token"
  best = max(fluent, key=lambda row: row.success)
  gain = 100 * (best.success - unguided.success)
  more = 100 * (best.nats / unguided.nats - 1)
  shown = "shown" if gain >= 30 else "not shown"
  return (
    f"control {shown}: strength {best.name} raises success by {gain:.0f} points at {more:+.0f} %"
    " nats per token (asked: 30, 20 %)"
  )


def report(steered: Steered, judge: Trained, settings: Settings) -> str:
  """The table, what it was made with, and the verdict."""
  generator, guide, evaluator = steered.generator, steered.guide, steered.evaluator
  held_out, price = steered.held_out, nats_per_token(judge)
  rows = [
    measured(f"{strength:g}" if strength else "0 (unguided)", ids, steered, price, calls)
    for strength, ids, calls in steered.samples
  ]
  own = held_out.ids[held_out.label == steered.target]
  # As many rows as are drawn, because distinct-n falls with their number.
  own = own[np.linspace(0, len(own) - 1, settings.num).astype(int)]
  right = 100 * float(np.mean(evaluator.answers(held_out.ids) == held_out.label))
  text = measured("held-out text of the target", own, steered, price)
  table = "\n".join([HEADER, *(row.line(rows[0]) for row in (*rows, text))])
  how = settings.guidance
  if how == "logits":
    how = f"logits, wrt {settings.wrt}"
  made = type(generator.experiment.model.process).__name__
  return f"""{settings.num} rows of {own.shape[1]} tokens each, seed {settings.seed}
target: {settings.target}, one of {len(steered.names)} sources
guide ({how}; {settings.inner_steps} gradients per network call): {guide.classifier}
evaluator (other architecture, seed and text): {evaluator.classifier}
evaluator is right on {right:.1f} % of {len(held_out.ids)} held-out rows
judge: {judge.experiment.model.timing} at step {judge.step}
generator: {made} at step {generator.step}

{table}

{verdict(rows)}"""

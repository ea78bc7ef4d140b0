"""What a bound costs: the updates, tokens, CPU-seconds and operations until the bound on validation
text has fallen to a given number of bits per character; and the best size of a network for a given
number of operations.

Everything is read from the metrics that runs have written. Companion of `experiments.costs`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_text import train
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.run import load_experiment
from diffusion_text.studies.compare import used
from diffusion_text.studies.measures import markdown, write

# Field of a Point -> its name in tables and plots.
COSTS = {
  "updates": "updates",
  "tokens": "tokens",
  "cpu_seconds": "CPU-seconds",
  "flops": "floating-point operations",
}


class Point(NamedTuple):
  """One evaluation of a run.

  Attributes:
    updates: Training steps before the evaluation.
    tokens: Tokens that these steps read.
    cpu_seconds: CPU time of these steps, which only runs of `experiments.compare` count; nan in
      other runs.
    flops: Operations of these steps, by `Experiment.flops_per_token`.
    bound: Bits per character of the validation text.
  """

  updates: float
  tokens: float
  cpu_seconds: float
  flops: float
  bound: float


@dataclasses.dataclass(frozen=True)
class Run:
  """The evaluations of one training, in their order.

  Attributes:
    name: The name of the workdir.
    parameters: The number of parameters, trained and frozen.
    points: The evaluations, at least one.
  """

  name: str
  parameters: int
  points: tuple[Point, ...]


def read(workdir: pathlib.Path, name: str) -> Run:
  """The evaluations in the metrics of a workdir. An evaluation before the first update is left out,
  as its cost is 0.

  Args:
    workdir: Of the run.
    name: What the run is called.

  Raises:
    ValueError: If there are no evaluations.
  """
  experiment = load_experiment(str(workdir))
  each = experiment.train.batch_size * experiment.data.length
  points, metrics = [], train.read_metrics(workdir)
  for row in metrics:
    step = row["step"]
    if step and "validation_bits_per_character" in row:
      cpu, _ = used(metrics, step)
      flops = step * each * experiment.flops_per_token
      bound = row["validation_bits_per_character"]
      points.append(Point(step, step * each, cpu or math.nan, flops, bound))
  if not points:
    raise ValueError(
      f"{workdir} has no evaluation in its metrics; train with a train.evaluate_every below"
      f" train.steps={experiment.train.steps}"
    )
  return Run(name, plan.count_parameters(experiment), tuple(points))


def cost_to(run: Run, bound: float, cost: str) -> float | None:
  """The cost at which a run first reaches a bound, by a straight line in the logarithm of the cost
  between two evaluations; None if the run never reaches the bound.

  Where the first evaluation is below the bound already, its cost is returned: an upper limit.
  """
  for before, after in zip((None, *run.points), run.points):
    if after.bound <= bound:
      last = getattr(after, cost)
      if before is None:
        return last
      share = (before.bound - bound) / (before.bound - after.bound)
      first = getattr(before, cost)
      return first * (last / first) ** share
  return None


def bound_at(run: Run, flops: float) -> float | None:
  """The bound of a run after a number of operations, by a straight line in their logarithm between
  two evaluations; None before the first evaluation and after the last.
  """
  spent = [point.flops for point in run.points]
  if not spent[0] <= flops <= spent[-1]:
    return None
  bounds = [point.bound for point in run.points]
  return float(np.interp(math.log(flops), np.log(spent), bounds))


class Best(NamedTuple):
  """The best size for a number of operations.

  Attributes:
    flops: The operations.
    parameters: The best size: where the parabola in the logarithm of the parameters, fitted to the
      bounds of the runs, is lowest.
    bound: The value of the parabola there.
  """

  flops: float
  parameters: float
  bound: float


def best_size(runs: Sequence[Run], flops: float) -> Best:
  """The best size at a number of operations (the second approach of arXiv 2203.15556).

  Raises:
    ValueError: For fewer than three sizes that were evaluated before and after this number of
      operations, and where the best size is not between the sizes of the runs.
  """
  found = [(run.parameters, bound_at(run, flops)) for run in runs]
  known = [(size, bound) for size, bound in found if bound is not None]
  sizes = {size for size, _ in known}
  if len(sizes) < 3:
    raise ValueError(
      f"--budgets={flops:g}: {len(sizes)} of {len(runs)} sizes were evaluated before and after so"
      " many operations, and a parabola needs three; train more sizes, or choose others"
    )
  logs, bounds = np.log([size for size, _ in known]), np.array([bound for _, bound in known])
  middle = logs.mean()
  bend, slope, _ = curve = np.polyfit(logs - middle, bounds, 2)
  best = -slope / (2 * bend) + middle
  if bend <= 0 or not logs.min() <= best <= logs.max():
    raise ValueError(
      f"--budgets={flops:g}: the best size is not among {min(sizes):,} to {max(sizes):,}"
      " parameters; train smaller or larger networks"
    )
  return Best(flops, math.exp(best), float(np.polyval(curve, best - middle)))


def power_law(best: Sequence[Best]) -> tuple[float, float]:
  """(a, b) of parameters = a · operations^b through the best sizes, by least squares of logarithms.

  Raises:
    ValueError: For fewer than two best sizes.
  """
  if len(best) < 2:
    raise ValueError(f"{len(best)} best sizes make no power law; give two or more --budgets")
  slope, height = np.polyfit(
    np.log([each.flops for each in best]), np.log([each.parameters for each in best]), 1
  )
  return float(math.exp(height)), float(slope)


def table(runs: Sequence[Run], bounds: Sequence[float]) -> str:
  """A Markdown table of what each run pays for each bound."""
  header = ("run", "parameters", "bits/char", *COSTS.values())

  def shown(run: Run, bound: float) -> list[str]:
    costs = [cost_to(run, bound, cost) for cost in COSTS]
    if costs[0] is None:
      return [f"not reached ({min(point.bound for point in run.points):.3f})", "", "", ""]
    at_most = "≤ " if run.points[0].bound <= bound else ""
    return ["" if math.isnan(cost) else f"{at_most}{cost:.4g}" for cost in costs]

  return markdown(
    header,
    [
      [run.name, f"{run.parameters:,}", f"{bound:g}", *shown(run, bound)]
      for bound in bounds
      for run in runs
    ],
  )


def fits(best: Sequence[Best]) -> str:
  """A Markdown table of the best size for each number of operations, and the power law through the
  best sizes if there are two or more.
  """
  lines = [[f"{each.flops:.3g}", f"{each.parameters:,.0f}", f"{each.bound:.3f}"] for each in best]
  text = markdown(("operations", "best size, parameters", "bits/char"), lines)
  if len(best) < 2:
    return text
  factor, exponent = power_law(best)
  return f"{text}\n\nbest size = {factor:.3g} · operations^{exponent:.3f}"


def plot(path: pathlib.Path, runs: Sequence[Run]) -> None:
  """Writes a png with a panel for each cost: the bits per character of every run over that cost."""
  from matplotlib.figure import Figure  # here, because it is slow to import

  figure = Figure(figsize=(4 * len(COSTS), 3.6), layout="constrained")
  places = figure.subplots(1, len(COSTS), sharey=True)
  for place, (cost, label) in zip(places, COSTS.items()):
    for run in runs:
      spent = [getattr(point, cost) for point in run.points]
      place.plot(spent, [point.bound for point in run.points], marker="o", label=run.name)
    place.set(xscale="log", xlabel=label)
    place.grid(alpha=0.3)
  places[0].set(ylabel="bound on validation text, bits per character")
  places[0].legend(fontsize=7)
  figure.savefig(path, dpi=120)


def report(
  runs: Sequence[Run],
  bounds: Sequence[float],
  budgets: Sequence[float],
  workdir: pathlib.Path,
) -> str:
  """The tables in Markdown, which are also written to costs.md, beside costs.json and costs.png.

  Args:
    runs: The runs.
    bounds: Bits per character; if empty, the lowest bound that every run reaches.
    budgets: Numbers of operations for which the best size is sought, if any.
    workdir: Where the files are written.

  Raises:
    ValueError: As `best_size` does.
  """
  shared = max(min(point.bound for point in run.points) for run in runs)
  text = table(runs, bounds or [math.ceil(shared * 1000) / 1000])
  if budgets:
    text += f"\n\n{fits([best_size(runs, budget) for budget in budgets])}"
  numbers: dict[str, Any] = {
    run.name: {"parameters": run.parameters, "points": [point._asdict() for point in run.points]}
    for run in runs
  }
  write(workdir, "costs", text, **numbers)
  plot(workdir / "costs.png", runs)
  return text

"""The table of tasks as markdown, csv and png, made of plain rows."""

from __future__ import annotations

import csv
import io
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_text.evaluate.task_metrics import Score
from diffusion_text.experiment.build import Experiment
from diffusion_text.studies import exams
from diffusion_text.studies.exam_contract import Exam, How
from diffusion_text.studies.measures import markdown, mean_and_error
from diffusion_text.studies.tasks import cell


def revision(directory: pathlib.Path) -> str:
  """The commit of a checkout, "… with changes" if files differ; "unknown revision" without git."""

  def git(*words: str) -> str:
    done = subprocess.run(
      ["git", "-C", str(directory), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""

  try:
    commit = git("rev-parse", "--short", "HEAD")
    changed = bool(commit) and bool(git("status", "--porcelain", "--untracked-files=no"))
  except OSError:
    return "unknown revision"
  return f"revision {commit}{' with changes' * changed}" if commit else "unknown revision"


def over_seeds(values: Sequence[Sequence[float | None]]) -> Score:
  """A metric from its (value, error) of each seed.

  With several seeds the error is that between seeds, with one its own.
  """
  if len(values) == 1:
    return Score(*values[0])
  return Score(*mean_and_error(np.array([value for value, _ in values], np.float64)))


COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
  "calls": ("network calls", "{:.0f}".format),
  "without_an_end": ("without an end", "{:.0%}".format),
  "train_cpu_seconds": ("train CPU-seconds", "{:.0f}".format),
  "parameters": ("parameters", "{:,.0f}".format),
}  # what is known of a row -> (its column, its form)


def one_table(
  task: str,
  rows: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
  columns: Sequence[str],
) -> str:
  """The table of one task, the best system by its first column first, baselines below. What no row
  knows of `COSTS` has no column.
  """
  systems = {row["system"]: [] for row in rows}
  for row in rows:
    systems[row["system"]].append(row)
  costs = [name for name in COSTS if any(row.get(name) is not None for row in rows)]

  def rank(name: str) -> float:
    return -over_seeds([row["scores"][columns[0]] for row in systems[name]])[0]

  def cost(own: Sequence[Mapping[str, Any]], name: str) -> str:
    known = [row[name] for row in own if row.get(name) is not None]
    return COSTS[name][1](np.mean(known)) if known else ""

  lines = []
  for name in sorted(systems, key=rank):
    own = systems[name]
    bound = cell(over_seeds([row["bound"] for row in own]))
    scores = [cell(over_seeds([row["scores"][column] for row in own])) for column in columns]
    lines.append([name, bound, *scores, *(cost(own, each) for each in costs)])
  for row in baselines:
    values = [cell(Score(*row["scores"][column])) for column in columns]
    lines.append([f"*{row['system']}*", "", *values, *[""] * len(costs)])
  header = ("system", "bound, nats/token", *columns, *(COSTS[name][0] for name in costs))
  return f"### {task}\n\n{markdown(header, lines)}"


def footer(made_by: str, settings: Mapping[str, Any]) -> str:
  """What the tables mean. made_by: the command and the revision of the code."""
  return (
    f"{made_by}. Every system has {settings['steps']} updates of {settings['batch_size']} rows of"
    " the training split and the base's sizes and learning rate, tuned for none;"
    f" {settings['seeds']} seed(s), and ± is the standard error between seeds (of one seed: over"
    f" prompts or rows). About {settings['calls']} network calls for a sample, where a number can"
    " be set. The bound of the autoregressive model is exact."
    f" {' '.join(settings['legends'])}"
  )


def long_csv(rows: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> str:
  """One line for each metric of each cell: task, system, seed, metric, value, error."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(("task", "system", "seed", "metric", "value", "error"))
  for row in (*rows, *baselines):
    named = dict(row["scores"])
    if "bound" in row:
      named["bound"] = row["bound"]
      for name in (*COSTS, "steps", "rows"):
        if row.get(name) is not None:
          named[name] = (row[name], None)
    for name, (value, error) in named.items():
      shown = "" if error is None else error
      writer.writerow((row["task"], row["system"], row.get("seed", ""), name, value, shown))
  return out.getvalue()


def plot(
  path: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
  columns: Mapping[str, Sequence[str]],
  note: str,
) -> None:
  """Writes a png: for each task the first column of every system, baselines in grey."""
  from matplotlib.figure import Figure  # here, because it is slow to import

  across = min(len(columns), 3)
  down = -(-len(columns) // across)
  figure = Figure(figsize=(4.5 * across, 3.2 * down + 0.8), layout="constrained")
  axes = figure.subplots(down, across, squeeze=False).ravel()
  for place, (task, names) in zip(axes, columns.items()):
    found: dict[str, list] = {}
    for row in (*baselines, *rows):
      if row["task"] == task:
        found.setdefault(row["system"], []).append(row["scores"][names[0]])
    means = [over_seeds(values) for values in found.values()]
    trained = {row["system"] for row in rows if row["task"] == task}
    place.barh(
      list(found),
      [mean for mean, _ in means],
      xerr=[error or 0 for _, error in means],
      color=["C0" if name in trained else "lightgrey" for name in found],
    )
    place.set(title=task, xlabel=names[0])
  for place in axes[len(columns) :]:
    place.set_visible(False)
  figure.supxlabel(note, fontsize=7, wrap=True)
  figure.savefig(path, dpi=120)


def write_table(
  workdir: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
  columns: Mapping[str, Sequence[str]],
  failed: Mapping[str, str],
  command: str,
  settings: Mapping[str, Any],
) -> str:
  """Writes tasks.md, tasks.csv and tasks.png; returns the markdown."""
  made_by = f"`{command}`, {revision(pathlib.Path(__file__).parent)}"
  parts = [
    one_table(
      task,
      [row for row in rows if row["task"] == task],
      [row for row in baselines if row["task"] == task],
      names,
    )
    for task, names in columns.items()
  ]
  parts += [f"- {name} failed: {' '.join(why.split())[:200]}" for name, why in failed.items()]
  text = "\n\n".join([*parts, footer(made_by, settings)])
  (workdir / "tasks.md").write_text(text + "\n")
  (workdir / "tasks.csv").write_text(long_csv(rows, baselines))
  plot(workdir / "tasks.png", rows, baselines, columns, made_by.replace("`", ""))
  return text


def table_of_runs(
  exam: Exam, found: Sequence[Mapping[str, Any]], how: How, experiment: Experiment
) -> str:
  """The table of runs that are there, all of one exam, with what it means.

  found: the numbers of each run, see `exams.measured`, with its "system".
  """
  rows = [line for numbers in found for line in exams.lines(numbers)]
  made = exam.baselines(how, lambda: experiment)
  baselines = [{"system": name, "scores": scores} for name, scores in made.items()]

  def of_each(name: str) -> str:
    known = [numbers for numbers in found if numbers.get(name) is not None]
    return ", ".join(f"{numbers['system']} {numbers[name]:g}" for numbers in known)

  left_out, ends = of_each("left_out"), of_each("decode_at")
  notes = [
    exam.legend(how),
    f"Prompts that fill a row and were left out: {left_out}." if left_out else "",
    f"Log-SNRs at which bounds decode, chosen on validation text: {ends}." if ends else "",
  ]
  table = one_table(f"{how.split}, seed {found[0]['seed']}", rows, baselines, exam.columns)
  return f"{table}\n\n{' '.join(filter(None, notes))}"

"""The table of tasks as markdown, csv and png, made of plain rows."""

from __future__ import annotations

import csv
import io
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_text.evaluate.task_metrics import Score
from diffusion_text.studies.measures import markdown, mean_and_error
from diffusion_text.studies.tasks import BESIDE, NGRAM_DOCUMENTS, cell


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


def one_table(
  task: str,
  rows: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
  metrics: Sequence[str],
) -> str:
  """The table of one task, the best system by its first metric first, baselines below."""
  columns = (*metrics, *BESIDE)
  systems = {row["system"]: [] for row in rows}
  for row in rows:
    systems[row["system"]].append(row)

  def rank(name: str) -> float:
    return -over_seeds([row["scores"][columns[0]] for row in systems[name]])[0]

  lines = []
  for name in sorted(systems, key=rank):
    own = systems[name]
    first = own[0]
    lines.append(
      [
        name,
        cell(over_seeds([row["bound"] for row in own])),
        *(cell(over_seeds([row["scores"][column] for row in own])) for column in columns),
        f"{np.mean([row['calls'] for row in own]):.0f}",
        f"{100 * np.mean([row['without_an_end'] for row in own]):.0f} %",
        f"{np.mean([row['train_cpu_seconds'] for row in own]):.0f}",
        f"{first['parameters']:,}",
      ]
    )
  for row in baselines:
    values = [cell(Score(*row["scores"][column])) for column in columns]
    lines.append([f"*{row['system']}*", "", *values, "", "", "", ""])
  header = (
    *("system", "bound, nats/answer token", *columns),
    *("network calls", "without an end", "train CPU-seconds", "parameters"),
  )
  return f"### {task}\n\n{markdown(header, lines)}"


def footer(made_by: str, settings: Mapping[str, Any]) -> str:
  """What the tables mean. made_by: the command and the revision of the code."""
  return (
    f"{made_by}. Every system has {settings['steps']} updates of"
    f" {settings['batch_size']} rows of the task's training split, characters as tokens, and the"
    f" base's sizes and learning rate, tuned for none; {settings['seeds']} seed(s), and ± is the"
    " standard error between seeds (of one seed: over prompts or rows). Answers are to the first"
    f" {settings['num_prompts']} test prompts, one sample each, with about {settings['calls']}"
    " network calls where a number can be set. The bound is per token of the answers and their"
    " ends, which pay for the padding too; of the autoregressive model it is exact."
    " right: a right answer by the task's verifier; valid: the form of one; entropy: nats of the"
    " characters of all answers; distinct: share of different answers. In italics: what needs no"
    f" training, the n-gram with at most {NGRAM_DOCUMENTS:,} training documents."
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
      for name in ("calls", "without_an_end", "train_cpu_seconds", "parameters", "steps", "rows"):
        named[name] = (row[name], None)
    for name, (value, error) in named.items():
      shown = "" if error is None else error
      writer.writerow((row["task"], row["system"], row.get("seed", ""), name, value, shown))
  return out.getvalue()


def plot(
  path: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
  metrics: Mapping[str, Sequence[str]],
  note: str,
) -> None:
  """Writes a png: for each task the first metric of every system, baselines in grey."""
  from matplotlib.figure import Figure  # here, because it is slow to import

  columns = min(len(metrics), 3)
  lines = -(-len(metrics) // columns)
  figure = Figure(figsize=(4.5 * columns, 3.2 * lines + 0.8), layout="constrained")
  axes = figure.subplots(lines, columns, squeeze=False).ravel()
  for place, (task, names) in zip(axes, metrics.items()):
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
  for place in axes[len(metrics) :]:
    place.set_visible(False)
  figure.supxlabel(note, fontsize=7, wrap=True)
  figure.savefig(path, dpi=120)


def write_table(
  workdir: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
  metrics: Mapping[str, Sequence[str]],
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
    for task, names in metrics.items()
  ]
  parts += [f"- {name} failed: {' '.join(why.split())[:200]}" for name, why in failed.items()]
  text = "\n\n".join([*parts, footer(made_by, settings)])
  (workdir / "tasks.md").write_text(text + "\n")
  (workdir / "tasks.csv").write_text(long_csv(rows, baselines))
  plot(workdir / "tasks.png", rows, baselines, metrics, made_by.replace("`", ""))
  return text

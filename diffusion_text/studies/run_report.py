"""One page about one run or several side by side: what was run, how it learned, the bound, what it
writes by each decoder, and what that cost.
"""

from __future__ import annotations

import dataclasses
import html
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from diffusion_text import train
from diffusion_text.evaluate.likelihood import Likelihood
from diffusion_text.experiment import player
from diffusion_text.experiment.decoding import Decoding
from diffusion_text.experiment.film import Film, film_of
from diffusion_text.experiment.run import Trained, open_rows, score
from diffusion_text.experiment.summary import count_parameters
from diffusion_text.studies.report import loss_curves
from diffusion_text.train.storage import as_path

OURS = b"<meta name=generator content=diffusion_text>"  # near the beginning of every page of ours


@dataclasses.dataclass(frozen=True)
class Run:
  """What a page says of one run.

  Attributes:
    name: Of the workdir.
    facts: Name -> value.
    rows: Of metrics.jsonl.
    bound: Of a split; None: nothing was scored.
    films: By the caption of the decoder.
  """

  name: str
  facts: Mapping[str, str]
  rows: Sequence[Mapping[str, float]]
  bound: Likelihood | None
  films: Mapping[str, Film]


def facts(trained: Trained, rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
  """What was run: the choices, the size, the training and its cost."""
  experiment = trained.experiment
  config, network = experiment.config, experiment.model.network
  tokens = trained.step * experiment.train.batch_size * experiment.data.length
  last = {name: value for row in rows for name, value in row.items()}
  cost = device_time(last["device_hours"]) if "device_hours" in last else "not written"
  return {
    "process": f"{config.process.name}, {config.timing.name} timing, {config.context.name} context",
    "objective": config.objective.name,
    "network": f"{network.layers} layers × {network.width}, {count_parameters(experiment):,}"
    " parameters",
    "data": f"{experiment.data.corpus}, {experiment.tokenizer.name}, rows of"
    f" {experiment.data.length}",
    "training": f"{trained.step:,} steps, {tokens:,} tokens, seed {config.seed}",
    "cost of training": cost,
  }


def device_time(hours: float) -> str:
  """The time of a run on its devices: in seconds below a minute, in minutes below an hour."""
  if hours < 1 / 60:
    return f"{3600 * hours:.0f} device seconds"
  return f"{60 * hours:.1f} device minutes" if hours < 1 else f"{hours:.3g} device hours"


def read(
  workdir: str,
  trained: Trained,
  decodings: Mapping[str, Decoding],
  *,
  name: str,
  split: str,
  max_rows: int,
  num: int,
  seed: int,
) -> Run:
  """All that a page says of a workdir.

  Args:
    workdir: Of the run.
    trained: The same, loaded.
    decodings: By caption.
    name: Of the run, on the page.
    split: The text that is scored.
    max_rows: Its rows, at most; 0: nothing is scored.
    num: Rows of each film.
    seed: Of the samples.
  """
  path = as_path(workdir)
  rows = train.read_metrics(path) if (path / "metrics.jsonl").exists() else []
  bound = None
  if max_rows:
    bound = score(trained.experiment, trained.params, split=split, num_draws=1, max_rows=max_rows)
  texts = open_rows(trained.experiment.tokenizer, num, trained.experiment.data.length)
  films = {
    caption: film_of(trained, texts, decoding, samples=np.arange(num), seed=seed)
    for caption, decoding in decodings.items()
  }
  return Run(name, facts(trained, rows), rows, bound, films)


def table(runs: Sequence[Run], split: str) -> str:
  """HTML table: a column for each run, a row for each fact; the bound last."""
  names = list(dict.fromkeys(name for run in runs for name in run.facts))
  rows = [("", [run.name for run in runs])]
  rows += [(name, [run.facts.get(name, "–") for run in runs]) for name in names]
  bounds = ["not scored" if run.bound is None else str(run.bound) for run in runs]
  rows.append((f"bound, {split} split", bounds))
  lines = (
    f"<tr><th>{html.escape(name)}" + "".join(f"<td>{html.escape(cell)}" for cell in cells)
    for name, cells in rows
  )
  return f"<table>{''.join(lines)}</table>"


def page(runs: Sequence[Run], split: str) -> str:
  """The text of the page."""
  curves = loss_curves({run.name: run.rows for run in runs})
  parts = [f"<h1>{html.escape(', '.join(run.name for run in runs))}</h1>", table(runs, split)]
  parts += ["<h2>Learning</h2>", curves]
  for run in runs:
    for caption, film in run.films.items():
      parts.append(f"<h2>{html.escape(run.name)}, {html.escape(caption)}</h2>{film.body()}")
  return player.page("diffusion_text: " + ", ".join(run.name for run in runs), "\n".join(parts))


def check_output(output: str) -> pathlib.Path:
  """The path of a page. Raises ValueError for a file that is there and is no page of ours."""
  path = as_path(output)
  if path.exists() and OURS not in path.read_bytes()[:1000]:
    raise ValueError(f"--output={output} is there and is no report; delete it, or write another")
  return path


def write(runs: Sequence[Run], split: str, output: str) -> None:
  """Writes the page, also over an older one.

  Raises:
    ValueError: for a file that is no page of ours, or cannot be written.
  """
  path = check_output(output)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(runs, split), encoding="utf-8")
  except OSError as error:
    raise ValueError(f"--output={output} cannot be written: {error}") from error

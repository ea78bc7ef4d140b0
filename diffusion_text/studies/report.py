"""One self-contained HTML file that shows a run: loss curve, bound beside baselines, samples, and a
denoising film. Needs no network.
"""

from __future__ import annotations

import html
import io
import pathlib
from collections.abc import Mapping, Sequence

from diffusion_text.evaluate.likelihood import Likelihood
from diffusion_text.experiment import player


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
  """Inline SVG of bits per character over steps, of training batches and of held-out text.

  runs: rows as `train.read_metrics` gives them, by the name of the run; a run has one colour.
  """
  from matplotlib.figure import Figure  # here, because it is slow to import
  from matplotlib.ticker import MaxNLocator

  figure = Figure(figsize=(8, 3.2), layout="constrained")
  axes = figure.add_subplot()
  for number, (name, rows) in enumerate(runs.items()):
    of_run = f"{name}: " if len(runs) > 1 else ""
    for metric, label, style in (
      ("bits_per_character", "training batches", dict(linewidth=0.8, alpha=0.5)),
      ("validation_bits_per_character", "validation bound", dict(marker="o", linewidth=2)),
    ):
      points = [(row["step"], row[metric]) for row in rows if metric in row]
      errors = [row.get(f"{metric}_error", 0.0) for row in rows if metric in row]
      if points:
        how = {"label": of_run + label, "color": f"C{number}", "capsize": 3, **style}
        axes.errorbar(*zip(*points), yerr=errors if any(errors) else None, **how)
  axes.set(xlabel="step", ylabel="bits per character (± standard error)")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.grid(alpha=0.3)
  if axes.has_data():
    axes.legend()
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg")
  text = buffer.getvalue()
  return text[text.index("<svg") :]


def baseline_table(likelihood: Likelihood, baselines: Mapping[str, float]) -> str:
  """HTML table of bits per character: the model's bound and what the same text costs otherwise."""
  bits = f"{likelihood.bits_per_char:.3f} ± {likelihood.bits_per_char_error:.3f}"
  ours = f"<tr class=ours><td>this model (upper bound)<td>{bits}"
  others = "".join(
    f"<tr><td>{html.escape(name)}<td>{value:.3f}" for name, value in baselines.items()
  )
  return f"<table><tr><th>held-out text<th>bits/char{ours}{others}</table>"


def write_report(
  path: pathlib.Path,
  *,
  title: str,
  facts: Mapping[str, str],
  rows: Sequence[Mapping[str, float]],
  likelihood: Likelihood,
  baselines: Mapping[str, float],
  samples: Mapping[str, str],
  film: Sequence[player.Shown],
) -> None:
  """Writes the report.

  Args:
    path: Of the file.
    title: Of the page.
    facts: Name -> value, shown at the top.
    rows: Of metrics.jsonl.
    likelihood: Of held-out text.
    baselines: Bits per character of the same text by other means.
    samples: Caption -> text.
    film: Frames of one row or several.
  """
  said = "".join(
    f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in facts.items()
  )
  texts = "".join(
    f"<h3>{html.escape(caption)}</h3><pre>{html.escape(text)}</pre>"
    for caption, text in samples.items()
  )
  parts = (
    f"<h1>{html.escape(title)}</h1><table>{said}</table>",
    f"<h2>Held-out bound</h2><p>{html.escape(str(likelihood))}</p>",
    baseline_table(likelihood, baselines),
    f"<h2>Learning</h2>{loss_curves({title: rows})}",
    f"<h2>Denoising film</h2>{player.player(film)}",
    f"<h2>Samples</h2>{texts}",
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(player.page(title, "\n".join(parts)), encoding="utf-8")

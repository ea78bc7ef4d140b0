"""Tables and pages of a comparison, made of what `studies.compare.measure` returns: plain data."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_text.evaluate.text_metrics import distinct_n, ngram_js_divergence, token_entropy

QUALITY = ("js_divergence", "token_entropy", "distinct_2")
HEADER = (
  *(
    "config",
    "bound, bits/char ± s.e.",
    "network calls",
    "3-gram JS, nats",
    "token entropy, nats",
    "distinct-2",
  ),
  *("train tokens", "train tokens per CPU-second", "train CPU-seconds", "parameters"),
)


def quality(rows: Sequence[np.ndarray], texts: Sequence[str], reference: str) -> dict[str, float]:
  """QUALITY of samples, as token rows and as texts: JS divergence of character 3-grams from
  `reference` and token entropy, both in nats, and distinct-2.
  """
  measures = (ngram_js_divergence(texts, reference, 3), token_entropy(rows), distinct_n(rows, 2))
  return dict(zip(QUALITY, measures))


def ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Rows by their bound, the lowest first."""
  return sorted(rows, key=lambda row: row["bits_per_char"])


def table(
  rows: Sequence[Mapping[str, Any]], corpus: Mapping[str, float], failed: Mapping[str, str]
) -> str:
  """A markdown table, lowest bound first; the corpus's own text below, then what failed and why.

  corpus: the quality of real text; failed: name -> reason.
  """

  def several(row, key, form):
    return " / ".join(format(entry[key], form) for entry in row["samples"])

  lines = [
    (
      row["name"],
      f"{row['bits_per_char']:.3f} ± {row['bits_per_char_error']:.3f}",
      *(
        several(row, key, form)
        for key, form in zip(("calls", *QUALITY), ("d", ".3f", ".2f", ".2f"))
      ),
      f"{row['train_tokens']:,}",
      f"{row['train_tokens_per_cpu_second']:,.0f}",
      f"{row['train_cpu_seconds']:,.0f}",
      f"{row['parameters']:,}",
    )
    for row in ranked(rows)
  ]
  real = (format(corpus[key], form) for key, form in zip(QUALITY, (".3f", ".2f", ".2f")))
  lines.append(("corpus (held-out text)", "", "", *real, "", "", "", ""))

  def one_line(text):
    return " ".join(text.split()).replace("|", "\\|")

  lines += [
    (name, f"failed: {one_line(why)[:200]}", *[""] * (len(HEADER) - 2))
    for name, why in failed.items()
  ]
  ruler = ("---", *["---:"] * (len(HEADER) - 1))
  return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, ruler, *lines))


def caption(
  amount: str,
  where: str,
  command: str,
  *,
  base: Any,
  vocab_size: int,
  num_draws: int,
  num_samples: int,
) -> str:
  """What the table means and what was held equal. amount: of training; where: hardware; base: the
  config that all share.
  """
  return (
    f"{amount} on {where} for each run, seed {base.seed} (one run each), `{command}`. All systems"
    f" share the corpus"
    f" ({base.data.corpus}), the tokenizer (V = {vocab_size}), rows of {base.data.length} tokens,"
    f" batches of"
    f" {base.train.batch_size} rows in one order, the network's sizes and the optimizer; one peak"
    f" learning rate,"
    f" {base.optimizer.learning_rate:g}, is used for all and tuned for none of them. CPU-seconds"
    f" are process time over all threads"
    " while training steps run (compilation and evaluation left out; what else runs in the"
    " background meanwhile, such as reading"
    " data and saving, is in it), and tokens per CPU-second are tokens over these, not over wall"
    " time. Bounds are on the test split,"
    f" {num_draws} draws per row; their ± holds the draws and the text, which all share."
    f" {num_samples} samples at each"
    " number of network calls (separated by /), drawn with each system's own sampler; a call of a"
    " system in blocks reads one block,"
    " and the pass that puts a finished block into the cache is not counted. JS divergence is from"
    " the test split and has a bias at"
    " this sample size, which the corpus row shows: as many rows of the validation split. Its"
    " standard deviation over draws of 16"
    " rows is about 0.004: at 16 samples, differences below about 0.01 are noise."
  )


def notes(rows: Sequence[Mapping[str, Any]]) -> str:
  """What the systems' own config files say and this comparison does not follow, and where bounds
  decode; "" if there is nothing.
  """
  each = [
    f"{row['name']}: " + ", ".join(f"{k}={v}" for k, v in row["set_aside"].items())
    for row in rows
    if row["set_aside"]
  ]
  ends = [f"{row['name']} {row['decode_at']:g}" for row in rows if row.get("decode_at") is not None]
  aside = "Set aside, because all share the base: " + "; ".join(each) + "." if each else ""
  decoded = (
    "Log-SNRs at which bounds decode (evaluate.decode_at, on validation text): "
    + ", ".join(ends)
    + "."
    if ends
    else ""
  )
  return "\n\n".join(filter(None, (aside, decoded)))


def plot(
  path: pathlib.Path, rows: Sequence[Mapping[str, Any]], corpus: Mapping[str, float], title: str
) -> None:
  """Writes a png. Left: bounds as bars from 0, with standard errors. Right: JS divergence against
  network calls, and real text.
  """
  from matplotlib import colormaps  # here, because it is slow to import
  from matplotlib.figure import Figure

  rows = ranked(rows)
  colours = {row["name"]: colormaps["tab20"](i % 20) for i, row in enumerate(rows)}
  figure = Figure(figsize=(13, 2.5 + 0.3 * max(len(rows), 8)), layout="constrained")
  bars, lines = figure.subplots(1, 2)
  bars.barh(
    [row["name"] for row in rows],
    [row["bits_per_char"] for row in rows],
    xerr=[row["bits_per_char_error"] for row in rows],
    color=list(colours.values()),
    capsize=3,
  )
  for place, row in enumerate(rows):
    text = f" {row['bits_per_char']:.3f} ± {row['bits_per_char_error']:.3f}"
    bars.text(
      row["bits_per_char"] + row["bits_per_char_error"], place, text, va="center", fontsize=8
    )
  bars.margins(x=0.25)
  bars.invert_yaxis()
  bars.set(xlabel="bound on the test split, bits per character (lower is better)")
  for number, row in enumerate(rows):
    points = sorted((entry["calls"], entry["js_divergence"]) for entry in row["samples"])
    lines.plot(
      *zip(*points), marker="osDv^<>"[number % 7], color=colours[row["name"]], label=row["name"]
    )
  lines.axhline(
    corpus["js_divergence"], color="black", linestyle="--", label="held-out text, as many rows"
  )
  ticks = sorted({entry["calls"] for row in rows for entry in row["samples"]})
  lines.set_xscale("log", base=2)
  lines.set_xticks(ticks, [str(tick) for tick in ticks])
  lines.set(xlabel="network calls", ylabel="3-gram JS divergence, nats (lower is better)")
  lines.grid(alpha=0.3)
  lines.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
  figure.suptitle(title)
  figure.savefig(path, dpi=120)

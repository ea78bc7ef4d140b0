"""One self-contained HTML file that shows a run: loss curve, bound beside baselines, samples, and a
denoising film. Needs no network.
"""

from __future__ import annotations

import dataclasses
import html
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

from diffusion_text.evaluate.likelihood import Likelihood


@dataclasses.dataclass(frozen=True)
class Film:
  """One sample as it came to be. pieces: the text of each token; committed: the network call at
  which it was revealed, -1 if given.
  """

  pieces: Sequence[str]
  committed: Sequence[int]
  calls: int


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
  """Inline SVG of bits per character over steps, of training batches and of held-out text.

  runs: rows as `train.read_metrics` gives them, by the name of the run; a run has one colour.
  """
  from matplotlib.figure import Figure  # here, because it is slow to import

  figure = Figure(figsize=(8, 3.2), layout="constrained")
  axes = figure.add_subplot()
  for number, (name, rows) in enumerate(runs.items()):
    of_run = f"{name}: " if len(runs) > 1 else ""
    for metric, label, style in (
      ("bits_per_character", "training batches", dict(linewidth=0.8, alpha=0.5)),
      ("validation_bits_per_character", "validation bound", dict(marker="o", linewidth=2)),
    ):
      points = [(row["step"], row[metric]) for row in rows if metric in row]
      if points:
        axes.plot(*zip(*points), label=of_run + label, color=f"C{number}", **style)
  axes.set(xlabel="step", ylabel="bits per character")
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
  film: Film,
) -> None:
  """Writes the report. facts: name -> value, shown at the top; samples: caption -> text."""
  blocks = "".join(
    f"<h3>{html.escape(caption)}</h3><pre>{html.escape(text)}</pre>"
    for caption, text in samples.items()
  )
  header = "".join(
    f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in facts.items()
  )
  film_json = json.dumps(dataclasses.asdict(film)).replace("</", "<\\/")
  page = (
    PAGE.replace("@title@", html.escape(title))
    .replace("@facts@", header)
    .replace("@samples@", blocks)
  )
  page = page.replace("@curve@", loss_curves({title: rows})).replace(
    "@table@", baseline_table(likelihood, baselines)
  )
  page = page.replace("@bound@", html.escape(str(likelihood))).replace("@film@", film_json)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(page, encoding="utf-8")


PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>@title@</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
pre, #film { font: 14px/1.6 ui-monospace, monospace; white-space: pre-wrap; background: #f6f6f4;
  padding: 1rem; border-radius: 6px; }
table { border-collapse: collapse; }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
.ours { font-weight: bold; } svg { max-width: 100%; height: auto; }
#film span { border-radius: 3px; } #film .open { color: #bbb; background: #e4e4e0; }
input[type=range] { width: 100%; } .scale { height: 10px; border-radius: 5px; }
</style>
<h1>@title@</h1>
<table>@facts@</table>
<h2>Held-out bound</h2>
<p>@bound@</p>
@table@
<h2>Learning</h2>
@curve@
<h2>Denoising film</h2>
<p>Call <b id=now></b> of <b id=last></b>. A grey box is still masked; a colour tells at which
network call a token was revealed, from the first (violet) to the last (yellow). Tokens without
colour were given.</p> <input type=range id=slider min=0 value=0 aria-label="network call"> <button
id=play>play</button> <div class=scale id=scale></div>
<div id=film></div>
<h2>Samples</h2>
@samples@
<script type="application/json" id=data>@film@</script>
<script>
const film = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("slider"), box = document.getElementById("film");
const colour = x => `hsl(${280 - 230 * x} 85% ${80 - 8 * Math.sin(Math.PI * x)}%)`;
slider.max = film.calls; document.getElementById("last").textContent = film.calls;
document.getElementById("scale").style.background =
  `linear-gradient(90deg, ${[0, .2, .4, .6, .8, 1].map(colour).join(",")})`;
const spans = film.pieces.map((text, i) => {
  const span = document.createElement("span"); box.append(span); return span;
});
function show(call) {
  document.getElementById("now").textContent = call;
  film.pieces.forEach((text, i) => {
    const at = film.committed[i], known = at < call;
    spans[i].className = known ? "" : "open";
    spans[i].textContent = known ? text : text.replace(/[^\\n]/g, "\\u00b7");
    spans[i].style.background = known && at >= 0 ? colour(at / Math.max(film.calls - 1, 1)) : "";
    spans[i].title = at < 0 ? "given" : `revealed at call ${at + 1}`;
  });
}
slider.oninput = () => show(+slider.value);
let timer = null;
document.getElementById("play").onclick = () => {
  clearInterval(timer); slider.value = 0;
  timer = setInterval(() => { slider.value = +slider.value + 1; show(+slider.value);
    if (+slider.value >= film.calls) clearInterval(timer); }, 80);
};
slider.value = film.calls; show(film.calls);
</script>
"""

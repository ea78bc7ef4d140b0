"""Films of decoding: rows after each call, as lines of text and as a page that plays them."""

from __future__ import annotations

import html
import json
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffusion_text.core.prng import numbered_keys
from diffusion_text.data.tokenizers import pieces
from diffusion_text.experiment.decoding import Decoding
from diffusion_text.experiment.run import Trained
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.sampler.accounting import cost_report
from diffusion_text.sampler.host import stream
from diffusion_text.sampler.records import Frame
from diffusion_text.train.storage import as_path
from diffusion_text.types import Batch

OPEN = "·"


class Shown(NamedTuple):
  """One row after a call.

  Attributes:
    row: its number.
    call: the row's reads so far; 0 before the first.
    pieces: the text of each token; OPEN where a token is noise.
    changed: bool [L], tokens that this call changed.
  """

  row: int
  call: int
  pieces: Sequence[str]
  changed: Sequence[bool]

  @property
  def text(self) -> str:
    """The row in one line; line ends are shown as ⏎."""
    return "".join(self.pieces).replace("\n", "⏎")


def check_film(
  page: str | None, stream: bool, rows: int, batch_size: int, output: str | None
) -> None:
  """Raises ValueError for what `play` cannot do: more rows than a batch, an output of its own, and
  a page that is there already.
  """
  if not (page or stream):
    return
  if output is not None:
    raise ValueError(f"--output={output} is written without --stream and --trace; choose one")
  if rows > batch_size:
    raise ValueError(
      f"--stream and --trace show one batch, and {rows} rows are more than"
      f" --batch_size={batch_size}; use a smaller --num"
    )
  if page is not None and as_path(page).exists():
    raise ValueError(f"--trace={page} is there already; delete it, or write another file")


def play(
  trained: Trained,
  texts: Batch,
  decoding: Decoding,
  *,
  num: int,
  seed: int,
  page: str | None,
  say: bool,
) -> None:
  """Draws one batch call by call: prints each row after each of its calls (`say`), then the costs;
  writes them to `page`, if there is one.
  """
  numbers = np.arange(texts.ids.shape[0] * num)
  texts = jax.tree.map(lambda leaf: leaf[numbers // num], texts)
  calls = shown(trained, texts, decoding, samples=numbers % num, seed=seed)
  frames = []
  while True:
    try:
      frame = next(calls)
    except StopIteration as stop:
      costs = stop.value
      break
    frames.append(frame)
    if say:
      print(f"row {frame.row} call {frame.call:4d}  {frame.text}", flush=True)
  print(f"--- cost: {costs}")
  if page is not None:
    write_film(page, "diffusion_text: a film", frames, costs)
    print(f"film: {page}")


def shown(
  trained: Trained,
  texts: Batch,
  decoding: Decoding,
  *,
  samples: Int[np.ndarray, " B"],
  seed: int,
) -> Generator[Shown, None, str]:
  """Each row (`Shown`) before the first call, and after each call that reads it; returns the line
  of costs.

  samples: the number of the sample that each row is of its text, so that its tokens are those of
  `drawing.draw`.
  """
  experiment = trained.experiment
  reader = reader_for(decoding.reader, texts)
  keys = numbered_keys(seed, jnp.asarray(samples))
  frames = stream(
    experiment.model,
    trained.params,
    decoding.sampler,
    keys,
    batch=texts,
    reader=reader,
    block=decoding.block,
    end_id=decoding.end_id,
  )
  before = None
  while True:
    try:
      frame = next(frames)
    except StopIteration as stop:
      end_id = experiment.tokenizer.special["end"]
      return cost_report(stop.value, experiment.model, batch=texts, end_id=end_id).line()
    frame = Frame(*map(np.asarray, frame))
    for row in range(len(frame.ids)):
      if before is None or frame.reads[row] > before.reads[row]:
        yield _shown(experiment.tokenizer, texts, row, frame, before)
    before = frame


def _shown(tokenizer: Any, texts: Batch, row: int, now: Frame, before: Frame | None) -> Shown:
  """The row, without its padding."""
  ids, noisy = now.ids[row], now.open[row]
  real = np.ones(ids.shape, bool) if texts.weights is None else np.asarray(texts.weights[row]) > 0
  # An id that is noise may be the mask, which no tokenizer knows.
  known = pieces(tokenizer, np.where(noisy, 0, ids)[real])
  each = [OPEN if hidden else piece for piece, hidden in zip(known, noisy[real], strict=True)]
  changed = np.zeros(ids.shape, bool)
  if before is not None:
    other = ~noisy & (before.ids[row] != ids)
    changed = (before.open[row] != noisy) | other
  return Shown(row, int(now.reads[row]), each, changed[real].tolist())


def write_film(path: str, title: str, frames: Sequence[Shown], costs: str) -> None:
  """Writes one self-contained page that plays the frames of each row.

  Raises:
    ValueError: for a file that is there already or cannot be written.
  """
  rows: dict[int, list[Any]] = {}
  for frame in frames:
    rows.setdefault(frame.row, []).append([frame.call, list(frame.pieces), _places(frame.changed)])
  data = json.dumps(list(rows.values())).replace("</", "<\\/")
  page = PAGE.replace("@title@", html.escape(title)).replace("@costs@", html.escape(costs))
  place = as_path(path)
  if place.exists():
    raise ValueError(f"--trace={path} is there already; delete it, or write another file")
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(page.replace("@data@", data), encoding="utf-8")
  except OSError as error:
    raise ValueError(f"--trace={path} cannot be written: {error}") from error


def _places(changed: Sequence[bool]) -> list[int]:
  return [place for place, each in enumerate(changed) if each]


PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>@title@</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
.row { font: 14px/1.6 ui-monospace, monospace; white-space: pre-wrap; background: #f6f6f4;
  padding: 1rem; border-radius: 6px; margin: .5rem 0; }
.row .open { color: #bbb; } .row .new { background: #ffe08a; border-radius: 3px; }
input[type=range] { width: 100%; }
</style>
<h1>@title@</h1>
<p>@costs@</p>
<p>Call <b id=now></b> of <b id=last></b>. A dot is a token that is still noise; what a call changed
is marked.</p>
<input type=range id=slider min=0 value=0 aria-label="network call"> <button id=play>play</button>
<div id=rows></div>
<script type="application/json" id=data>@data@</script>
<script>
const rows = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("slider"), box = document.getElementById("rows");
const last = Math.max(...rows.map(row => row[row.length - 1][0]));
slider.max = last; document.getElementById("last").textContent = last;
const boxes = rows.map(() => {
  const div = document.createElement("div"); div.className = "row"; box.append(div); return div;
});
function show(call) {
  document.getElementById("now").textContent = call;
  rows.forEach((row, i) => {
    const [at, pieces, changed] = row[Math.min(call, row.length - 1)], marked = new Set(changed);
    boxes[i].replaceChildren(...pieces.map((piece, k) => {
      const span = document.createElement("span");
      span.textContent = piece;
      span.className = piece === "\\u00b7" ? "open" : at === call && marked.has(k) ? "new" : "";
      return span;
    }));
  });
}
slider.oninput = () => show(+slider.value);
let timer = null;
document.getElementById("play").onclick = () => {
  clearInterval(timer); slider.value = 0; show(0);
  timer = setInterval(() => { slider.value = +slider.value + 1; show(+slider.value);
    if (+slider.value >= last) clearInterval(timer); }, 120);
};
slider.value = last; show(last);
</script>
"""

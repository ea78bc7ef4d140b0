"""Pages of one file, and players of films in them: a slider over the calls, and a button.

A page needs no network, and may hold several players.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

OPEN = "·"


class Shown(NamedTuple):
  """One row after a call.

  Attributes:
    row: its number.
    call: the row's reads so far; 0 before the first.
    pieces: the text of each token; OPEN where a token is noise.
    changed: bool [L], tokens that this call changed.
    open: bool [L], tokens that are noise.
  """

  row: int
  call: int
  pieces: Sequence[str]
  changed: Sequence[bool]
  open: Sequence[bool]

  @property
  def text(self) -> str:
    """The row in one line; line ends are shown as ⏎."""
    return "".join(self.pieces).replace("\n", "⏎")


def as_committed(pieces: Sequence[str], committed: Sequence[int], calls: int) -> list[Shown]:
  """The frames of one row in which every token is written once.

  Args:
    pieces: The text of each token, at the end.
    committed: The call, from 0, at which each token was written; -1 if it was given.
    calls: How many there were.
  """
  frames = []
  for call in range(calls + 1):
    noisy = [at >= call for at in committed]
    texts = [OPEN if hidden else piece for piece, hidden in zip(pieces, noisy, strict=True)]
    frames.append(Shown(0, call, texts, [at == call - 1 >= 0 for at in committed], noisy))
  return frames


def player(frames: Sequence[Shown]) -> str:
  """HTML that plays the frames, of all rows at once; in a page made by `page`."""
  rows: dict[int, list[Any]] = {}
  for frame in frames:
    places = [place for place, each in enumerate(frame.changed) if each]
    texts = [None if hidden else piece for piece, hidden in zip(frame.pieces, frame.open)]
    rows.setdefault(frame.row, []).append([frame.call, texts, places])
  data = json.dumps(list(rows.values())).replace("</", "<\\/")
  return PLAYER.replace("@data@", data)


def page(title: str, body: str) -> str:
  """A page with the style and the script of players around a body of HTML."""
  return PAGE.replace("@title@", html.escape(title)).replace("@body@", body)


PLAYER = """<div class=film>
<p>Call <b class=now></b> of <b class=last></b>. A grey dot is a token that is still noise. A colour
tells at which call a token got what it shows, from the first (violet) to the last (yellow); tokens
without colour were given.</p>
<input type=range class=slider min=0 value=0 aria-label="network call">
<button class=play>play</button>
<div class=scale></div>
<div class=rows></div>
<script type="application/json" class=data>@data@</script>
</div>
"""

PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=generator content=diffusion_text>
<title>@title@</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
pre, .row { font: 14px/1.6 ui-monospace, monospace; white-space: pre-wrap; background: #f6f6f4;
  padding: 1rem; border-radius: 6px; margin: .5rem 0; overflow-wrap: anywhere; }
.row span { border-radius: 3px; } .row .open { color: #bbb; background: #e4e4e0; }
table { border-collapse: collapse; }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
svg { max-width: 100%; height: auto; }
input[type=range] { width: 100%; } .scale { height: 10px; border-radius: 5px; }
</style>
@body@
<script>
const colour = x => `hsl(${280 - 230 * x} 85% ${80 - 8 * Math.sin(Math.PI * x)}%)`;
const stops = [0, .2, .4, .6, .8, 1].map(colour).join(",");
function start(film) {
  const part = name => film.querySelector("." + name);
  const rows = JSON.parse(part("data").textContent), slider = part("slider");
  const last = Math.max(...rows.map(row => row[row.length - 1][0]));
  const at = rows.map(row => {  // for every frame, the call at which each token last changed
    let made = row[0][1].map(() => 0);
    return row.map(([call, , changed]) => {
      made = made.slice(); changed.forEach(place => { made[place] = call; });
      return made;
    });
  });
  part("scale").style.background = `linear-gradient(90deg, ${stops})`;
  slider.max = last; part("last").textContent = last;
  const boxes = rows.map(() => {
    const div = document.createElement("div");
    div.className = "row"; part("rows").append(div);
    return div;
  });
  function show(call) {
    slider.value = call; part("now").textContent = call;
    rows.forEach((row, i) => {
      const frame = Math.min(call, row.length - 1), made = at[i][frame];
      boxes[i].replaceChildren(...row[frame][1].map((piece, k) => {
        const span = document.createElement("span"), open = piece === null;
        span.textContent = open ? "\\u00b7" : piece; span.className = open ? "open" : "";
        span.title = open ? "noise" : made[k] ? `call ${made[k]}` : "given";
        if (made[k] && !open) span.style.background = colour((made[k] - 1) / Math.max(last - 1, 1));
        return span;
      }));
    });
  }
  let timer = null;
  slider.oninput = () => { clearInterval(timer); show(+slider.value); };
  part("play").onclick = () => {
    clearInterval(timer); show(0);
    timer = setInterval(() => {
      if (+slider.value >= last) clearInterval(timer); else show(+slider.value + 1);
    }, 80);
  };
  show(last);
}
document.querySelectorAll(".film").forEach(start);
</script>
"""

"""Films of decoding: rows after each call, as lines of text and as a page that plays them."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffusion_text.core.prng import numbered_keys
from diffusion_text.data.tokenizers import pieces
from diffusion_text.experiment import player
from diffusion_text.experiment.decoding import Decoding
from diffusion_text.experiment.player import OPEN, Shown
from diffusion_text.experiment.run import Trained
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.sampler.accounting import cost_report
from diffusion_text.sampler.host import stream
from diffusion_text.sampler.records import Frame, Sample
from diffusion_text.train.storage import as_path
from diffusion_text.types import Batch, Model

FRAME_STYLE = "width: 100%; height: 26rem; border: none"


def check_film(
  page: str | None, stream: bool, rows: int, batch_size: int, output: str | None
) -> None:
  """Raises ValueError for what `play` cannot do: several processes, more rows than a batch, an
  output of its own, and a page that is there already.
  """
  if not (page or stream):
    return
  if jax.process_count() > 1:
    raise ValueError(
      f"--stream and --trace are drawn by one process, and these are {jax.process_count()}; start"
      " the command once, without --num_processes"
    )
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

  def line(row: Shown) -> None:
    if say:
      print(f"row {row.row} call {row.call:4d}  {row.text}", flush=True)

  made = film_of(trained, texts, decoding, samples=numbers % num, seed=seed, each=line)
  print(f"--- cost: {made.costs}")
  if page is not None:
    write_film(page, made)
    print(f"film: {page}")


@dataclasses.dataclass(frozen=True)
class Film:
  """Rows as they came to be, call by call; a notebook plays them.

  Attributes:
    frames: Of all rows.
    costs: Calls, tokens per call and entropy, in a line.
  """

  frames: Sequence[Shown]
  costs: str

  def body(self) -> str:
    """HTML that plays the rows, for a page made by `player.page`."""
    return f"<p>{html.escape(self.costs)}</p>{player.player(self.frames)}"

  def page(self, title: str = "diffusion_text: a film") -> str:
    """A page of one file that plays the rows."""
    return player.page(title, f"<h1>{html.escape(title)}</h1>{self.body()}")

  def _repr_html_(self) -> str:
    return f'<iframe srcdoc="{html.escape(self.page())}" style="{FRAME_STYLE}"></iframe>'


def film(
  frames: Generator[Frame, None, Sample],
  model: Model,
  tokenizer: Any,
  *,
  batch: Batch | None = None,
  each: Callable[[Shown], None] = lambda row: None,
) -> Film:
  """A film of what `stream` yields, which a notebook plays.

    dt.film(dt.stream(model, params, sampler, key, rows=2, length=64), model, tokenizer)

  Args:
    frames: Of `stream`; they are drawn to the end.
    model: That they are drawn from.
    tokenizer: Of the text, as `TextData.tokenizer`.
    batch: As of `stream`; None if it had none.
    each: Is given every row as soon as it is read.
  """
  rows: list[Shown] = []
  weights = None if batch is None else batch.weights
  calls = _rows_of(tokenizer, weights, frames)
  while True:
    try:
      rows.append(next(calls))
    except StopIteration as stop:
      costs = cost_report(stop.value, model, batch=batch, end_id=tokenizer.special["end"])
      return Film(rows, costs.line())
    each(rows[-1])


def film_of(
  trained: Trained,
  texts: Batch,
  decoding: Decoding,
  *,
  samples: Int[np.ndarray, " B"],
  seed: int,
  each: Callable[[Shown], None] = lambda row: None,
) -> Film:
  """The film of a workdir's texts.

  Args:
    trained: A workdir, loaded.
    texts: Rows with holes.
    decoding: How they are filled.
    samples: The number of the sample that each row is of its text, so that its tokens are those of
      `drawing.draw`.
    seed: Of the samples.
    each: As of `film`.
  """
  model, tokenizer = trained.experiment.model, trained.experiment.tokenizer
  frames = stream(
    model,
    trained.params,
    decoding.sampler,
    numbered_keys(seed, jnp.asarray(samples)),
    batch=texts,
    reader=reader_for(decoding.reader, texts),
    block=decoding.block,
    end_id=decoding.end_id,
  )
  return film(frames, model, tokenizer, batch=texts, each=each)


def _rows_of(
  tokenizer: Any, weights: Any, frames: Generator[Frame, None, Sample]
) -> Generator[Shown, None, Sample]:
  """Each row of each frame that its last call has read; returns the sample."""
  before = None
  while True:
    try:
      frame = next(frames)
    except StopIteration as stop:
      return stop.value
    frame = Frame(*map(np.asarray, frame))
    for row in range(len(frame.ids)):
      if before is None or frame.reads[row] > before.reads[row]:
        yield _shown(tokenizer, weights, row, frame, before)
    before = frame


def _shown(tokenizer: Any, weights: Any, row: int, now: Frame, before: Frame | None) -> Shown:
  """The row, without its padding."""
  ids, noisy = now.ids[row], now.open[row]
  real = np.ones(ids.shape, bool) if weights is None else np.asarray(weights[row]) > 0
  # An id that is noise may be the mask, which no tokenizer knows.
  known = pieces(tokenizer, np.where(noisy, 0, ids)[real])
  each = [OPEN if hidden else piece for piece, hidden in zip(known, noisy[real], strict=True)]
  changed = np.zeros(ids.shape, bool)
  if before is not None:
    other = ~noisy & (before.ids[row] != ids)
    changed = (before.open[row] != noisy) | other
  return Shown(row, int(now.reads[row]), each, changed[real].tolist(), noisy[real].tolist())


def write_film(path: str, film: Film) -> None:
  """Writes one self-contained page that plays the frames of each row.

  Raises:
    ValueError: for a file that is there already or cannot be written.
  """
  place = as_path(path)
  if place.exists():
    raise ValueError(f"--trace={path} is there already; delete it, or write another file")
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(film.page(), encoding="utf-8")
  except OSError as error:
    raise ValueError(f"--trace={path} cannot be written: {error}") from error

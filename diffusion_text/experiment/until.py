"""Texts that go on after a prompt until a stop string, by any decoder.

A row is the prompt, a canvas of a stated number of tokens, and padding that no token sees. All of
the canvas is generated, and its text is cut at the first end of text and then at the first stop
string: nothing is ever written beyond the canvas, so a text without either ends where the canvas
does. A network that reads whole rows sees how long its canvas is, so the size of the canvas is part
of what it writes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffusion_text.core.prng import numbered_keys
from diffusion_text.experiment.continuations import by_length, name_of, padded_length
from diffusion_text.experiment.decoding import Decoding
from diffusion_text.experiment.run import Trained
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.sampler.padding import check_block
from diffusion_text.types import Batch, Reader


class Open(NamedTuple):
  """A prompt and its canvas.

  Attributes:
    prompt: int32 [p].
    canvas: tokens to generate.
    name: a number below 2**31 that names its draws.
  """

  prompt: Int[np.ndarray, " p"]
  canvas: int
  name: int


def opened(prompts: Sequence[Int[np.ndarray, " p"]], canvases: Sequence[int]) -> list[Open]:
  """Prompts with canvases. Draws are named by the prompt, and by how often it came before."""
  seen: Counter[int] = Counter()
  rows = []
  for prompt, canvas in zip(prompts, canvases, strict=True):
    name = name_of(prompt)
    rows.append(Open(prompt, canvas, (name + seen[name]) % 2**31))
    seen[name] += 1
  return rows


def open_batch(rows: Sequence[Open], length: int) -> Batch:
  """Rows of `length` tokens on the host: prompt, canvas, padding."""
  shape = (len(rows), length)
  places = np.arange(length)
  start = np.array([[len(each.prompt)] for each in rows])
  stop = start + np.array([[each.canvas] for each in rows])
  ids = np.zeros(shape, np.int32)
  for row, each in enumerate(rows):
    ids[row, : len(each.prompt)] = each.prompt
  text = places < stop
  return Batch(
    ids,
    observed=(places < start) | ~text,
    weights=text.astype(np.float32),
    segment=text.astype(np.int32),
  )


@dataclasses.dataclass(frozen=True)
class Writer:
  """Fills canvases with a workdir.

  Attributes:
    trained: a workdir, loaded on one device.
    decoding: how.
    batch_size: rows in memory at a time.
    longest: tokens of a row, at most.
    seed: of the draws.
  """

  trained: Trained
  decoding: Decoding
  batch_size: int
  longest: int
  seed: int = 0

  def check(self, each: Open) -> None:
    """Raises ValueError for a row that is too long, and a canvas without a token."""
    if each.canvas < 1:
      raise ValueError(f"max_gen_toks={each.canvas} leaves no token to generate; use 1 or more")
    if len(each.prompt) + each.canvas > self.longest:
      raise ValueError(
        f"context of {len(each.prompt)} tokens and max_gen_toks={each.canvas} are more than"
        f" max_length={self.longest}; use a larger max_length (training had"
        f" {self.trained.experiment.data.length}), fewer tokens to generate, or longer=cut, which"
        " leaves out the begin of contexts"
      )

  def write(self, rows: Sequence[Open]) -> list[Int[np.ndarray, " n"]]:
    """The ids of each canvas, in order, up to its first end of text.

    Raises:
      ValueError: for a row that is too long, and a block that does not fit the context.
    """
    for each in rows:
      self.check(each)
    model = self.trained.experiment.model
    check_block(model, self.decoding.block)
    lengths = [padded_length(len(each.prompt) + each.canvas, model, self.longest) for each in rows]
    # Asked once for all rows, so that a text does not depend on the batch that it is drawn in.
    reader = reader_for(self.decoding.reader, open_batch(rows, max(lengths, default=0)))
    found: list[Any] = [None] * len(rows)
    for length, places in by_length(lengths, self.batch_size):
      filled = [rows[place] for place in (places + places[-1:] * self.batch_size)]
      ids = self._batch(filled[: self.batch_size], length, reader)
      for row, place in enumerate(places):
        start = len(rows[place].prompt)
        canvas = ids[row, start : start + rows[place].canvas]
        found[place] = up_to_end(canvas, self.decoding.end_id)
    return found

  def _batch(self, rows: Sequence[Open], length: int, reader: Reader) -> Int[np.ndarray, "B L"]:
    """The ids of a batch."""
    batch = open_batch(rows, length)
    keys = numbered_keys(self.seed, jnp.asarray([each.name for each in rows], jnp.int32))
    how = self.decoding._asdict() | {"reader": reader}
    return np.asarray(self.trained.experiment.sample(self.trained.params, keys, batch, **how).ids)


def up_to_end(ids: Int[np.ndarray, " n"], end_id: int | None) -> Int[np.ndarray, " k"]:
  """The ids before the first end of text; all where there is none."""
  ends = np.flatnonzero(ids == end_id) if end_id is not None else np.array([], int)
  return ids[: ends[0]] if len(ends) else ids


def up_to_stop(text: str, stops: Sequence[str]) -> str:
  """The text before the first of the stop strings; all where there is none."""
  places = [text.find(stop) for stop in stops if stop and stop in text]
  return text[: min(places)] if places else text

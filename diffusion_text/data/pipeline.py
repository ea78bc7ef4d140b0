"""Batches for training and evaluation from a token array.

The global batch is a function of (data, seed, step) alone. Each process reads the rows of the
global batch that it is asked for, so a run does not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffusion_text import types
from diffusion_text.data import packing
from diffusion_text.data.conversations import conversation_rows
from diffusion_text.data.token_arrays import TokenArrays

PACKINGS = ("stream", "documents", "pairs", "conversations")
ANSWERING = ("pairs", "conversations")  # those whose rows have observed tokens, and are never cut
_PREFETCH = 4  # batches that wait in memory
_THREADS = 2  # threads that make batches


class TrainIterator:
  """Endless training batches (`types.DataIterator`), made in advance by threads.

  The state counts the global batches that were handed out, not the batches that were made in
  advance. It is therefore exact, and the same for every process and for every number of processes.
  """

  def __init__(self, batches: Any, choices: dict[str, Any]):
    """Makes the iterator.

    Args:
      batches: A grain iterator of Batch.
      choices: Everything that the order of rows depends on.
    """
    self._batches = batches
    self._choices = choices

  def __iter__(self) -> TrainIterator:
    return self

  def __next__(self) -> types.Batch:
    """This process's rows of the next global batch: numpy arrays [len(places), L]."""
    return next(self._batches)

  def get_state(self) -> bytes:
    """The position of the iterator, as JSON."""
    return json.dumps({"grain": self._batches.get_state(), "choices": self._choices}).encode()

  def set_state(self, state: bytes) -> None:
    """Goes to a position that `get_state` returned.

    Raises:
      ValueError: If the position was saved with other data or choices.
    """
    saved = json.loads(state)
    for name, value in self._choices.items():
      # Positions of earlier versions do not say what the content was, and had no short rows.
      absent = {"content": value, "short_rows": 0.0, "answer_multiple": 1}.get(name)
      kept = saved["choices"].get(name, absent)
      if kept != value and name == "content":
        raise ValueError(
          "the saved data position belongs to other training text than data.path now holds (its "
          "tokens differ); give the text that the run was started with, or use a new workdir"
        )
      if kept != value:
        raise ValueError(
          f"the saved data position has {name}={kept!r}, this iterator has "
          f"{name}={value!r}; use the saved one, or start without the saved position"
        )
    self._batches.set_state(saved["grain"])


def train_iterator(
  arrays: TokenArrays,
  *,
  length: int,
  batch_size: int,
  seed: int,
  packing_kind: str = "stream",
  random_offset: bool = False,
  short_rows: float = 0.0,
  answer_multiple: int = 1,
  places: Sequence[int] | None = None,
) -> TrainIterator:
  """Endless batches of shuffled rows.

  Each epoch has every row once, in another order, drawn from `seed`. A batch may hold the end of
  one epoch and the beginning of the next.

  Args:
    arrays: The tokens of a split.
    length: Tokens of a row.
    batch_size: Rows of the global batch.
    seed: Seed of the order of rows and of the offsets.
    packing_kind: One of PACKINGS (see `packing`).
    random_offset: True to begin each epoch's stream at another token ("stream" only).
    short_rows: Share of the rows that are cut to a random length (see `packing.Shortened`).
    answer_multiple: See `conversations.conversation_rows`.
    places: The rows of the global batch to read, each from 0 to batch_size - 1. None: all.

  Raises:
    ValueError: Before any work, for sizes that do not fit together.
  """
  _check(packing_kind, length, batch_size)
  places = np.arange(batch_size) if places is None else np.asarray(places)
  if not places.size or places.min() < 0 or places.max() >= batch_size:
    raise ValueError(
      f"places={places.tolist()} are not rows of a batch of {batch_size}; "
      f"use numbers from 0 to {batch_size - 1}"
    )
  packing.check_length(length, arrays.tokens)
  if seed < 0:
    raise ValueError(f"seed={seed}; use seed >= 0")
  if packing_kind in ANSWERING and short_rows:
    raise ValueError(
      f"short_rows={short_rows} with packing_kind={packing_kind!r} would cut targets off; use"
      " short_rows=0"
    )
  if packing_kind == "stream":
    packed: packing.Packed = packing.Stream(arrays.tokens, length, random_offset, seed)
  elif random_offset:
    raise ValueError(
      f"random_offset=True with packing_kind={packing_kind!r}, whose rows begin with documents; "
      "use random_offset=False"
    )
  else:
    packed = _by_document(arrays, length, packing_kind, answer_multiple)
  if packed.count < batch_size:
    raise ValueError(
      f"batch_size={batch_size}, but the split has only {packed.count} rows of length={length}; "
      f"use batch_size <= {packed.count}, shorter rows or more text"
    )
  if short_rows:
    packed = packing.Shortened(packed, short_rows, seed)
  choices = {
    "content": arrays.content,
    "length": length,
    "batch_size": batch_size,
    "seed": seed,
    "packing_kind": packing_kind,
    "random_offset": random_offset,
  }
  choices |= {"tokens": len(arrays.tokens), "rows": packed.count, "short_rows": short_rows}
  choices |= {"answer_multiple": answer_multiple}
  return TrainIterator(_grain_iterator(packed, batch_size, seed, places), choices)


def _by_document(
  arrays: TokenArrays, length: int, packing_kind: str, multiple: int
) -> packing.Packed:
  if packing_kind == "conversations":
    texts = arrays.tokens, arrays.answers, arrays.offsets
    return conversation_rows(*texts, length, arrays.separator, multiple)
  if packing_kind == "pairs":
    return packing.pair_rows(arrays.tokens, arrays.offsets, length, arrays.separator)
  return packing.whole_documents(arrays.tokens, arrays.offsets, length)


def _grain_iterator(packed: packing.Packed, batch_size: int, seed: int, places: np.ndarray) -> Any:
  import grain  # takes a second

  # Grain's epoch e shuffles with seed + e. Without this, epoch 1 of seed 0 would be epoch 0 of
  # seed 1.
  shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
  rows = grain.MapDataset.range(packed.count).shuffle(seed=shuffle_seed).repeat()

  def batch(step: int, _: int) -> types.Batch:
    ours = (step * batch_size + place for place in places.tolist())
    numbers = [place // packed.count * packed.count + rows[place] for place in ours]
    return packed.rows(np.array(numbers, np.int64))

  # One element per step, so that each process looks up its own rows only, and all tokens of a batch
  # are read at once.
  batches = grain.MapDataset.range(1).repeat().map_with_index(batch)
  return iter(
    batches.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH))
  )


class EvaluationBatches:
  """A finite sequence of batches that can be iterated many times; `len()` is their number.

  All batches have the same shapes and the same fields. Every token of the split has weight 1 in
  exactly one place (with packing "pairs": every token of the pairs that fit).
  """

  def __init__(self, packed: packing.Packed, batch_size: int):
    self._packed = packed
    rows = np.full(-(-packed.count // batch_size) * batch_size, -1, np.int64)
    rows[: packed.count] = np.arange(packed.count)
    self._padded = bool((rows < 0).any())
    self._rows = rows.reshape(-1, batch_size)

  def __len__(self) -> int:
    return len(self._rows)

  def __iter__(self) -> Iterator[types.Batch]:
    for rows in self._rows:
      batch = self._packed.rows(rows)
      # The same fields in every batch, so that evaluation is compiled once.
      if self._padded and batch.weights is None:
        batch = dataclasses.replace(batch, weights=np.ones(batch.ids.shape, np.float32))
      yield batch


def evaluation_batches(
  arrays: TokenArrays,
  *,
  length: int,
  batch_size: int,
  packing_kind: str = "stream",
  answer_multiple: int = 1,
) -> EvaluationBatches:
  """All rows of a split once, in order, as batches of numpy arrays [B, L].

  Every process gets all batches: they are few, and their costs are summed over the whole split. The
  last row is padded on the right, and the last batch is padded with whole rows; padding has weight
  0 and its own segment. The number of scored characters is
  `tokenizers.characters(tokenizer, batch.ids, batch.weights)`, summed over batches. It equals
  `arrays.characters` (but see `packing.PairRows` for pairs).

  Args:
    arrays: The tokens of a split.
    length: Tokens of a row.
    batch_size: Rows of a batch.
    packing_kind: One of PACKINGS (see `packing`).
    answer_multiple: See `conversations.conversation_rows`.

  Raises:
    ValueError: Before any work, for sizes that do not fit together.
  """
  _check(packing_kind, length, batch_size)
  if packing_kind == "stream":
    packed = packing.straight_stream(arrays.tokens, length)
  else:
    packed = _by_document(arrays, length, packing_kind, answer_multiple)
  return EvaluationBatches(packed, batch_size)


def _check(packing_kind: str, length: int, batch_size: int) -> None:
  if packing_kind not in PACKINGS:
    raise ValueError(
      f"packing_kind={packing_kind!r} is not a packing; use one of {', '.join(PACKINGS)}"
    )
  if length < 1:
    raise ValueError(f"length={length}; use length >= 1")
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}; use batch_size >= 1")

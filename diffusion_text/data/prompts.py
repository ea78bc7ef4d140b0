"""Rows for sampling: known tokens around holes.

In an infill text, `[16]` is a hole of 16 tokens and `[[` is a literal `[`: "a[4]b" has a hole, and
"a[[4]b" is the text "a[4]b". A bracket without a number in it is literal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_text import types
from diffusion_text.core.options import LARGEST
from diffusion_text.data.packing import PADDING_SEGMENT

_MARK = re.compile(r"\[\[|\[(\d+)\]")


def infill_rows(tokenizer: Any, texts: Sequence[str], length: int | None = None) -> types.Batch:
  """A batch of numpy arrays [B, L], one row for each text with holes.

  ids are int32, 0 in holes and padding. observed is bool, True everywhere except in holes. weights
  are float32, 0 in padding. segment is int32, 1 in text and 0 in padding. If no row has padding,
  weights and segment are None.

  Args:
    tokenizer: One of `tokenizers`.
    texts: Texts with holes.
    length: L. None: the number of tokens of the longest text.

  Raises:
    ValueError: For no texts, an empty text, a hole of no tokens, a text longer than `length`, or a
      character that the tokenizer does not know.
  """
  _check_any(texts, "texts")
  return _batch([_parse(tokenizer, text) for text in texts], list(texts), length)


def prompt_rows(tokenizer: Any, prompts: Sequence[str], length: int) -> types.Batch:
  """A batch of numpy arrays [B, length], one row for each prompt, observed at the start of the row.

  ids are int32, 0 where a token is to be generated. observed is bool. A prompt may be empty.

  Raises:
    ValueError: For no prompts, a prompt that leaves no token to generate, or a character that the
      tokenizer does not know.
  """
  _check_any(prompts, "prompts")
  rows = []
  for prompt in prompts:
    ids = _encode(tokenizer, prompt)
    if len(ids) >= length:
      raise ValueError(
        f"prompt {prompt!r} is {len(ids)} tokens long, which leaves none open in length={length}; "
        f"use length > {len(ids)}"
      )
    hole = np.zeros(length - len(ids), np.int32)
    rows.append((np.concatenate([ids, hole]), np.arange(length) < len(ids)))
  return _batch(rows, list(prompts), length)


def _parse(tokenizer: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
  """Ids int32 [tokens] and observed bool [tokens] of one infill text."""
  parts: list[str | int] = [""]  # known text and sizes of holes
  end = 0
  for mark in _MARK.finditer(text):
    parts[-1] += text[end : mark.start()]
    end = mark.end()
    if mark.group(1) is None:
      parts[-1] += "["
    elif int(mark.group(1)) == 0:
      raise ValueError(
        f"text {text!r} has a hole of 0 tokens, {mark.group()!r} at {mark.start()}; "
        "use [1] or more, or [[0] for a literal [0]"
      )
    elif int(mark.group(1)) > LARGEST:
      raise ValueError(f"text {text!r} has a hole of more than {LARGEST} tokens, {mark.group()!r}")
    else:
      parts += [int(mark.group(1)), ""]
  parts[-1] += text[end:]
  ids = [
    _encode(tokenizer, part) if isinstance(part, str) else np.zeros(part, np.int32)
    for part in parts
  ]
  observed = [np.full(len(row), isinstance(part, str)) for row, part in zip(ids, parts)]
  if not sum(map(len, ids)):
    raise ValueError(f"text {text!r} is empty; use some text or a hole such as [16]")
  return np.concatenate(ids), np.concatenate(observed)


def _batch(
  rows: list[tuple[np.ndarray, np.ndarray]], texts: list[str], length: int | None
) -> types.Batch:
  longest = max(len(ids) for ids, _ in rows)
  length = longest if length is None else length
  for (ids, _), text in zip(rows, texts):
    if len(ids) > length:
      raise ValueError(
        f"text {text!r} is {len(ids)} tokens long, more than length={length}; "
        f"use length >= {longest} or a shorter text"
      )
  ids_BxL = np.zeros((len(rows), length), np.int32)
  observed_BxL = np.ones((len(rows), length), bool)
  for row, (ids, observed) in enumerate(rows):
    ids_BxL[row, : len(ids)] = ids
    observed_BxL[row, : len(ids)] = observed
  real_BxL = np.arange(length) < np.array([[len(ids)] for ids, _ in rows])
  if real_BxL.all():
    return types.Batch(ids=ids_BxL, observed=observed_BxL)
  segment = np.where(real_BxL, 1, PADDING_SEGMENT).astype(np.int32)
  return types.Batch(
    ids=ids_BxL, observed=observed_BxL, weights=real_BxL.astype(np.float32), segment=segment
  )


def _encode(tokenizer: Any, text: str) -> np.ndarray:
  """Ids int32 [tokens] of known text, none of them the unknown id.

  An unknown id is right for scoring held-out text, but in a prompt it would hide a mistake.
  """
  ids = tokenizer.encode(text)
  if tokenizer.unknown is not None and (ids == tokenizer.unknown).any():
    place = int(np.flatnonzero(ids == tokenizer.unknown)[0])
    raise ValueError(
      f"character {text[place]!r} at {place} of {text!r} is unknown to the {tokenizer.name} "
      "tokenizer; use another character"
    )
  return ids


def _check_any(texts: Sequence[str], name: str) -> None:
  if isinstance(texts, str) or not texts:
    raise ValueError(f"{name}={texts!r}; use a list with at least one text")

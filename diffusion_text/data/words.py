"""The words of a corpus, as runs of tokens: for values that belong to words, not to their pieces.

A word begins with each document, at a token that starts with white space, after a token that ends
with white space, and before and after a token without letters or digits. Words are known where
tokens are words or pieces of words ("sentencepiece"), not where they are characters or bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from diffusion_text.data.token_arrays import TokenArrays

WORDLESS = ("characters", "bytes")  # tokenizers that tell no words
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; powers of it hash a run, modulo 2^64


class Words(NamedTuple):
  """W different words, and how often each token occurs in each.

  Attributes:
    counts: int64 [W], occurrences of each word.
    documents: int64 [W], the number of documents that contain each word.
    tokens, words, times: int64 [n] each: token tokens[i] occurs times[i] times in all occurrences
      of word words[i] together.
  """

  counts: Int[np.ndarray, " W"]
  documents: Int[np.ndarray, " W"]
  tokens: Int[np.ndarray, " n"]
  words: Int[np.ndarray, " n"]
  times: Int[np.ndarray, " n"]


def edges(tokenizer: Any) -> tuple[Bool[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
  """(True for tokens that begin a word, True for tokens after which one begins)."""
  alone = np.array([not _holds_letters(token) for token in tokenizer.token_bytes])
  first = np.array([token[:1].isspace() for token in tokenizer.token_bytes])
  last = np.array([token[-1:].isspace() for token in tokenizer.token_bytes])
  return first | alone, last | alone


def words_of(arrays: TokenArrays, tokenizer: Any) -> Words:
  """The words of a split.

  Raises:
    ValueError: For a tokenizer of characters or bytes.
  """
  if tokenizer.name in WORDLESS:
    raise ValueError(
      f"the tokenizer {tokenizer.name!r} does not tell words: its tokens are characters or bytes;"
      " use data.tokenizer='sentencepiece'"
    )
  tokens, offsets = np.asarray(arrays.tokens, np.int64), np.asarray(arrays.offsets)
  first, last = edges(tokenizer)
  begins = first[tokens]
  begins[1:] |= last[tokens[:-1]]
  begins[offsets[:-1][offsets[:-1] < len(tokens)]] = True
  places = np.flatnonzero(begins)
  run = np.cumsum(begins) - 1
  powers = np.cumprod(np.full(np.diff(np.append(places, len(tokens))).max(), _FACTOR))
  parts = (tokens + 1).astype(np.uint64) * powers[np.arange(len(tokens)) - places[run]]
  _, word, counts = np.unique(
    np.add.reduceat(parts, places), return_inverse=True, return_counts=True
  )
  size = len(counts)
  document = np.searchsorted(offsets, places, side="right") - 1
  seen = np.unique(document * size + word) % size
  pair, times = np.unique(tokens * size + word[run], return_counts=True)
  return Words(counts, np.bincount(seen, minlength=size), pair // size, pair % size, times)


def _holds_letters(token: bytes) -> bool:
  """True if a token holds a letter, a digit, or a part of a character of several bytes."""
  return any(byte > 127 or chr(byte).isalnum() for byte in token)

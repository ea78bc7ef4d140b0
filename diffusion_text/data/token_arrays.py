"""A split as one array of tokens on disk, made once and memory-mapped afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_text.data import corpora, tokenizers

_FORMAT = 1  # part of the cache's folder names; raise it when the files change


@dataclasses.dataclass(frozen=True)
class TokenArrays:
  """The tokens of a split.

  Attributes:
    tokens: uint16 or uint32 [T], every document followed by the tokenizer's separator. A split of a
      single document has no separator added.
    offsets: int64 [documents + 1]. Document i with its separator is
      tokens[offsets[i]:offsets[i + 1]].
    characters: Number of characters of the original text, separators included.
    unknown: Number of tokens that are the unknown id.
    separator: The separator of the tokenizer, None if it has none.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  characters: int
  unknown: int
  separator: int | None = None


def token_arrays(
  corpus: corpora.Corpus, tokenizer: Any, split: str, cache_dir: str | os.PathLike[str]
) -> TokenArrays:
  """The tokens of a split, encoded now or mapped from an earlier call's files.

  Files are shared by calls with the same corpus, tokenizer and split. They are written to a
  temporary folder, which is then renamed, so several processes may start at the same time: one of
  them succeeds, and all read the same files.

  Raises:
    ValueError: If the split is empty, or if it has several documents and the tokenizer has no
      separator.
  """
  corpora.check_split(split)
  name = hashlib.sha256(
    json.dumps([_FORMAT, corpus.identity(), tokenizer.fingerprint, split]).encode()
  ).hexdigest()[:16]
  directory = Path(cache_dir) / f"{split}-{name}"
  if not directory.exists():
    _write(corpus, tokenizer, split, directory)
  meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
  tokens = np.memmap(
    directory / "tokens.bin", mode="r", dtype=_dtype(tokenizer), shape=(meta["tokens"],)
  )
  offsets = np.memmap(
    directory / "offsets.bin", mode="r", dtype=np.int64, shape=(meta["documents"] + 1,)
  )
  return TokenArrays(tokens, offsets, meta["characters"], meta["unknown"], tokenizer.separator)


def _dtype(tokenizer: Any) -> type[np.unsignedinteger]:
  return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _write(corpus: corpora.Corpus, tokenizer: Any, split: str, directory: Path) -> None:
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
  try:
    meta = _encode(corpus, tokenizer, split, draft)
    (draft / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    draft.chmod(0o755)  # mkdtemp makes it private, but caches are shared
    try:
      draft.rename(directory)
    except OSError:  # another process was first, and its files are equal
      if not directory.exists():
        raise
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _encode(corpus: corpora.Corpus, tokenizer: Any, split: str, draft: Path) -> dict[str, int]:
  """Writes tokens.bin and offsets.bin; returns the counts for meta.json."""
  meta = {"documents": 0, "tokens": 0, "characters": 0, "unknown": 0}
  with (
    (draft / "tokens.bin").open("wb") as tokens_file,
    (draft / "offsets.bin").open("wb") as offsets_file,
  ):

    def write(ids: np.ndarray) -> None:
      tokens_file.write(ids.astype(_dtype(tokenizer)).tobytes())
      meta["tokens"] += len(ids)
      meta["characters"] += tokenizers.characters(tokenizer, ids)
      meta["unknown"] += (
        int((ids == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0
      )

    def end_document() -> None:
      if tokenizer.separator is None:
        raise ValueError(
          f"split={split!r} has several documents, but this {tokenizer.name} tokenizer has no "
          "newline to write between them; build it from the documents of this corpus, or use bytes"
        )
      write(np.array([tokenizer.separator]))

    for document in corpus.documents(split):
      if meta["documents"] == 1:
        end_document()  # ends the first document: only now are several documents known to exist
      offsets_file.write(np.int64(meta["tokens"]).tobytes())
      for ids in tokenizers.encode_document(tokenizer, document):
        write(ids)
      meta["documents"] += 1
      if meta["documents"] > 1:
        end_document()
    offsets_file.write(np.int64(meta["tokens"]).tobytes())
  if not meta["tokens"]:
    raise ValueError(f"split={split!r} of {corpus} has no tokens; use a corpus with text")
  return meta

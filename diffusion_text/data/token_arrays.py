"""A split as one array of tokens on disk, made once and memory-mapped afterwards."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diffusion_text.data import corpora, splits, tokenizers

log = logging.getLogger(__name__)

_FORMAT = 2  # part of the cache's folder names; raise it when the files change


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
    content: A hash of the tokens and offsets. Equal text gives an equal hash, wherever it is kept.
    unknown_bytes: Bytes of the characters that became the unknown id.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  characters: int
  unknown: int
  separator: int | None = None
  content: str = ""
  unknown_bytes: int = 0

  @property
  def bytes_of_unknown(self) -> float:
    """Bytes of an unknown character, on average."""
    return self.unknown_bytes / max(self.unknown, 1)

  @property
  def document_sizes(self) -> np.ndarray:
    """int64 [documents]: the tokens of each document with its separator, added or not."""
    return np.diff(self.offsets) + (len(self.offsets) == 2)

  def token_counts(self, vocab_size: int) -> np.ndarray:
    """int64 [V]: how often each token occurs."""
    return np.bincount(self.tokens, minlength=vocab_size)

  def document_counts(self, vocab_size: int) -> np.ndarray:
    """int64 [V]: in how many documents each token occurs."""
    counts = np.zeros(vocab_size, np.int64)
    for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
      counts[np.unique(self.tokens[start:stop])] += 1
    return counts


def token_arrays(
  corpus: corpora.Corpus,
  tokenizer: Any,
  split: str,
  cache_dir: str | os.PathLike[str] | None,
) -> TokenArrays:
  """The tokens of a split ("all": of all splits), encoded now or mapped from an earlier call's
  files. What was read, and why it is in the split, is logged once.

  Files are shared by calls with the same corpus, tokenizer and split. They are written to a
  temporary folder, which is then renamed, so several processes may start at the same time: one of
  them succeeds, and all read the same files.

  Raises:
    ValueError: If the split is empty, or if it has several documents and the tokenizer has no
      separator.
  """
  corpora.check_split(split)
  if cache_dir is None:
    result = _in_memory(corpus, tokenizer, split)
  else:
    result = _mapped(corpus, tokenizer, split, Path(cache_dir))
  for line in _report(corpus, tokenizer, split, result):
    say_once(line)
  return result


def _in_memory(corpus: corpora.Corpus, tokenizer: Any, split: str) -> TokenArrays:
  tokens_file, offsets_file = io.BytesIO(), io.BytesIO()
  meta = _encode(corpus, tokenizer, split, tokens_file, offsets_file)
  tokens = np.frombuffer(tokens_file.getbuffer(), _dtype(tokenizer))
  return _arrays(tokens, np.frombuffer(offsets_file.getbuffer(), np.int64), meta, tokenizer)


def _mapped(corpus: corpora.Corpus, tokenizer: Any, split: str, cache: Path) -> TokenArrays:
  identity = corpus.identity(cache / "hashes")
  name = hashlib.sha256(
    json.dumps([_FORMAT, identity, tokenizer.fingerprint, split]).encode()
  ).hexdigest()[:16]
  directory = cache / f"{split}-{name}"
  if not directory.exists():
    _write(corpus, tokenizer, split, directory)
  meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
  tokens = np.memmap(
    directory / "tokens.bin", mode="r", dtype=_dtype(tokenizer), shape=(meta["tokens"],)
  )
  offsets = np.memmap(
    directory / "offsets.bin", mode="r", dtype=np.int64, shape=(meta["documents"] + 1,)
  )
  return _arrays(tokens, offsets, meta, tokenizer)


def _arrays(
  tokens: np.ndarray, offsets: np.ndarray, meta: dict[str, Any], tokenizer: Any
) -> TokenArrays:
  return TokenArrays(
    tokens=tokens,
    offsets=offsets,
    characters=meta["characters"],
    unknown=meta["unknown"],
    separator=tokenizer.separator,
    content=meta["content"],
    unknown_bytes=meta["unknown_bytes"],
  )


def _report(corpus: corpora.Corpus, tokenizer: Any, split: str, result: TokenArrays) -> list[str]:
  """What was read into the split and why, in lines; for train also what is held out."""
  size = (
    f"{len(result.offsets) - 1:,} documents, {result.characters:,} characters, "
    f"{len(result.tokens):,} tokens"
  )
  lines = [f"data: {split}: {size}; {corpus.origin(split)}"]
  if split == "train":
    held_out = (name for name in splits.SPLITS if name != "train")
    lines += [f"data: {name}: {corpus.origin(name)}" for name in held_out]
  if result.unknown:
    lines.append(
      f"data: {split}: {result.unknown:,} characters "
      f"({100 * result.unknown / result.characters:.2g} %) are unknown to the {tokenizer.name} "
      "tokenizer; a score does not say what they are"
    )
  return lines


@functools.lru_cache(maxsize=256)
def say_once(line: str) -> None:
  """Logs a line once in a process."""
  log.info("%s", line)


def _dtype(tokenizer: Any) -> type[np.unsignedinteger]:
  return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _write(corpus: corpora.Corpus, tokenizer: Any, split: str, directory: Path) -> None:
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
  try:
    with (
      (draft / "tokens.bin").open("wb") as tokens_file,
      (draft / "offsets.bin").open("wb") as offsets_file,
    ):
      meta = _encode(corpus, tokenizer, split, tokens_file, offsets_file)
    (draft / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    draft.chmod(0o755)  # mkdtemp makes it private, but caches are shared
    try:
      draft.rename(directory)
    except OSError:  # another process was first, and its files are equal
      if not directory.exists():
        raise
  finally:
    shutil.rmtree(draft, ignore_errors=True)


class _Writer:
  """Writes tokens, counts what it writes, and hashes it."""

  def __init__(self, tokenizer: Any, tokens_file: BinaryIO):
    self.tokens = self.characters = self.unknown = self.known_bytes = 0
    self.hash = hashlib.sha256()
    self._tokenizer = tokenizer
    self._file = tokens_file

  def write(self, ids: np.ndarray) -> None:
    tokenizer = self._tokenizer
    data = ids.astype(_dtype(tokenizer)).tobytes()
    self._file.write(data)
    self.hash.update(data)
    self.tokens += len(ids)
    self.characters += tokenizers.characters(tokenizer, ids)
    if tokenizer.unknown is not None:
      self.unknown += int((ids == tokenizer.unknown).sum())
      self.known_bytes += int(tokenizer.byte_counts[ids].sum(dtype=np.int64))


def _encode(
  corpus: corpora.Corpus, tokenizer: Any, split: str, tokens_file: BinaryIO, offsets_file: BinaryIO
) -> dict[str, Any]:
  """Writes tokens and offsets; returns the counts for meta.json."""
  writer = _Writer(tokenizer, tokens_file)
  offsets_hash = hashlib.sha256()
  documents = text_bytes = 0

  def write_offset() -> None:
    data = np.int64(writer.tokens).tobytes()
    offsets_file.write(data)
    offsets_hash.update(data)

  def end_document() -> None:
    if tokenizer.separator is None:
      raise ValueError(
        f"split={split!r} has several documents, but this {tokenizer.name} tokenizer has no "
        "newline to write between them; build it from the documents of this corpus, or use bytes"
      )
    writer.write(np.array([tokenizer.separator]))

  for document in corpus.documents(split):
    if documents == 1:
      end_document()  # ends the first document: only now are several documents known to exist
    write_offset()
    documents += 1
    text_bytes += len(document.encode("utf-8"))
    try:
      for ids in tokenizers.encode_document(tokenizer, document):
        writer.write(ids)
    except ValueError as error:
      raise ValueError(
        f"document {documents} of split={split!r}, which begins {document[:40]!r}: {error}"
      ) from error
    if documents > 1:
      end_document()
  write_offset()
  if not writer.tokens:
    raise ValueError(f"split={split!r} of {corpus} has no tokens; use a corpus with text")
  separators = documents if documents > 1 else 0
  return {
    "documents": documents,
    "tokens": writer.tokens,
    "characters": writer.characters,
    "unknown": writer.unknown,
    "unknown_bytes": text_bytes + separators - writer.known_bytes if writer.unknown else 0,
    "content": hashlib.sha256(writer.hash.digest() + offsets_hash.digest()).hexdigest(),
  }

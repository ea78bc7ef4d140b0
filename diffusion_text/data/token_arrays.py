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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from diffusion_text.data import corpora, splits, tokenizers

log = logging.getLogger(__name__)

_FORMAT = 2  # part of the cache's folder names; raise it when the files change


@dataclasses.dataclass(frozen=True)
class TokenArrays:
  """The tokens of a split.

  Attributes:
    tokens: uint16 or uint32 [T], every document followed by the tokenizer's separator. A split of a
      single document has no separator added, and neither have conversations.
    offsets: int64 [documents + 1]. Document i with its separator is
      tokens[offsets[i]:offsets[i + 1]].
    characters: Number of characters of the original text, separators included.
    unknown: Number of tokens that are the unknown id.
    separator: The separator of the tokenizer, None if it has none.
    content: A hash of the tokens and offsets. Equal text gives an equal hash, wherever it is kept.
    unknown_bytes: Bytes of the characters that became the unknown id.
    answers: bool [T], the tokens that a model is to write; None where it is to write all.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  characters: int
  unknown: int
  separator: int | None = None
  content: str = ""
  unknown_bytes: int = 0
  answers: np.ndarray | None = None

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


class Encoder(Protocol):
  """How documents become tokens, where this is not the tokenizer's work alone.

  Attributes:
    name: What the tokens depend on besides the text and the tokenizer.
  """

  name: str

  def pieces(self, document: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids int32 [n], answers bool [n]) of the parts of a document, in order."""


def token_arrays(
  corpus: corpora.Corpus,
  tokenizer: Any,
  split: str,
  cache_dir: str | os.PathLike[str] | None,
  encoder: Encoder | None = None,
) -> TokenArrays:
  """The tokens of a split ("all": of all splits), encoded now or mapped from an earlier call's
  files. What was read, and why it is in the split, is logged once.

  Files are shared by calls with the same corpus, tokenizer and split. They are written to a
  temporary folder, which is then renamed, so several processes may start at the same time: one of
  them succeeds, and all read the same files.

  Args:
    corpus: The documents.
    tokenizer: Of the ids.
    split: One of the three, or "all".
    cache_dir: Where the files are. None: the tokens stay in memory.
    encoder: Makes the ids of documents, and says which are answers. None: the tokenizer, with a
      separator after each document.

  Raises:
    ValueError: If the split is empty, or if it has several documents and the tokenizer has no
      separator.
  """
  corpora.check_split(split)
  if cache_dir is None:
    result = _in_memory(corpus, tokenizer, split, encoder)
  else:
    result = _mapped(corpus, tokenizer, split, Path(cache_dir), encoder)
  for line in _report(corpus, tokenizer, split, result):
    say_once(line)
  return result


def _in_memory(
  corpus: corpora.Corpus, tokenizer: Any, split: str, encoder: Encoder | None
) -> TokenArrays:
  files = _Files(io.BytesIO(), io.BytesIO(), io.BytesIO())
  meta = _encode(corpus, tokenizer, split, files, encoder)
  tokens = np.frombuffer(files.tokens.getbuffer(), _dtype(tokenizer))
  offsets = np.frombuffer(files.offsets.getbuffer(), np.int64)
  answers = None if encoder is None else np.frombuffer(files.answers.getbuffer(), bool)
  return _arrays(tokens, offsets, answers, meta, tokenizer)


def _mapped(
  corpus: corpora.Corpus, tokenizer: Any, split: str, cache: Path, encoder: Encoder | None
) -> TokenArrays:
  identity = corpus.identity(cache / "hashes")
  known_by = [_FORMAT, identity, tokenizer.fingerprint, split]
  known_by += [] if encoder is None else [encoder.name]
  name = hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:16]
  directory = cache / f"{split}-{name}"
  if not directory.exists():
    _write(corpus, tokenizer, split, directory, encoder)
  meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
  tokens = np.memmap(
    directory / "tokens.bin", mode="r", dtype=_dtype(tokenizer), shape=(meta["tokens"],)
  )
  offsets = np.memmap(
    directory / "offsets.bin", mode="r", dtype=np.int64, shape=(meta["documents"] + 1,)
  )
  answers = None
  if encoder is not None:
    answers = np.memmap(directory / "answers.bin", mode="r", dtype=bool, shape=(meta["tokens"],))
  return _arrays(tokens, offsets, answers, meta, tokenizer)


def _arrays(
  tokens: np.ndarray,
  offsets: np.ndarray,
  answers: np.ndarray | None,
  meta: dict[str, Any],
  tokenizer: Any,
) -> TokenArrays:
  return TokenArrays(
    tokens=tokens,
    offsets=offsets,
    characters=meta["characters"],
    unknown=meta["unknown"],
    separator=tokenizer.separator,
    content=meta["content"],
    unknown_bytes=meta["unknown_bytes"],
    answers=answers,
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


class _Files(NamedTuple):
  tokens: BinaryIO
  offsets: BinaryIO
  answers: BinaryIO  # stays empty without an encoder


def _write(
  corpus: corpora.Corpus, tokenizer: Any, split: str, directory: Path, encoder: Encoder | None
) -> None:
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
  try:
    with (
      (draft / "tokens.bin").open("wb") as tokens,
      (draft / "offsets.bin").open("wb") as offsets,
      io.BytesIO() if encoder is None else (draft / "answers.bin").open("wb") as answers,
    ):
      meta = _encode(corpus, tokenizer, split, _Files(tokens, offsets, answers), encoder)
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
  corpus: corpora.Corpus, tokenizer: Any, split: str, files: _Files, encoder: Encoder | None
) -> dict[str, Any]:
  """Writes tokens, offsets and, with an encoder, answers; returns the counts for meta.json."""
  writer = _Writer(tokenizer, files.tokens)
  offsets_hash, answers_hash = hashlib.sha256(), hashlib.sha256()
  documents = text_bytes = 0

  def write_offset() -> None:
    data = np.int64(writer.tokens).tobytes()
    files.offsets.write(data)
    offsets_hash.update(data)

  def end_document() -> None:
    if tokenizer.separator is None:
      raise ValueError(
        f"split={split!r} has several documents, but this {tokenizer.name} tokenizer has no "
        "newline to write between them; build it from the documents of this corpus, or use bytes"
      )
    writer.write(np.array([tokenizer.separator]))

  def write_document(document: str) -> None:
    if encoder is None:
      for ids in tokenizers.encode_document(tokenizer, document):
        writer.write(ids)
      return
    for ids, answers in encoder.pieces(document):
      writer.write(ids)
      files.answers.write(answers.tobytes())
      answers_hash.update(answers.tobytes())

  for document in corpus.documents(split):
    if documents == 1 and encoder is None:
      end_document()  # ends the first document: only now are several documents known to exist
    write_offset()
    documents += 1
    text_bytes += len(document.encode("utf-8"))
    try:
      write_document(document)
    except ValueError as error:
      raise ValueError(
        f"document {documents} of split={split!r}, which begins {document[:40]!r}: {error}"
      ) from error
    if documents > 1 and encoder is None:
      end_document()
  write_offset()
  if not writer.tokens:
    raise ValueError(f"split={split!r} of {corpus} has no tokens; use a corpus with text")
  separators = documents if documents > 1 and encoder is None else 0
  hashes = writer.hash.digest() + offsets_hash.digest()
  hashes += b"" if encoder is None else answers_hash.digest()
  return {
    "documents": documents,
    "tokens": writer.tokens,
    "characters": writer.characters,
    "unknown": writer.unknown,
    "unknown_bytes": text_bytes + separators - writer.known_bytes if writer.unknown else 0,
    "content": hashlib.sha256(hashes).hexdigest(),
  }

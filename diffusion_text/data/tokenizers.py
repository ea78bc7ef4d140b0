"""Text to ids and back.

Every tokenizer is lossless: `decode(encode(text)) == text` for text without unknown characters.
Each id stands for a fixed string of UTF-8 bytes. Decoding, counting characters and display are all
computed from this one table.

`separator` is the id of "\\n", which is written between documents, or None. `unknown` is the id of
a character outside the vocabulary, or None if such a character is an error.

Tokens with a task are named by role, `special`: role -> id, or None where no token has the role.
"end" is the separator: a text ends where the next would begin. No tokenizer made here has a token
of role "mask", "pad" or "begin". A process that masks adds an id of its own, V, which no text can
hold; padding has weight 0 and needs no token; and nothing is written before a text. So every string
is text: "<mask>", "</s>" and "[16]" are encoded as the characters that they are, and come back.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

# An unknown character decodes to this one character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
ROLES = ("begin", "end", "mask", "pad")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space
_CHUNK = 1 << 20  # characters that are encoded in one call


class _Table:
  """A tokenizer whose every id stands for fixed bytes: all that can be computed from the bytes."""

  name: ClassVar[str]
  separator: int | None
  unknown: int | None = None

  @property
  def special(self) -> dict[str, int | None]:
    """The id of each of ROLES; None where no token has it."""
    return dict.fromkeys(ROLES) | {"end": self.separator}

  @property
  def markers(self) -> dict[str, int]:
    """Text -> id of the tokens that no text is encoded as, such as those of chat templates."""
    return {}

  def _table(self) -> list[bytes]:
    raise NotImplementedError

  def encode(self, text: str) -> np.ndarray:
    """Ids int32 [L].

    Raises:
      ValueError: For text that it cannot hold, with the character and its place.
    """
    raise NotImplementedError

  def to_bytes(self) -> bytes:
    """The tokenizer as bytes, for `tokenizer_from_bytes`."""
    raise NotImplementedError

  @functools.cached_property
  def token_bytes(self) -> list[bytes]:
    """The UTF-8 bytes of each of the V ids."""
    return self._table()

  @functools.cached_property
  def character_counts(self) -> np.ndarray:
    """int32 [V], the number of characters that begin in each token.

    A character counts in the token with its first byte, so no character counts twice.
    """
    return np.array(
      [sum(byte & 0xC0 != 0x80 for byte in token) for token in self.token_bytes], np.int32
    )

  @functools.cached_property
  def byte_counts(self) -> np.ndarray:
    """int32 [V], the number of bytes of each token; 0 for the unknown id, whose bytes are lost."""
    counts = np.array([len(token) for token in self.token_bytes], np.int32)
    if self.unknown is not None:
      counts[self.unknown] = 0
    return counts

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hexadecimal digits, equal for equal tokenizers in every process and on every machine."""
    return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

  @property
  def vocab_size(self) -> int:
    """V."""
    return len(self.token_bytes)

  def decode(self, ids: Any) -> str:
    """The text of ids [L]. Bytes that are not UTF-8 become U+FFFD.

    Raises:
      ValueError: For an id outside the vocabulary.
    """
    tokens = self.token_bytes
    return b"".join([tokens[i] for i in self.check(ids).tolist()]).decode("utf-8", errors="replace")

  def check(self, ids: Any) -> np.ndarray:
    """The ids as a flat array. Raises ValueError for an id outside the vocabulary."""
    ids = np.asarray(ids).reshape(-1)
    ids = ids if ids.size else ids.astype(np.int32)
    wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
    if wrong.size:
      raise ValueError(
        f"ids[{wrong[0]}]={ids[wrong[0]]} is outside the vocabulary 0 … {self.vocab_size - 1}; "
        "pass clean ids, not noised ones, and the tokenizer that made them"
      )
    return ids


@dataclasses.dataclass(frozen=True)
class Characters(_Table):
  """One id per character, in code-point order.

  Attributes:
    alphabet: The characters, sorted.
    has_unknown: True if one more id, the last, stands for every other character. Held-out text with
      a rare character can then still be scored; the id decodes to U+FFFD and counts as one
      character. If False, such text is an error.
  """

  alphabet: str
  has_unknown: bool = True
  name: ClassVar[str] = "characters"

  def __post_init__(self):
    if not self.alphabet or list(self.alphabet) != sorted(set(self.alphabet)):
      raise ValueError(
        f"alphabet={self.alphabet!r} must hold distinct characters in order; "
        "use ''.join(sorted(set(text)))"
      )
    _utf8(self.alphabet)

  @property
  def separator(self) -> int | None:
    """The id of the newline."""
    place = self.alphabet.find("\n")
    return None if place < 0 else place

  @property
  def unknown(self) -> int | None:
    """The last id, or None without an unknown id."""
    return len(self.alphabet) if self.has_unknown else None

  @functools.cached_property
  def _codes(self) -> np.ndarray:
    return np.frombuffer(self.alphabet.encode("utf-32-le"), np.uint32)

  def _table(self) -> list[bytes]:
    return [
      character.encode("utf-8")
      for character in self.alphabet + (REPLACEMENT if self.has_unknown else "")
    ]

  def encode(self, text: str) -> np.ndarray:
    """Ids int32 [L], for L characters.

    Raises:
      ValueError: For a character outside the alphabet, if there is no unknown id.
    """
    _utf8(text)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    ids = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1).astype(np.int32)
    wrong = self._codes[ids] != codes
    if wrong.any():
      if not self.has_unknown:
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(
          f"character {text[place]!r} at {place} is not among the {len(self.alphabet)} of the "
          "alphabet; remove it, learn the alphabet from text that has it, or use "
          f"vocab_size={len(self.alphabet) + 1} to have an unknown id"
        )
      ids[wrong] = len(self.alphabet)
    return ids

  def to_bytes(self) -> bytes:
    """See `_Table`."""
    return b"characters\n" + json.dumps([self.alphabet, self.has_unknown]).encode()


@dataclasses.dataclass(frozen=True)
class Bytes(_Table):
  """The 256 bytes of UTF-8."""

  name: ClassVar[str] = "bytes"
  separator: ClassVar[int] = ord("\n")

  def _table(self) -> list[bytes]:
    return [bytes([value]) for value in range(256)]

  def encode(self, text: str) -> np.ndarray:
    """Ids int32 [L], for L bytes."""
    return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

  def to_bytes(self) -> bytes:
    """See `_Table`."""
    return b"bytes\n"


@dataclasses.dataclass(frozen=True)
class SentencePiece(_Table):
  """A sentencepiece model (BPE or unigram) made by `train_sentencepiece`.

  Id 0 is the `<unk>` that sentencepiece requires. It never occurs, because rare characters fall
  back to bytes.

  Attributes:
    model: The serialised model.
  """

  model: bytes = dataclasses.field(repr=False)
  name: ClassVar[str] = "sentencepiece"

  def __post_init__(self):
    processor = self._processor
    newline = processor.piece_to_id("\n")
    if newline == processor.unk_id() or not processor.is_byte(processor.piece_to_id("<0x00>")):
      raise ValueError(
        "this sentencepiece model has no newline piece or no byte fallback, so it loses text; "
        "use train_sentencepiece"
      )

  @functools.cached_property
  def _processor(self):
    import sentencepiece  # only this tokenizer needs it

    return sentencepiece.SentencePieceProcessor(model_proto=self.model)

  @property
  def separator(self) -> int:
    """The id of the newline."""
    return self._processor.piece_to_id("\n")

  @property
  def special(self) -> dict[str, int | None]:
    """The id of each of ROLES; "begin" and "pad" where the model has control pieces for them."""
    controls = {"begin": self._processor.bos_id(), "pad": self._processor.pad_id()}
    held = {role: piece for role, piece in controls.items() if piece >= 0}
    return super().special | held

  def _table(self) -> list[bytes]:
    processor = self._processor
    tokens = []
    for i in range(processor.get_piece_size()):
      piece = processor.id_to_piece(i)
      if processor.is_byte(i):
        tokens.append(bytes([int(piece[3:5], 16)]))
      elif processor.is_unknown(i) or processor.is_control(i):
        tokens.append(b"")
      else:
        tokens.append(piece.replace(_SPACE, " ").encode("utf-8"))
    return tokens

  def encode(self, text: str) -> np.ndarray:
    """Ids int32 [L]."""
    _utf8(text)  # sentencepiece drops lone surrogates silently
    # sentencepiece cannot tell its own mark for a space from the same character in the text, so
    # that character is spelt in bytes.
    mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode("utf-8")]
    ids: list[int] = []
    for n, part in enumerate(text.split(_SPACE)):
      ids += mark if n else []
      ids += self._processor.encode(part)
    return np.array(ids, np.int32)

  def to_bytes(self) -> bytes:
    """See `_Table`."""
    return b"sentencepiece\n" + self.model


TOKENIZERS = {"characters": Characters, "bytes": Bytes, "sentencepiece": SentencePiece}


def build_tokenizer(
  kind: str, vocab_size: int | None, documents: Iterable[str]
) -> Characters | Bytes | SentencePiece:
  """A tokenizer learned from training documents.

  Args:
    kind: A key of TOKENIZERS.
    vocab_size: For "sentencepiece", the number of pieces. For "bytes", 256 or None. For
      "characters", C + 1 or None for the C characters of the documents (with the newline, if there
      are several documents) and an unknown id, or C for no unknown id, as is usual for text8 (27).
    documents: Training documents.

  Raises:
    ValueError: For an unknown kind, an impossible size, or no text.
  """
  if kind not in TOKENIZERS:
    raise ValueError(f"kind={kind!r} is not a tokenizer; use one of {', '.join(TOKENIZERS)}")
  if kind == "bytes":
    if vocab_size not in (None, 256):
      raise ValueError(f"vocab_size={vocab_size} for bytes; use 256, or None")
    return Bytes()
  if kind == "sentencepiece":
    if vocab_size is None:
      raise ValueError("vocab_size=None for sentencepiece; use the number of pieces, such as 4096")
    return train_sentencepiece(documents, vocab_size)
  return learn_characters(documents, vocab_size)


def learn_characters(documents: Iterable[str], vocab_size: int | None = None) -> Characters:
  """The alphabet of the documents; see `build_tokenizer` for vocab_size."""
  seen: set[str] = set()
  for n, document in enumerate(documents):
    seen |= set(document)
    if n == 1:
      seen.add("\n")
  if not seen:
    raise ValueError("no characters in the documents; use a corpus with text")
  if vocab_size not in (None, len(seen), len(seen) + 1):
    raise ValueError(
      f"vocab_size={vocab_size}, but the documents hold {len(seen)} characters; "
      f"use {len(seen)} (others are an error), {len(seen) + 1} (with an unknown id) or None"
    )
  return Characters("".join(sorted(seen)), has_unknown=vocab_size != len(seen))


def train_sentencepiece(
  documents: Iterable[str],
  vocab_size: int,
  model_type: str = "bpe",
  max_characters: int = 50_000_000,
) -> SentencePiece:
  """A lossless model, trained in memory. The same text gives the same bytes.

  Digits are single pieces.

  Args:
    documents: Training documents.
    vocab_size: Number of pieces, at least about 259: the bytes, the newline and `<unk>`.
    model_type: "bpe", or "unigram" (about ten times slower).
    max_characters: Training uses only this many characters, from the beginning of the documents.

  Raises:
    ValueError: If the text is empty or too little for vocab_size pieces.
  """
  import sentencepiece  # only this tokenizer needs it

  if model_type not in ("bpe", "unigram"):
    raise ValueError(f"model_type={model_type!r} is not known; use 'bpe' or 'unigram'")
  lines = _training_lines(documents, max_characters)
  first = next(lines, None)
  if first is None:
    raise ValueError("no text in the documents; use a corpus with text")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain([first], lines),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      byte_fallback=True,
      split_digits=True,
      user_defined_symbols=["\n"],
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      num_threads=1,  # the model's bytes depend on it
      max_sentence_length=1 << 16,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"vocab_size={vocab_size} does not suit this text; use another, or more text. "
      f"sentencepiece says: {error}"
    ) from error
  return SentencePiece(model.getvalue())


def tokenizer_from_bytes(data: bytes) -> Any:
  """The tokenizer that `to_bytes` saved. Raises ValueError for other bytes."""
  kind, _, payload = data.partition(b"\n")
  if kind == b"characters":
    return Characters(*json.loads(payload))
  if kind == b"bytes":
    return Bytes()
  if kind == b"sentencepiece":
    return SentencePiece(payload)
  if kind == b"tokenizer_json":
    from diffusion_text.data.tokenizer_json import from_payload  # which imports this file

    return from_payload(payload)
  raise ValueError(
    f"data begins with {data[:16]!r}, which is no tokenizer; use what to_bytes() gave"
  )


def encode_document(tokenizer: Any, document: str) -> Iterator[np.ndarray]:
  """The ids of a document in pieces of bounded size, equal to `encode(document)` in less memory."""
  for chunk in _chunks(document, _CHUNK):
    yield tokenizer.encode(chunk)


def characters(tokenizer: Any, ids: Any, weights: Any = None) -> int:
  """The number of characters of the original text that the ids stand for.

  With weights, only ids with weight > 0 count. A character that is divided over several tokens
  (bytes) counts with the token of its first byte. So a character that is divided over two rows
  counts once, and the sum over all rows of a split is the length of its text for every tokenizer.
  """
  ids = np.asarray(ids)
  kept = ids if weights is None else ids[np.asarray(weights) > 0]
  return int(tokenizer.character_counts[tokenizer.check(kept)].sum(dtype=np.int64))


class TextSize(NamedTuple):
  """The size of a text.

  Attributes:
    characters: Characters of the original text, see `characters`.
    bytes: Bytes of the original text in UTF-8.
  """

  characters: int
  bytes: float


def text_size(
  tokenizer: Any, ids: Any, weights: Any = None, bytes_of_unknown: float = 0.0
) -> TextSize:
  """The size of the original text that the ids stand for.

  Args:
    tokenizer: The tokenizer that made the ids.
    ids: Ids of any shape.
    weights: Only ids with weight > 0 count. None: all.
    bytes_of_unknown: Bytes of an unknown character, on average (`TokenArrays.bytes_of_unknown`).
  """
  ids = np.asarray(ids)
  kept = tokenizer.check(ids if weights is None else ids[np.asarray(weights) > 0])
  unknown = 0 if tokenizer.unknown is None else int((kept == tokenizer.unknown).sum())
  known = int(tokenizer.byte_counts[kept].sum(dtype=np.int64))
  return TextSize(characters(tokenizer, kept), known + unknown * bytes_of_unknown)


def pieces(tokenizer: Any, ids: Any) -> list[str]:
  """The text of each token, for display. Bytes that are part of a character are written `\\xNN`."""
  tokens = tokenizer.token_bytes
  return [
    tokens[i].decode("utf-8", errors="backslashreplace") for i in tokenizer.check(ids).tolist()
  ]


def _utf8(text: str) -> bytes:
  """The text in UTF-8. Raises ValueError for a lone surrogate, with its place."""
  try:
    return text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise ValueError(
      f"character {text[error.start]!r} at {error.start} is a lone surrogate, half a character "
      "(surrogates not allowed); remove it"
    ) from error


def _chunks(text: str, size: int) -> Iterator[str]:
  """Parts of about `size` characters, cut before a space if there is one.

  No sentencepiece piece crosses such a cut.
  """
  begin = 0
  while len(text) - begin > size:
    cut = text.rfind(" ", begin + 1, begin + size)
    end = cut if cut > 0 else begin + size
    yield text[begin:end]
    begin = end
  if begin < len(text):
    yield text[begin:]


def _training_lines(documents: Iterable[str], max_characters: int) -> Iterator[str]:
  left = max_characters
  for document in documents:
    for line in document.split("\n"):  # the newline is a separate piece
      yield from _chunks(line[:left], 1 << 12)
      left -= len(line) + 1
      if left <= 0:
        return

"""Tokenizers of pretrained models: tokenizer.json, and the byte-level BPE in GGUF metadata.

They follow the contract of `data.tokenizers`: "<|endoftext|>" within a text is encoded as text, ids
stand for fixed bytes, and tokens with a task are named by role. The token that ends texts decodes
to a newline, so that documents are apart as with any other tokenizer; other special tokens decode
to nothing.

Byte-level BPE (GPT-2, LLaMA 3, SmolLM2, Qwen2, LLaDA) is lossless. BPE that marks spaces and falls
back to bytes (LLaMA 2, Mistral) writes a space before every text, which comes back. WordPiece
(BERT) changes case and spaces, and each word that begins one stands for a space and itself.
`changes` shows what a lossy tokenizer makes of a probe; characters are then counted in the decoded
text. A model's table of V rows may be longer than the list of tokens; the ids beyond decode to
nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from diffusion_text.data.tokenizers import _SPACE, REPLACEMENT, ROLES, _Table, _utf8

PROBE = "The  Cat's café,\n\t 12 345 <|x|>  "
# Where files name the token of a role.
KEYS = {
  "begin": ("bos_token", "cls_token"),
  "end": ("eos_token", "sep_token"),
  "mask": ("mask_token",),
  "pad": ("pad_token",),
}
GGUF_KEYS = {"begin": "bos", "end": "eos", "mask": "mask", "pad": "padding"}
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> the pattern of words; "" is that of GPT-2 (recalled, from the published
# tokenizer.json of these models).
PATTERNS = {
  "gpt-2": "",
  "smollm": "",
  "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
  "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
}


@dataclasses.dataclass(frozen=True)
class JsonTokenizer(_Table):
  """A tokenizer of the library tokenizers.

  Attributes:
    content: The text of tokenizer.json.
    roles: (role, id) of the tokens with a task.
    size: V, the rows of the model's table; 0: as many as there are tokens.
  """

  content: str = dataclasses.field(repr=False)
  roles: tuple[tuple[str, int], ...] = ()
  size: int = 0
  name: ClassVar[str] = "tokenizer_json"

  def __post_init__(self):
    tokens = self._tokenizer.get_vocab_size(with_added_tokens=True)
    last = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    if self.size and last >= self.size:
      raise ValueError(
        f"the tokenizer has {tokens} tokens up to id {last}, and the model's table {self.size}"
        " rows; give the tokenizer of this model"
      )
    for role, token in self.roles:
      if role not in ROLES or not 0 <= token <= last:
        raise ValueError(
          f"role {role!r} with id {token} does not fit: roles are {', '.join(ROLES)}, ids 0 …"
          f" {last}"
        )
    if self._kind is None:
      raise ValueError(
        f"tokenizer.json has the decoder {_types(self._parsed.get('decoder'))}, whose tokens do"
        " not stand for fixed bytes; those that are read are ByteLevel, ByteFallback and WordPiece"
      )

  @property
  def special(self) -> dict[str, int | None]:
    """The id of each of ROLES; None where no token has it."""
    return dict.fromkeys(ROLES) | dict(self.roles)

  @functools.cached_property
  def markers(self) -> dict[str, int]:
    """Text -> id of the special tokens, such as those of chat templates."""
    added = self._parsed.get("added_tokens", [])
    return {each["content"]: each["id"] for each in added if each["special"]}

  @functools.cached_property
  def separator(self) -> int | None:
    """The id of the token that ends texts, or else of a newline; None without either."""
    end = dict(self.roles).get("end")
    if end is not None:
      return end
    newline = self._tokenizer.encode("\n", add_special_tokens=False).ids
    return newline[0] if len(newline) == 1 else None

  @functools.cached_property
  def unknown(self) -> int | None:
    """The id of text outside the vocabulary, which only WordPiece has; None for others."""
    token = self._parsed["model"].get("unk_token")
    return self.id_of(token) if self._kind == "WordPiece" and token is not None else None

  @property
  def byte_level(self) -> bool:
    """True if a character of a token stands for a byte."""
    return self._kind == "ByteLevel"

  @property
  def changes(self) -> str:
    """What encoding makes of a probe, if it comes back changed; "" for a lossless tokenizer."""
    back = self.decode(self.encode(PROBE))
    return "" if back == PROBE else f"{PROBE!r} comes back as {back!r}"

  def id_of(self, token: str) -> int:
    """The id of a token by its text. Raises ValueError if there is none."""
    found = self._tokenizer.token_to_id(token)
    if found is None:
      raise ValueError(f"{token!r} is no token of this tokenizer; give one that is")
    return found

  def token_of(self, number: int) -> str:
    """The text of a token by its id; "" for an id beyond the tokens."""
    return self._tokenizer.id_to_token(number) or ""

  @functools.cached_property
  def _parsed(self) -> dict[str, Any]:
    return json.loads(self.content)

  @functools.cached_property
  def _tokenizer(self) -> Any:
    library = _library()
    try:
      made = library.Tokenizer.from_str(self.content)
    except Exception as error:  # the library raises Exception itself
      raise ValueError(f"tokenizer.json cannot be read: {error}") from error
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True  # the text "<|endoftext|>" is text
    return made

  @functools.cached_property
  def _kind(self) -> str | None:
    types = _types(self._parsed.get("decoder"))
    if {"ByteFallback", "Fuse"} <= set(types) and self._parsed["model"].get("byte_fallback"):
      return "ByteFallback"
    return next((kind for kind in ("ByteLevel", "WordPiece") if kind in types), None)

  def _table(self) -> list[bytes]:
    content = self._parsed
    added = {each["id"]: each for each in content.get("added_tokens", [])}
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (self.size or max(vocabulary.values()) + 1)
    prefix = content["model"].get("continuing_subword_prefix") or "##"
    for token, number in vocabulary.items():
      if number in added:
        table[number] = b"" if added[number]["special"] else token.encode("utf-8")
      elif self._kind == "ByteLevel":
        table[number] = bytes(_BYTES[character] for character in token)
      elif self._kind == "ByteFallback":
        table[number] = _marked(token)
      elif token.startswith(prefix):
        table[number] = token.removeprefix(prefix).encode("utf-8")
      else:
        table[number] = b" " + token.encode("utf-8")
    if dict(self.roles).get("end") is not None:
      table[dict(self.roles)["end"]] = b"\n"
    if self.unknown is not None:
      table[self.unknown] = REPLACEMENT.encode("utf-8")
    return table

  def encode(self, text: str) -> np.ndarray:
    """Ids int32 [L], without tokens before or after the text.

    Raises:
      ValueError: For a lone surrogate, half a character.
    """
    _utf8(text)
    return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

  def files(self) -> dict[str, str]:
    """Name -> text of the files by which other libraries read this tokenizer."""
    names = {KEYS[role][0]: self._tokenizer.id_to_token(token) for role, token in self.roles}
    return {
      "tokenizer.json": self.content,
      "special_tokens_map.json": json.dumps(names, indent=2) + "\n",
    }

  def to_bytes(self) -> bytes:
    """See `_Table`."""
    held = {"tokenizer": self.content, "roles": self.roles, "size": self.size}
    return b"tokenizer_json\n" + json.dumps(held, sort_keys=True).encode("utf-8")


def from_payload(payload: bytes) -> JsonTokenizer:
  """The tokenizer of what `to_bytes` saved, after its first line."""
  held = json.loads(payload)
  roles = tuple((role, token) for role, token in held["roles"])
  return JsonTokenizer(held["tokenizer"], roles, held["size"])


def load_tokenizer(
  path: str | pathlib.Path, *, size: int = 0, roles: Mapping[str, str] | None = None
) -> JsonTokenizer:
  """The tokenizer of a pretrained model.

  Args:
    path: a folder with tokenizer.json, this file itself, or a GGUF file. Roles are read from
      special_tokens_map.json, tokenizer_config.json, config.json (ids) and the metadata.
    size: rows of the model's table of tokens; 0: as many as there are tokens.
    roles: role -> text of its token, over what the files say.

  Raises:
    ValueError: for a path without a tokenizer, one that cannot be read, and one that does not fit.
  """
  path = pathlib.Path(path).expanduser()
  given = dict(roles or {})
  if path.suffix == ".gguf":
    content, found = _from_gguf(path)
  else:
    folder = path if path.is_dir() else path.parent
    file = path if path.suffix == ".json" else folder / "tokenizer.json"
    if not file.exists():
      raise ValueError(
        f"{file} is not there; give --tokenizer=… the tokenizer.json of this model, or the folder"
        " that holds it"
      )
    content, found = file.read_text(encoding="utf-8"), {}
    named, numbers = _named_roles(folder)
    bare = JsonTokenizer(content, size=size)
    found = numbers | {role: bare.id_of(token) for role, token in named.items()}
  if given:
    bare = JsonTokenizer(content, size=size)
    found |= {role: bare.id_of(token) for role, token in given.items()}
  return JsonTokenizer(content, tuple(sorted(found.items())), size)


def _named_roles(folder: pathlib.Path) -> tuple[dict[str, str], dict[str, int]]:
  """(role -> text of its token; role -> its id), from the files beside tokenizer.json."""
  names: dict[str, str] = {}
  for file in ("tokenizer_config.json", "special_tokens_map.json"):
    held = _json_or_nothing(folder / file)
    for role, keys in KEYS.items():
      for key in reversed(keys):
        token = held.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        names |= {role: token} if token else {}
  config = _json_or_nothing(folder / "config.json")
  numbers: dict[str, int] = {}
  for role, keys in KEYS.items():
    token = config.get(f"{keys[0]}_id")
    token = token[0] if isinstance(token, list) and token else token
    if isinstance(token, int):
      numbers[role] = token
  return names, numbers


def _json_or_nothing(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _from_gguf(path: pathlib.Path) -> tuple[str, dict[str, int]]:
  """(tokenizer.json, role -> id) of the metadata of a GGUF file."""
  import gguf  # only this file needs it

  library = _library()
  fields = gguf.GGUFReader(str(path)).fields

  def value(key: str) -> Any:
    field = fields.get(f"tokenizer.ggml.{key}")
    return None if field is None else field.contents()

  kind, words = value("model"), value("pre") or "gpt-2"
  if kind != "gpt2" or words not in PATTERNS:
    raise ValueError(
      f"{path} has a tokenizer of kind {kind!r}, words {words!r}; read are 'gpt2' with"
      f" {', '.join(PATTERNS)}. Give --tokenizer=… the tokenizer.json of this model"
    )
  tokens = value("tokens")
  merges = [tuple(pair.split(" ")) for pair in value("merges")]
  vocabulary = {token: number for number, token in enumerate(tokens)}
  made = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
  made.decoder = library.decoders.ByteLevel()
  made.pre_tokenizer = _words(words)
  if words == "qwen2":
    made.normalizer = library.normalizers.NFC()
  control = [token for token, kind in zip(tokens, value("token_type")) if kind == 3]
  made.add_special_tokens([library.AddedToken(token, special=True) for token in control])
  found = {role: value(f"{key}_token_id") for role, key in GGUF_KEYS.items()}
  return made.to_str(), {role: int(token) for role, token in found.items() if token is not None}


def _words(kind: str) -> Any:
  library, pre = _library(), _library().pre_tokenizers
  if not PATTERNS[kind]:
    plain = pre.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre.Digits(individual_digits=True)
    return plain if kind == "gpt-2" else pre.Sequence([digits, plain])
  split = pre.Split(library.Regex(PATTERNS[kind]), behavior="isolated")
  return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def _library() -> Any:
  try:
    import tokenizers  # only these tokenizers need it
  except ImportError as error:
    raise ValueError(
      "a tokenizer.json needs the package tokenizers; pip install -e '.[pretrained]'"
    ) from error
  return tokenizers


def _marked(token: str) -> bytes:
  """The bytes of a token of a BPE that marks spaces, and writes rare bytes as <0x0A>."""
  byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
  return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode("utf-8")


def _types(decoder: Any) -> list[str]:
  """The kinds of a decoder and of its parts."""
  if not isinstance(decoder, dict):
    return []
  return [decoder["type"], *(each["type"] for each in decoder.get("decoders", []))]


def _byte_characters() -> dict[str, int]:
  """Character -> the byte that byte-level BPE writes as it (GPT-2): printable ones as themselves,
  the others from U+0100 on."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {
    chr(256 + number): byte for number, byte in enumerate(others)
  }


_BYTES = _byte_characters()

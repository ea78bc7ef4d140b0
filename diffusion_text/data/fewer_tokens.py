"""A pretrained tokenizer with those tokens alone that a text needs.

The text is encoded as before, token for token, with smaller ids in the same order. Any other text
is still encoded, in shorter pieces: bytes and the single characters of ASCII stay, and so do tokens
with a task. BPE keeps the parts of every token that it keeps, so that the merges which made it are
there; a merge that the text never needed is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from diffusion_text.data.tokenizer_json import JsonTokenizer

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def used_tokens(tokenizer: JsonTokenizer, texts: Iterable[str]) -> set[int]:
  """The ids into which texts are encoded."""
  found: set[int] = set()
  for text in texts:
    found.update(tokenizer.encode(text).tolist())
  return found


def fewer_tokens(
  tokenizer: JsonTokenizer, used: Iterable[int]
) -> tuple[JsonTokenizer, Int[np.ndarray, " n"]]:
  """(the tokenizer with fewer tokens, int32 [n]: the old id of each new one, increasing).

  Args:
    tokenizer: WordPiece or BPE.
    used: ids that must stay.

  Raises:
    ValueError: for a tokenizer of another kind, or one whose tokens cannot be numbered anew.
  """
  content = json.loads(tokenizer.content)
  model = content["model"]
  kind, prefix = model.get("type"), model.get("continuing_subword_prefix") or ""
  if kind not in ("BPE", "WordPiece") or (kind == "BPE" and prefix):
    raise ValueError(
      f"tokenizer.json has a model of type {kind!r} (prefix {prefix!r} of later pieces), of which"
      " tokens cannot be left out; WordPiece and BPE without a prefix can. Keep all tokens"
    )
  added = {each["content"]: each["id"] for each in content.get("added_tokens", [])}
  numbers = model["vocab"] | added
  names = {number: token for token, number in numbers.items()}
  kept = {names[number] for number in used} | added.keys()
  kept |= {token for token in numbers if _always(token, tokenizer, prefix)}
  merges = [_pair(merge) for merge in model.get("merges", [])]
  kept |= _parts(kept, merges)
  old = np.array(sorted(numbers[token] for token in kept), np.int32)
  new = {names[number]: place for place, number in enumerate(old.tolist())}
  model["vocab"] = {token: new[token] for token in model["vocab"] if token in kept}
  if kind == "BPE":
    model["merges"] = [
      merge for merge, (a, b) in zip(model["merges"], merges) if {a, b, a + b} <= kept
    ]
  for each in content.get("added_tokens", []):
    each["id"] = new[each["content"]]
  _renumber(content.get("post_processor"), new)
  roles = tuple((role, new[names[number]]) for role, number in tokenizer.roles)
  made = JsonTokenizer(json.dumps(content, ensure_ascii=False), roles, len(old))
  _check(made, new)
  return made, old


def _always(token: str, tokenizer: JsonTokenizer, prefix: str) -> bool:
  """True for what other texts are encoded with: a byte, or a character of ASCII."""
  if tokenizer.byte_level:
    return len(token) == 1
  bare = token.removeprefix(prefix)
  return (len(bare) == 1 and bare.isascii()) or _BYTE.fullmatch(token) is not None


def _pair(merge: str | list[str]) -> tuple[str, str]:
  """The two parts of a merge, of both ways in which files write it."""
  first, second = merge.split(" ") if isinstance(merge, str) else merge
  return first, second


def _parts(kept: set[str], merges: list[tuple[str, str]]) -> set[str]:
  """The parts of which merges make the kept tokens, and the parts of these."""
  made_of: dict[str, list[str]] = {}
  for first, second in merges:
    made_of.setdefault(first + second, []).extend((first, second))
  found: set[str] = set()
  waiting = list(kept)
  while waiting:
    for part in made_of.get(waiting.pop(), ()):
      if part not in found:
        found.add(part)
        waiting.append(part)
  return found


def _renumber(processor: Any, new: Mapping[str, int]) -> None:
  """Writes the new ids into what puts tokens before and behind a text, for other libraries."""
  if not isinstance(processor, dict):
    return
  for each in processor.get("processors", []):
    _renumber(each, new)
  for token, each in (processor.get("special_tokens") or {}).items():
    each["ids"] = [new[name] for name in each.get("tokens", [token])]
  for name in ("sep", "cls"):
    if name in processor:
      processor[name] = [processor[name][0], new[processor[name][0]]]


def _check(tokenizer: JsonTokenizer, new: Mapping[str, int]) -> None:
  """Raises ValueError where the library numbers a token otherwise, as it does with added ones that
  do not follow the vocabulary."""
  for token, number in new.items():
    if tokenizer.id_of(token) != number:
      raise ValueError(
        f"{token!r} should become id {number}, and the library tokenizers makes it"
        f" {tokenizer.id_of(token)}; keep all tokens of this tokenizer"
      )

"""Conversations: what is read, which of their tokens are answers, and rows that hold several.

A conversation is a list of messages, {"role": …, "content": …}; those of the role "assistant" are
answers. All other tokens are observed: system, questions, and what the chat template writes between
messages. A loss therefore counts answers only, and the network sees the text around them clean.

An answer goes from behind what the template writes in front of it to the marker with which the
template ends it, the marker included. How long an answer may become when it is generated is no
knowledge of the network unless it has seen what comes behind an end. So the last answer of a
conversation is filled up with ends of text to a multiple of a number of tokens; these ends are
written like any token of the answer (LLaDA fills rows with ends in the same way, arXiv 2502.09992
section 2.3). With 1 nothing is filled up, and the length of an answer has to be known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from diffusion_text import types
from diffusion_text.data import token_arrays
from diffusion_text.data.chat_template import ChatTemplate, Message
from diffusion_text.data.packing import PADDING_SEGMENT
from diffusion_text.data.text_files import Row, text_problem

KEYS = ("role", "content")  # of a message
ANSWERS = "assistant"  # the role whose messages are answers


def messages_of(row: Row, field: str) -> Row:
  """The row with its messages, or with what is wrong with them. The value becomes JSON text."""
  if row.problem is not None:
    return row
  said = row.value.get(field)
  if not isinstance(said, list) or not said:
    held = sorted(map(str, row.value))
    return Row(
      row.number,
      None,
      f"has no list of messages in field={field!r}, it holds {held}; set data.field to the one that"
      " has",
    )
  problems = (_problem(message) for message in said)
  problem = next((each for each in problems if each is not None), None)
  if problem is None and all(message["role"] != ANSWERS for message in said):
    problem = f"has no message of the role {ANSWERS!r}, so there is nothing to learn in it"
  kept = [] if problem else [{key: message[key] for key in KEYS} for message in said]
  return Row(row.number, json.dumps(kept, ensure_ascii=False), problem)


def _problem(message: Any) -> str | None:
  """What keeps a value from being a message; None: nothing."""
  if not isinstance(message, dict):
    return f"has {message!r:.40} in the place of a message with role and content"
  problems = (text_problem(message.get(key), f"{key!r} of a message") for key in KEYS)
  return next((each for each in problems if each is not None), None)


class Encoded(NamedTuple):
  """A conversation in tokens: ids int32 [n], and answers bool [n], True where an answer stands."""

  ids: Int[np.ndarray, " n"]
  answers: Bool[np.ndarray, " n"]


def encode(template: ChatTemplate, messages: Sequence[Message]) -> Encoded:
  """The tokens of a conversation up to its last answer, and which of them are answers.

  What stands before an answer is encoded as `experiments.chat` encodes it.

  Raises:
    ValueError: for a template by which an answer changes the tokens before it, or has no end.
  """
  ids = np.zeros(0, np.int32)
  parts: list[np.ndarray] = []
  end = template.tokenizer.markers.get(template.end_of_answer())
  for number, message in enumerate(messages):
    if message["role"] != ANSWERS:
      continue
    asked = template.ids(messages[:number], answer=True)
    told = template.ids(messages[: number + 1], answer=False)
    answer = _behind(asked, told)
    answer = answer if end is None else answer[: _last(answer, end) + 1]
    _behind(ids, asked)
    parts += [np.zeros(len(asked) - len(ids), bool), np.ones(len(answer), bool)]
    ids = np.concatenate([asked, answer])
  answers = np.concatenate(parts)
  if answers[0]:
    raise ValueError("the chat template writes nothing before an answer; use another template")
  return Encoded(ids, answers)


def _behind(first: Int[np.ndarray, " n"], whole: Int[np.ndarray, " m"]) -> Int[np.ndarray, " k"]:
  """What `whole` holds behind `first`, which it must begin with."""
  if len(whole) < len(first) or (whole[: len(first)] != first).any():
    raise ValueError(
      "the tokens before an answer depend on the answer: this chat template joins letters of both"
      " into one token; use a template with special tokens, such as data.template='chatml'"
    )
  return whole[len(first) :]


def _last(ids: Int[np.ndarray, " n"], token: int) -> int:
  found = np.flatnonzero(ids == token)
  if not found.size:
    raise ValueError(f"the chat template ends an answer without its end, the token {token}")
  return int(found[-1])


@dataclasses.dataclass(frozen=True)
class Chats:
  """How `token_arrays` encodes the documents of a corpus of conversations.

  Attributes:
    template: The chat template, with its tokenizer.
  """

  template: ChatTemplate

  @property
  def name(self) -> str:
    """What the tokens depend on besides the text and the tokenizer."""
    return f"conversations:{self.template.source}"

  def pieces(self, document: str) -> Iterator[Encoded]:
    """One piece: the conversation, with the tokens that are answers."""
    yield encode(self.template, json.loads(document))


@dataclasses.dataclass(frozen=True)
class ConversationRows:
  """Rows of whole conversations, as many in a row as fit, in their order.

  Each is a segment of its own, so that none sees another. Everything but the answers is observed;
  padding behind the last conversation of a row has weight 0. Conversations that are longer than a
  row are left out, never cut.

  Attributes:
    tokens: Integers [T].
    answers: bool [T].
    length: Tokens of a row.
    end: The id of the separator, with which last answers are filled up.
    begins, ends: int64 [C], where each conversation that fits begins and ends.
    sizes: int64 [C], its tokens with those that fill it up.
    firsts: int64 [R + 1], the conversation that each row begins with, and C.
  """

  tokens: np.ndarray
  answers: np.ndarray
  length: int
  end: int
  begins: np.ndarray
  ends: np.ndarray
  sizes: np.ndarray
  firsts: np.ndarray

  @property
  def count(self) -> int:
    """Rows of one epoch."""
    return len(self.firsts) - 1

  def rows(self, numbers: Int[np.ndarray, " n"]) -> types.Batch:
    """A batch with ids int32, observed bool, weights float32 and segment int32, [n, length]. A
    number < 0 gives a row of padding."""
    shape = (len(numbers), self.length)
    batch = types.Batch(
      ids=np.full(shape, self.end, np.int32),
      observed=np.ones(shape, bool),
      weights=np.zeros(shape, np.float32),
      segment=np.full(shape, PADDING_SEGMENT, np.int32),
    )
    for row, number in enumerate(numbers.tolist()):
      if number >= 0:
        self._fill(batch, row, number % self.count)
    return batch

  def _fill(self, batch: types.Batch, row: int, number: int) -> None:
    place = 0
    for segment, one in enumerate(range(self.firsts[number], self.firsts[number + 1]), 1):
      text = slice(self.begins[one], self.ends[one])
      here = slice(place, place + self.sizes[one])
      written = slice(place, place + self.ends[one] - self.begins[one])
      batch.ids[row, written] = self.tokens[text]
      batch.observed[row, here] = False
      batch.observed[row, written] = ~self.answers[text]
      batch.weights[row, here] = 1.0
      batch.segment[row, here] = segment
      place = here.stop


def conversation_rows(
  tokens: Integer[np.ndarray, " T"],
  answers: Bool[np.ndarray, " T"],
  offsets: Int[np.ndarray, " C1"],
  length: int,
  end: int | None,
  multiple: int = 1,
) -> ConversationRows:
  """The rows of all conversations that fit in `length` tokens; how many do not is logged.

  Args:
    tokens: Integers [T].
    answers: bool [T], True where an answer stands.
    offsets: int64 [conversations + 1], where each begins.
    length: Tokens of a row.
    end: The id of the separator.
    multiple: The last answer of each is filled up to a multiple of so many tokens.

  Raises:
    ValueError: If the tokenizer has no separator, or no conversation fits.
  """
  if end is None:
    raise ValueError(
      "packing 'conversations' needs a tokenizer with a token that ends texts; use bytes,"
      " sentencepiece or the tokenizer of a pretrained model"
    )
  begins, ends = np.asarray(offsets[:-1]), np.asarray(offsets[1:])
  # Every conversation ends with its last answer, which begins behind its last observed token.
  observed = np.flatnonzero(~np.asarray(answers))
  last = observed[np.searchsorted(observed, ends) - 1] + 1
  sizes = last - begins + -(-(ends - last) // multiple) * multiple
  fits = sizes <= length
  if not fits.any():
    raise ValueError(
      f"length={length}, but the shortest of {len(sizes)} conversations has {sizes.min()} tokens;"
      " use a larger length"
    )
  if not fits.all():
    token_arrays.say_once(
      f"data: {len(sizes) - fits.sum()} of {len(sizes)} conversations are longer than a row of"
      f" {length} tokens and are left out; the longest has {sizes.max()}; a larger data.length"
      " keeps all"
    )
  begins, ends, sizes = begins[fits], ends[fits], sizes[fits]
  firsts, used = [0], 0
  for number, size in enumerate(sizes.tolist()):
    if used + size > length:
      firsts.append(number)
      used = 0
    used += size
  firsts = np.array([*firsts, len(sizes)], np.int64)
  return ConversationRows(tokens, answers, length, end, begins, ends, sizes, firsts)

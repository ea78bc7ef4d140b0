"""Chat templates: a conversation as the tokens that an instruction model was trained on.

A template is the Jinja text of tokenizer_config.json (or chat_template.jinja, or the metadata of a
GGUF file), which the package jinja2 renders, or one of `KNOWN` by name, which needs no package.

What a template writes around messages may be tokens of their own, such as "<|im_start|>"; what
people write is text, also if it spells such a token. So the special tokens of messages are taken
apart before rendering and put together again after the markers of the template are found.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

FILE = "chat_template.jinja"  # of a workdir, and of folders of weights
Message = Mapping[str, str]  # {"role": "system", "user" or "assistant", "content": …}


@dataclasses.dataclass(frozen=True)
class Known:
  """A template that needs no package.

  Attributes:
    turn: A message, with {role}, {Role} and {content}.
    answer: What stands before the answer.
    begin: Whether the token of the role "begin" stands before the first message.
  """

  turn: str
  answer: str
  begin: bool = False


# Recalled from the published tokenizer_config.json of these models, without default system
# messages; llama3 is that of LLaDA too.
_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
KNOWN = {
  "chatml": Known("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n"),
  "llama3": Known(_HEADER + "{content}<|eot_id|>", _HEADER.format(role="assistant"), begin=True),
  "plain": Known("{Role}: {content}\n", "Assistant:"),
}
_SIGNS = {"<|im_start|>": "chatml", "<|start_header_id|>": "llama3"}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A template for a tokenizer.

  Attributes:
    source: A name of KNOWN, or Jinja text.
    tokenizer: Whose tokens the markers are.
  """

  source: str
  tokenizer: Any

  def text(self, messages: Sequence[Message], *, answer: bool = True) -> str:
    """The conversation as text. `answer`: up to where the answer begins.

    Raises:
      ValueError: for a conversation that the template refuses.
    """
    known = KNOWN.get(self.source)
    if known is not None:
      return self._known(known, messages, answer)
    jinja = _jinja()
    if jinja is None:
      return self._known(KNOWN[_alike(self.source)], messages, answer)
    names = {role: self._token(role) for role in ("begin", "end")}
    try:
      return jinja.from_string(self.source).render(
        messages=[dict(message) for message in messages],
        add_generation_prompt=answer,
        bos_token=names["begin"],
        eos_token=names["end"],
      )
    except Exception as error:  # a template may raise what it likes
      raise ValueError(f"the chat template refuses the conversation: {error}") from error

  def ids(self, messages: Sequence[Message], *, answer: bool = True) -> Int[np.ndarray, " n"]:
    """int32 [n], the tokens of `text`: markers of the template as tokens, messages as text."""
    markers = self.tokenizer.markers
    contents = "".join(message["content"] for message in messages)
    apart = next(chr(code) for code in itertools.count(0xE000) if chr(code) not in contents)
    hidden = [
      {**message, "content": _taken_apart(message["content"], markers, apart)}
      for message in messages
    ]
    return encode_marked(self.tokenizer, self.text(hidden, answer=answer), apart)

  def end_of_answer(self) -> str:
    """What the template writes behind an answer: a marker, or else the text up to the next turn."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ue000"}]
    behind = self.text(said, answer=False).partition("\ue000")[2]
    found = _pattern(self.tokenizer.markers).match(behind) if self.tokenizer.markers else None
    return found[0] if found else behind[:1]

  def _known(self, known: Known, messages: Sequence[Message], answer: bool) -> str:
    begin = self._token("begin") if known.begin else ""
    turns = [
      known.turn.format(
        role=message["role"], Role=message["role"].capitalize(), content=message["content"]
      )
      for message in messages
    ]
    return begin + "".join(turns) + (known.answer if answer else "")

  def _token(self, role: str) -> str:
    """The text of the token of a role; "" without one."""
    wanted = self.tokenizer.special[role]
    return next((text for text, number in self.tokenizer.markers.items() if number == wanted), "")


def encode_marked(tokenizer: Any, text: str, apart: str = "") -> Int[np.ndarray, " n"]:
  """int32 [n], the tokens of a text in which the special tokens of the tokenizer are tokens, not
  text. `apart`: a character that is left out of the text between them."""
  markers = tokenizer.markers
  pieces = _pattern(markers).split(text) if markers else [text]
  found = [
    np.array([markers[piece]], np.int32)
    if piece in markers
    else np.asarray(tokenizer.encode(piece.replace(apart, "") if apart else piece), np.int32)
    for piece in pieces
    if piece
  ]
  return np.concatenate(found) if found else np.zeros(0, np.int32)


def template_of(workdir: str | pathlib.Path, tokenizer: Any, given: str | None) -> ChatTemplate:
  """The template of a workdir, or the one that is given: a name of KNOWN, or a file of Jinja.

  Raises:
    ValueError: for a workdir without a template, a name that is unknown, and a template that cannot
      be rendered here.
  """
  file = pathlib.Path(given or pathlib.Path(workdir) / FILE).expanduser()
  if given in KNOWN:
    template = ChatTemplate(given, tokenizer)
  elif file.is_file():
    template = ChatTemplate(file.read_text(encoding="utf-8"), tokenizer)
  elif given:
    raise ValueError(
      f"--template={given} is no file and no known template; known are {', '.join(KNOWN)}"
    )
  else:
    raise ValueError(
      f"--workdir={workdir} has no {FILE}: its weights came without a chat template; give"
      f" --template={'|'.join(KNOWN)} or a file of Jinja"
    )
  if template.source not in KNOWN and _jinja() is None:
    _alike(template.source)
  return template


def read_chat_template(source: str | pathlib.Path) -> str | None:
  """The Jinja text that came with weights; None if there is none.

  Args:
    source: a folder, a file in it, or a GGUF file.
  """
  path = pathlib.Path(source).expanduser()
  if path.suffix == ".gguf":
    import gguf  # only these files need it

    field = gguf.GGUFReader(str(path)).fields.get("tokenizer.chat_template")
    return None if field is None else field.contents()
  folder = path if path.is_dir() else path.parent
  if (folder / FILE).is_file():
    return (folder / FILE).read_text(encoding="utf-8")
  config = folder / "tokenizer_config.json"
  held = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
  found = held.get("chat_template")
  if isinstance(found, list):  # several, by name
    named = {each["name"]: each["template"] for each in found}
    found = named.get("default", next(iter(named.values()), None))
  return found


def keep_chat_template(source: str | pathlib.Path, workdir: str | pathlib.Path) -> None:
  """Writes the template that came with weights into a workdir, if there is one."""
  found = read_chat_template(source)
  if found is not None:
    (pathlib.Path(workdir) / FILE).write_text(found, encoding="utf-8")


def _taken_apart(content: str, markers: Mapping[str, int], apart: str) -> str:
  """The message, with the character `apart` within every special token that it spells."""
  if not markers:
    return content
  return _pattern(markers).sub(lambda found: found[0][0] + apart + found[0][1:], content)


def _pattern(markers: Mapping[str, int]) -> re.Pattern[str]:
  """Any of the markers, the longest first, as a group."""
  longest = sorted(markers, key=len, reverse=True)
  return re.compile(f"({'|'.join(map(re.escape, longest))})")


def _alike(source: str) -> str:
  """The name of the known template that a Jinja text is taken for where jinja2 is not installed."""
  for sign, name in _SIGNS.items():
    if sign in source:
      return name
  raise ValueError(
    "this chat template is Jinja, which the package jinja2 renders; pip install -e '.[pretrained]',"
    f" or give --template={'|'.join(KNOWN)}"
  )


def _jinja() -> Any:
  """The environment that templates are written for; None where jinja2 is not installed."""
  try:
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # only Jinja templates need it
  except ImportError:
    return None

  def refuse(message: str) -> None:
    raise ValueError(message)

  made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  made.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
  return made

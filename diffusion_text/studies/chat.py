"""Conversations with an instruction model, autoregressive or diffusion, turn by turn.

An answer is a canvas of a stated number of tokens behind the conversation, written by any decoder
and shown as it appears: the text up to the first token that is still noise (`show="text"`), or the
whole canvas after each call (`show="canvas"`). It ends at the marker that the chat template writes
behind answers, or with the canvas. Rows that become too long lose their oldest turns, which is
said; the system message stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from diffusion_text.core.prng import numbered_keys
from diffusion_text.data.chat_template import ChatTemplate
from diffusion_text.data.tokenizers import REPLACEMENT, pieces
from diffusion_text.experiment.continuations import padded_length, without_begin
from diffusion_text.experiment.decoding import Decoding
from diffusion_text.experiment.player import OPEN
from diffusion_text.experiment.run import Trained
from diffusion_text.experiment.until import Open, open_batch, up_to_end, up_to_stop
from diffusion_text.sampler.host import stream
from diffusion_text.sampler.padding import check_block
from diffusion_text.sampler.records import Frame

Show = Literal["text", "canvas", "none"]


class Chat:
  """A conversation that goes on.

  Attributes:
    messages: what was said, as the chat template reads it.
    calls: network calls of the last answer.
  """

  def __init__(
    self,
    trained: Trained,
    template: ChatTemplate,
    decoding: Decoding,
    *,
    answer: int,
    longest: int,
    seed: int = 0,
    system: str | None = None,
  ):
    """
    Args:
      trained: a workdir, loaded on one device.
      template: of its tokenizer.
      decoding: how answers are written; `end_id` is the template's.
      answer: tokens of an answer, at most.
      longest: tokens of conversation and answer, at most.
      seed: of the draws; each turn has its own.
      system: the first message; None: the template's own, if it has one.

    Raises:
      ValueError: for an answer that leaves no room, and a block that does not fit the context.
    """
    if answer >= longest:
      raise ValueError(
        f"--answer={answer} tokens leave none of --length={longest} to the conversation; use a"
        " smaller answer or a larger length"
      )
    check_block(trained.experiment.model, decoding.block)
    self._trained, self._template = trained, template
    self._tokenizer, self._model = trained.experiment.tokenizer, trained.experiment.model
    self._stop = template.end_of_answer()
    self._decoding = decoding._replace(end_id=self._tokenizer.markers.get(self._stop))
    self._answer, self._longest, self._seed, self._turn = answer, longest, seed, 0
    self.messages: list[dict[str, str]] = []
    if system is not None:
      self.messages.append({"role": "system", "content": system})
    self.calls = 0

  def say(self, text: str, show: Show = "text") -> Iterator[str]:
    """Pieces of what is to be shown, while the answer to a message is written; with show="canvas"
    the canvas after each call.

    Raises:
      ValueError: for a message that is longer than a row.
    """
    self.messages.append({"role": "user", "content": text})
    prompt, forgotten = self._prompt()
    if forgotten:
      yield f"[the oldest {forgotten} messages are left out]\n"
    shown = ""
    for ids, noisy in self._canvases(prompt):
      if show == "canvas":
        yield self._canvas(ids, noisy) + "\n"
      now = self._text(ids, noisy)
      if show == "text" and now.startswith(shown):
        yield now[len(shown) :]
        shown = now
    answer = self._text(ids, np.zeros(len(ids), bool), whole=True)
    self.messages.append({"role": "assistant", "content": answer})
    if show != "text":
      yield answer
    else:
      revised = not answer.startswith(shown)  # a decoder that takes tokens back
      yield f"\n[revised] {answer}" if revised else answer[len(shown) :]

  def _prompt(self) -> tuple[Int[np.ndarray, " n"], int]:
    """(the tokens of the conversation, messages that were left out)."""
    first = 1 if self.messages[0]["role"] == "system" else 0
    dropped = 0
    while True:
      ids = self._template.ids(self.messages[:first] + self.messages[first + dropped :])
      ids = without_begin(self._trained.experiment, ids)
      if len(ids) + self._answer <= self._longest:
        del self.messages[first : first + dropped]
        return ids, dropped
      if first + dropped + 2 >= len(self.messages):
        text = self.messages.pop()["content"]
        raise ValueError(
          f"message {text[:40]!r} makes a conversation of {len(ids)} tokens, which with --answer="
          f"{self._answer} are more than --length={self._longest}; use a larger --length"
        )
      dropped += 2

  def _canvases(
    self, prompt: Int[np.ndarray, " p"]
  ) -> Iterator[tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """(ids, which are still noise) of the canvas, after each call; the last one is the answer."""
    self._turn += 1
    row = Open(prompt, self._answer, self._turn)
    size = padded_length(len(prompt) + self._answer, self._model, self._longest)
    batch = open_batch([row], size)
    keys = numbered_keys(self._seed, jnp.asarray([row.name]))
    how = self._decoding._asdict() | {"batch": batch}
    frames = stream(self._model, self._trained.params, how.pop("sampler"), keys, **how)
    canvas = slice(len(prompt), len(prompt) + self._answer)
    while True:
      try:
        frame = next(frames)
      except StopIteration as stop:
        self.calls = int(np.asarray(stop.value.row_calls)[0])
        ids = np.asarray(stop.value.ids)[0, canvas]
        yield ids, np.zeros(len(ids), bool)
        return
      frame = Frame(*map(np.asarray, frame))
      self.calls = int(frame.reads[0])
      ids, noisy = frame.ids[0, canvas], frame.open[0, canvas]
      yield ids, noisy
      # Token by token what is written stays, and nothing behind the end is read.
      if self._model.context.unit == 1 and self._ended(ids[: _known(noisy)]):
        return

  def _ended(self, ids: Int[np.ndarray, " k"]) -> bool:
    end = self._decoding.end_id
    return end in ids if end is not None else self._stop in self._tokenizer.decode(ids)

  def _text(
    self, ids: Int[np.ndarray, " n"], noisy: Bool[np.ndarray, " n"], *, whole: bool = False
  ) -> str:
    """The answer up to its end or its first noise; unless `whole`, without half a character at
    the end."""
    known = ids[: _known(noisy)]
    text = self._tokenizer.decode(up_to_end(known, self._decoding.end_id))
    if self._decoding.end_id is None:
      text = up_to_stop(text, [self._stop])
    return text.strip() if whole else text.lstrip().rstrip(f" \n\t{REPLACEMENT}")

  def _canvas(self, ids: Int[np.ndarray, " n"], noisy: Bool[np.ndarray, " n"]) -> str:
    """The canvas in one line, a dot for each token that is noise."""
    texts = pieces(self._tokenizer, np.where(noisy, 0, ids))
    marked = [OPEN if hidden else text for text, hidden in zip(texts, noisy, strict=True)]
    return "".join(marked).replace("\n", "⏎")


def _known(noisy: Bool[np.ndarray, " n"]) -> int:
  """How many tokens stand before the first noise."""
  first = np.flatnonzero(noisy)
  return int(first[0]) if len(first) else len(noisy)


def talk(
  chat: Chat,
  messages: Iterable[str],
  write: Callable[[str], None],
  *,
  show: Show = "text",
  echo: bool = True,
) -> None:
  """Answers each message and writes the answers, and with `echo` the messages. Empty lines are left
  out."""
  for message in messages:
    message = message.strip()
    if not message:
      continue
    if echo:
      write(f"you: {message}\n")
    write("model: ")
    for piece in chat.say(message, show):
      write(piece)
    write("\n")


def typed(prompt: str) -> Iterator[str]:
  """Lines that a person types, until the end of the input."""
  while True:
    try:
      yield input(prompt)
    except EOFError:
      return

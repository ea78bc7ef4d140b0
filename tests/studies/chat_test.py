"""Conversations: answers are those of the compiled loop, and each turn reads the turns before."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")
pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

from diffusion_text.core.prng import numbered_keys
from diffusion_text.data.chat_template import ChatTemplate
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.continuations import without_begin
from diffusion_text.experiment.decoding import decoding_of
from diffusion_text.experiment.until import Open, open_batch, up_to_end
from diffusion_text.studies import chat
from diffusion_text.studies.chat import Chat, talk
from tests.studies import instruction_models


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def next_token(place):
  return runs.load(instruction_models.workdir_of(place, "llama")[0])


@pytest.fixture(scope="module")
def masked(place):
  return runs.load(instruction_models.workdir_of(place, "llada")[0])


def made(trained, answer=6, longest=64, **how):
  template = ChatTemplate("chatml", trained.experiment.tokenizer)
  decoding = decoding_of(trained.experiment, **how)
  return Chat(trained, template, decoding, answer=answer, longest=longest, seed=3)


def at_once(talked, trained, turn, decoding, messages, answer=6, length=64):
  """The answer to the conversation by the compiled loop."""
  prompt = talked._template.ids(messages)
  batch = open_batch([Open(prompt, answer, turn)], length)
  keys = numbered_keys(3, jnp.asarray([turn]))
  how = decoding._asdict() | {"end_id": 1}
  ids = np.asarray(trained.experiment.sample(trained.params, keys, batch, **how).ids)[0]
  canvas = ids[len(prompt) : len(prompt) + answer]
  return trained.experiment.tokenizer.decode(up_to_end(canvas, 1)).strip()


def test_answers_are_those_of_the_compiled_loop(next_token):
  """Two turns; what is shown piece by piece is the answer."""
  talked, decoding = made(next_token), decoding_of(next_token.experiment)
  for turn, message in enumerate(["a", "b"], start=1):
    shown = "".join(talked.say(message))
    before = talked.messages[:-1]
    assert before[-1] == {"role": "user", "content": message} and len(before) == 2 * turn - 1
    wanted = at_once(talked, next_token, turn, decoding, before)
    assert talked.messages[-1] == {"role": "assistant", "content": wanted} and wanted
    assert shown == wanted and talked.calls >= 1


def test_a_conversation_without_its_past_would_be_noticed(next_token):
  """The mutant: the second answer to the same message is another one after another past."""
  answers = set()
  for first in ("It was", "of times"):
    talked = made(next_token)
    list(talked.say(first))
    list(talked.say("the best"))
    answers.add(talked.messages[-1]["content"])
  assert len(answers) == 2


def test_the_token_that_begins_texts_stands_once(next_token, masked):
  """Rows of next tokens begin with it; with it twice SmolLM2 answers in another language."""
  for trained, kept in ((next_token, 0), (masked, 1)):
    template = ChatTemplate("llama3", trained.experiment.tokenizer)
    whole = template.ids([{"role": "user", "content": "a"}])
    ids = without_begin(trained.experiment, whole)
    assert whole[0] == 0 and len(ids) == len(whole) - 1 + kept
    talked = Chat(trained, template, decoding_of(trained.experiment), answer=6, longest=99)
    talked.messages.append({"role": "user", "content": "a"})
    np.testing.assert_array_equal(talked._prompt()[0], ids)


def test_canvases_are_shown_call_by_call(masked):
  """Of a masked model; the last one is that of the compiled loop."""
  talked = made(masked, steps=3)
  *lines, answer = talked.say("It was", "canvas")
  decoding = decoding_of(masked.experiment, steps=3)
  wanted = at_once(talked, masked, 1, decoding, talked.messages[:-1], length=32)
  dots = [line.count(chat.OPEN) for line in lines]
  assert dots[0] == 6 and dots[-1] == 0 and dots == sorted(dots, reverse=True)
  assert answer == talked.messages[-1]["content"] == wanted


def test_an_end_ends_an_answer_token_by_token(next_token, monkeypatch):
  """Nothing is read behind the end; half a character is not shown."""
  talked = made(next_token)
  word = next_token.experiment.tokenizer.encode("aé").tolist()  # three bytes
  canvas = [*word, 1, *word][:6]

  def told(*_, batch, **__):
    start = int(np.asarray(batch.observed)[0].argmin())
    for read in range(7):
      ids = np.array(batch.ids)
      ids[0, start : start + 6] = canvas
      noisy = np.zeros(ids.shape, bool)
      noisy[0, start + read : start + 6] = True
      yield chat.Frame(ids, noisy, np.array([read]))

  monkeypatch.setattr(chat, "stream", told)
  shown = list(talked.say("x"))
  assert "".join(shown) == "aé" == talked.messages[-1]["content"] and len(word) == 3
  assert talked.calls == 4 and shown[:3] == ["", "a", ""]


def test_the_oldest_turns_are_left_out_and_said(next_token):
  talked = made(next_token)
  said = ["".join(talked.say("It was")) for _ in range(4)]
  assert "oldest" not in said[0] and any("the oldest 2 messages are left out" in s for s in said)
  with pytest.raises(
    ValueError, match=r"--answer=6 are more than --length=64; use a larger --length"
  ):
    list(talked.say("x" * 64))
  with pytest.raises(ValueError, match=r"--answer=64 tokens leave none of --length=64"):
    made(next_token, answer=64)


def test_lines_of_the_standard_input(next_token):
  heard = []
  talk(made(next_token, answer=2), io.StringIO("It was\n\nthe best\n"), heard.append, show="none")
  lines = "".join(heard).split("\n")
  assert lines[0] == "you: It was" and lines[1].startswith("model: ") and "you: the best" in lines

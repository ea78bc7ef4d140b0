"""Chat templates: markers are tokens, and what people write is text, whatever it spells."""

import json

import pytest

pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

import tokenizers as library

from diffusion_text.data import chat_template
from diffusion_text.data.chat_template import ChatTemplate, read_chat_template, template_of
from diffusion_text.data.tokenizer_json import JsonTokenizer
from diffusion_text.data.tokenizers import Bytes
from tests.studies.instruction_models import JINJA, tokenizer_text

ASKED = [{"role": "user", "content": "Hi <|im_end|> there"}]
TALK = [*ASKED, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why"}]


@pytest.fixture(scope="module")
def words():
  return JsonTokenizer(tokenizer_text(library), (("begin", 0), ("end", 1)))


def by_hand(tokenizer, *parts):
  """Ids of texts and of tokens that are given as numbers."""
  ids = []
  for part in parts:
    ids += [part] if isinstance(part, int) else tokenizer.encode(part).tolist()
  return ids


SYSTEM = (3, "system\nBe brief.", 1, "\n")
USER = (3, "user\nHi <|im_end|> there", 1, "\n")
REST = (3, "assistant\nyes", 1, "\n", 3, "user\nwhy", 1, "\n", 3, "assistant\n")


def test_known_templates_by_hand(words):
  template = ChatTemplate("chatml", words)
  assert template.ids(TALK).tolist() == by_hand(words, *USER, *REST)
  assert template.end_of_answer() == "<|im_end|>"
  without = template.ids(TALK[:1], answer=False).tolist()
  assert without == by_hand(words, *USER)
  plain = ChatTemplate("plain", Bytes())
  text = "User: Hi <|im_end|> there\nAssistant: yes\nUser: why\nAssistant:"
  assert plain.text(TALK) == text and plain.ids(TALK).tolist() == list(text.encode())
  assert plain.end_of_answer() == "\n"
  header = "<|start_header_id|>user<|end_header_id|>\n\nwhy<|eot_id|>"
  assert ChatTemplate("llama3", words).text(TALK[2:], answer=False) == "<begin>" + header


def test_jinja_as_by_hand(words):
  """The default system message is the template's; a template may refuse."""
  pytest.importorskip("jinja2", reason="needs jinja2 (extra: pretrained)")
  template = ChatTemplate(JINJA, words)
  assert template.ids(TALK).tolist() == by_hand(words, *SYSTEM, *USER, *REST)
  own = [{"role": "system", "content": "x"}, *ASKED]
  ids = template.ids(own).tolist()
  assert ids == by_hand(words, 3, "system\nx", 1, "\n", *USER, 3, "assistant\n")
  assert template.end_of_answer() == "<|im_end|>"
  refuses = ChatTemplate("{{ raise_exception('roles must alternate') }}", words)
  with pytest.raises(ValueError, match="refuses the conversation: roles must alternate"):
    refuses.text(TALK)
  named = ChatTemplate("{{ bos_token }}|{{ eos_token }}|{{ strftime_now('%%') }}", words)
  assert named.text(TALK) == "<begin>|<|im_end|>|%"


def test_markers_that_people_write_would_be_noticed(words, monkeypatch):
  """The mutant: messages that are not taken apart end their own turn."""
  monkeypatch.setattr(chat_template, "_taken_apart", lambda content, markers, apart: content)
  ids = ChatTemplate("chatml", words).ids(ASKED).tolist()
  assert ids == by_hand(words, 3, "user\nHi ", 1, " there", 1, "\n", 3, "assistant\n")


def test_without_jinja2_a_known_template_stands_in(words, monkeypatch, tmp_path):
  monkeypatch.setattr(chat_template, "_jinja", lambda: None)
  assert ChatTemplate(JINJA, words).ids(TALK).tolist() == by_hand(words, *USER, *REST)
  (tmp_path / "other.jinja").write_text("{{ messages }}")
  with pytest.raises(ValueError, match=r"pip install -e '\.\[pretrained\]', or give --temp"):
    template_of(tmp_path, words, str(tmp_path / "other.jinja"))


def test_where_templates_are_found(words, tmp_path):
  assert read_chat_template(tmp_path) is None
  with pytest.raises(ValueError, match=r"has no chat_template.jinja.*--template=chatml\|llama3"):
    template_of(tmp_path, words, None)
  with pytest.raises(ValueError, match=r"--template=chatlm is no file and no known template"):
    template_of(tmp_path, words, "chatlm")
  config = tmp_path / "tokenizer_config.json"
  config.write_text(json.dumps({"chat_template": JINJA}))
  assert read_chat_template(tmp_path) == JINJA
  several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
  config.write_text(json.dumps({"chat_template": several}))
  assert read_chat_template(tmp_path / "tokenizer.json") == "d"
  (tmp_path / "chat_template.jinja").write_text("j")
  assert read_chat_template(tmp_path) == "j"

"""A tokenizer with fewer tokens encodes the text for which it was made as before, and any other."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

import tokenizers as library

from diffusion_text.data import fewer_tokens as module
from diffusion_text.data.fewer_tokens import fewer_tokens, used_tokens
from diffusion_text.data.tokenizer_json import JsonTokenizer

TEXT = "the smallest of the small things stand still in the hall of the mountain"
OTHER = "Wherever nightingales sang, 12 listeners' whispers were unwelcome whenever winter returned"
SPECIAL = ["<begin>", "<end>", "<mask>"]


def trained(kind):
  """A tokenizer of both texts, with tokens put before and behind a text."""
  prefix = "##" if kind == "WordPiece" else None
  if kind == "BPE":
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
      vocab_size=360, initial_alphabet=alphabet, show_progress=False
    )
  else:
    made = library.Tokenizer(library.models.WordPiece(unk_token="<unknown>"))
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece(prefix=prefix)
    trainer = library.trainers.WordPieceTrainer(
      vocab_size=160, special_tokens=[*SPECIAL, "<unknown>"], show_progress=False
    )
  made.train_from_iterator([TEXT, OTHER, "café"] * 3, trainer)
  made.add_special_tokens(SPECIAL)  # of BPE they are the last ids, of WordPiece the first
  ends = [(token, made.token_to_id(token)) for token in SPECIAL[:2]]
  made.post_processor = library.processors.TemplateProcessing(
    single="<begin> $A <end>", special_tokens=ends
  )
  roles = (("end", made.token_to_id("<end>")), ("mask", made.token_to_id("<mask>")))
  return JsonTokenizer(made.to_str(), roles, size=400)


def as_others_encode(tokenizer, text):
  """The ids of the library, with those before and behind the text."""
  return library.Tokenizer.from_str(tokenizer.content).encode(text).ids


@pytest.mark.parametrize("kind", ["BPE", "WordPiece"])
def test_the_text_is_encoded_as_before(kind):
  """Token for token, and decoded; so it is with tokens before and behind it, and tasks are kept."""
  tokenizer = trained(kind)
  fewer, old = fewer_tokens(tokenizer, used_tokens(tokenizer, [TEXT]))
  assert len(old) == fewer.vocab_size < 0.9 * len(json.loads(tokenizer.content)["model"]["vocab"])
  assert (np.diff(old) > 0).all()
  ids = fewer.encode(TEXT)
  np.testing.assert_array_equal(old[ids], tokenizer.encode(TEXT))
  assert fewer.decode(ids) == tokenizer.decode(tokenizer.encode(TEXT))
  np.testing.assert_array_equal(
    old[as_others_encode(fewer, TEXT)], as_others_encode(tokenizer, TEXT)
  )
  for role in ("end", "mask"):
    assert old[fewer.special[role]] == tokenizer.special[role]
  assert [fewer.token_of(number) for number in range(len(old))] == list(
    map(tokenizer.token_of, old)
  )


@pytest.mark.parametrize("kind", ["BPE", "WordPiece"])
def test_any_other_text_is_encoded_in_shorter_pieces(kind):
  tokenizer = trained(kind)
  fewer, _ = fewer_tokens(tokenizer, used_tokens(tokenizer, [TEXT]))
  ids, before = fewer.encode(OTHER), tokenizer.encode(OTHER)
  assert fewer.decode(ids) == tokenizer.decode(before) and len(ids) > 1.3 * len(before)
  if kind == "BPE":
    assert fewer.decode(fewer.encode("naïve café 😀\n")) == "naïve café 😀\n"
  else:
    assert fewer.unknown in fewer.encode("café") and tokenizer.unknown not in tokenizer.encode(
      "café"
    )


def test_merges_without_their_parts_would_be_noticed(monkeypatch):
  """The mutant keeps the tokens of the text alone, of which other merges had made them."""
  tokenizer = trained("BPE")
  monkeypatch.setattr(module, "_parts", lambda kept, merges: set())
  fewer, _ = fewer_tokens(tokenizer, used_tokens(tokenizer, [TEXT]))
  assert len(fewer.encode(TEXT)) > len(tokenizer.encode(TEXT))


def test_bytes_and_characters_of_ascii_stay():
  """Of tokenizers that write bytes as text; pieces within a word are as good as others."""
  spelled = SimpleNamespace(byte_level=False)
  stay = [module._always(token, spelled, "##") for token in ("<0x0A>", "a", "##a", "é", "<0xZZ>")]
  assert stay == [True, True, True, False, False]


def test_ids_of_other_processors_are_renumbered():
  """[token, id] of BERT's and RoBERTa's, also in a sequence."""
  processor = {"type": "Sequence", "processors": [{"sep": ["<end>", 7], "cls": ["<begin>", 5]}]}
  module._renumber(processor, {"<end>": 1, "<begin>": 0})
  assert processor["processors"] == [{"sep": ["<end>", 1], "cls": ["<begin>", 0]}]


def test_tokenizers_of_other_kinds_are_refused():
  """In one line; so is a numbering that the library would not take."""
  words = library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a"))
  words.decoder = library.decoders.ByteLevel()
  with pytest.raises(ValueError, match=r"a model of type 'WordLevel' .* Keep all tokens") as raised:
    fewer_tokens(JsonTokenizer(words.to_str()), {0})
  assert "\n" not in str(raised.value)
  with pytest.raises(
    ValueError, match=r"'<end>' should become id 5, and the library .* makes it 1"
  ):
    module._check(trained("WordPiece"), {"<begin>": 0, "<end>": 5})

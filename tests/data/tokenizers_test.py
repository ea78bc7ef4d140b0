"""Tokenizers: nothing is lost, characters count once, and the same text gives the same bytes."""

import functools
import io

import hypothesis
import numpy as np
import pytest
import sentencepiece
from hypothesis import strategies

from diffusion_text import types
from diffusion_text.data import corpora, tokenizers

_QUICK = hypothesis.settings(max_examples=60, deadline=None, database=None)
# No surrogates, which are not text. The examples are difficult for tokenizers: marks for spaces,
# runs of spaces, controls, characters of several bytes.
_CHARACTERS = strategies.characters(exclude_categories=["Cs"]) | strategies.sampled_from(
  "▁  \n\r\t\0é日😀<0x>unk"
)
_TEXT = strategies.text(_CHARACTERS, max_size=40)


@functools.cache
def _austen():
  return tuple(list(corpora.Austen().documents("train"))[:1500])


@functools.cache
def _tokenizer(kind):
  size = {"characters": None, "bytes": 256, "sentencepiece": 512}[kind]
  return tokenizers.build_tokenizer(kind, size, _austen())


kinds = pytest.mark.parametrize("kind", tokenizers.TOKENIZERS)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@_QUICK
@hypothesis.given(text=_TEXT)
@hypothesis.example(text="▁a ▁▁\n\n  <0x41><unk>\0\ufeff")
def test_any_text_comes_back(kind, text):
  tokenizer = _tokenizer(kind)
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert tokenizers.characters(tokenizer, ids) == len(text)


@kinds
def test_held_out_text_comes_back_and_its_characters_are_counted(kind):
  tokenizer = _tokenizer(kind)
  text = "\n".join(list(corpora.Austen().documents("validation"))[:60]) + "\n"
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert "".join(tokenizers.pieces(tokenizer, ids)) == text
  assert tokenizers.characters(tokenizer, ids) == len(text)
  assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size


@kinds
def test_separator_is_the_newline(kind):
  tokenizer = _tokenizer(kind)
  np.testing.assert_array_equal(tokenizer.encode("a\n\nb")[1:3], [tokenizer.separator] * 2)
  assert tokenizer.decode([tokenizer.separator]) == "\n"


@kinds
def test_special_tokens_are_named_by_role(kind):
  """The end is the separator; nothing else has a task, whatever the places of ids are."""
  tokenizer = _tokenizer(kind)
  assert isinstance(tokenizer, types.Tokenizer)
  assert tokenizer.special == {
    "begin": None,
    "end": int(tokenizer.encode("\n")[0]),
    "mask": None,
    "pad": None,
  }
  assert tokenizers.Characters("ab").special["end"] is None
  again = tokenizers.tokenizer_from_bytes(tokenizer.to_bytes())
  assert again.special == tokenizer.special


def test_control_pieces_of_a_sentencepiece_model_are_found_by_their_role():
  """Of a model made elsewhere, with a beginning and padding; the end is still the newline."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b a b ab ba", "b a"]),
    model_writer=model,
    vocab_size=265,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    byte_fallback=True,
    user_defined_symbols=["\n"],
    unk_id=0,
    bos_id=2,
    eos_id=3,
    pad_id=1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  tokenizer = tokenizers.SentencePiece(model.getvalue())
  newline = int(tokenizer.encode("\n")[0])
  assert tokenizer.special == {"begin": 2, "end": newline, "mask": None, "pad": 1}
  assert newline not in (0, 1, 2, 3)
  assert tokenizer.decode(tokenizer.encode(LITERAL)) == LITERAL


# Text that names special tokens of one library or another, or tokens by their number.
LITERAL = "<mask>[MASK]<unk><pad><s>a</s>\n<0x0A><0x41>[16]<|endoftext|>[PAD]▁<extra_id_0>"


@kinds
def test_the_text_of_special_tokens_is_text(kind):
  """It comes back, and holds no token with a role but its own newline."""
  tokenizer = tokenizers.build_tokenizer(
    kind, {"characters": None, "bytes": 256, "sentencepiece": 512}[kind], [*_austen(), LITERAL]
  )
  ids = tokenizer.encode(LITERAL)
  assert tokenizer.decode(ids) == LITERAL
  roles = {value for value in tokenizer.special.values() if value is not None}
  assert [i for i in ids.tolist() if i in roles] == [tokenizer.special["end"]]
  # The mutant: one that takes the text of a token for the token.
  first = tokenizer.encode("<mask>")
  assert len(first) > 1 and max(first) < tokenizer.vocab_size


def test_tokenizers_that_were_saved_before_load():
  """The bytes of a checkpoint say nothing of roles, and need not."""
  saved = b'characters\n["\\nab", true]'
  tokenizer = tokenizers.tokenizer_from_bytes(saved)
  assert tokenizer.special["end"] == 0 and tokenizer.to_bytes() == saved
  assert tokenizers.tokenizer_from_bytes(b"bytes\n").special["end"] == 10


@kinds
def test_a_tokenizer_is_built_again_from_its_bytes(kind):
  tokenizer = _tokenizer(kind)
  again = tokenizers.tokenizer_from_bytes(tokenizer.to_bytes())
  assert again == tokenizer and again.fingerprint == tokenizer.fingerprint and again.name == kind
  text = "A truth universally acknowledged."
  np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def test_different_tokenizers_have_different_fingerprints():
  prints = {_tokenizer(kind).fingerprint for kind in tokenizers.TOKENIZERS}
  prints |= {
    tokenizers.Characters("ab").fingerprint,
    tokenizers.Characters("ab", has_unknown=False).fingerprint,
  }
  assert len(prints) == 5


def test_from_bytes_of_something_else():
  with pytest.raises(
    ValueError, match=r"begins with b'\\x00junk', which is no tokenizer; use what to_bytes"
  ):
    tokenizers.tokenizer_from_bytes(b"\0junk")


@kinds
def test_ids_outside_the_vocabulary_are_an_error(kind):
  tokenizer = _tokenizer(kind)
  size = tokenizer.vocab_size
  with pytest.raises(
    ValueError, match=rf"ids\[1\]={size} is outside the vocabulary 0 … {size - 1}; pass clean ids"
  ):
    tokenizer.decode([0, size])
  with pytest.raises(ValueError, match=r"ids\[0\]=-1 is outside"):
    tokenizers.characters(tokenizer, [-1])


@kinds
def test_no_ids_are_no_text(kind):
  assert _tokenizer(kind).decode([]) == "" and tokenizers.characters(_tokenizer(kind), []) == 0


def test_characters_sizes():
  documents = ["ba", "ac"]
  assert tokenizers.learn_characters(documents) == tokenizers.Characters("\nabc", has_unknown=True)
  assert tokenizers.learn_characters(documents, 5).vocab_size == 5
  strict = tokenizers.learn_characters(documents, 4)
  assert strict.vocab_size == 4 and strict.unknown is None
  with pytest.raises(
    ValueError, match=r"vocab_size=7, but the documents hold 4 characters; use 4 .*, 5 .* or None"
  ):
    tokenizers.learn_characters(documents, 7)
  with pytest.raises(ValueError, match="no characters in the documents"):
    tokenizers.learn_characters([""])


def test_text8_like_text_has_27_ids_and_no_separator():
  tokenizer = tokenizers.build_tokenizer("characters", 27, [" abcdefghijklmnopqrstuvwxyz "])
  assert (tokenizer.vocab_size, tokenizer.separator, tokenizer.unknown) == (27, None, None)


def test_a_character_outside_the_alphabet():
  strict = tokenizers.Characters("abc", has_unknown=False)
  with pytest.raises(
    ValueError, match=r"character 'd' at 2 is not among the 3 of the alphabet; .*use vocab_size=4"
  ):
    strict.encode("abdc")
  lenient = tokenizers.Characters("abc")
  np.testing.assert_array_equal(lenient.encode("a😀dc"), [0, 3, 3, 2])
  assert lenient.decode([0, 3, 2]) == "a\N{REPLACEMENT CHARACTER}c"
  assert tokenizers.characters(lenient, lenient.encode("a😀dc")) == 4


@_QUICK
@hypothesis.given(
  text=_TEXT.filter(len), cuts=strategies.lists(strategies.integers(0, 100), max_size=5)
)
def test_rows_that_cut_a_character_count_it_once(text, cuts):
  tokenizer = tokenizers.Bytes()
  rows = np.split(tokenizer.encode(text), sorted(cut % (len(text.encode()) + 1) for cut in cuts))
  assert sum(tokenizers.characters(tokenizer, row) for row in rows) == len(text)


def test_characters_where_weights_are_zero_do_not_count():
  tokenizer = tokenizers.Bytes()
  ids = tokenizer.encode("aé日b")[None]
  weights = np.array([[1, 1, 1, 0, 0, 0, 1]], np.float32)
  assert tokenizers.characters(tokenizer, ids, weights) == 3


def test_pieces_show_bytes_of_a_broken_character():
  assert tokenizers.pieces(tokenizers.Bytes(), tokenizers.Bytes().encode("aé")) == [
    "a",
    "\\xc3",
    "\\xa9",
  ]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "characters"])
def test_lone_surrogates_are_an_error_not_dropped(kind):
  with pytest.raises(ValueError, match="surrogates not allowed"):
    _tokenizer(kind).encode("a\ud800b")


def test_sentencepiece_is_the_same_each_time_and_shorter_than_characters():
  again = tokenizers.train_sentencepiece(_austen(), 512)
  assert again == _tokenizer("sentencepiece")
  assert again.vocab_size == 512
  text = _austen()[4]
  assert len(again.encode(text)) < 0.6 * len(text)


def test_sentencepiece_splits_digits():
  tokenizer = tokenizers.train_sentencepiece(["in 1811 and in 1813 and in 1815\n" * 50], 272)
  assert tokenizers.pieces(tokenizer, tokenizer.encode("1811")) == ["1", "8", "1", "1"]


def test_sentencepiece_uses_the_first_characters_only():
  documents = ["the cat sat on the mat\n" * 40, "zzzz qqqq " * 500]
  limited = tokenizers.train_sentencepiece(documents, 275, max_characters=len(documents[0]))
  assert limited == tokenizers.train_sentencepiece(documents[:1], 275)
  assert limited != tokenizers.train_sentencepiece(documents, 275)


def test_unigram_is_lossless_too():
  tokenizer = tokenizers.train_sentencepiece(_austen()[:100], 400, model_type="unigram")
  text = "  Emma Woodhouse, 21,\n\nhandsome ▁ clever£ "
  assert tokenizer.decode(tokenizer.encode(text)) == text
  pieces = tokenizers.pieces(tokenizer, tokenizer.encode("it was 21"))
  assert pieces[-2:] == ["2", "1"]


def test_encoding_in_parts_gives_the_same_ids(monkeypatch):
  tokenizer = _tokenizer("sentencepiece")
  document = "  ".join(_austen()[4:12])
  monkeypatch.setattr(tokenizers, "_CHUNK", 50)
  parts = list(tokenizers.encode_document(tokenizer, document))
  assert len(parts) > 20
  np.testing.assert_array_equal(np.concatenate(parts), tokenizer.encode(document))
  # There is no space to cut at. The ids may differ, but nothing is lost.
  parts = list(tokenizers.encode_document(tokenizer, "x" * 120))
  assert tokenizer.decode(np.concatenate(parts)) == "x" * 120


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      ("words", None, ["a"]),
      r"kind='words' is not a tokenizer; use one of characters, bytes, sentencepiece",
    ),
    (("bytes", 255, ["a"]), r"vocab_size=255 for bytes; use 256"),
    (
      ("sentencepiece", None, ["a"]),
      r"vocab_size=None for sentencepiece; use the number of pieces",
    ),
    (("sentencepiece", 100000, ["a b c"]), r"vocab_size=100000 does not suit this text"),
    (("sentencepiece", 100, ["a b c"]), r"vocab_size=100 does not suit this text"),
    (("sentencepiece", 300, []), r"no text in the documents"),
  ],
)
def test_what_cannot_be_built_says_why(arguments, message):
  with pytest.raises(ValueError, match=message):
    tokenizers.build_tokenizer(*arguments)


def test_sentencepiece_models_that_lose_text_are_refused():
  import io

  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat"]),
    model_writer=model,
    vocab_size=14,
    model_type="bpe",
    num_threads=1,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match="loses text; use train_sentencepiece"):
    tokenizers.SentencePiece(model.getvalue())
  with pytest.raises(ValueError, match=r"alphabet='ba' must hold distinct characters in order"):
    tokenizers.Characters("ba")
  with pytest.raises(ValueError, match=r"model_type='word' is not known; use 'bpe'"):
    tokenizers.train_sentencepiece(["a"], 300, model_type="word")

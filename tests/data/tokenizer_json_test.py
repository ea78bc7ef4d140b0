"""Tokenizers of pretrained models keep the contract of ours: text comes back, ids are fixed bytes,
special tokens are named by role and their text is text."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

import tokenizers as library

from diffusion_text.data.tokenizer_json import JsonTokenizer, load_tokenizer
from diffusion_text.data.tokenizers import characters, pieces, tokenizer_from_bytes

TEXT = "It was the best of times,  it was\nthe worst of times: 1859 — naïve café \u2581 😀\t\tend  "
SPECIAL = ["<|end|>", "<|begin|>", "<|mask|>"]


@pytest.fixture(scope="module")
def trained():
  """A byte-level BPE of 300 tokens, as text, with merges over words of the text."""
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  alphabet = library.pre_tokenizers.ByteLevel.alphabet()
  trainer = library.trainers.BpeTrainer(
    vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator([TEXT] * 5, trainer)
  return made


def folder_with(path, made, **files):
  path.mkdir(exist_ok=True)
  (path / "tokenizer.json").write_text(made.to_str())
  for name, content in files.items():
    (path / f"{name}.json").write_text(json.dumps(content))
  return path


def test_text_comes_back_and_is_counted(trained, tmp_path):
  tokenizer = load_tokenizer(folder_with(tmp_path / "a", trained), size=320)
  ids = tokenizer.encode(TEXT)
  assert ids.dtype == np.int32 and len(ids) < len(TEXT.encode())
  assert tokenizer.decode(ids) == TEXT and tokenizer.changes == ""
  assert characters(tokenizer, ids) == len(TEXT)
  assert int(tokenizer.byte_counts[ids].sum()) == len(TEXT.encode("utf-8"))
  assert b"".join(tokenizer.token_bytes[i] for i in ids) == TEXT.encode("utf-8")
  assert tokenizer.vocab_size == 320 and tokenizer.token_bytes[310] == b""
  assert "".join(pieces(tokenizer, tokenizer.encode("it was"))) == "it was"
  with pytest.raises(ValueError, match="lone surrogate"):
    tokenizer.encode("a\ud800")
  with pytest.raises(ValueError, match="outside the vocabulary 0 … 319"):
    tokenizer.decode([320])


def test_special_tokens_are_named_by_role_and_their_text_is_text(trained, tmp_path):
  """Roles from the files beside; the end of a text is a newline; a text that spells a special token
  holds its characters and none of the ids."""
  files = {"special_tokens_map": {"eos_token": "<|end|>", "bos_token": {"content": "<|begin|>"}}}
  folder = folder_with(tmp_path / "a", trained, **files, config={"mask_token_id": 2})
  tokenizer = load_tokenizer(folder, size=310)
  assert tokenizer.special == {"begin": 1, "end": 0, "mask": 2, "pad": None}
  assert tokenizer.separator == 0 and tokenizer.decode([0, 1, 2]) == "\n"
  ids = tokenizer.encode("a <|end|> b")
  assert not {0, 1, 2} & set(ids.tolist()) and tokenizer.decode(ids) == "a <|end|> b"
  plain = load_tokenizer(folder, roles={"begin": "<|mask|>"})
  assert plain.special["begin"] == 2
  bare = load_tokenizer(folder_with(tmp_path / "b", trained))
  assert bare.separator == bare.encode("\n")[0]  # no role: a newline


def test_a_saved_tokenizer_is_the_same(trained, tmp_path):
  files = {"special_tokens_map": {"eos_token": "<|end|>"}}
  tokenizer = load_tokenizer(folder_with(tmp_path / "a", trained, **files), size=310)
  again = tokenizer_from_bytes(tokenizer.to_bytes())
  assert again == tokenizer and again.fingerprint == tokenizer.fingerprint
  np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
  other = load_tokenizer(tmp_path / "a", size=311)
  assert other.fingerprint != tokenizer.fingerprint


def test_word_pieces_change_the_text_and_say_so(tmp_path):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "it", "was", "best", "##est", "b", "##s"]
  made = library.Tokenizer(
    library.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
  )
  made.normalizer = library.normalizers.BertNormalizer(lowercase=True)
  made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
  made.decoder = library.decoders.WordPiece()
  made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
  made.enable_padding(length=30)  # as published files have it
  made.enable_truncation(2)
  names = {"tokenizer_config": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}}
  tokenizer = load_tokenizer(folder_with(tmp_path / "a", made, **names))
  ids = tokenizer.encode("It  WAS bests? it")
  assert ids.tolist() == [4, 5, 6, 9, 1, 4]
  assert tokenizer.decode(ids) == " it was bests\N{REPLACEMENT CHARACTER} it"
  assert tokenizer.special == {"begin": 2, "end": 3, "mask": None, "pad": 0}
  assert tokenizer.unknown == 1 and "comes back as" in tokenizer.changes


def test_marked_spaces_and_bytes(tmp_path):
  """As LLaMA 2 has it: a space before the text, and bytes for what is rare; else nothing changes.
  "▁" itself comes back as the space that it marks."""
  words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
  words += ["\u2581", "i", "t", "w", "a", "s", "\u2581i", "\u2581it", "wa", "was"]
  merges = [("\u2581", "i"), ("\u2581i", "t"), ("w", "a"), ("wa", "s")]
  vocabulary = {word: i for i, word in enumerate(words)}
  made = library.Tokenizer(
    library.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  prepend = library.normalizers.Prepend("\u2581")
  mark = library.normalizers.Replace(" ", "\u2581")
  made.normalizer = library.normalizers.Sequence([prepend, mark])
  decoders = library.decoders
  parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
  made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
  made.add_special_tokens(["<unk>", "<s>", "</s>"])
  names = {"special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"}}
  tokenizer = load_tokenizer(folder_with(tmp_path / "a", made, **names))
  ids = tokenizer.encode("it was\n é  it")
  assert pieces(tokenizer, ids)[:3] == [" it", " ", "was"] and tokenizer.unknown is None
  assert tokenizer.decode(ids) == " it was\n é  it" and "comes back as" in tokenizer.changes
  assert tokenizer.special == {"begin": 1, "end": 2, "mask": None, "pad": None}
  assert tokenizer.decode(tokenizer.encode("</s>")) == " </s>"


def test_the_tokenizer_of_gguf_metadata_is_that_of_the_file(trained, tmp_path):
  """Equal ids with GPT-2's words; SmolLM's splits digits; other kinds are refused."""
  gguf = pytest.importorskip("gguf", reason="needs the package gguf (extra: pretrained)")
  content = json.loads(trained.to_str())["model"]
  tokens = sorted(content["vocab"], key=content["vocab"].get)
  merges = [" ".join(pair) for pair in content["merges"]]

  def written(name, words, kind="gpt2"):
    writer = gguf.GGUFWriter(tmp_path / name, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(words)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tmp_path / name

  want = load_tokenizer(folder_with(tmp_path / "a", trained))
  found = load_tokenizer(written("a.gguf", "gpt-2"), size=len(tokens))
  np.testing.assert_array_equal(found.encode(TEXT), want.encode(TEXT))
  assert found.special["end"] == 0 and found.token_bytes[1:] == want.token_bytes[1:]
  digits = load_tokenizer(written("b.gguf", "smollm"))
  assert digits.decode(digits.encode(TEXT)) == TEXT
  assert pieces(digits, digits.encode("1859")) == ["1", "8", "5", "9"]
  for name in ("qwen2", "llama-bpe"):
    each = load_tokenizer(written(f"{name}.gguf", name))
    assert each.decode(each.encode(TEXT)) == TEXT
  with pytest.raises(ValueError, match=r"tokenizer of kind 'llama', words 'gpt-2'; read are"):
    load_tokenizer(written("c.gguf", "gpt-2", kind="llama"))


def test_tokenizers_that_do_not_fit_are_refused(trained, tmp_path):
  folder = folder_with(tmp_path / "a", trained)
  with pytest.raises(ValueError, match=r"300 tokens up to id 299, and the model's table 290 rows"):
    load_tokenizer(folder, size=290)
  with pytest.raises(ValueError, match=r"'<x>' is no token of this tokenizer"):
    load_tokenizer(folder, roles={"mask": "<x>"})
  with pytest.raises(ValueError, match=r"tokenizer.json is not there; give --tokenizer"):
    load_tokenizer(tmp_path)
  (folder / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
    load_tokenizer(folder)
  content = json.loads(trained.to_str()) | {"decoder": {"type": "Metaspace", "replacement": "▁"}}
  content["decoder"] |= {"prepend_scheme": "always", "split": True}
  with pytest.raises(ValueError, match=r"the decoder \['Metaspace'\], whose tokens do not stand"):
    JsonTokenizer(json.dumps(content))
  with pytest.raises(ValueError, match="role 'middle' with id 1 does not fit"):
    JsonTokenizer(trained.to_str(), (("middle", 1),))

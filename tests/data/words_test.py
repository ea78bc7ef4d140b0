"""Words of pieces: a corpus by hand, and real text against plain Python; mutants that fail."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from diffusion_text.data import corpora, tokenizers, words
from diffusion_text.data.documents import Documents
from diffusion_text.data.token_arrays import token_arrays
from diffusion_text.timing import ByInformation
from diffusion_text.timing.by_token import of_words, place, tf_idf_entropy
from diffusion_text.types import DataFacts

TEXTS = ("the cat, the dog.\n the cat", "a dog and a catalogue", "the the the, cats and dogs")


@functools.cache
def pieces(size=290):
  """(a tokenizer of few pieces, so that words are cut; the arrays of TEXTS)."""
  tokenizer = tokenizers.build_tokenizer("sentencepiece", size, TEXTS)
  corpus = Documents({"train": list(TEXTS)})
  return tokenizer, token_arrays(corpus, tokenizer, "all", None)


def runs(tokenizer, arrays):
  """[(document, ids of a word)] in plain Python."""
  found = []
  for number, (begin, stop) in enumerate(itertools.pairwise(arrays.offsets)):
    before = b" "
    for i in arrays.tokens[begin:stop].tolist():
      token = tokenizer.token_bytes[i]
      letters = any(byte > 127 or chr(byte).isalnum() for byte in token)
      last = any(byte > 127 or chr(byte).isalnum() for byte in before)
      new = token[:1].isspace() or before[-1:].isspace() or not letters or not last
      if new or not found or found[-1][0] != number:
        found.append((number, []))
      found[-1][1].append(i)
      before = token
  return [(number, tuple(ids)) for number, ids in found]


def check_words(of, tokenizer, arrays):
  """Counts, documents and the tokens of each word, whatever the order of words."""
  found, listed = of(arrays, tokenizer), runs(tokenizer, arrays)
  counts = collections.Counter(ids for _, ids in listed)
  documents = collections.Counter(ids for _, ids in set(listed))
  want = sorted((counts[ids], documents[ids], tuple(sorted(ids))) for ids in counts)
  inside = collections.defaultdict(list)
  for token, word, times in zip(found.tokens, found.words, found.times, strict=True):
    inside[word] += [token] * (times // found.counts[word])
  got = sorted(
    (int(found.counts[w]), int(found.documents[w]), tuple(map(int, sorted(inside[w]))))
    for w in range(len(found.counts))
  )
  assert got == want
  assert found.times.sum() == len(arrays.tokens)


def test_words_are_those_of_plain_python():
  tokenizer, arrays = pieces()
  check_words(words.words_of, tokenizer, arrays)
  assert max(len(ids) for _, ids in runs(tokenizer, arrays)) > 2  # words of several pieces

  def across_documents(arrays, tokenizer):
    one = np.array([0, len(arrays.tokens)])
    return words.words_of(dataclasses.replace(arrays, offsets=one), tokenizer)

  with pytest.raises(AssertionError):
    check_words(across_documents, tokenizer, arrays)


def test_a_comma_is_no_part_of_a_word(monkeypatch):
  tokenizer, arrays = pieces()
  monkeypatch.setattr(words, "_holds_letters", bool)
  with pytest.raises(AssertionError):
    check_words(words.words_of, tokenizer, arrays)


def test_words_of_real_text():
  text = list(corpora.Austen().documents("validation"))
  tokenizer = tokenizers.build_tokenizer("sentencepiece", 600, text)
  arrays = token_arrays(corpora.Austen(), tokenizer, "validation", None)
  check_words(words.words_of, tokenizer, arrays)


def test_a_token_has_the_value_of_its_words():
  """By hand: token 0 in word 0 alone; token 1 twice in word 0 and six times in word 1."""
  found = words.Words(
    counts=np.array([2, 3]),
    documents=np.array([1, 2]),
    tokens=np.array([0, 1, 1]),
    words=np.array([0, 0, 1]),
    times=np.array([2, 2, 6]),
  )
  np.testing.assert_allclose(of_words(np.array([4.0, 8.0]), found, 3), [4, 7, 0])
  facts = DataFacts(3, 3, lambda: np.array([2, 8, 0]), words=lambda: found)
  for information in ("rarity", "tf_idf_entropy"):
    told = tf_idf_entropy(found.counts, found.documents)
    told = -np.log([0.4, 0.6]) if information == "rarity" else told
    value = of_words(told, found, 3)
    value[2] = 9 if information == "rarity" else 0  # it does not occur
    want = place(value, facts.token_counts())
    params = ByInformation(of="words", information=information).init(jax.random.key(0), facts)
    np.testing.assert_allclose(params["rarity"], want)
  by_token = ByInformation().init(jax.random.key(0), facts)["rarity"]
  assert np.abs(by_token - want).max() > 0.1


def test_a_piece_of_a_rare_word_is_rare_although_it_is_common():
  """In pieces that are learned: the order by words is another than that by tokens."""
  tokenizer, arrays = pieces()
  counts = arrays.token_counts(tokenizer.vocab_size)
  found = words.words_of(arrays, tokenizer)
  value = of_words(-np.log(found.counts / found.counts.sum()), found, tokenizer.vocab_size)
  alone = np.bincount(found.tokens, minlength=tokenizer.vocab_size) == 1  # of one word
  for token in np.flatnonzero(alone):
    word = found.words[found.tokens == token][0]
    assert value[token] == pytest.approx(-np.log(found.counts[word] / found.counts.sum()))
  seen = counts > 0
  assert np.corrcoef(value[seen], -np.log(counts[seen]))[0, 1] < 0.999


@pytest.mark.parametrize("kind", words.WORDLESS)
def test_characters_and_bytes_tell_no_words(kind):
  tokenizer = tokenizers.build_tokenizer(kind, None, TEXTS)
  arrays = token_arrays(Documents({"train": list(TEXTS)}), tokenizer, "all", None)
  with pytest.raises(ValueError, match="does not tell words"):
    words.words_of(arrays, tokenizer)
  with pytest.raises(ValueError, match=r"timing.of='words' needs to know words.*sentencepiece"):
    ByInformation(of="words").init(jax.random.key(0), DataFacts(3, 4, lambda: np.ones(4)))

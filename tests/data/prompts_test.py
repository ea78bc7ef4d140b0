"""Rows for sampling: observed tokens, tokens to generate, and padding."""

import numpy as np
import pytest

from diffusion_text.data import corpora, prompts, tokenizers

_BYTES = tokenizers.Bytes()


def _known(batch, row=0, tokenizer=_BYTES):
  """The text of a row with `_` for each token to generate, padding left out."""
  real = slice(None) if batch.weights is None else batch.weights[row] > 0
  ids, observed = batch.ids[row][real], batch.observed[row][real]
  return "".join(
    piece if known else "_" for piece, known in zip(tokenizers.pieces(tokenizer, ids), observed)
  )


@pytest.mark.parametrize(
  "text, expected",
  [
    ("To be, [16] that is the question", "To be, " + "_" * 16 + " that is the question"),
    ("[3]", "___"),
    ("[2]a[1][2]", "__a___"),
    ("a[[4]b", "a[4]b"),
    ("a[[[4]b", "a[____b"),
    ("a[[[[4]b", "a[[4]b"),
    ("a[x] [ 4] [] [-1] 4]", "a[x] [ 4] [] [-1] 4]"),
    ("plain", "plain"),
  ],
)
def test_infill_texts(text, expected):
  batch = prompts.infill_rows(_BYTES, [text])
  assert _known(batch) == expected
  assert batch.weights is None and batch.segment is None
  assert (batch.ids.dtype, batch.observed.dtype, batch.ids.shape) == (
    np.int32,
    bool,
    (1, len(expected)),
  )
  assert not batch.ids[~batch.observed].any()


@pytest.mark.parametrize("length, expected", [(None, 9), (12, 12)])
def test_ragged_rows_are_padded_in_a_segment_of_their_own(length, expected):
  batch = prompts.infill_rows(_BYTES, ["ab[3]", "abcd[5]"], length)
  assert batch.ids.shape == (2, expected)
  assert [_known(batch, 0), _known(batch, 1)] == ["ab___", "abcd_____"]
  np.testing.assert_array_equal(batch.weights[0], [1] * 5 + [0] * (expected - 5))
  np.testing.assert_array_equal(batch.segment, batch.weights.astype(int))
  assert (
    batch.observed[0, 5:].all()
    and batch.weights.dtype == np.float32
    and batch.segment.dtype == np.int32
  )


def test_infill_counts_tokens_and_not_characters():
  documents = list(corpora.Austen().documents("train"))[:300]
  tokenizer = tokenizers.train_sentencepiece(documents, 400)
  batch = prompts.infill_rows(tokenizer, ["It was [4] the house\n"])
  assert _known(batch, tokenizer=tokenizer) == "It was ____ the house\n"
  assert batch.ids.shape[1] == len(tokenizer.encode("It was ")) + 4 + len(
    tokenizer.encode(" the house\n")
  )


def test_prompts_are_given_at_the_start():
  batch = prompts.prompt_rows(_BYTES, ["ab", "", "[3]"], 6)
  assert [_known(batch, row) for row in range(3)] == ["ab____", "______", "[3]___"]
  assert batch.weights is None and batch.segment is None


@pytest.mark.parametrize(
  "texts, length, message",
  [
    ([], None, r"texts=\[\]; use a list with at least one text"),
    ("abc", None, r"texts='abc'; use a list"),
    (["a", ""], None, r"text '' is empty; use some text or a hole"),
    (["ab[0]c"], None, r"text 'ab\[0\]c' has a hole of 0 tokens, '\[0\]' at 2; use \[1\] or more"),
    (
      ["ab[9]", "a"],
      10,
      r"text 'ab\[9\]' is 11 tokens long, more than length=10; use length >= 11",
    ),
  ],
)
def test_infill_errors(texts, length, message):
  with pytest.raises(ValueError, match=message):
    prompts.infill_rows(_BYTES, texts, length)


def test_prompt_errors():
  with pytest.raises(
    ValueError,
    match=r"prompt 'abcd' is 4 tokens long, which leaves none open in length=4; use length > 4",
  ):
    prompts.prompt_rows(_BYTES, ["abcd"], 4)
  with pytest.raises(ValueError, match=r"prompts=\[\]; use a list"):
    prompts.prompt_rows(_BYTES, [], 4)


@pytest.mark.parametrize("has_unknown", [True, False])
def test_a_prompt_with_a_character_that_the_model_does_not_know_is_refused(has_unknown):
  tokenizer = tokenizers.Characters("abc", has_unknown)
  with pytest.raises(ValueError, match=r"character 'd' at 1"):
    prompts.prompt_rows(tokenizer, ["ad"], 4)
  with pytest.raises(ValueError, match=r"character 'd' at 1"):
    prompts.infill_rows(tokenizer, ["ad[3]"])

"""Documents of one's own in Python: iterables of texts or rows, and data sets of `datasets`."""

import itertools

import pytest

from diffusion_text.data import corpora, token_arrays, tokenizers
from diffusion_text.data.documents import Documents

TEXTS = [f"text {n}" for n in range(400)]


class Rows:
  """What can be iterated again and again, as a `datasets.Dataset` can: rows as dicts."""

  def __init__(self, texts):
    self.texts = texts

  def __iter__(self):
    return ({"body": text, "label": 0} for text in self.texts)


def splits_of(corpus):
  return {split: list(corpus.documents(split)) for split in corpora.SPLITS}


def test_texts_rows_and_generators_are_the_same_corpus():
  plain = Documents(TEXTS)
  others = [
    Documents(text for text in TEXTS),  # read now, as it can be read only once
    Documents(Rows(TEXTS), field="body"),
    Documents({"train": tuple(TEXTS)}),
  ]
  for other in others:
    assert splits_of(other) == splits_of(plain) and other.identity() == plain.identity()
  found = splits_of(plain)
  assert sorted(itertools.chain(*found.values())) == sorted(TEXTS) and all(found.values())
  assert Documents(TEXTS[::-1]).identity() != plain.identity()


def test_a_folder_and_python_cut_the_same_splits(tmp_path):
  (tmp_path / "all.txt").write_text("\n".join(TEXTS))
  assert splits_of(Documents(TEXTS)) == splits_of(corpora.Folder(str(tmp_path)))


def test_splits_of_a_dict_of_data_sets():
  corpus = Documents({"train": ["a"], "dev": ["b", " "], "unsupervised": ["c"], "test": ["d"]})
  assert splits_of(corpus) == {"train": ["a"], "validation": ["b"], "test": ["d"]}
  assert list(corpus.documents("all")) == ["a", "b", "d"]
  assert corpus.origin("train") == "documents given in Python; not read: unsupervised"
  assert Documents(["a"]).origin("test").startswith("5 % of the training documents stand in")
  with pytest.raises(ValueError, match=r"has 'dev' and 'valid', which both are validation"):
    Documents({"dev": ["a"], "valid": ["b"]})
  with pytest.raises(ValueError, match=r"has the splits \['left', 'right'\]; name them train"):
    Documents({"left": ["a"], "right": ["b"]})


@pytest.mark.parametrize(
  "documents, message",
  [
    (["a", None], r"documents=, train, number 2 has null in the place of a text; mend the row"),
    (["a", 5], r"number 2 has 5 in the place of a text, which is int and no text"),
    (["a", "\ud83d"], r"number 2 has the lone surrogate \\ud83d"),
    ([{"body": "a"}], r"number 1 has no field='text', it holds \['body'\]; set field= to the text"),
    ([{"text": None}], r"number 1 has null in field='text'"),
    ([" "], r"documents= has no text for split='all'; it has train"),
  ],
)
def test_a_row_that_is_no_text_is_named(documents, message):
  with pytest.raises(ValueError, match=message):
    list(Documents(documents).documents("all"))


def test_bad_rows_can_be_skipped():
  assert list(Documents(["a", None, 5, "b"], bad_rows="skip").documents("all")) == ["a", "b"]


@pytest.mark.parametrize("documents", ["a text", b"bytes", 5, {"train": "a text"}])
def test_what_is_no_iterable_of_texts_is_refused(documents):
  with pytest.raises(ValueError, match=r"is no iterable of texts; use a list of texts, or corpora"):
    Documents(documents)


def test_tokens_of_documents():
  arrays = token_arrays.token_arrays(Documents(["ab", "c"]), tokenizers.Bytes(), "all", None)
  assert tokenizers.Bytes().decode(arrays.tokens) == "ab\nc\n"


def test_data_sets_of_the_datasets_package():
  datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
  whole = datasets.Dataset.from_dict({"body": TEXTS})
  expected = splits_of(Documents(TEXTS))
  assert splits_of(Documents(whole, field="body")) == expected
  assert splits_of(Documents(whole["body"])) == expected
  assert splits_of(Documents(whole.to_iterable_dataset(), field="body")) == expected
  parts = datasets.DatasetDict({"train": whole, "test": whole.select(range(3))})
  assert splits_of(Documents(parts, field="body"))["test"] == TEXTS[:3]

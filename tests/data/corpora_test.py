"""Corpora: fixed splits, folders, tensorflow-datasets without TensorFlow, errors with the fix."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from importlib import resources
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffusion_text.data import corpora, tfds_corpus


def _documents(corpus):
  return {split: list(corpus.documents(split)) for split in corpora.SPLITS}


def test_austen_splits_are_the_file_byte_for_byte_and_as_documented():
  splits = _documents(corpora.Austen())
  texts = {
    split: "".join(document + "\n" for document in documents) for split, documents in splits.items()
  }
  assert {split: len(text) for split, text in texts.items()} == corpora.AUSTEN_CHARACTERS
  assert {split: len(documents) for split, documents in splits.items()} == {
    "train": 9659,
    "validation": 183,
    "test": 462,
  }
  whole = texts["train"] + texts["validation"] + texts["test"]
  assert hashlib.sha256(whole.encode()).hexdigest() == corpora.AUSTEN_SHA256
  assert splits["test"][0].startswith("It was now some years since Anne had begun to learn")
  assert 0.0495 < len(texts["test"]) / len(whole) < 0.0505


def test_austen_is_small_enough_to_ship():
  assert (
    len(resources.files("diffusion_text.data").joinpath("austen.txt.xz").read_bytes()) <= 1_500_000
  )


@pytest.mark.parametrize(
  "corpus", [corpora.Austen(), corpora.Text8("x"), corpora.Folder("x"), corpora.Tfds("x")]
)
def test_an_unknown_split_is_an_error(corpus):
  with pytest.raises(
    ValueError, match=r"split='valid' is not a split; use one of train, validation, test"
  ):
    corpus.documents("valid")


def test_every_corpus_of_the_table_has_documents_and_identity():
  for corpus in corpora.CORPORA.values():
    assert callable(corpus.documents) and callable(corpus.identity)


def test_text8_is_cut_90_5_5(tmp_path):
  path = tmp_path / "text8"
  text = " anarchism originated as a term of abuse" * 25 + "tail"
  path.write_text(text)
  splits = _documents(corpora.Text8(str(path)))
  assert "".join(splits["train"] + splits["validation"] + splits["test"]) == text
  assert [len(splits[split][0]) for split in corpora.SPLITS] == [903, 50, 51]


def test_text8_that_is_missing_says_where_to_get_it(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"absent.*mattmahoney\.net/dc/text8\.zip"):
    corpora.Text8(str(tmp_path / "absent")).documents("train")


def test_identity_changes_with_the_source(tmp_path):
  path = tmp_path / "train.txt"
  path.write_text("one")
  text8, folder = corpora.Text8(str(path)), corpora.Folder(str(tmp_path))
  before = text8.identity(), folder.identity()
  assert before == (text8.identity(), folder.identity())
  path.write_text("other")
  assert text8.identity() != before[0] and folder.identity() != before[1]
  assert corpora.Folder(str(tmp_path), field="other").identity() != folder.identity()


def test_folder_reads_all_three_forms_and_both_ways_of_naming_a_split(tmp_path):
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "a.txt").write_text("one\n\n two \n")
  rows = [{"text": "three\nlines"}, {"text": ""}, {"text": "vier ü"}]
  (tmp_path / "dev-0.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
  pyarrow.parquet.write_table(
    pyarrow.table({"text": ["five", " ", "six"], "n": [1, 2, 3]}), tmp_path / "test.parquet"
  )
  (tmp_path / "LICENSE").write_text("not text for training")
  assert _documents(corpora.Folder(str(tmp_path))) == {
    "train": ["one", " two "],
    "validation": ["three\nlines", "vier ü"],
    "test": ["five", "six"],
  }


def test_a_file_that_only_begins_like_a_split_belongs_to_train(tmp_path):
  (tmp_path / "testament.txt").write_text("old\n")
  (tmp_path / "test_src.txt").write_text("new\n")
  (tmp_path / "validation.txt").write_text("other\n")
  assert _documents(corpora.Folder(str(tmp_path))) == {
    "train": ["old"],
    "validation": ["other"],
    "test": ["new"],
  }


def test_a_folder_with_train_only_is_split_by_hash(tmp_path):
  lines = [f"document {n}" for n in range(2000)]
  (tmp_path / "all.txt").write_text("\n".join(lines))
  splits = _documents(corpora.Folder(str(tmp_path)))
  assert sorted(splits["train"] + splits["validation"] + splits["test"]) == sorted(lines)
  assert (
    0.04 < len(splits["test"]) / 2000 < 0.06 and 0.013 < len(splits["validation"]) / 2000 < 0.027
  )
  # A new file does not change the split of a document: nothing leaks from train into test.
  (tmp_path / "more.txt").write_text("\n".join(f"more {n}" for n in range(500)))
  assert set(splits["test"]) <= set(corpora.Folder(str(tmp_path)).documents("test"))


def test_a_folder_keeps_the_splits_that_it_has(tmp_path):
  (tmp_path / "train.txt").write_text("\n".join(f"document {n}" for n in range(1000)))
  (tmp_path / "test.txt").write_text("held out")
  splits = _documents(corpora.Folder(str(tmp_path)))
  assert splits["test"] == ["held out"]
  assert len(splits["train"]) + len(splits["validation"]) == 1000 and splits["validation"]


def test_folder_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"absent.* is not a folder; give the folder"):
    corpora.Folder(str(tmp_path / "absent")).documents("train")
  with pytest.raises(FileNotFoundError, match=r"holds no \.txt, \.jsonl or \.parquet"):
    corpora.Folder(str(tmp_path)).documents("train")
  (tmp_path / "train.txt").write_text("\n \n")
  with pytest.raises(ValueError, match=r"no text for split='train'; it holds 1 file"):
    corpora.Folder(str(tmp_path)).documents("train")
  (tmp_path / "train.txt").write_text("")
  (tmp_path / "train.jsonl").write_text('{"content": "a"}\n')
  with pytest.raises(
    ValueError,
    match=r"train\.jsonl:1 has no text in field='text', it holds \['content'\]; set field=",
  ):
    corpora.Folder(str(tmp_path)).documents("train")
  (tmp_path / "train.jsonl").write_text("{oops\n")
  with pytest.raises(ValueError, match=r"train\.jsonl:1 is not JSON"):
    corpora.Folder(str(tmp_path)).documents("train")
  (tmp_path / "train.jsonl").unlink()
  pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "train.parquet")
  with pytest.raises(ValueError, match=r"no column field='text', it holds \['n'\]; set field="):
    corpora.Folder(str(tmp_path)).documents("train")
  with pytest.raises(ValueError, match=r"column field='n' holds int64, not text"):
    corpora.Folder(str(tmp_path), field="n").documents("train")


def test_tfds_set_that_is_not_prepared_fails_at_once_with_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"name='lm1b' is not prepared under") as error:
    corpora.Tfds("lm1b", data_dir=str(tmp_path)).documents("train")
  command = f"tfds.builder('lm1b', data_dir={str(tmp_path)!r}, file_format='array_record')"
  assert f"{command}.download_and_prepare()" in str(error.value)


def test_tfds_finds_the_newest_version_and_the_only_config(tmp_path):
  def prepare(path, file_format="array_record"):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "dataset_info.json").write_text(json.dumps({"fileFormat": file_format}))

  prepare("a/9.0.0")
  prepare("a/10.0.0")
  assert tfds_corpus.prepared_directory("a", str(tmp_path)) == tmp_path / "a/10.0.0"
  assert tfds_corpus.prepared_directory("a:9.0.0", str(tmp_path)) == tmp_path / "a/9.0.0"
  prepare("wiki/en/1.0.0")
  assert tfds_corpus.prepared_directory("wiki", str(tmp_path)) == tmp_path / "wiki/en/1.0.0"
  prepare("wiki/de/1.0.0")
  assert (
    tfds_corpus.prepared_directory("wiki/de:1.0.0", str(tmp_path)) == tmp_path / "wiki/de/1.0.0"
  )
  with pytest.raises(ValueError, match=r"several configs on disk; use one of wiki/de, wiki/en"):
    tfds_corpus.prepared_directory("wiki", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"name='a:2\.0\.0' is not prepared"):
    tfds_corpus.prepared_directory("a:2.0.0", str(tmp_path))
  prepare("old/1.0.0", file_format="tfrecord")
  with pytest.raises(
    ValueError,
    match=r"file_format='tfrecord'.*\n.*file_format='array_record'\)\.download_and_prepare",
  ):
    tfds_corpus.prepared_directory("old", str(tmp_path))


@pytest.mark.parametrize(
  "own, expected",
  [
    ({"train", "validation", "test"}, ["train", "validation", "test"]),
    ({"train", "test"}, ["train[0%:98%]", "train[98%:100%]", "test"]),
    ({"train", "validation"}, ["train[0%:95%]", "validation", "train[95%:100%]"]),
    ({"train"}, ["train[0%:93%]", "train[93%:95%]", "train[95%:100%]"]),
  ],
)
def test_tfds_splits_that_a_set_lacks_are_carved_from_train(own, expected):
  assert [
    tfds_corpus.split_instruction(split, {name: name for name in own}) for split in corpora.SPLITS
  ] == expected


_TFDS_PROGRAM = """
import os
import sys
import numpy as np
import tensorflow_datasets as tfds

class Haiku(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, manager):
    return {"train": self._rows(200), "test": self._rows(5)}

  def _generate_examples(self):
    raise NotImplementedError

  def _rows(self, count):
    for n in range(count):
      yield n, {"text": f"line {n} ü\\n", "n": n}

root = sys.argv[1]
Haiku(data_dir=root, file_format="array_record").download_and_prepare()

from diffusion_text.data import corpora

corpus = corpora.Tfds("haiku", data_dir=root)
splits = {split: list(corpus.documents(split)) for split in corpora.SPLITS}
sizes = {split: len(documents) for split, documents in splits.items()}
assert sizes == {"train": 196, "validation": 4, "test": 5}, splits
lines = splits["train"] + splits["validation"]
assert sorted(lines) == sorted(f"line {n} ü\\n" for n in range(200))
assert corpus.identity() != corpora.Tfds("haiku", data_dir=root, field="n").identity()
assert corpus.origin("validation").endswith(
  "haiku/1.0.0: train[98%:100%], which stands in for a validation split"
), corpus.origin("validation")
assert corpus.origin("test").endswith("haiku/1.0.0: test")
assert len(list(corpus.documents("all"))) == 205
before = corpus.identity()
os.rename(root, root + "-moved")
assert corpora.Tfds("haiku", data_dir=root + "-moved").identity() == before
os.rename(root + "-moved", root)
wrong = {"body": "no feature field='body', it holds ['n', 'text']", "n": "holds int, not text"}
for field, message in wrong.items():
  try:
    corpora.Tfds("haiku", data_dir=root, field=field).documents("train")
  except ValueError as error:
    assert message in str(error), error
  else:
    raise AssertionError(field)
assert "tensorflow" not in sys.modules
print("all right")
"""


def test_tfds_reads_a_set_without_tensorflow(tmp_path):
  root = Path(corpora.__file__).parents[2]
  program = tmp_path / "program.py"
  program.write_text(textwrap.dedent(_TFDS_PROGRAM), encoding="utf-8")
  environment = os.environ | {"PYTHONPATH": str(root), "HOME": str(tmp_path)}
  command = [sys.executable, str(program), str(tmp_path / "sets")]
  result = subprocess.run(
    command, env=environment, capture_output=True, text=True, timeout=120, check=False
  )
  assert result.stdout.endswith("all right\n"), result.stderr


def test_importing_the_package_loads_nothing_heavy():
  program = (
    "import sys; from diffusion_text.data import corpora, packing, pipeline, prompts, "
    "token_arrays, tokenizers;print([name for name in ('grain', 'sentencepiece', 'pyarrow', "
    "'tensorflow_datasets') if name in sys.modules])"
  )
  environment = os.environ | {"PYTHONPATH": str(Path(corpora.__file__).parents[2])}
  result = subprocess.run(
    [sys.executable, "-c", program],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert result.stdout == "[]\n", result.stderr

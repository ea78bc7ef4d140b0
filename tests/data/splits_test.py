"""Which file is read into which split, and why; nothing that is held out is trained on silently."""

import itertools
import logging
import os
from pathlib import Path

import pytest

from diffusion_text.data import corpora, splits, token_arrays, tokenizers

DATA = Path(os.environ.get("DIFFUSION_TEXT_DATA", "/nowhere"))


def write(root, **files):
  """Files with their own name as text; "__" in a key is a folder and "_" a full stop."""
  for name, text in files.items():
    path = root / name.replace("__", "/").replace("_", ".")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return str(root)


def read(root):
  """Split -> its documents."""
  corpus = corpora.Folder(str(root))
  return {split: list(corpus.documents(split)) for split in corpora.SPLITS}


def test_any_word_of_a_name_says_the_split(tmp_path):
  """Before, `ptb.test.txt` was training text, as only the beginning of a name counted."""
  write(tmp_path, ptb_train_txt="a", ptb_valid_txt="b", ptb_test_txt="c")
  assert read(tmp_path) == {"train": ["a"], "validation": ["b"], "test": ["c"]}


@pytest.mark.parametrize(
  "name, split",
  [
    ("wikiTestSet.txt", "test"),
    ("TEST.TXT", "test"),
    ("test2014.txt", "test"),
    ("wmt-devtest.txt", "test"),
    ("11_by_11_mult_valid.txt", "validation"),
    ("devset.txt", "validation"),
    ("train-00000-of-00003.txt", "train"),
    ("testament.txt", "train"),
    ("latest contest.txt", "train"),
  ],
)
def test_names_of_published_files(tmp_path, name, split):
  (tmp_path / name).write_text("x")
  assert splits.find(str(tmp_path), (".txt", ".csv")).of[split] == [tmp_path / name]


@pytest.mark.parametrize(
  "names, message",
  [
    (["train_test.txt"], r"train_test.txt is ambiguous: its name or folder says train and test"),
    (["train/my-dev.txt"], r"says train and validation; rename it so that it says exactly one"),
    (["news.heldout.txt"], r"news.heldout.txt is ambiguous: .* says held-out text, but not which"),
    (["held-out/a.txt"], r"says held-out text, but not which"),
    (["train.txt", "README.txt"], r"README.txt is ambiguous: it names no split, while .*train.txt"),
  ],
)
def test_the_ambiguous_is_refused(tmp_path, names, message):
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
  with pytest.raises(ValueError, match=message):
    splits.find(str(tmp_path), (".txt", ".csv"))


def test_links_are_followed_upper_case_counts_and_hidden_files_do_not(tmp_path):
  write(tmp_path / "elsewhere", a_txt="linked")
  root = tmp_path / "data"
  write(root, b_TXT="upper", notes_md="other")
  (root / ".d.txt").write_text("hidden")
  (root / ".ipynb_checkpoints").mkdir()
  (root / ".ipynb_checkpoints" / "b-checkpoint.txt").write_text("hidden")
  (root / "more").symlink_to(tmp_path / "elsewhere")
  (root / "more" / "round").symlink_to(root)
  files = splits.find(str(root), (".txt", ".csv"))
  found = [path.relative_to(root).as_posix() for path in files.read_for("train")]
  assert found == ["b.TXT", "more/a.txt"]
  said = splits.describe(files, "train")
  assert "no name says another split" in said and "1 file(s) with .md" in said
  for name in (".ipynb_checkpoints/ (hidden)", ".d.txt (hidden)", "more/round/ (a link"):
    assert any(name in one for one in files.unread), name


def test_a_file_is_in_one_split_whatever_links_to_it(tmp_path):
  write(tmp_path, train_txt="a\nb")
  (tmp_path / "train2.txt").symlink_to(tmp_path / "train.txt")
  files = splits.find(str(tmp_path), (".txt", ".csv"))
  assert len(files.read_for("train")) == 1 and "the same file as" in splits.describe(files, "train")
  (tmp_path / "test.txt").symlink_to(tmp_path / "train.txt")
  with pytest.raises(ValueError, match=r"are the same file, but their names say two splits"):
    splits.find(str(tmp_path), (".txt", ".csv"))
  (tmp_path / "test.txt").unlink()
  (tmp_path / "test.txt").symlink_to(tmp_path / "nothing.txt")
  with pytest.raises(FileNotFoundError, match=r"test.txt is a link to nothing"):
    splits.find(str(tmp_path), (".txt", ".csv"))


def test_a_single_file_belongs_to_the_split_that_it_names(tmp_path):
  write(tmp_path, ptb_test_txt="a\nb", my_txt="".join(f"{n}\n" for n in range(500)))
  held_out = corpora.Folder(str(tmp_path / "ptb.test.txt"))
  assert list(held_out.documents("test")) == list(held_out.documents("all")) == ["a", "b"]
  with pytest.raises(
    ValueError, match=r"no text for split='train'; it holds 0 file\(s\) for train"
  ):
    held_out.documents("train")
  with pytest.raises(ValueError, match=r"no pairs for split='train'"):
    corpora.Pairs(str(tmp_path / "ptb.test.txt"), target="0").documents("train")
  own = corpora.Folder(str(tmp_path / "my.txt"))
  parts = [list(own.documents(split)) for split in corpora.SPLITS]
  assert sorted(itertools.chain(*parts)) == sorted(own.documents("all")) and all(parts)


def test_what_was_read_into_which_split_is_logged_once(tmp_path, caplog):
  write(tmp_path, one_txt="".join(f"{n}\n" for n in range(500)), ptb_test_txt="t")
  with caplog.at_level(logging.INFO, logger="diffusion_text"):
    for _ in range(2):
      token_arrays.token_arrays(corpora.Folder(str(tmp_path)), tokenizers.Bytes(), "train", None)
  train, validation, test = [record.getMessage() for record in caplog.records]
  assert "data: train: 4" in train and "one.txt (no name says another split)" in train
  assert train.endswith("without the 2 % that stand in for validation")
  assert f"data: validation: no file of {tmp_path} names validation: 2 % of the" in validation
  assert test == f"data: test: {tmp_path}: ptb.test.txt (its name says test)"


def test_every_corpus_says_where_each_split_comes_from(tmp_path):
  (tmp_path / "text8").write_text("abc")
  text8 = corpora.Text8(str(tmp_path / "text8"))
  assert "90 % to 95 % of its characters" in text8.origin("validation")
  assert "paragraphs 9842 to 10303" in corpora.Austen().origin("test")
  write(tmp_path / "pairs", a_tsv="a\tb\n")
  pairs = corpora.Pairs(str(tmp_path / "pairs"))
  assert "5 % of the training documents stand in, chosen by a hash of their source" in pairs.origin(
    "test"
  )


def test_all_is_every_document(tmp_path):
  assert len(list(corpora.Austen().documents("all"))) == 10_304
  (tmp_path / "text8").write_text("abc" * 50)
  assert list(corpora.Text8(str(tmp_path / "text8")).documents("all")) == ["abc" * 50]


def test_data_sets_with_two_names_for_a_split_are_refused():
  assert splits.own_splits(["train", "test", "unsupervised"], "x") == {
    "train": "train",
    "test": "test",
  }
  with pytest.raises(ValueError, match=r"x has 'dev' and 'valid', which both are validation"):
    splits.own_splits(["dev", "valid"], "x")


def test_the_identity_is_the_content_wherever_it_is(tmp_path):
  old, new = tmp_path / "old", tmp_path / "new"
  write(old, train_txt="one\ntwo", test_txt="three")
  before = corpora.Folder(str(old)).identity()
  os.utime(old / "train.txt", (1, 1))
  old.rename(new)
  assert corpora.Folder(str(new)).identity() == before
  (new / "train.txt").write_text("one\ntwp")  # as many bytes
  os.utime(new / "train.txt", (1, 1))
  assert corpora.Folder(str(new)).identity() != before
  (new / "train.txt").write_text("one\ntwo")
  (new / "test.txt").rename(new / "valid.txt")  # the same bytes for another purpose
  assert corpora.Folder(str(new)).identity() != before


def test_the_same_bytes_in_two_splits_are_told(tmp_path, caplog):
  write(tmp_path, train_txt="one\ntwo", test_txt="one\ntwo", dev_txt="three")
  corpora.Folder(str(tmp_path)).identity()
  (message,) = caplog.messages
  assert (
    "test.txt and" in message and "hold the same bytes, but belong to test and train" in message
  )


def test_the_identity_of_text8_and_pairs_moves_with_them(tmp_path):
  write(tmp_path, a_tsv="a\tb\n")
  (tmp_path / "b.tsv").write_text("a\tb\n")
  for kind in (corpora.Text8, corpora.Pairs):
    first, second = (kind(str(tmp_path / name)) for name in ("a.tsv", "b.tsv"))
    assert first.identity() == second.identity()


def test_a_moved_folder_uses_the_tokens_of_the_old_one(tmp_path):
  old, new, cache = tmp_path / "old", tmp_path / "new", tmp_path / "cache"
  write(old, train_txt="one\ntwo")
  first = token_arrays.token_arrays(corpora.Folder(str(old)), tokenizers.Bytes(), "train", cache)
  old.rename(new)
  again = token_arrays.token_arrays(corpora.Folder(str(new)), tokenizers.Bytes(), "train", cache)
  assert first.content == again.content and len(list(cache.glob("train-*"))) == 1


def test_hashes_are_kept_of_files_that_have_settled(tmp_path):
  write(tmp_path, a_txt="one")
  path, memo = tmp_path / "a.txt", tmp_path / "memo"
  new = splits.file_digest(path, memo)
  assert not memo.exists()  # it changed just now, and could change again in the same moment
  os.utime(path, (1, 1))
  assert splits.file_digest(path, memo) == new == splits.file_digest(path, memo)
  (kept,) = memo.iterdir()
  kept.write_text("remembered")
  assert splits.file_digest(path, memo) == "remembered"
  os.utime(path, (2, 2))
  assert splits.file_digest(path, memo) == new


@pytest.mark.parametrize("kind", [corpora.Text8, corpora.Folder, corpora.Pairs])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, kind):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "mine.txt").write_text("a\tb")
  assert next(kind("~/mine.txt").documents("all"))
  assert kind("~/mine.txt").identity() and kind("~/mine.txt").origin("all")


@pytest.mark.skipif(not DATA.is_dir(), reason="DIFFUSION_TEXT_DATA names no folder with data")
def test_real_folders():
  def names(folder, suffixes):
    found = splits.find(str(DATA / folder), suffixes)
    return {split: sorted(path.name for path in paths) for split, paths in found.of.items()}

  assert names("wikitext-2", (".txt", ".jsonl")) == {
    "train": ["train.txt"],
    "validation": ["valid.txt"],
    "test": ["test.txt"],
  }
  assert names("e2e-nlg", (".csv", ".tsv"))["test"] == ["testset_w_refs.csv"]
  assert names("scan", (".txt", ".tsv"))["test"] == [
    "tasks_test_addprim_jump.txt",
    "tasks_test_length.txt",
    "tasks_test_simple.txt",
  ]
  assert names("lambada", (".txt", ".jsonl"))["test"] == ["lambada_test.jsonl"]

"""One bad row: the file, the line, what was found and how to skip it; all readers agree."""

import json
import logging
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffusion_text.data import corpora, text_files, token_arrays, tokenizers

DATA = Path(os.environ.get("DIFFUSION_TEXT_DATA", "/nowhere"))
GOOD = ["one", "two ü", " three ", "four"]


def parquet(path, texts, kind="string"):
  column = pyarrow.array(texts, pyarrow.binary() if kind == "binary" else pyarrow.string())
  pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)


def jsonl(texts):
  return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def write(path, texts, end="\n", mark=b""):
  """The texts as documents of the kind of file that the path names."""
  if path.suffix == ".parquet":
    return parquet(path, texts)
  text = end.join(texts) + end if path.suffix == ".txt" else jsonl(texts).replace("\n", end)
  return path.write_bytes(mark + text.encode())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_all_forms_of_a_corpus_give_the_same_documents(tmp_path, end, mark):
  """Blank documents are left out of all, and no text has a byte-order mark or a carriage return."""
  for suffix in (".txt", ".jsonl", ".parquet"):
    path = tmp_path / f"train{suffix}"
    write(path, [*GOOD, "", "  "], end, mark)
    assert list(corpora.Folder(str(path)).documents("all")) == GOOD, suffix


def test_a_byte_order_mark_is_no_text_in_pairs_and_text8(tmp_path):
  (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsource,target\nx,y\n")
  (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfx\ty\n")
  (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"source": "x", "target": "y"}\n')
  for name in ("a.csv", "a.tsv", "a.jsonl"):
    assert corpora.Pairs(str(tmp_path / name)).pairs("all") == [("x", "y")], name
  (tmp_path / "text8").write_bytes(b"\xef\xbb\xbfabc\r\n")
  assert list(corpora.Text8(str(tmp_path / "text8")).documents("all")) == ["abc\r\n"]


# name of the file, its bytes, what is said after the path, and the documents without the row
BAD = [
  ("a.txt", b"one\nf\xe9e\ntwo\n", r":2 is not UTF-8: byte 0xe9 at byte 1 of the text"),
  ("a.jsonl", b'{"text": "one"}\n{"text"\n{"text": "two"}\n', r":2 is not JSON \(.*\), it begins"),
  ("a.jsonl", b'{"text": "one"}\n\n{"text": null}\n{"text": "two"}\n', r":3 has null in field="),
  ("a.jsonl", b'{"text": "one"}\n{"text": "\\ud83d"}\n{"text": "two"}\n', r":2 has the lone surr"),
  (
    "a.jsonl",
    b'{"text": "one"}\n{"text": "\xff"}\n{"text": "two"}\n',
    r":2 is not UTF-8: byte 0xf",
  ),
  ("a.jsonl", b'{"text": "one"}\n[1, 2]\n{"text": "two"}\n', r":2 holds \[1, 2\] and no JSON obj"),
  ("a.jsonl", b'{"text": "one"}\n{"text": 5}\n{"text": "two"}\n', r":2 has 5 in field='text', whi"),
  ("a.jsonl", b'{"text": "one"}\n' + b"[" * 99_999 + b'\n{"text": "two"}\n', r":2 is not JSON"),
  ("a.jsonl", b'{"text": "one"}\n' + b"1" * 9_999 + b'\n{"text": "two"}\n', r":2 is not JSON"),
]


@pytest.mark.parametrize("name, raw, message", BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path, caplog, name, raw, message):
  path = tmp_path / name
  path.write_bytes(raw)
  with pytest.raises(ValueError, match=message) as error:
    list(corpora.Folder(str(path)).documents("all"))
  assert str(error.value).startswith(str(path)) and "data.bad_rows='skip'" in str(error.value)
  assert list(corpora.Folder(str(path), bad_rows="skip").documents("all")) == ["one", "two"]
  assert f"1 bad row(s) left out; the first: {path}:" in caplog.text


def test_nulls_and_bytes_of_parquet_are_bad_rows_too(tmp_path, caplog):
  path = tmp_path / "a.parquet"
  parquet(path, ["one", None, "two"])
  with pytest.raises(ValueError, match=r"a.parquet:2 has null in field='text'; mend the row"):
    list(corpora.Folder(str(path)).documents("all"))
  skip = corpora.Folder(str(path), bad_rows="skip")
  assert list(skip.documents("all")) == ["one", "two"]
  # arrow does not look at bytes that are called a string
  raw = pyarrow.array([b"one", b"f\xe9e", b"two"], pyarrow.binary()).view(pyarrow.string())
  pyarrow.parquet.write_table(pyarrow.table({"text": raw}), path)
  with pytest.raises(ValueError, match=r"a.parquet:2 is not UTF-8: byte 0xe9"):
    list(corpora.Folder(str(path)).documents("all"))
  assert list(skip.documents("all")) == ["one", "two"] and "2 bad row" not in caplog.text


@pytest.mark.parametrize(
  "name, raw, message",
  [
    ("a.csv", b"source,target\nx,y\nz\nv,w\n", r"a.csv:3 has 1 cells, but the header has 2"),
    ("a.csv", b"source,target\nx,y\nz,z,z\nv,w\n", r"a.csv:3 has 3 cells, but the header has 2"),
    ("a.csv", b"source,target\nx,y\n\xe9,z\nv,w\n", r"a.csv:3 is not UTF-8: byte 0xe9 in field='s"),
    ("a.csv", b'source,target\nx,y\nv,w\nz,"open\nno end\n', r"a.csv:4 is not csv \(unexpected e"),
    ("a.tsv", b"x\ty\nz\nv\tw\n", r"a.tsv:2 has 1 columns between tabs"),
    ("a.tsv", b"x\ty\n\xe9\tz\nv\tw\n", r"a.tsv:2 is not UTF-8: byte 0xe9"),
    (
      "a.jsonl",
      b'{"source": "x", "target": "y"}\n{"source": null, "target": "z"}\n'
      b'{"source": "v", "target": "w"}\n',
      r"a.jsonl:2 has null in field='source'",
    ),
  ],
  ids=range(7),
)
def test_pairs_say_the_same_of_a_bad_row(tmp_path, name, raw, message):
  (tmp_path / name).write_bytes(raw)
  with pytest.raises(ValueError, match=message) as error:
    corpora.Pairs(str(tmp_path / name)).pairs("all")
  assert "data.bad_rows='skip'" in str(error.value)
  kept = corpora.Pairs(str(tmp_path / name), bad_rows="skip").pairs("all")
  assert sorted(kept) == [("v", "w"), ("x", "y")]


def test_a_row_of_csv_is_known_by_the_line_on_which_it_begins(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(b'source,target\n"x\nx",y\n\nz\n')
  rows = list(text_files.csv_rows(path))
  assert [row.number for row in rows] == [2, 5]
  assert rows[0].value == {
    "source": "x\nx",
    "target": "y",
  }


@pytest.mark.parametrize(
  "name, raw, message",
  [
    ("a.txt", "one".encode("utf-16"), r"a.txt begins with the byte-order mark of UTF-16; convert"),
    ("a.parquet", b"no parquet", r"a.parquet cannot be read as parquet"),
    ("a.bin", b"", r"a.bin is no file of text; use .txt, .jsonl, .parquet"),
  ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, raw, message):
  (tmp_path / name).write_bytes(raw)
  with pytest.raises(ValueError, match=message):
    corpora.Folder(str(tmp_path / name)).documents("all")


def test_text8_says_the_line_of_a_wrong_byte(tmp_path):
  (tmp_path / "text8").write_bytes(b"abc\nd\xffe\n")
  with pytest.raises(ValueError, match=r"text8:2 is not UTF-8: byte 0xff at byte 5 of the text"):
    corpora.Text8(str(tmp_path / "text8")).documents("train")


def test_a_document_that_the_tokenizer_cannot_hold_is_named(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("aab\nabc\n")
  tokenizer = tokenizers.Characters("\nab", has_unknown=False)
  with pytest.raises(ValueError, match=r"document 2 of split='all', which begins 'abc': character"):
    token_arrays.token_arrays(corpora.Folder(str(path)), tokenizer, "all", None)


def test_a_row_without_the_field_names_the_fields(tmp_path):
  with pytest.raises(ValueError, match=r"x:7 has no text in field='b', it holds \['a'\]; set b"):
    rows = text_files.with_fields([text_files.Row(7, {"a": "1"})], ("b",), "set b")
    list(text_files.checked("x:", rows))


def test_bad_rows_are_counted(caplog):
  rows = [text_files.Row(n, n, None if n % 2 else "is even") for n in range(1, 8)]
  with caplog.at_level(logging.WARNING):
    assert list(text_files.checked("x:", rows, "skip")) == [1, 3, 5, 7]
  assert caplog.messages == ["3 bad row(s) left out; the first: x:2 is even"]


@pytest.mark.skipif(not DATA.is_dir(), reason="DIFFUSION_TEXT_DATA names no folder with data")
def test_real_files_have_no_bad_row():
  assert len(list(corpora.Folder(str(DATA / "lambada")).documents("test"))) == 5153
  assert len(list(corpora.Folder(str(DATA / "wikitext-2")).documents("test"))) == 2891
  pairs = corpora.Pairs(str(DATA / "e2e-nlg"), "mr", "ref")
  assert len(pairs.pairs("test")) == 4693

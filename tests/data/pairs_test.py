"""Pairs: files, splits by the source, rows with an observed source, equal batches everywhere."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from diffusion_text.data import corpora, packing, pipeline, token_arrays, tokenizers
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.types import Batch
from tests.data.pipeline_test import _assert_same

DATA = Path(os.environ.get("DIFFUSION_TEXT_DATA", "/nowhere"))


def tsv(tmp_path, lines, names=("train.tsv", "dev.tsv", "test.tsv")):
  """A folder with the lines in each of its splits, so that no split is carved out of another."""
  for name in names:
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return str(tmp_path)


def test_a_file_is_split_by_the_source_and_its_order_is_a_hash(tmp_path):
  lines = [f"source {n // 2}\ttarget {n}\tnot read" for n in range(2000)]
  corpus = corpora.Pairs(tsv(tmp_path, lines, ["pairs.tsv"]) + "/pairs.tsv")
  pairs = {split: corpus.pairs(split) for split in corpora.SPLITS}
  assert sorted(pair for each in pairs.values() for pair in each) == sorted(
    tuple(line.split("\t")[:2]) for line in lines
  )
  sources = [{source for source, _ in each} for each in pairs.values()]
  assert len(set.union(*sources)) == sum(map(len, sources)) == 1000
  assert 60 < len(pairs["test"]) < 150 and 15 < len(pairs["validation"]) < 70
  for each in pairs.values():
    numbers = [int(target.split()[1]) for _, target in each]
    # Targets of one source are neighbours, in the order of the file.
    assert numbers[1::2] == [n + 1 for n in numbers[::2]]
    assert numbers != sorted(numbers)
  assert next(corpus.documents("test")) == "\n".join(pairs["test"][0])


def test_columns_fields_and_lengths(tmp_path):
  swapped = corpora.Pairs(
    tsv(tmp_path, ["a\tbb\tccc", "x\t\tz", "", "longer\tb\tc"]), "2", "1", max_characters=3
  )
  assert sorted(swapped.pairs("train")) == [("c", "b"), ("ccc", "bb")]
  folder = tmp_path / "folder"
  folder.mkdir()
  (folder / "trainset.csv").write_text(
    'mr,ref\n"a, b","one\r\ntwo"\n', encoding="utf-8", newline=""
  )
  (folder / "devset.jsonl").write_text(json.dumps({"mr": "d", "ref": "e", "n": 1}) + "\n\n")
  (folder / "testset_w_refs.csv").write_text("ref,mr\nB,A\nC,A\n")
  (folder / "readme.md").write_text("not read")
  corpus = corpora.Pairs(str(folder), "mr", "ref")
  assert corpus.pairs("train") == [("a, b", "one two")]
  assert corpus.pairs("validation") == [("d", "e")] and corpus.pairs("test") == [
    ("A", "B"),
    ("A", "C"),
  ]
  identities = {
    corpora.Pairs(str(folder), *options).identity()
    for options in [(), ("mr", "ref"), ("ref", "mr"), ("mr", "ref", 5)]
  }
  assert len(identities) == 4


@pytest.mark.parametrize(
  "name, text, options, message",
  [
    (
      "a.tsv",
      "x\ty\nz\n",
      {},
      r"a.tsv:2 has 1 columns between tabs, but data.source=0 and data.target=1",
    ),
    (
      "a.tsv",
      "x\ty\n",
      {"source": "mr"},
      r"data.source='mr' is a name, but columns between tabs have numbers",
    ),
    ("a.tsv", "x\ty\n", {"max_characters": 0}, r"max_characters=0 must be at least 1"),
    (
      "a.tsv",
      "long\ty\n",
      {"max_characters": 2},
      r"has no pairs for split='train' with max_characters=2",
    ),
    (
      "a.csv",
      "mr,ref\n1,2\n",
      {},
      r"a.csv:2 has no text in field='source' and field='target', it holds \['mr', 'ref'\]",
    ),
    (
      "a.jsonl",
      '{"source": "a", "target": "b"}\n{"source": "a", "target": 3}\n',
      {},
      r"a.jsonl:2 has 3 in field='target', which is int and no text",
    ),
    ("a.jsonl", '{"source": "a", "target": "b"}\n{"source"\n', {}, r"a.jsonl:2 is not JSON"),
    ("a.bin", "", {}, r"is no file of pairs; use .tsv, .txt, .csv, .jsonl"),
  ],
)
def test_what_is_wrong_with_a_file_is_said_with_the_place(tmp_path, name, text, options, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    corpora.Pairs(str(tmp_path / name), **options).documents("train")


def test_a_folder_without_pairs_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds no .tsv, .txt, .csv or .jsonl file"):
    corpora.Pairs(str(tmp_path)).documents("train")
  with pytest.raises(FileNotFoundError, match=r"is not a folder"):
    corpora.Pairs(str(tmp_path / "no")).documents("train")


def arrays(tmp_path, lines, split="train", tokenizer=None):
  return token_arrays.token_arrays(
    corpora.Pairs(tsv(tmp_path, lines)), tokenizer or tokenizers.Bytes(), split, tmp_path / "cache"
  )


def rows_of(tmp_path, lines, length):
  found = arrays(tmp_path, lines)
  return packing.pair_rows(found.tokens, found.offsets, length, found.separator)


def test_a_row_is_source_end_target_end_and_padding(tmp_path):
  tokenizer = tokenizers.Bytes()
  rows = rows_of(tmp_path, ["ab\tcde", "a much longer source\twhat it means", "ü\tf"], 8)
  batch = rows.rows(np.array([0, 1, 2, -1]))  # number 2 is row 0 of the next epoch
  found = {tokenizer.decode(row): given.sum() for row, given in zip(batch.ids[:2], batch.observed)}
  assert rows.count == 2 and found == {"ab\ncde\n\n": 3, "ü\nf\n\n\n\n": 3}
  np.testing.assert_array_equal(batch.ids[2], batch.ids[0])
  assert (
    batch.observed[3].all()
    and not batch.weights[3].any()
    and batch.weights[:3].all()
    and batch.segment is None
  )
  text = packing.without_padding(
    np.where(batch.observed, 0.0, batch.weights), batch.ids, tokenizer.separator
  )
  assert {tokenizer.decode(row[kept > 0]) for row, kept in zip(batch.ids[:2], text)} == {
    "cde\n",
    "f\n",
  } and not text[3].any()
  assert rows.rows(np.array([1])).weights is None


def test_a_split_of_one_pair_and_what_does_not_fit(tmp_path):
  assert rows_of(tmp_path, ["ab\tcde"], 7).rows(np.array([0])).ids.tolist() == [list(b"ab\ncde\n")]
  with pytest.raises(ValueError, match=r"length=6, but the shortest of 1 pairs has 7 tokens"):
    rows_of(tmp_path, ["ab\tcde"], 6)
  with pytest.raises(
    ValueError,
    match=r"document 1 is no source and target with a newline between; packing 'pairs' goes with",
  ):
    packing.pair_rows(np.frombuffer(b"a\nb\nplain\n", np.uint8), np.array([0, 4, 10]), 8, 10)
  with pytest.raises(ValueError, match=r"needs a tokenizer with a newline"):
    packing.pair_rows(np.zeros(4, np.uint8), np.array([0, 4]), 8, None)


def test_the_corpus_and_the_packing_go_together():
  with pytest.raises(ValueError, match=r"data.corpus='austen' with data.packing='pairs'.*set both"):
    DataSettings(corpus="austen", packing="pairs")
  with pytest.raises(ValueError, match=r"data.corpus='pairs' with data.packing='stream'"):
    DataSettings(corpus="pairs", packing="stream", path="x")


def test_batches_are_the_same_for_any_process_count_and_after_a_restart(tmp_path):
  found = arrays(tmp_path, [f"s{n}\tt{n}" for n in range(40)])
  choices = {"length": 12, "batch_size": 4, "seed": 5, "packing_kind": "pairs"}
  whole = pipeline.train_iterator(found, **choices)
  expected = [next(whole) for _ in range(11)]  # more than an epoch
  halves = [pipeline.train_iterator(found, **choices, places=half) for half in ([0, 1], [2, 3])]
  for batch in expected[:3]:
    parts = [next(half) for half in halves]
    _assert_same(
      Batch(np.concatenate([p.ids for p in parts]), np.concatenate([p.observed for p in parts])),
      batch,
    )
  again = pipeline.train_iterator(found, **choices)
  again.set_state(halves[0].get_state())
  for batch in expected[3:]:
    _assert_same(next(again), batch)


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_evaluation_scores_every_character_of_the_targets_once(tmp_path, kind):
  lines = [f"source {n}\ttarget é {n}" for n in range(50)]
  corpus = corpora.Pairs(tsv(tmp_path, lines))
  tokenizer = tokenizers.build_tokenizer(kind, None, corpus.documents("train"))
  found = arrays(tmp_path, lines, tokenizer=tokenizer)
  batches = list(pipeline.evaluation_batches(found, length=32, batch_size=8, packing_kind="pairs"))
  assert all(batch.observed is not None and batch.weights is not None for batch in batches)
  count = 0
  for batch in batches:
    text = packing.without_padding(
      np.where(batch.observed, 0.0, batch.weights), batch.ids, tokenizer.separator
    )
    count += tokenizers.characters(tokenizer, batch.ids, text)
  assert count == sum(len(target) + 1 for _, target in corpus.pairs("train"))


@pytest.mark.skipif(
  not (DATA / "tatoeba-eng-fra").is_dir(),
  reason="DIFFUSION_TEXT_DATA names no folder with tatoeba-eng-fra",
)
def test_real_pairs():
  test = corpora.Pairs(str(DATA / "tatoeba-eng-fra/fra.txt"), max_characters=20).pairs("test")
  assert len(test) == 749 and all("\t" not in text for pair in test for text in pair)
  e2e = corpora.Pairs(str(DATA / "e2e-nlg"), "mr", "ref")
  assert {split: len(e2e.pairs(split)) for split in corpora.SPLITS} == {
    "train": 42061,
    "validation": 4672,
    "test": 4693,
  }

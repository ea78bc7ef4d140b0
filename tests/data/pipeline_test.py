"""Token arrays and batches: encoded once, every token once, equal batches for any processes."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest

from diffusion_text import types
from diffusion_text.data import corpora, pipeline, token_arrays, tokenizers


@dataclasses.dataclass(frozen=True)
class Lines:
  """A corpus in memory."""

  lines: tuple[str, ...]

  def documents(self, split):
    """The same documents for every split."""
    return iter(self.lines)

  def identity(self, memo=None):
    """The text itself."""
    return repr(self.lines)

  def origin(self, split):
    """Memory."""
    return f"lines in memory, the same for {split} as for every split"


def _arrays(count=203, documents=None):
  """Distinct tokens, so that rows can be told apart."""
  offsets = np.array([0, count] if documents is None else documents)
  return token_arrays.TokenArrays(
    np.arange(count, dtype=np.uint16), offsets, characters=count, unknown=0
  )


def _iterator(arrays, **changes):
  return pipeline.train_iterator(arrays, **({"length": 10, "batch_size": 4, "seed": 5} | changes))


def _ids(iterator, count):
  return [next(iterator).ids for _ in range(count)]


def _assert_same(first, second):
  """All fields of two batches are equal."""
  for field in dataclasses.fields(types.Batch):
    one, other = getattr(first, field.name), getattr(second, field.name)
    assert (one is None) == (other is None), field.name
    if one is not None:
      np.testing.assert_array_equal(one, other)


def test_arrays_are_the_documents_each_followed_by_the_separator(tmp_path):
  tokenizer = tokenizers.Bytes()
  arrays = token_arrays.token_arrays(Lines(("aé", "", "b")), tokenizer, "train", tmp_path)
  assert tokenizer.decode(arrays.tokens) == "aé\n\nb\n"
  assert [
    tokenizer.decode(arrays.tokens[i:j]) for i, j in zip(arrays.offsets, arrays.offsets[1:])
  ] == ["aé\n", "\n", "b\n"]
  assert (arrays.characters, arrays.unknown, arrays.tokens.dtype) == (6, 0, np.uint16)


def test_a_single_document_has_nothing_added(tmp_path):
  tokenizer = tokenizers.Bytes()
  arrays = token_arrays.token_arrays(Lines(("one text",)), tokenizer, "train", tmp_path)
  assert tokenizer.decode(arrays.tokens) == "one text"
  np.testing.assert_array_equal(arrays.offsets, [0, 8])


def test_austen_is_kept_whole_by_every_tokenizer(tmp_path):
  documents = list(corpora.Austen().documents("train"))[:800]
  for kind, size in [("characters", None), ("bytes", None), ("sentencepiece", 400)]:
    tokenizer = tokenizers.build_tokenizer(kind, size, documents)
    arrays = token_arrays.token_arrays(corpora.Austen(), tokenizer, "validation", tmp_path)
    assert arrays.characters == corpora.AUSTEN_CHARACTERS["validation"]
    assert tokenizer.decode(arrays.tokens) == "".join(
      text + "\n" for text in corpora.Austen().documents("validation")
    )


def test_unknown_characters_are_counted(tmp_path):
  tokenizer = tokenizers.Characters("\nab")
  arrays = token_arrays.token_arrays(Lines(("abc", "x")), tokenizer, "test", tmp_path)
  assert (arrays.unknown, arrays.characters) == (2, 6)


def test_the_bytes_of_a_text_are_counted_whatever_the_tokenizer(tmp_path):
  """Unknown characters have the bytes that they had: "é" 2, "😀" 4."""
  lines = ("aé", "b😀a")
  size = len("aé\nb😀a\n".encode())
  for tokenizer in (tokenizers.Characters("\nab"), tokenizers.Bytes()):
    arrays = token_arrays.token_arrays(Lines(lines), tokenizer, "test", tmp_path)
    found = tokenizers.text_size(tokenizer, arrays.tokens, None, arrays.bytes_of_unknown)
    assert found == (7, size), tokenizer
  ids = np.array([[97, 0xC3, 0xA9, 10]])
  assert tokenizers.text_size(tokenizers.Bytes(), ids, [[1.0, 1, 1, 0]]) == (2, 3)


def test_tokens_in_memory_are_those_on_disk(tmp_path):
  """So is the hash of the content, which differs for other text and other ends of documents."""
  lines, tokenizer = ("aé", "bc"), tokenizers.Characters("\nab")
  mapped, memory = (
    token_arrays.token_arrays(Lines(lines), tokenizer, "test", cache) for cache in (tmp_path, None)
  )
  for field in dataclasses.fields(mapped):
    np.testing.assert_array_equal(getattr(mapped, field.name), getattr(memory, field.name))
  others = [
    token_arrays.token_arrays(Lines(other), tokenizer, "test", None)
    for other in (("aé", "ab"), ("aé\nbc",), ("a\nb", "c"), ("a", "b\nc"))
  ]
  assert len({mapped.content, *(other.content for other in others)}) == 5


def test_a_saved_position_belongs_to_the_text_and_not_to_its_place():
  """As many tokens of another text were read on from the saved position, silently."""
  first = dataclasses.replace(_arrays(200), content="first")
  other = dataclasses.replace(_arrays(200), content="other")
  state = _iterator(first).get_state()
  _iterator(first).set_state(state)
  with pytest.raises(ValueError, match=r"belongs to other training text than data.path now holds"):
    _iterator(other).set_state(state)
  # Positions that were saved before the content was known are still read.
  old = json.loads(state)
  del old["choices"]["content"]
  _iterator(other).set_state(json.dumps(old).encode())


def test_a_split_is_encoded_once(tmp_path, monkeypatch):
  corpus, tokenizer = Lines(("some text",)), tokenizers.Bytes()
  first = token_arrays.token_arrays(corpus, tokenizer, "train", tmp_path)
  files = sorted(tmp_path.rglob("*"))
  monkeypatch.setattr(Lines, "documents", None)  # would fail if called
  again = token_arrays.token_arrays(corpus, tokenizer, "train", tmp_path)
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert sorted(tmp_path.rglob("*")) == files and len(files) == 4  # no drafts are left


def test_the_cache_tells_corpora_tokenizers_and_splits_apart(tmp_path):
  for corpus in (Lines(("ab",)), Lines(("ba",))):
    for tokenizer in (tokenizers.Bytes(), tokenizers.Characters("ab")):
      for split in ("train", "test"):
        arrays = token_arrays.token_arrays(corpus, tokenizer, split, tmp_path)
        assert tokenizer.decode(arrays.tokens) == corpus.lines[0]
  assert len(list(tmp_path.iterdir())) == 8


def test_a_failed_encoding_leaves_nothing_behind(tmp_path):
  with pytest.raises(ValueError, match=r"character 'c' at 0"):
    token_arrays.token_arrays(
      Lines(("a", "c")), tokenizers.Characters("\na", has_unknown=False), "train", tmp_path
    )
  assert not list(tmp_path.iterdir())


def _encode_in_process(directory, barrier, answers):
  barrier.wait()
  arrays = token_arrays.token_arrays(
    Lines(("text " * 5000,)), tokenizers.Bytes(), "train", directory
  )
  answers.put(int(arrays.tokens.astype(np.int64).sum()))


def test_processes_that_start_at_once_all_get_the_whole_array(tmp_path):
  context = multiprocessing.get_context("spawn")
  barrier, answers = context.Barrier(3), context.Queue()
  processes = [
    context.Process(target=_encode_in_process, args=(tmp_path, barrier, answers)) for _ in range(3)
  ]
  for process in processes:
    process.start()
  sums = [answers.get(timeout=60) for _ in processes]
  for process in processes:
    process.join(timeout=60)
  assert sums == [sum(b"text " * 5000)] * 3
  assert len(list(tmp_path.iterdir())) == 1


def test_array_errors(tmp_path):
  with pytest.raises(
    ValueError, match=r"split='train' of .* has no tokens; use a corpus with text"
  ):
    token_arrays.token_arrays(Lines(("",)), tokenizers.Bytes(), "train", tmp_path)
  with pytest.raises(
    ValueError, match=r"has several documents, but this characters tokenizer has no newline"
  ):
    token_arrays.token_arrays(Lines(("a", "b")), tokenizers.Characters("ab"), "train", tmp_path)
  with pytest.raises(ValueError, match=r"split='dev' is not a split"):
    token_arrays.token_arrays(Lines(("a", "b")), tokenizers.Bytes(), "dev", tmp_path)


def test_large_vocabularies_take_32_bits(tmp_path):
  alphabet = "".join(map(chr, range(0x10000, 0x10000 + 70_000)))
  tokenizer = tokenizers.Characters(alphabet)
  arrays = token_arrays.token_arrays(Lines((alphabet[-3:],)), tokenizer, "train", tmp_path)
  assert arrays.tokens.dtype == np.uint32
  np.testing.assert_array_equal(arrays.tokens, [69_997, 69_998, 69_999])


def test_every_training_token_comes_once_per_epoch():
  iterator = _iterator(_arrays(200))  # 20 rows: 5 batches an epoch
  for _ in range(3):
    np.testing.assert_array_equal(
      np.sort(np.concatenate(_ids(iterator, 5)).reshape(-1)), np.arange(200)
    )


def test_rows_that_do_not_fill_the_last_batch_are_not_dropped():
  iterator = _iterator(_arrays(210))  # 21 rows in batches of 4: 4 epochs are 21 batches
  rows = np.concatenate(_ids(iterator, 21))[:, 0]
  for epoch in range(4):
    np.testing.assert_array_equal(
      np.sort(rows[epoch * 21 : epoch * 21 + 21]), np.arange(0, 210, 10)
    )


def test_order_is_reproducible_and_changes_with_epoch_and_seed():
  def epochs(seed):
    iterator = _iterator(_arrays(200), seed=seed)
    return [np.concatenate(_ids(iterator, 5))[:, 0].tolist() for _ in range(3)]

  first = epochs(5)
  assert first == epochs(5)
  orders = [tuple(order) for seed in (0, 1, 5) for order in epochs(seed)]
  assert len(set(orders)) == 9  # also: epoch 1 of seed 0 is not epoch 0 of seed 1
  assert all(list(order) != sorted(order) for order in orders)


def test_with_random_offsets_each_epoch_has_all_tokens_cut_elsewhere():
  iterator = _iterator(_arrays(200), random_offset=True)
  cuts = []
  for _ in range(5):
    rows = np.concatenate(_ids(iterator, 5))
    np.testing.assert_array_equal(np.sort(rows.reshape(-1)), np.arange(200))
    cuts.append(set(rows[:, 0] % 10))
  assert all(len(cut) == 1 for cut in cuts) and len(set.union(*cuts)) > 2


@pytest.mark.parametrize(
  "changes", [{}, {"random_offset": True}, {"packing_kind": "documents"}, {"short_rows": 0.5}]
)
def test_a_restarted_iterator_goes_on_where_the_first_stopped(changes):
  arrays = _arrays(203, documents=[0, 7, 30, 33, 41, 90, 120, 128, 136, 203])
  straight = _iterator(arrays, **changes)
  expected = [next(straight) for _ in range(20)]  # several epochs
  first = _iterator(arrays, **changes)
  for batch in expected[:7]:
    _assert_same(next(first), batch)
  state = first.get_state()
  assert isinstance(state, bytes)
  next(first)
  assert first.get_state() != state
  second = _iterator(arrays, **changes)
  next(second)  # batches made in advance must be thrown away
  second.set_state(state)
  assert second.get_state() == state
  for batch in expected[7:]:
    _assert_same(next(second), batch)
  first.set_state(state)  # and back
  _assert_same(next(first), expected[7])


@pytest.mark.parametrize("packing_kind", ["stream", "documents"])  # pairs: see pairs_test
def test_the_global_batch_does_not_depend_on_the_process_count(packing_kind):
  arrays = _arrays(203, documents=[0, 7, 30, 33, 41, 90, 120, 128, 136, 203])

  def global_batches(count):
    # No neighbours: a mesh may split the rows in any way.
    shares = [range(4)[p::count] for p in range(count)]
    iterators = [_iterator(arrays, packing_kind=packing_kind, places=share) for share in shares]
    batches = [[next(iterator) for iterator in iterators] for _ in range(8)]
    assert len({iterator.get_state() for iterator in iterators}) == 1
    return [
      np.concatenate([part.ids for part in parts])[np.argsort(np.concatenate(shares))]
      for parts in batches
    ]

  expected = global_batches(1)
  for count in (2, 4):
    np.testing.assert_array_equal(global_batches(count), expected)


def test_a_position_goes_over_to_another_process_count():
  arrays = _arrays(200)
  single = _iterator(arrays)
  _ids(single, 3)
  half = _iterator(arrays, places=[2, 3])
  half.set_state(single.get_state())
  np.testing.assert_array_equal(next(half).ids, next(single).ids[2:])


def test_a_position_from_before_there_were_short_rows_has_none():
  state = json.loads(_iterator(_arrays(200)).get_state())
  del state["choices"]["short_rows"]
  old = json.dumps(state).encode()
  _iterator(_arrays(200)).set_state(old)
  cut = _iterator(_arrays(200), short_rows=0.5)
  for iterator, saved, there, here in (
    (cut, old, "0.0", "0.5"),
    (_iterator(_arrays(200)), cut.get_state(), "0.5", "0.0"),
  ):
    with pytest.raises(
      ValueError, match=rf"short_rows={there}, this iterator has short_rows={here}"
    ):
      iterator.set_state(saved)


def test_a_position_of_another_run_is_refused():
  state = _iterator(_arrays(200)).get_state()
  with pytest.raises(
    ValueError,
    match=r"saved data position has batch_size=4, this iterator has batch_size=8; use the saved",
  ):
    _iterator(_arrays(200), batch_size=8).set_state(state)
  with pytest.raises(ValueError, match=r"tokens=200, this iterator has tokens=201"):
    _iterator(_arrays(201)).set_state(state)


def test_training_batches_have_the_same_fields_and_types_always():
  arrays = _arrays(203, documents=[0, 7, 30, 33, 41, 90, 120, 128, 136, 203])
  stream, documents = _iterator(arrays), _iterator(arrays, packing_kind="documents")
  for _ in range(12):
    batch = next(stream)
    assert (batch.observed, batch.weights, batch.segment) == (
      None,
      None,
      None,
    ) and batch.ids.dtype == np.int32
    batch = next(documents)
    assert (
      batch.observed is None
      and batch.weights.dtype == np.float32
      and batch.segment.dtype == np.int32
    )
    assert batch.ids.shape == batch.weights.shape == batch.segment.shape == (4, 10)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"length": 300}, r"length=300 for a split of 203 tokens; use 1 <= length <= 203"),
    ({"length": 0}, r"length=0; use length >= 1"),
    (
      {"batch_size": 24},
      r"batch_size=24, but the split has only 21 rows of length=10; use batch_size <= 21",
    ),
    ({"batch_size": 0}, r"batch_size=0; use batch_size >= 1"),
    ({"places": [3, 4]}, r"places=\[3, 4\] are not rows of a batch of 4; use numbers from 0 to 3"),
    (
      {"packing_kind": "best"},
      r"packing_kind='best' is not a packing; use one of stream, documents",
    ),
    (
      {"packing_kind": "documents", "random_offset": True},
      r"random_offset=True with packing_kind='documents'",
    ),
    ({"seed": -1}, r"seed=-1; use seed >= 0"),
    ({"packing_kind": "pairs", "short_rows": 0.1}, r"short_rows=0\.1 with packing_kind='pairs'"),
  ],
)
def test_choices_that_do_not_fit_say_what_does(changes, message):
  with pytest.raises(ValueError, match=message):
    _iterator(_arrays(), **changes)


@pytest.mark.parametrize("packing_kind", ["stream", "documents"])
def test_evaluation_has_every_token_once(packing_kind):
  arrays = _arrays(203, documents=[0, 7, 30, 33, 41, 90, 120, 128, 136, 203])
  batches = pipeline.evaluation_batches(arrays, length=10, batch_size=8, packing_kind=packing_kind)
  ids, weights, segments = [], [], []
  for batch in batches:
    assert batch.ids.shape == batch.weights.shape == batch.segment.shape == (8, 10)
    ids.append(batch.ids), weights.append(batch.weights), segments.append(batch.segment)
  ids, weights, segments = map(np.concatenate, (ids, weights, segments))
  np.testing.assert_array_equal(ids[weights > 0], arrays.tokens)
  np.testing.assert_array_equal(segments == 0, weights == 0)
  _assert_same(*(next(iter(batches)) for _ in range(2)))  # batches can be iterated again


def test_evaluation_fields_that_say_nothing_are_none():
  batches = list(pipeline.evaluation_batches(_arrays(80), length=10, batch_size=4))
  assert [(batch.weights, batch.segment) for batch in batches] == [(None, None)] * 2
  # All rows are full and the last batch is not.
  batches = list(pipeline.evaluation_batches(_arrays(70), length=10, batch_size=4))
  assert [batch.weights.sum() for batch in batches] == [40, 30] and all(
    batch.segment is None for batch in batches
  )


def test_evaluation_of_a_split_shorter_than_a_row():
  (batch,) = pipeline.evaluation_batches(_arrays(3), length=10, batch_size=2)
  np.testing.assert_array_equal(batch.weights, [[1, 1, 1] + [0] * 7, [0] * 10])


@pytest.mark.parametrize("kind", tokenizers.TOKENIZERS)
def test_the_characters_of_all_evaluation_batches_are_those_of_the_text(kind, tmp_path):
  lines = tuple(corpora.Austen().documents("validation"))[:40] + ("naïve £5 😀",)
  tokenizer = tokenizers.build_tokenizer(kind, 400 if kind == "sentencepiece" else None, lines)
  arrays = token_arrays.token_arrays(Lines(lines), tokenizer, "test", tmp_path)
  batches = pipeline.evaluation_batches(arrays, length=37, batch_size=8)
  scored = sum(tokenizers.characters(tokenizer, batch.ids, batch.weights) for batch in batches)
  assert scored == arrays.characters == sum(len(line) + 1 for line in lines)


def test_evaluation_errors_come_before_the_first_batch():
  with pytest.raises(ValueError, match=r"batch_size=0; use batch_size >= 1"):
    pipeline.evaluation_batches(_arrays(), length=10, batch_size=0)


def test_state_counts_batches_that_were_handed_out():
  iterator = _iterator(_arrays(200))
  _ids(iterator, 3)
  assert json.loads(iterator.get_state())["grain"] == {"next_index": 3}

"""Controls of texts with records: data, labels, guides, what counts as success, and the lines of a
control, by a stub that writes what it is told.
"""

import csv
import dataclasses
import types

import jax
import numpy as np
import pytest

from diffusion_text.model.classifier import Classifier
from diffusion_text.studies import control_targets, controls, record_texts, word_kinds
from diffusion_text.studies.record_texts import Text
from diffusion_text.types import Inputs

PLACES = ("riverside", "city centre")


def rows_of(number):
  """(record, text) of made places."""
  for i in range(number):
    area, food = PLACES[i % 2], ("thai", "greek")[i // 2 % 2]
    record = f"name[Aromi], food[{food.title()}], area[{area}]"
    yield record, f"Aromi serves {food} food in the {area}." + " It is good." * (i % 3 == 0)
  yield "name[Aromi], food[Thai]", "An unheard-of café serves Thai."


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  folder = tmp_path_factory.mktemp("records")
  for split, number in (("trainset", 120), ("devset", 12), ("testset", 64)):
    with open(folder / f"{split}.csv", "w", newline="") as file:
      csv.writer(file).writerows([("mr", "ref"), *rows_of(number)])
  return record_texts.read(str(folder), rarest=3, longest=14)


def test_texts_are_rows_of_words_and_come_back(texts):
  """A text with a rare word is left out; a row is record, end, text, end."""
  assert {name: len(each) for name, each in texts.splits.items()} == {
    "train": 120,
    "validation": 12,
    "test": 64,
  }
  text = texts.splits["test"][0]
  assert text.source.startswith("name=aromi food=") and dict(text.record)["name"] == "aromi"
  batch = texts.rows([text.source, "any"], [text.words, ()])
  assert batch.ids.shape == (2, 3 + 14 + 2)
  assert batch.observed.sum(1).tolist() == [4, 2]
  assert batch.weights.sum(1).tolist() == [4 + len(text.words) + 1, 3]
  assert texts.written(batch.ids[:1], 4) == [text.words] and texts.written(batch.ids[1:], 2) == [()]
  with pytest.raises(ValueError, match="use length=23"):
    texts.rows(["any"], [text.words[:5] * 4])


def test_parts_of_speech_and_phrases_of_a_text_by_hand():
  words = record_texts.words_of("The Mill is a cheap pub near Café Rouge, isn't it?")
  assert word_kinds.tags(words) == [
    *("determiner", "noun", "verb", "determiner", "adjective", "noun", "preposition", "noun"),
    *("noun", "mark", "verb", "pronoun", "mark"),
  ]
  assert [tuple(span) for span in word_kinds.spans(words)] == [
    (0, 2, "noun"),
    (3, 6, "noun"),
    (6, 9, "preposition"),
    (11, 12, "noun"),
  ]
  assert set(word_kinds.tags(words)) < set(word_kinds.TAGS)
  assert set(word_kinds.phrases(words)) < set(word_kinds.PHRASES)


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_a_guide_adds_up_the_labels_that_are_sought(pool):
  """Of a row or of each token, by weight and strength. Mutant: the labels of another row."""
  classifier = Classifier(classes=3, input_size=5, width=8, pool=pool)
  rng = np.random.default_rng(0)
  params = jax.jit(classifier.init)(jax.random.key(0))
  params |= {"out": {"kernel": rng.normal(size=(8, 3)), "bias": np.ones(3)}}
  soft = rng.dirichlet(np.ones(5), (2, 4)).astype(np.float32)
  shape = (2,) if pool == "mean" else (2, 4)
  target, weight = rng.integers(0, 3, shape), rng.random(shape).astype(np.float32)
  read = {"network": params, "strength": 2.0, "weight": weight}
  log_prob = jax.jit(controls.Guide(classifier=classifier).log_prob)
  found = log_prob({**read, "target": target}, soft)

  def logp(params):
    return jax.nn.log_softmax(classifier.apply(params, Inputs(vectors=soft)))

  logp = np.asarray(jax.jit(logp)(params))
  by_hand = [
    2
    * sum(
      w * p[c]
      for w, p, c in zip(
        *map(np.atleast_1d, (weight[r],)), np.atleast_2d(logp[r]), np.atleast_1d(target[r])
      )
    )
    for r in range(2)
  ]
  np.testing.assert_allclose(found, by_hand, rtol=1e-5)
  mutant = log_prob({**read, "target": target[::-1]}, soft)
  assert np.abs(np.asarray(mutant) - by_hand).max() > 1e-2


@dataclasses.dataclass(frozen=True)
class Writer:
  """A sampler that has steps, and nothing else."""

  steps: int = 8


def study_of(texts, write):
  """A study whose generator writes what `write(batch, classifier)` says."""

  def sample(params, keys, batch, sampler):
    return types.SimpleNamespace(ids=write(batch, params["classifier"]))

  experiment = types.SimpleNamespace(sample=sample, sampler=Writer())
  generator = types.SimpleNamespace(experiment=experiment, params={})
  settings = control_targets.Settings(
    value="greek", word="good", hole=2, num=64, labelled=120, classifier_steps=60, strengths=(1, 9)
  )
  return controls.Study(texts, generator, None, settings)


def test_success_is_what_was_sought_and_nothing_else(texts):
  """The held-out texts themselves have all that is theirs; the next text has some of it."""
  study = study_of(texts, None)
  own = [text.words for text in control_targets.held_out(texts, 64)]
  for kind in ("parts_of_speech", "phrase", "length"):
    sought = control_targets.KINDS[kind](texts, study.settings)
    assert sought.success(own).mean() == 1
    shorter = sought.success([words[2:] for words in own])
    assert shorter.mean() < 0.6
    row = study._row(sought, control_targets.held_out(texts, 64)[0])
    weighted = sought.weight[0] > 0
    assert (np.array(row) == sought.target[0])[weighted].all() and weighted.sum() >= 2
    assert not weighted[: control_targets.BEGIN].any()
  word = control_targets.word(texts, study.settings)
  np.testing.assert_array_equal(word.success(own), [float("good" in each) for each in own])
  assert control_targets.meaning(texts, study.settings).target[0] == ["greek", "thai"].index(
    "greek"
  )
  with pytest.raises(ValueError, match="value"):
    control_targets.meaning(texts, control_targets.Settings(value="martian"))


def test_a_hole_is_filled_from_both_sides_and_the_control_is_the_next_texts(texts, monkeypatch):
  monkeypatch.setattr(controls.record_texts, "nats", lambda model, batch, key: batch.weights)
  seen = []

  def write(batch, classifier):
    seen.append(batch)
    return np.where(batch.observed, batch.ids, texts.tokenizer.id_of("good"))

  study = study_of(texts, write)
  other, own = controls.infilled(study)
  assert (~seen[0].observed).sum(1).tolist() == [2] * 64
  words = [text.words for text in control_targets.held_out(texts, 64)]
  middle = [each[(len(each) - 2) // 2 :][:2] for each in words]
  expected = np.mean([[word == "good" for word in each] for each in middle])
  assert own.success[0] == pytest.approx(expected) == other.success[0]
  assert own.judge[0] == pytest.approx(np.mean([3 + len(each) for each in words]) * 64 /
                                       sum(len(each) + 1 for each in words))  # fmt: skip
  # A writer that knows each text: its own words are right, and those of the next text are not.
  other, own = controls.infilled(study_of(texts, lambda batch, classifier: batch.ids))
  assert own.success[0] == 1 and other.success[0] < 0.8


def test_the_lines_of_a_control_and_a_guide_that_is_not_at_chance(texts, monkeypatch):
  """The guide is right on texts that it has not seen, one of shuffled labels is not, and what is
  written is what the table measures.
  """
  monkeypatch.setattr(controls.record_texts, "nats", lambda model, batch, key: batch.weights)
  told = []

  def write(batch, classifier):
    told.append(float(classifier["strength"]))
    words = ("aromi", "is", "good") if told[-1] > 5 else ("aromi",)
    return texts.rows(["any"] * 64, [words] * 64).ids

  study = study_of(texts, write)
  free = [("aromi",)] * 64
  lines, last = controls.steered(
    study, control_targets.word(texts, study.settings), texts.splits["train"], free
  )
  assert [line.guide for line in lines] == [
    *("none", "labels shuffled, strength 9", "strength 1", "strength 9")
  ]
  assert [line.success[0] for line in lines] == [0, 1, 0, 1] and told == [9, 1, 9]
  assert lines[3].right > 0.95 and abs(lines[1].right - 0.5) < 0.35
  assert last[0] == ("aromi", "is", "good") and len(lines[3].cells()) == len(controls.HEADER)
  assert lines[3].entropy == pytest.approx(np.log(4)) and lines[2].entropy == pytest.approx(
    np.log(2)
  )


def test_an_attribute_of_a_file(texts, tmp_path):
  file = tmp_path / "mine.tsv"
  file.write_text("glad\taromi is good\nsad\taromi serves thai food\nsad\t" + "it " * 40 + "\n")
  sought, found = control_targets.of_file(texts, study_of(texts, None).settings, str(file), "glad")
  assert [text.words for text in found] == [
    ("aromi", "is", "good"),
    ("aromi", *["serves", "thai", "food"]),
  ]
  assert [sought.label(text) for text in found] == [0, 1] and sought.target.tolist() == [0] * 64
  with pytest.raises(ValueError, match="target"):
    control_targets.of_file(texts, study_of(texts, None).settings, str(file), "angry")
  assert Text((), ("a",)).source == "any"

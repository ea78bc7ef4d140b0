"""Pairs of texts with one record, what is counted of a paraphrase, and what becomes of vectors."""

import types

import numpy as np
import pytest

from diffusion_text.studies import control_targets, paraphrases, record_texts
from diffusion_text.studies.controls import Study
from diffusion_text.studies.paraphrases import Classifier, Source
from diffusion_text.studies.record_texts import Text, Texts

FOOD, NAMES = ("thai", "greek"), ("ann", "bob", "cy", "dee")


def made(name, food):
  """Four texts of one record."""
  ways = ("{0} serves {1} food .", "{1} food is at {0} .", "at {0} there is {1} food .", "{0} .")
  record = (("name", name), ("food", food))
  return [Text(record, tuple(way.format(name, food).split())) for way in ways]


def texts_of():
  found = [text for name in NAMES for food in FOOD for text in made(name, food)]
  words = sorted({word for text in found for word in text.words})
  values = sorted({token for text in found for token in text.source.split()} | {"any"})
  splits = dict.fromkeys(("train", "validation", "test"), found)
  return Texts(splits, record_texts.word_tokenizer(words, values), 10)


TEXTS = texts_of()
SETTINGS = control_targets.Settings(num=64, word="there", labelled=90)


class Writes:
  """A run that fills every open place with one word."""

  def __init__(self, word):
    self.params, self.experiment, self.asked = {}, self, []
    self.id = TEXTS.ids([word])[0]

  def sample(self, params, keys, batch, sampler):
    self.asked.append(sampler)
    ids = np.where(batch.observed, batch.ids, self.id)
    ids[:, -2:] = TEXTS.end
    return types.SimpleNamespace(ids=ids)


def study():
  return Study(TEXTS, Writes("food"), Writes("is"), SETTINGS)


def test_pairs_say_the_same_in_other_words():
  """Each text is a source once; a text alone is none, and one that is there twice is one text."""
  twice = [*TEXTS.splits["test"], TEXTS.splits["test"][0], Text((("name", "eve"),), ("eve",))]
  found = paraphrases.pairs(twice, 0)
  assert sorted(one.words for one, _ in found) == sorted(x.words for x in TEXTS.splits["test"])
  for one, other in found:
    assert one.record == other.record and one.words != other.words


def test_sources_have_the_field_and_enough_other_texts():
  """What they say word for word is kept, and of each record there is one."""
  found = paraphrases.sources(TEXTS.splits["test"], "food", 99)
  assert len(found) == 8 and found[0].text == made("ann", "thai")[0]
  assert found[0].kept == (("ann",), ("thai",)) and len(found[0].others) == 3
  assert paraphrases.sources(TEXTS.splits["test"][:3], "food", 9) == []
  assert paraphrases.sources(TEXTS.splits["test"], "price", 9) == []


def test_texts_begin_behind_their_source_and_hold_the_word_that_they_must():
  """At its place, whatever the model writes; the rows are those of the source."""
  found = paraphrases.sources(TEXTS.splits["test"], "food", 3)
  model, one = Writes("food"), study()
  sampler = paraphrases.decoder(one)
  plain = paraphrases.drawn(one, model, found, sampler, seed=0)
  held = paraphrases.drawn(one, model, found, sampler, seed=0, word="there")
  assert len(plain) == len(held) == 3 and model.asked == [sampler] * 2
  for free, forced in zip(plain, held):
    assert set(free) == {"food"} and forced[paraphrases.PLACE] == "there"
    assert set(forced) == {"food", "there"} and len(forced) == len(free)
    assert len(free) == paraphrases.widened(TEXTS).length - 5 - 1 - 2


def test_a_word_that_must_not_be_there_is_banned():
  """And the pairs are those of the source, but for its end."""
  found = paraphrases.decoders(study())
  assert [word for _, word in found.values()] == [None, None, None, None, "there"]
  plain, half, every, without, _ = (sampler for sampler, _ in found.values())
  assert without.banned == (TEXTS.ids(["there"])[0],) and plain.banned == () == half.banned
  assert (half.avoid.share, every.avoid.share) == (0.5, 1.0) and plain.avoid is None
  assert half.avoid.free == (TEXTS.end,)


def test_no_measure_calls_a_copy_or_another_text_a_paraphrase(monkeypatch):
  """A copy has all in common with its source, and another record's text keeps nothing."""
  monkeypatch.setattr(paraphrases, "last_layer", lambda _, texts: np.eye(2)[[0] * len(texts)])
  monkeypatch.setattr(paraphrases, "nats_per_word", lambda _, words: np.ones(len(words)))
  sources = [
    Source(first, tuple(text.words for text in others), ((name,), (food,)))
    for name, food in (("ann", "thai"), ("bob", "greek"))
    for first, *others in [made(name, food)]
  ]
  own, others = [each.text.words for each in sources], [each.others for each in sources]

  def cells(words):
    _, *found = paraphrases.cells(study(), None, "line", words, sources, others)
    return [float(each.split(" ")[0]) for each in found]

  copy, other, person = cells(own), cells(own[::-1]), cells([each[0] for each in others])
  assert copy[0] == copy[1] == copy[3] == 1 and other[0] == 0 and person[0] == person[2] == 1
  assert person[3] < copy[3] and copy[4] == pytest.approx(0.8 * copy[2] - 0.2, abs=2e-3)
  assert person[4] > copy[4] and copy[7] == 0 and cells([("there",)] * 2)[7] == 1


def test_a_classifier_of_vectors_is_right_for_all_only_if_it_is_so_for_each():
  """Counts of words name the food of every text that says it, and not of another record's."""
  learned = Classifier.of(np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 1, 0]), 2)
  assert learned.answers(np.eye(3)).tolist() == [0, 1, 1]
  one = study()
  found = paraphrases.sources(TEXTS.splits["test"], "food", 8)
  own = [each.text.words for each in found]
  encoders = {"counts": lambda words: paraphrases.bag(one, words)}
  replaced = {"itself": [own] * 2, "once the next": [own, paraphrases.rotated(own, 1)]}
  first, second = paraphrases.classified(one, encoders, found, replaced)
  assert first[1].startswith("1.000") and first[3].startswith("1.000")
  assert second[3].startswith("0.500") and second[4].startswith("0.000")


def test_both_tables_are_written(tmp_path, monkeypatch):
  """With the controls first; too few records are an error."""
  monkeypatch.setattr(paraphrases, "last_layer", lambda _, texts: np.eye(2)[[0] * len(texts)])
  monkeypatch.setattr(paraphrases, "cosines", lambda _, words, others: np.ones(len(words)))
  monkeypatch.setattr(paraphrases, "nats_per_word", lambda _, words: np.ones(len(words)))
  many = paraphrases.sources(TEXTS.splits["test"], "food", 8) * 8
  with pytest.raises(ValueError, match="num=64, but 8 records have enough texts"):
    paraphrases.run(study(), Writes("food"), tmp_path)
  monkeypatch.setattr(paraphrases, "sources", lambda *_: many)
  text = paraphrases.run(study(), Writes("food"), tmp_path)
  assert (tmp_path / "paraphrases.md").read_text() == text + "\n"
  assert "| a copy (control) | 1.000 ± 0.000 |" in text
  assert text.count("\n| masked generator |") == 3
  held, free = (
    next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    for name in ("must hold 'there'", "paraphrase")
  )
  assert held.endswith("| 1.000 ± 0.000 |") and free.endswith("| 0.000 ± 0.000 |")
  assert (tmp_path / "paraphrases.txt").read_text().count("---") == 8

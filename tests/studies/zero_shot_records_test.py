"""Pairs of a record and a text, and what is exchanged in the wrong ones; which words decide."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_text.studies import record_texts, zero_shot_records
from diffusion_text.studies.record_texts import Text, Texts
from diffusion_text.studies.zero_shot_records import Costs, Exchanged, Question
from tests.conftest import ROOT


def made(number):
  """A text of a made place: 8 names, 2 kinds of food."""
  names = ("ann", "bob", "cy", "dee")
  name, near, food = (
    names[number % 4],
    f"{names[number // 4 % 4]} bar",
    ("thai", "greek")[number % 2],
  )
  words = f"{name} is a cheap {food} pub near the {near} .".split()
  return Text((("name", name), ("food", food), ("near", near)), tuple(words))


def texts_of():
  found = [made(number) for number in range(16)]
  words = sorted({word for text in found for word in text.words})
  values = sorted({token for text in found for token in text.source.split()} | {"any"})
  splits = {"train": found * 8, "validation": found, "test": found}
  return Texts(splits, record_texts.word_tokenizer(words, values), 3 + 11 + 2)


TEXTS = texts_of()


def test_wrong_pairs_differ_in_what_is_exchanged_and_in_nothing_else():
  """Words are the same, counted, except where a value of the record is exchanged."""
  for name in zero_shot_records.EXCHANGES:
    asked = zero_shot_records.question(name, TEXTS, "test", 16, 0)
    assert len(asked.true) == len(asked.wrong) >= 12
    for true, wrong in zip(asked.true, asked.wrong):
      assert sorted(true.words) == sorted(wrong.words)
      fields = [a != b for a, b in zip(true.record, wrong.record)]
      assert sum(fields) == (name == "a value") and (wrong.words != true.words) == (
        name != "a value"
      )
      assert [field for field, _ in true.record] == [field for field, _ in wrong.record]
  named = zero_shot_records.other_names(made(1), {}, np.random.default_rng(0))
  assert " ".join(named.words) == "ann bar is a cheap greek pub near the bob ."
  assert named.touched == {"ann", "bob", "bar"}
  without = made(1)._replace(record=(("name", "bob"),))
  assert zero_shot_records.other_names(without, {}, np.random.default_rng(0)) is None
  assert zero_shot_records.other_order(Text((), ("is", "a")), {}, np.random.default_rng(0)) is None


def test_models_of_other_texts_are_not_read(tmp_path):
  """Their tokens would be other words."""
  record_texts.write(TEXTS, tmp_path / "data", 0.5, 0)
  other = dataclasses.replace(TEXTS, tokenizer=record_texts.word_tokenizer(["ann"], ["any"]))
  with pytest.raises(ValueError, match="holds models of other texts, with other words"):
    record_texts.trained(other, ConfigDict({"seed": 0}), ROOT / "configs", tmp_path)


def test_costs_are_those_of_each_pair_with_the_same_noise_or_with_its_own(monkeypatch):
  """By a model whose nats are the noise and a nat for each record that is another text's."""
  asked = zero_shot_records.question("a value", TEXTS, "test", 8, 0)
  keys = []

  def nats(model, batch, key):
    keys.append(tuple(np.asarray(key).ravel().tolist()) if key.dtype == np.uint32 else str(key))
    return np.full(batch.ids.shape, 0.5) + (batch.ids == batch.ids.max())

  monkeypatch.setattr(zero_shot_records.record_texts, "nats", nats)
  for paired in (True, False):
    keys.clear()
    found = zero_shot_records.costs(None, TEXTS, asked, 3, 0, paired=paired)
    assert found.draws.shape == (3, 2, 8) and found.by_word.shape == (8, TEXTS.length)
    assert [a == b for a, b in zip(keys[::2], keys[1::2])] == [paired] * 3
    np.testing.assert_allclose(
      found.by_word.sum(1), (found.draws[:, 1] - found.draws[:, 0]).mean(0)
    )
  sources = [text.source for text in asked.true]
  assert zero_shot_records.another(sources) == [*sources[1:], sources[0]]
  assert zero_shot_records.nobody(sources) == ["any"] * 8


def test_the_lower_one_is_taken_and_equal_ones_count_half():
  draws = np.array([[[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]]])
  assert zero_shot_records.first_is_lower(draws).tolist() == [1, 0.5, 0]
  asked = zero_shot_records.question("a value", TEXTS, "test", 16, 0)
  assert zero_shot_records.looked_for(asked).mean() > 0.9  # these texts say every value
  asked = zero_shot_records.question("two words of a kind", TEXTS, "test", 16, 0)
  assert zero_shot_records.looked_for(asked).mean() < 1


def test_the_words_that_decide_are_counted():
  """All of the difference is at the food of the first text, half of it at that of the second."""
  true = [made(0), made(1)]
  wrong = [Exchanged(text.record, text.words, frozenset({"thai", "greek"})) for text in true]
  by_word = np.zeros((2, TEXTS.length))
  begin = 4
  by_word[0, begin + 4], by_word[1, begin + 4], by_word[1, begin] = 2.0, 1.0, 1.5
  asked, found = Question("a value", true, wrong), Costs(np.zeros((1, 2, 2)), by_word)
  name, share, difference, largest = zero_shot_records.decided(TEXTS, asked, found)
  assert (name, share, difference) == ("a value", f"{2 / 22:.3f}", f"{3 / 4.5:.3f}")
  assert largest.startswith("0.500")
  shown = zero_shot_records.example(asked, found, 0)
  assert "thai +2.0" in shown and shown.splitlines()[0].startswith(true[0].source)


@pytest.mark.parametrize("detector", ["bag of words", "windows of 3 words"])
def test_a_bag_of_words_cannot_tell_an_order_and_windows_can(detector):
  settings = zero_shot_records.Settings(labelled=200, classifier_steps=80, rows=16)
  asked = zero_shot_records.question("two words of a kind", TEXTS, "test", 16, 0)
  how = zero_shot_records.DETECTORS[detector]
  right = zero_shot_records.detected(TEXTS, settings, asked, *how)
  assert (right == 0.5).all() if detector == "bag of words" else right.mean() > 0.9

"""What is sought of a text: the labels that a guide learns, those that each row should have, and
how far a text has them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.data import pair_files
from diffusion_text.experiment.registry import check_names
from diffusion_text.studies import record_texts, word_kinds
from diffusion_text.studies.record_texts import Text, Texts

ROWS = 64  # drawn at a time
BEGIN = 2  # the place of the first word of a text without a record
NONE = "none"
Words = Sequence[str]


@member
class Settings:
  """What is sought, and how hard."""

  field: str = option("food", "of the records, for the control of what a text says")
  value: str = option("chinese", "of the field")
  word: str = option("children", "that texts must hold")
  hole: int = option(4, "words of a hole", ge=1)
  strengths: tuple[float, ...] = option((2.0, 8.0), "of the gradient; 1 is Bayes' rule")
  num: int = option(128, "texts of each line, a multiple of 64", ge=64)
  calls: int = option(32, "network calls of a text", ge=1)
  labelled: int = option(12_000, "labelled texts, of which a guide learns from a third", ge=90)
  classifier_steps: int = option(300, "updates of each classifier", ge=1)
  seed: int = option(0, "of classifiers and samples", ge=0)
  paraphrase_steps: int = option(1200, "updates of the model that paraphrases", ge=1)

  def __post_init__(self):
    if self.num % ROWS:
      raise ValueError(f"num={self.num} must be a multiple of {ROWS} texts; use {ROWS}")


class Sought(NamedTuple):
  """One control.

  Attributes:
    name: Its name.
    classes: Of the guide.
    label: (text) -> its label, or one for each of its words and one for what follows them.
    target: int32 [num] or [num, L], the labels that are sought.
    weight: float32 of the same shape, how much each counts.
    success: (one text for each row) -> float64 [num], how far each is what was sought; None: a
      classifier is to say so.
  """

  name: str
  classes: int
  label: Callable[[Text], int | Sequence[int]]
  target: Int[np.ndarray, "..."]
  weight: Float[np.ndarray, "..."]
  success: Callable[[Sequence[Words]], Float[np.ndarray, " num"]] | None


def one_label(
  num: int, name: str, labels: Sequence[str], label: Callable[[Text], str], target: str
) -> Sought:
  """An attribute of a whole text, the same for `num` rows; its success is still to be set."""
  names = list(labels)
  sought = np.full(num, names.index(target), np.int32)
  places = {each: number for number, each in enumerate(names)}
  return Sought(
    name, len(names), lambda text: places[label(text)], sought, np.ones(num, np.float32), None
  )


def meaning(texts: Texts, settings: Settings) -> Sought:
  """A value of a field of the record, which may be none.

  Raises:
    ValueError: For an unknown field or value.
  """

  def label(text: Text) -> str:
    return dict(text.record).get(settings.field, NONE)

  labels = sorted({label(text) for text in texts.splits["train"]})
  check_names("--value", [settings.value], labels)
  name = f"meaning: {settings.field}={settings.value}"
  return one_label(settings.num, name, labels, label, settings.value)


def word(texts: Texts, settings: Settings) -> Sought:
  """A word that must be there."""
  del texts
  sought, labels = settings.word, (NONE, settings.word)
  made = one_label(
    settings.num, f"word: {sought}", labels, lambda text: labels[sought in text.words], sought
  )
  return made._replace(success=lambda words: np.array([float(sought in each) for each in words]))


def each_word(
  texts: Texts,
  settings: Settings,
  name: str,
  kinds: Sequence[str],
  label: Callable[[Words], Sequence[str]],
  places: Callable[[Words], Sequence[int]],
  success: Callable[[Words, Words], float],
) -> Sought:
  """An attribute of each word, as it is in held-out texts, a text for each row.

  Args:
    texts: The texts.
    settings: How many.
    name: Of the control.
    kinds: All labels; the last is that of what follows a text.
    label: words -> a label for each.
    places: words -> the places whose labels are sought, the first word's being 0.
    success: (words, the held-out text) -> how far these words are what was sought.
  """
  length, numbers = texts.length, {kind: number for number, kind in enumerate(kinds)}
  models = [text.words for text in held_out(texts, settings.num)]

  def labels(text: Text) -> list[int]:
    return [numbers[kind] for kind in (*label(text.words), kinds[-1])]

  target = np.full((len(models), length), len(kinds) - 1, np.int32)
  weight = np.zeros((len(models), length), np.float32)
  for row, words in enumerate(models):
    target[row, BEGIN : BEGIN + len(words)] = [numbers[kind] for kind in label(words)]
    weight[row, BEGIN + np.asarray(places(words))] = 1

  def scored(written: Sequence[Words]) -> Float[np.ndarray, " num"]:
    return np.array([success(words, model) for words, model in zip(written, models, strict=True)])

  return Sought(name, len(kinds), labels, target, weight, scored)


def held_out(texts: Texts, num: int) -> list[Text]:
  """`num` texts of the test split at equal distances. Raises ValueError where there are fewer."""
  found = texts.splits["test"]
  if len(found) < num:
    raise ValueError(f"num={num}, but the test split has {len(found)} texts; use fewer")
  return [found[place] for place in np.linspace(0, len(found) - 1, num).astype(int)]


def with_end(words: Words) -> range:
  """The places of all words and of the end."""
  return range(len(words) + 1)


def parts_of_speech(texts: Texts, settings: Settings) -> Sought:
  """The parts of speech of a held-out text; the success is the share of its words, the end
  included, at whose places stand the same.
  """

  def success(words: Words, model: Words) -> float:
    own, other = ([*word_kinds.tags(each), "end"] for each in (words, model))
    return float(np.mean([a == b for a, b in zip(own + [""] * len(other), other)]))

  return each_word(
    texts, settings, "parts of speech", word_kinds.TAGS, word_kinds.tags, with_end, success
  )


def middle_span(words: Words) -> word_kinds.Span:
  """The phrase in the middle of a text, of at least two words if there is one."""
  found = word_kinds.spans(words) or [word_kinds.Span(0, 1, "noun")]
  long = [span for span in found if span.last - span.first > 1] or found
  return long[len(long) // 2]


def phrase(texts: Texts, settings: Settings) -> Sought:
  """A phrase of a held-out text: of the same kind, in the same places."""

  def places(words: Words) -> range:
    span = middle_span(words)
    return range(span.first, span.last + 1)  # and that it goes no further

  def success(words: Words, model: Words) -> float:
    return float(middle_span(model) in word_kinds.spans(words))

  return each_word(
    texts, settings, "phrase", word_kinds.PHRASES, word_kinds.phrases, places, success
  )


def size(texts: Texts, settings: Settings) -> Sought:
  """The number of words of a held-out text."""

  def label(words: Words) -> list[str]:
    return ["word"] * len(words)

  def success(words: Words, model: Words) -> float:
    return float(len(words) == len(model))

  return each_word(texts, settings, "length", ("word", "end"), label, with_end, success)


def of_file(texts: Texts, settings: Settings, path: str, target: str) -> tuple[Sought, list[Text]]:
  """(an attribute that a file of labelled texts gives, its texts): lines with a label, a tab and a
  text. Texts that are longer than a row are left out.

  Raises:
    ValueError: For a label that the file has not.
  """
  rows = [
    (label, record_texts.words_of(text))
    for label, text in pair_files.read(pathlib.Path(path), None, None, "refuse")
  ]
  found = [
    Text((("label", label),), words)
    for label, words in rows
    if 0 < len(words) <= texts.length - BEGIN - 1
  ]
  labels = sorted({label for label, _ in rows})
  check_names("--target", [target], labels)
  sought = one_label(
    settings.num, f"file: {target}", labels, lambda text: text.record[0][1], target
  )
  return sought, found


KINDS = {"meaning": meaning, "parts_of_speech": parts_of_speech, "phrase": phrase, "length": size}
KINDS |= {"word": word}

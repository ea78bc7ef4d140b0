"""A trained diffusion model as a classifier (arXiv 2303.16203): which of two pairs of a record and
a text is the true one. The wrong one has a value of the record, the two names of the text, or two
words of one kind exchanged; of the last two the counts of words are those of the true one, as in
PAWS (arXiv 1904.01130), so that no detector of word counts can tell them.

The pair with the lower bound is taken. An autoregressive model of the same size and rows gives
exact likelihoods; classifiers are trained on true and wrong pairs; and the words of a value may be
looked for in the text. The control asks the same with the record of another text for both.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from diffusion_text.core.prng import make_key
from diffusion_text.data.labels import LabelledRows
from diffusion_text.experiment.run import Trained
from diffusion_text.model.classifier import Classifier
from diffusion_text.studies import record_texts, word_kinds
from diffusion_text.studies.control import clean, train_classifier
from diffusion_text.studies.measures import check_rising, markdown, write
from diffusion_text.studies.record_texts import ANY, Text, Texts
from diffusion_text.studies.zero_shot import Settings, share
from diffusion_text.types import Inputs

HEADER = ("exchanged", "by", "noise", "draws", "true pair")
DECIDED = ("exchanged", "share of words", "of the difference", "largest difference at one")
DETECTORS = {"bag of words": (1, "mean"), "windows of 3 words": (3, "max")}


class Exchanged(NamedTuple):
  """A pair with a record or a text that is not its own.

  Attributes:
    record: Field and value pairs.
    words: The text.
    touched: The words of the true text that what was exchanged is about.
  """

  record: tuple[tuple[str, str], ...]
  words: tuple[str, ...]
  touched: frozenset[str]

  @property
  def source(self) -> str:
    """The record as tokens between spaces."""
    return record_texts.source_of(dict(self.record))


# (a text, all values of each field, random numbers) -> the wrong pair, None where there is none.
Exchange = Callable[[Text, dict[str, list[str]], np.random.Generator], Exchanged | None]


def other_value(
  text: Text, values: dict[str, list[str]], rng: np.random.Generator
) -> Exchanged | None:
  """One value of the record replaced by another value of its field."""
  place = int(rng.integers(len(text.record)))
  field, own = text.record[place]
  others = [value for value in values[field] if value != own]
  record = list(text.record)
  record[place] = (field, others[int(rng.integers(len(others)))])
  return Exchanged(tuple(record), text.words, frozenset(record_texts.words_of(own)))


def other_names(
  text: Text, values: dict[str, list[str]], rng: np.random.Generator
) -> Exchanged | None:
  """The two names of a record exchanged in the text: who is near whom."""
  del values, rng
  record = dict(text.record)
  names = [record_texts.words_of(record.get(field, "")) for field in ("name", "near")]
  places = [record_texts.places(text.words, name) for name in names]
  if not all(len(each) == 1 for each in places):
    return None
  (first, one), (second, two) = sorted(zip((each[0] for each in places), names))
  if first + len(one) > second:
    return None
  between, after = text.words[first + len(one) : second], text.words[second + len(two) :]
  words = (*text.words[:first], *two, *between, *one, *after)
  return Exchanged(text.record, words, frozenset((*one, *two)))


def other_order(
  text: Text, values: dict[str, list[str]], rng: np.random.Generator
) -> Exchanged | None:
  """Two different words of one part of speech exchanged: nouns or adjectives."""
  del values
  tags = word_kinds.tags(text.words)
  found = [
    (i, j)
    for i in range(len(tags))
    for j in range(i + 1, len(tags))
    if tags[i] == tags[j] and tags[i] in ("noun", "adjective") and text.words[i] != text.words[j]
  ]
  if not found:
    return None
  i, j = found[int(rng.integers(len(found)))]
  words = list(text.words)
  words[i], words[j] = words[j], words[i]
  return Exchanged(text.record, tuple(words), frozenset((words[i], words[j])))


EXCHANGES: dict[str, Exchange] = {
  "a value": other_value,
  "the two names": other_names,
  "two words of a kind": other_order,
}


class Question(NamedTuple):
  """True pairs and wrong ones, in the same order."""

  name: str
  true: list[Text]
  wrong: list[Exchanged]


def question(name: str, texts: Texts, split: str, num: int, seed: int) -> Question:
  """At most `num` pairs of a split that have something to exchange, in random order."""
  values: dict[str, set[str]] = {}
  for text in texts.splits["train"]:
    for field, value in text.record:
      values.setdefault(field, set()).add(value)
  known = {field: sorted(each) for field, each in values.items()}
  rng, true, wrong = np.random.default_rng(seed), [], []
  for place in rng.permutation(len(texts.splits[split])):
    text = texts.splits[split][place]
    other = EXCHANGES[name](text, known, rng)
    if other is not None:
      true.append(text)
      wrong.append(other)
    if len(true) == num:
      break
  return Question(name, true, wrong)


class Costs(NamedTuple):
  """Bounds of pairs.

  Attributes:
    draws: float64 [D, 2, B], nats of each draw: of the true pairs, and of the wrong ones.
    by_word: float64 [B, L], nats of each token under the wrong pair minus those under the true one,
      a mean over draws.
  """

  draws: Float[np.ndarray, "D 2 B"]
  by_word: Float[np.ndarray, "B L"]


def costs(
  model: Trained,
  texts: Texts,
  asked: Question,
  draws: int,
  seed: int,
  *,
  paired: bool = True,
  told: Callable[[Sequence[str]], Sequence[str]] = list,
) -> Costs:
  """The bounds of both pairs.

  Args:
    model: The model.
    texts: The texts.
    asked: The pairs.
    draws: D.
    seed: Of the noise.
    paired: True: the same times and noise for both.
    told: records -> the records that the model is told in their place.
  """
  batches = [
    texts.rows(told([pair.source for pair in each]), [pair.words for pair in each])
    for each in (asked.true, asked.wrong)
  ]
  found, by_word = np.zeros((draws, 2, len(asked.true))), 0.0
  for draw in range(draws):
    key, each = jax.random.fold_in(make_key(seed), draw), []
    for number, batch in enumerate(batches):
      own = key if paired else jax.random.fold_in(key, number)
      each.append(record_texts.nats(model, batch, own))
    found[draw] = [tokens.sum(1) for tokens in each]
    by_word = by_word + (each[1] - each[0]) / draws
  return Costs(found, by_word)


def first_is_lower(of_draws: Float[np.ndarray, "D 2 B"]) -> Float[np.ndarray, " B"]:
  """float64 [B]: 1 where the mean of the first alternative is lower, 0.5 where both are equal."""
  first, second = of_draws.mean(0)
  return (first < second) + 0.5 * (first == second)


def another(sources: Sequence[str]) -> list[str]:
  """The record of the next text in place of each: the control."""
  return [*sources[1:], sources[0]]


def nobody(sources: Sequence[str]) -> list[str]:
  """No record at all."""
  return [ANY] * len(sources)


def looked_for(asked: Question) -> Float[np.ndarray, " B"]:
  """float64 [B]: 1 where more of the record's values are in the text of the true pair, word for
  word, than in that of the wrong one; 0.5 where as many are.
  """

  def said(record: Sequence[tuple[str, str]], words: Sequence[str]) -> int:
    return sum(
      bool(record_texts.places(words, record_texts.words_of(value))) for _, value in record
    )

  found = [
    (said(true.record, true.words), said(wrong.record, wrong.words))
    for true, wrong in zip(asked.true, asked.wrong)
  ]
  return np.array([(a > b) + 0.5 * (a == b) for a, b in found], np.float64)


def detected(
  texts: Texts, settings: Settings, asked: Question, window: int, pool: str
) -> Float[np.ndarray, " B"]:
  """float64 [B]: 1 where a trained classifier of record and text finds the true pair likelier."""
  learned = question(asked.name, texts, "train", settings.labelled // 2, settings.seed + 1)
  ids = [_ids(texts, pairs) for pairs in (learned.true, learned.wrong)]
  label = np.repeat(np.array([1, 0], np.int32), len(learned.true))
  size = texts.tokenizer.vocab_size
  judged = train_classifier(
    Classifier(classes=2, input_size=size, width=128, window=window, pool=pool),
    LabelledRows(np.concatenate(ids), label, label),
    read=clean,
    seed=settings.seed,
    steps=settings.classifier_steps,
    learning_rate=3e-3,
  )
  score = jax.jit(lambda rows: judged.log_prob(Inputs(ids=rows))[:, 1])
  own, other = (np.asarray(score(jnp.asarray(_ids(texts, each)))) for each in asked[1:])
  # A detector of word counts gives equal scores up to rounding.
  return (own > other + 1e-4) + 0.5 * (np.abs(own - other) <= 1e-4)


def _ids(texts: Texts, pairs: Sequence[Text | Exchanged]) -> np.ndarray:
  return texts.rows([pair.source for pair in pairs], [pair.words for pair in pairs]).ids


def decided(texts: Texts, asked: Question, found: Costs) -> tuple[str, ...]:
  """The line of which words decided: of the words that the exchange is about, how many they are,
  how much of the difference is theirs, and how often the largest difference is at one of them.
  """
  touched: Bool[np.ndarray, "B L"] = np.zeros(found.by_word.shape, bool)
  real = np.zeros(found.by_word.shape, bool)
  for row, (text, wrong) in enumerate(zip(asked.true, asked.wrong)):
    begin = len(text.record) + 1
    real[row, begin : begin + len(text.words)] = True
    touched[row, begin : begin + len(text.words)] = [each in wrong.touched for each in text.words]
  any_ = touched.any(1)
  largest = np.where(real, found.by_word, -np.inf).argmax(1)
  at_one = touched[np.arange(len(touched)), largest]
  of_difference = found.by_word[any_][touched[any_]].sum() / found.by_word[any_].sum()
  cells = (touched[any_].sum() / real[any_].sum(), of_difference)
  return (asked.name, *(f"{each:.3f}" for each in cells), share(at_one[any_]))


def example(asked: Question, found: Costs, row: int) -> str:
  """A text with the nats by which each of its words speaks for the true pair."""
  text, begin = asked.true[row], len(asked.true[row].record) + 1
  cells = [f"{each} {value:+.1f}" for each, value in zip(text.words, found.by_word[row, begin:])]
  return f"{text.source} | not {asked.wrong[row].source}\n{', '.join(cells)}"


def lines_of(
  name: str, texts: Texts, masked: Trained, exact: Trained, settings: Settings
) -> tuple[list[tuple[str, ...]], tuple[str, ...], str]:
  """(the lines of an exchange, that of which words decided, examples)."""
  asked = question(name, texts, "test", settings.rows, settings.seed)
  most, lines = settings.draws[-1], []
  found = {}
  for paired in (True, False):
    found[paired] = costs(masked, texts, asked, most, settings.seed, paired=paired)
    noise = "the same" if paired else "each its own"
    for draws in settings.draws:
      right = first_is_lower(found[paired].draws[:draws])
      lines.append((name, "masked diffusion", noise, str(draws), share(right)))
  few = settings.draws[min(2, len(settings.draws) - 1)]
  for label, told in (("of another text (control)", another), ("untold", nobody)):
    other = costs(masked, texts, asked, few, settings.seed, told=told)
    who = f"masked diffusion, record {label}"
    lines.append((name, who, "the same", str(few), share(first_is_lower(other.draws))))
  likely = first_is_lower(costs(exact, texts, asked, 1, settings.seed).draws)
  lines.append((name, "autoregressive likelihood", "", "", share(likely)))
  for label, (window, pool) in DETECTORS.items():
    right = detected(texts, settings, asked, window, pool)
    lines.append((name, f"trained classifier, {label}", "", "", share(right)))
  lines.append((name, "values looked for in the text", "", "", share(looked_for(asked))))
  shown = "\n".join(example(asked, found[True], row) for row in range(3))
  return lines, decided(texts, asked, found[True]), shown


def run(
  settings: Settings, texts: Texts, masked: Trained, exact: Trained, workdir: pathlib.Path
) -> str:
  """The two tables, written as zero_shot_records.md and zero_shot_records.json."""
  check_rising("draws", settings.draws, "1,4,16,64")
  lines, words, shown = [], [], []
  for name in EXCHANGES:
    more, line, examples = lines_of(name, texts, masked, exact, settings)
    lines += more
    words.append(line)
    shown.append(examples)
  text = f"{markdown(HEADER, lines, left=(0, 1, 2))}\n\n{markdown(DECIDED, words)}"
  text += "\n\n" + "\n".join(shown)
  write(workdir, "zero_shot_records", text, settings=dataclasses.asdict(settings), lines=lines)
  return text

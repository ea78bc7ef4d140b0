"""Texts said in other words: a model that has learned from pairs of texts with one record, decoded
with and without the pairs of neighbours of its source (dynamic blocking, arXiv 2010.12885), with a
word that must be there and one that must not; and what becomes of vectors of texts.

The model begins as the generator of `record_texts` and learns rows of a source, an end, a text and
an end. Controls are a copy, which keeps everything and says nothing in other words; the text of
another record; and another text of the record, which a person wrote. No measure stands alone: a
copy has the best similarity, another record's text the least in common with the source.

A classifier of vectors (ridge regression on labelled texts) names the value of a field. Each test
text is replaced by paraphrases, by other texts of its record, or by texts of other records, which
is the control: an answer that is right for all of them is the worst of so many.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffusion_text.core.prng import row_keys
from diffusion_text.evaluate.diversity import sentence_bleu
from diffusion_text.evaluate.text_metrics import token_entropy
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained, load, train_workdir
from diffusion_text.sampler.avoided import SourcePairs
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Random
from diffusion_text.studies import record_texts
from diffusion_text.studies.compare import config_files
from diffusion_text.studies.control_targets import BEGIN, ROWS, Words
from diffusion_text.studies.controls import Study, labelled_texts
from diffusion_text.studies.embed import last_layer
from diffusion_text.studies.measures import markdown, mean_and_error, write
from diffusion_text.studies.record_texts import Text, Texts, places
from diffusion_text.studies.transfer import nats_per_word
from diffusion_text.types import Batch

HEADER = ("text", "values kept", "cosine", "BLEU, others", "BLEU, source", "iBLEU")
HEADER = (*HEADER, "judge, nats/word", "entropy, nats", "holds the word")
CLASSIFIED = ("vectors", "its own text", "replaced by", "mean", "right for all")
OWN = 0.8  # the weight of the references in iBLEU (Sun and Zhou 2012, recalled)
TIMES = 5  # replacements of each text
OTHERS = 3  # other texts of its record that a source has at least
PLACE = 3  # of the word that must be there, from 0
TOP_P = 0.9  # of every draw
RIDGE = 0.1  # weight of squared coefficients, per text


class Source(NamedTuple):
  """A text that is to be said in other words.

  Attributes:
    text: It.
    others: Other texts of its record.
    kept: The words of each value of the record that it says word for word.
  """

  text: Text
  others: tuple[Words, ...]
  kept: tuple[tuple[str, ...], ...]


def by_record(texts: Sequence[Text]) -> dict[Any, list[Text]]:
  """record -> its different texts, in their order."""
  found: dict[Any, dict[Words, Text]] = collections.defaultdict(dict)
  for text in texts:
    found[text.record].setdefault(text.words, text)
  return {record: list(each.values()) for record, each in found.items()}


def pairs(texts: Sequence[Text], seed: int) -> list[tuple[Text, Text]]:
  """Each text with another one of its record, where there is one: in random order the next."""
  rng, found = np.random.default_rng(seed), []
  for group in by_record(texts).values():
    order = [group[place] for place in rng.permutation(len(group))]
    if len(order) > 1:
      found += zip(order, [*order[1:], order[0]])
  return found


def sources(texts: Sequence[Text], field: str, num: int) -> list[Source]:
  """One text of each of at most `num` records that have the field and OTHERS other texts."""
  found = []
  for record, group in by_record(texts).items():
    text, *others = group
    said = (record_texts.words_of(value) for _, value in record)
    kept = tuple(each for each in said if places(text.words, each))
    if field in dict(record) and len(others) >= OTHERS and kept:
      found.append(Source(text, tuple(each.words for each in others), kept))
  return found[:num]


def widened(texts: Texts) -> Texts:
  """The same texts in rows that hold two of them."""
  longest = max(len(text.words) for split in texts.splits.values() for text in split)
  return dataclasses.replace(texts, length=2 * longest + 2)


def trained(
  texts: Texts, base: ConfigDict, configs: pathlib.Path, workdir: pathlib.Path, steps: int
) -> Trained:
  """The model that paraphrases, trained from the generator of a workdir unless it is there.

  Raises:
    ValueError: For a workdir of another config.
    SystemExit: If training was stopped, with the exit code of the loop.
  """
  data = workdir / "pairs_of_texts"
  if not (data / "tokenizer").exists():
    data.mkdir(parents=True, exist_ok=True)
    for split, found in texts.splits.items():
      lines = [
        f"{' '.join(one.words)}\t{' '.join(other.words)}" for one, other in pairs(found, base.seed)
      ]
      (data / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (data / "tokenizer").write_bytes(texts.tokenizer.to_bytes())
  files = config_files(["mdlm"], configs)
  config = record_texts.config_of("mdlm", base, files, data, widened(texts))
  # Rows are nearly twice as long as the generator's.
  own = {"steps": steps, "batch_size": max(base.train.batch_size // 2, 1)}
  config.train.update({**own, "initialize_from": str(workdir / "mdlm")})
  result = train_workdir(build(config), str(workdir / "paraphraser"), terminal=False)
  if result.status != "finished":
    raise SystemExit(result.exit_code)
  return load(str(workdir / "paraphraser"))


def drawn(
  study: Study,
  model: Trained,
  found: Sequence[Source],
  sampler: Reveal,
  *,
  seed: int,
  word: str | None = None,
) -> list[Words]:
  """A text for each source.

  Args:
    study: The texts, and how many calls.
    model: That paraphrases.
    found: The sources.
    sampler: What decodes.
    seed: Of the draws.
    word: A word that stands at PLACE of each text, as if it were observed; None: none does.
  """
  wide = widened(study.texts)
  batch = wide.rows([" ".join(each.text.words) for each in found], [()] * len(found))
  begins = np.array([len(each.text.words) + 1 for each in found])
  ids, observed = batch.ids.copy(), batch.observed.copy()
  if word is not None:
    every = np.arange(len(found))
    ids[every, begins + PLACE] = study.texts.ids([word])[0]
    observed[every, begins + PLACE] = True
  made = []
  for first in range(0, len(found), ROWS):
    some = np.minimum(np.arange(first, first + ROWS), len(found) - 1)
    keys = row_keys(seed, ROWS, first=first)
    rows = Batch(ids[some], observed[some])
    made.append(np.asarray(model.experiment.sample(model.params, keys, rows, sampler=sampler).ids))
  rows = np.concatenate(made)[: len(found)]
  return [wide.written(row[None], begin)[0] for row, begin in zip(rows, begins)]


def decoder(study: Study, **how: Any) -> Reveal:
  """A random order, so that no mode is sought, with as many calls as are set."""
  return Reveal(score=Random(), budget=EvenShare(steps=study.settings.calls), top_p=TOP_P, **how)


def decoders(study: Study) -> dict[str, tuple[Reveal, str | None]]:
  """name -> (what decodes, the word that must be there)."""
  word, plain = study.settings.word, decoder(study)
  free = (study.texts.end,)
  blocked = {
    f"{share:.0%} of the pairs blocked": (
      decoder(study, avoid=SourcePairs(share=share, free=free)),
      None,
    )
    for share in (0.5, 1.0)
  }
  banned = decoder(study, banned=(int(study.texts.ids([word])[0]),))
  return {
    "paraphrase": (plain, None),
    **blocked,
    f"must not hold {word!r}": (banned, None),
    f"must hold {word!r}": (plain, word),
  }


def cosines(
  encoder: Trained, words: Sequence[Words], others: Sequence[Words]
) -> Float[np.ndarray, " num"]:
  """float64 [num]: of the vector of each text with that of another."""
  first, second = (last_layer(encoder, list(map(" ".join, each))) for each in (words, others))
  return np.sum(first * second, axis=1, dtype=np.float64)


def cells(
  study: Study,
  encoder: Trained,
  name: str,
  words: Sequence[Words],
  found: Sequence[Source],
  others: Sequence[Sequence[Words]],
) -> tuple[str, ...]:
  """A line of the table: texts, their sources, and the references of each."""
  kept = [np.mean([bool(places(own, each)) for each in s.kept]) for own, s in zip(words, found)]
  best = [max(sentence_bleu(own, other) for other in each) for own, each in zip(words, others)]
  copied = [sentence_bleu(own, source.text.words) for own, source in zip(words, found)]
  mixed = OWN * np.array(best) - (1 - OWN) * np.array(copied)
  longest = study.texts.length - BEGIN - 1
  nats = nats_per_word(study, [each[:longest] for each in words])
  held = np.array([study.settings.word in each for each in words], np.float64)
  values = (
    kept,
    cosines(encoder, words, [source.text.words for source in found]),
    best,
    copied,
    mixed,
    nats,
  )
  shown = ["{:.3f} ± {:.3f}".format(*mean_and_error(np.array(each))) for each in values]
  ids = [np.append(study.texts.ids(each), study.texts.end) for each in words]
  entropy = token_entropy(ids)
  return (name, *shown, f"{entropy:.2f}", "{:.3f} ± {:.3f}".format(*mean_and_error(held)))


def rotated(items: Sequence[Any], by: int) -> list[Any]:
  """The items `by` places on, the first ones at the end."""
  by %= len(items)
  return [*items[by:], *items[:by]]


class Classifier(NamedTuple):
  """A linear classifier of vectors.

  Attributes:
    weights: float64 [D + 1, C], the last row for a constant.
  """

  weights: Float[np.ndarray, "E C"]

  @staticmethod
  def of(vectors: Float[np.ndarray, "S D"], labels: np.ndarray, classes: int) -> Classifier:
    """Ridge regression of the labels, with a constant."""
    inputs = np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1, dtype=np.float64)
    square = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    return Classifier(np.linalg.solve(square, inputs.T @ np.eye(classes)[labels]))

  def answers(self, vectors: Float[np.ndarray, "S D"]) -> np.ndarray:
    """The class of each vector."""
    return np.argmax(vectors @ self.weights[:-1] + self.weights[-1], axis=1)


def classified(
  study: Study,
  encoders: Mapping[str, Any],
  found: Sequence[Source],
  replaced: Mapping[str, Sequence[Sequence[Words]]],
) -> list[tuple[str, ...]]:
  """The lines of the second table.

  Args:
    study: The texts, and the field whose value is named.
    encoders: name -> (texts as lists of words -> vectors).
    found: The test texts.
    replaced: name -> replacements of all of them, a list for each time.
  """
  field = study.settings.field
  labelled = [text for text in labelled_texts(study) if field in dict(text.record)]
  names = sorted({dict(text.record)[field] for text in labelled})
  label = {name: number for number, name in enumerate(names)}
  known = np.array([label[dict(text.record)[field]] for text in labelled])
  wanted = np.array([label[dict(source.text.record)[field]] for source in found])
  lines = []
  for name, encode in encoders.items():
    learned = Classifier.of(encode([text.words for text in labelled]), known, len(names))
    right = learned.answers(encode([source.text.words for source in found])) == wanted
    own = "{:.3f} ± {:.3f}".format(*mean_and_error(right.astype(float)))
    for kind, times in replaced.items():
      every = learned.answers(encode([each for words in times for each in words]))
      hits = (every.reshape(len(times), -1) == wanted).astype(np.float64)
      shown = [
        "{:.3f} ± {:.3f}".format(*mean_and_error(each)) for each in (hits.mean(0), hits.min(0))
      ]
      lines.append((name, own, kind, *shown))
  return lines


def bag(study: Study, words: Sequence[Words]) -> Float[np.ndarray, "S V"]:
  """Unit vectors of how often each word is in each text."""
  counts = np.zeros((len(words), study.texts.tokenizer.vocab_size))
  for row, each in zip(counts, words):
    np.add.at(row, study.texts.ids(each), 1.0)
  return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def encoders_of(study: Study, encoder: Trained | None) -> dict[str, Any]:
  """name -> (texts -> vectors): counts, the networks of the study, and one of the user's."""
  runs = {"masked generator": study.generator, "autoregressive judge": study.judge}
  runs |= {} if encoder is None else {"encoder": encoder}

  def of_run(run: Trained):
    return lambda words: last_layer(run, [" ".join(each) for each in words])

  return {"counts of words": lambda words: bag(study, words)} | {
    name: of_run(run) for name, run in runs.items()
  }


def run(study: Study, model: Trained, workdir: pathlib.Path, encoder: Trained | None = None) -> str:
  """Both tables, written as paraphrases.md and paraphrases.json, with the texts as paraphrases.txt.

  Args:
    study: The texts, the generator and the judge.
    model: That paraphrases.
    workdir: Where to.
    encoder: Whose cosines say how near texts are; None: the generator.

  Raises:
    ValueError: Where fewer texts than are asked for have OTHERS other texts of their record.
  """
  settings = study.settings
  found = sources(study.texts.splits["test"], settings.field, settings.num)
  if len(found) < settings.num:
    raise ValueError(f"num={settings.num}, but {len(found)} records have enough texts; use fewer")
  own, others = [each.text.words for each in found], [each.others for each in found]
  made = {"a copy (control)": own, "another record's text (control)": rotated(own, 1)}
  references = {name: others for name in made}
  made["another text of the record"] = [each[0] for each in others]
  references["another text of the record"] = [each[1:] for each in others]
  for name, (sampler, word) in decoders(study).items():
    made[name] = drawn(study, model, found, sampler, seed=settings.seed, word=word)
  lines = [
    cells(study, encoder or study.generator, name, words, found, references.get(name, others))
    for name, words in made.items()
  ]
  plain = decoder(study)
  again = [drawn(study, model, found, plain, seed=settings.seed + t) for t in range(1, TIMES)]
  replaced = {
    "a paraphrase": [made["paraphrase"], *again],
    "another text of the record": [
      [each[time % len(each)] for each in others] for time in range(TIMES)
    ],
    "another record's text (control)": [rotated(own, time + 1) for time in range(TIMES)],
  }
  judged = classified(study, encoders_of(study, encoder), found, replaced)
  first = markdown(HEADER, lines)
  second = markdown(CLASSIFIED, judged, left=(0, 2))
  text = f"{first}\n\nThe value of {settings.field} by vectors:\n\n{second}"
  numbers = {"settings": dataclasses.asdict(settings), "lines": lines, "classified": judged}
  write(workdir, "paraphrases", text, **numbers)
  shown = [f"--- {name}\n" + "\n".join(map(" ".join, each)) for name, each in made.items()]
  (workdir / "paraphrases.txt").write_text("\n".join(shown) + "\n")
  return text

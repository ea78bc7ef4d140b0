"""Six controls of one generator that has seen no labels (Diffusion-LM, arXiv 2205.14217): what a
text says, its parts of speech, a phrase at a place, its length, a word that it must hold, and the
rest of a text with a hole; and any attribute that a file of labelled texts gives.

Every guide but that of the hole is a small classifier of clean text that has learned from a third
of the labelled texts, and steers by its gradient (`sampler.control`). Its control is the same
classifier, which has learned from the same labels in another order. Success is said by a rule: the
word is there, the part of speech is that of the list of words, the text has so many words. Only
for what a text says, and for a file, it is said by a classifier of another architecture, which has
learned from another third. The control of the hole is what was written for the next text's hole.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key, row_keys
from diffusion_text.data.labels import LabelledRows
from diffusion_text.evaluate.likelihood import estimate
from diffusion_text.evaluate.text_metrics import distinct_n, token_entropy
from diffusion_text.experiment.registry import check_names
from diffusion_text.experiment.run import Trained
from diffusion_text.model.classifier import Classifier
from diffusion_text.sampler.control import LogitControl
from diffusion_text.studies import record_texts
from diffusion_text.studies.control import Judged, clean, mean_over_classes, train_classifier
from diffusion_text.studies.control_targets import (
  BEGIN,
  KINDS,
  ROWS,
  Settings,
  Sought,
  Words,
  held_out,
  of_file,
)
from diffusion_text.studies.measures import markdown, mean_and_error, write
from diffusion_text.studies.record_texts import ANY, Text, Texts
from diffusion_text.types import Batch, Inputs, Params, Sampler

GUIDE, EVALUATOR, HELD_OUT = range(3)  # thirds of the labelled texts
HEADER = ("control", "guide", "guide right", "success", "judge, nats/word", "entropy, nats")
HEADER = (*HEADER, "distinct-2", "calls")


@member
class Guide:
  """log p(labels | soft tokens) of a classifier of clean text, of one label for a row or of one for
  each token.

  Its parameters are {"network", "strength", "target", "weight"}: the labels that are sought [B] or
  [B, L], how much each counts, and the strength, so that one program serves all of them.
  """

  classifier: Classifier = option(..., "of clean text")

  def log_prob(self, params: Params, soft: Float[Array, "B u V"]) -> Float[Array, " B"]:
    """Nats times the strength."""
    logp = jax.nn.log_softmax(self.classifier.apply(params["network"], Inputs(vectors=soft)))
    of_label = jnp.take_along_axis(logp, params["target"][..., None], axis=-1)[..., 0]
    weighted = of_label * params["weight"]
    return params["strength"] * jnp.sum(weighted.reshape(len(soft), -1), axis=1)


class Line(NamedTuple):
  """A line of the table.

  Attributes:
    control: What is sought.
    guide: What steers.
    right: The mean over classes of the share of held-out texts, or words, that the guide is right
      about; NaN without a guide.
    success: Mean and standard error over texts.
    judge: Nats of a word, ends included, by the autoregressive model, and their standard error.
    entropy: Of the words of a text, nats, a mean over texts.
    distinct: The share of pairs of neighbours that are different, among all.
    calls: Network calls.
  """

  control: str
  guide: str
  right: float
  success: tuple[float, float]
  judge: tuple[float, float]
  entropy: float
  distinct: float
  calls: int

  def cells(self) -> tuple[str, ...]:
    """The cells of the table."""
    right = "" if np.isnan(self.right) else f"{self.right:.3f}"
    numbers = (f"{self.entropy:.2f}", f"{self.distinct:.2f}", f"{self.calls}")
    pairs = [
      "" if np.isnan(mean) else f"{mean:.3f} ± {error:.3f}"
      for mean, error in (self.success, self.judge)
    ]
    return (self.control, self.guide, right, *pairs, *numbers)


@dataclasses.dataclass(frozen=True)
class Study:
  """A generator and a judge, and the texts that they have learned.

  Attributes:
    texts: The texts.
    generator: Writes.
    judge: Autoregressive; prices what was written.
    settings: How hard.
  """

  texts: Texts
  generator: Trained
  judge: Trained
  settings: Settings

  def batch(self, words: Sequence[Words]) -> Batch:
    """Texts as rows whose record is not told."""
    return self.texts.rows([ANY] * len(words), words)

  def labelled(self, sought: Sought, found: Sequence[Text]) -> LabelledRows:
    """Texts with their labels, in three parts."""
    ids = self.batch([text.words for text in found]).ids
    label = np.array([self._row(sought, text) for text in found], np.int32)
    return LabelledRows(ids, label, np.arange(len(found), dtype=np.int32) % 3)

  def _row(self, sought: Sought, text: Text) -> int | list[int]:
    """The label of a row, or of each of its tokens: the record is like what follows the text."""
    label = sought.label(text)
    if sought.target.ndim == 1:
      return label
    *words, end = label
    return [end] * BEGIN + words + [end] * (self.texts.length - BEGIN - len(words))

  def draw(
    self, sampler: Sampler, guide: Callable[[int], Params], batch: Batch
  ) -> Int[np.ndarray, "num L"]:
    """Texts, with the same keys whatever steers. guide: the number of the first row -> what the
    guide reads for ROWS rows.
    """
    found = []
    for first in range(0, self.settings.num, ROWS):
      some = Batch(batch.ids[first : first + ROWS], batch.observed[first : first + ROWS])
      params = {**self.generator.params, "classifier": guide(first)}
      keys = row_keys(self.settings.seed, ROWS, first=first)
      drawn = self.generator.experiment.sample(params, keys, some, sampler=sampler)
      found.append(np.asarray(drawn.ids))
    return np.concatenate(found)

  def line(
    self, control: str, guide: str, right: float, words: Sequence[Words], success: np.ndarray
  ) -> Line:
    """What was written, measured."""
    batch = self.batch([each[: self.texts.length - BEGIN - 1] for each in words])
    costs = record_texts.nats(self.judge, batch, make_key(0)).sum(1)
    ids = [np.append(self.texts.ids(each), self.texts.end) for each in words]
    sizes = np.array([len(each) for each in ids], np.float64)
    varied = (token_entropy(ids), distinct_n(ids, 2))
    priced = estimate(costs, sizes)
    calls = self.settings.calls
    return Line(control, guide, right, mean_and_error(success), priced, *varied, calls)


def balanced(judged: Judged, rows: LabelledRows) -> float:
  """The share of rows, or of tokens, whose label is right, a mean over the classes that occur."""
  answer = jax.jit(lambda ids: jnp.argmax(judged.log_prob(Inputs(ids=ids)), axis=-1))
  return mean_over_classes(np.asarray(answer(rows.ids)), rows.label)


def classifier_of(study: Study, sought: Sought, *, evaluator: bool = False) -> Classifier:
  """A guide, or an evaluator of another architecture."""
  size = study.texts.tokenizer.vocab_size
  if sought.target.ndim > 1:
    return Classifier(classes=sought.classes, input_size=size, window=5, pool="none")
  if evaluator:
    return Classifier(classes=sought.classes, input_size=size, width=96, window=3, pool="max")
  return Classifier(classes=sought.classes, input_size=size)


def learned(
  study: Study, sought: Sought, rows: LabelledRows, *, shuffled: bool = False
) -> tuple[Judged, float]:
  """(a guide that has learned from the first third of the labels, how often it is right on the
  last). shuffled: labels, of all rows and places together, are in another order while it learns.
  """
  own, settings = rows.of_part(GUIDE), study.settings
  if shuffled:
    mixed = np.random.default_rng(settings.seed).permutation(own.label.reshape(-1))
    own = own._replace(label=mixed.reshape(own.label.shape))
  how = {"seed": settings.seed, "steps": settings.classifier_steps}
  judged = train_classifier(classifier_of(study, sought), own, read=clean, **how)
  return judged, balanced(judged, rows.of_part(HELD_OUT))


def steered(
  study: Study, sought: Sought, found: Sequence[Text], free: Sequence[Words]
) -> tuple[list[Line], Sequence[Words]]:
  """(the lines of a control: without a guide, with one of shuffled labels, and at each strength;
  the texts of the last).

  found: labelled texts; free: what the generator writes without a guide.
  """
  rows, settings, name = study.labelled(sought, found), study.settings, sought.name
  sampler = LogitControl(
    sampler=sampler_of(study), classifier=Guide(classifier=classifier_of(study, sought))
  )
  empty = study.batch([()] * settings.num)
  lines = [study.line(name, "none", float("nan"), free, sought.success(free))]
  for shuffled in (True, False):
    judged, right = learned(study, sought, rows, shuffled=shuffled)
    for strength in settings.strengths[-1:] if shuffled else settings.strengths:

      def guide(first: int, judged=judged, strength=strength) -> Params:
        some = slice(first, first + ROWS)
        sides = {"target": sought.target[some], "weight": sought.weight[some]}
        return {"network": judged.params, "strength": jnp.float32(strength), **sides}

      words = study.texts.written(study.draw(sampler, guide, empty), BEGIN)
      label = f"{'labels shuffled, ' if shuffled else ''}strength {strength:g}"
      lines.append(study.line(name, label, right, words, sought.success(words)))
  return lines, words


def sampler_of(study: Study) -> Sampler:
  """The generator's own sampler with as many calls as are set."""
  return dataclasses.replace(study.generator.experiment.sampler, steps=study.settings.calls)


def labelled_texts(study: Study) -> list[Text]:
  """The training texts whose labels are told."""
  train = study.texts.splits["train"]
  order = np.random.default_rng(study.settings.seed).permutation(len(train))
  return [train[place] for place in order[: study.settings.labelled]]


def by_evaluator(study: Study, sought: Sought, found: Sequence[Text]) -> tuple[Sought, float]:
  """(the control with a classifier of another third as its judge, how often that is right)."""
  rows, settings = study.labelled(sought, found), study.settings
  judged = train_classifier(
    classifier_of(study, sought, evaluator=True),
    rows.of_part(EVALUATOR),
    read=clean,
    seed=settings.seed + 1,
    steps=settings.classifier_steps,
  )

  def success(words: Sequence[Words]) -> Float[np.ndarray, " num"]:
    cut = [each[: study.texts.length - BEGIN - 1] for each in words]
    return (judged.answers(study.batch(cut).ids) == sought.target).astype(np.float64)

  return sought._replace(success=success), balanced(judged, rows.of_part(HELD_OUT))


def infilled(study: Study) -> list[Line]:
  """Held-out texts with a hole in the middle: what is written there, and what was written for the
  next text, as the control. The success is the share of the hole's words that are those of the
  text.
  """
  hole, num = study.settings.hole, study.settings.num
  texts = [text.words for text in held_out(study.texts, num)]
  batch = study.batch(texts)
  begins = np.array([max(0, (len(words) - hole) // 2) for words in texts])
  place = np.arange(study.texts.length) - BEGIN - begins[:, None]
  open_ = (place >= 0) & (place < hole)
  sizes = np.array([min(hole, len(words)) for words in texts])
  open_ &= place < sizes[:, None]
  ids = study.draw(sampler_of(study), lambda first: {}, Batch(batch.ids, ~open_))
  lines = []
  for name, distance in (("the next text's words", 1), ("none needed", 0)):
    filled = batch.ids.copy()
    for row in range(len(texts)):
      source = (row + distance) % len(texts)
      own, other = open_[row], open_[source]
      if own.sum() == other.sum():
        filled[row, own] = ids[source, other]
    right = ((filled == batch.ids) & open_).sum(1) / open_.sum(1)
    label, words = f"hole of {hole} words", written(study, filled)
    lines.append(study.line(label, name, float("nan"), words, right))
  return lines


def written(study: Study, ids: Int[np.ndarray, "num L"]) -> list[Words]:
  """The words of rows without a record."""
  return study.texts.written(ids, BEGIN)


HOLE, FILE = "hole", "file"


class FromFile(NamedTuple):
  """Labelled texts of a user, and the label that is sought."""

  path: str
  target: str


def run(
  study: Study, kinds: Sequence[str], workdir: pathlib.Path, examples: FromFile | None = None
) -> str:
  """The table of these controls, written as controls.md, and .json, with the texts of the last line
  of each as .txt; as controls_of_file where a file gives the attribute.

  Args:
    study: The models and the texts.
    kinds: Names: those of KINDS, "hole", and "file".
    workdir: Where the table is written.
    examples: For "file".

  Raises:
    ValueError: For unknown names, and "file" without examples.
  """
  check_names("--attributes", kinds, [*KINDS, HOLE, FILE])
  if (FILE in kinds) != (examples is not None) or None in (examples or ()):
    raise ValueError(
      "--attributes=file goes with --examples=FILE and --target=LABEL; give all or none"
    )
  found, right = labelled_texts(study), {}
  empty = study.batch([()] * study.settings.num)
  free = written(study, study.draw(sampler_of(study), lambda first: {}, empty))
  own = [text.words for text in held_out(study.texts, study.settings.num)]
  lines, samples = [reference(study, own)], {"no control": free}
  for kind in kinds:
    if kind == HOLE:
      lines += infilled(study)
      continue
    labelled = found
    if kind == FILE:
      sought, labelled = of_file(study.texts, study.settings, *examples)
    else:
      sought = KINDS[kind](study.texts, study.settings)
    if sought.success is None:
      sought, right[sought.name] = by_evaluator(study, sought, labelled)
    more, texts = steered(study, sought, labelled, free)
    lines, samples[sought.name] = [*lines, *more], texts
  text = markdown(HEADER, [line.cells() for line in lines], left=(0, 1))
  for name, share in right.items():
    text += f"\n\nThe classifier that judges {name} is right on {share:.3f} of held-out texts."
  numbers = {"settings": dataclasses.asdict(study.settings), "lines": [x._asdict() for x in lines]}
  file = "controls_of_file" if examples else "controls"
  write(workdir, file, text, evaluators=right, **numbers)
  shown = [f"--- {name}\n" + "\n".join(map(" ".join, each)) for name, each in samples.items()]
  (workdir / f"{file}.txt").write_text("\n".join(shown) + "\n")
  return text


def reference(study: Study, words: Sequence[Words]) -> Line:
  """Held-out text itself, measured as what is written."""
  nothing = np.full(len(words), np.nan)
  return study.line("held-out text", "", float("nan"), words, nothing)._replace(calls=0)

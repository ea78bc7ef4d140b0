"""A text made to say another value of one field, and nothing else: scored by three measures that
are multiplied for each text before they are averaged (STRAP, arXiv 2010.05700).

The words that a classifier blames for the value are taken out, and a masked model fills the places
under a guide that seeks the other value. Success, what else was said, and whether the text is one
at all are measured apart, too, as either is easy alone: a copy keeps everything, and any text of
the other value has it. Both must score near 0.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.prng import make_key
from diffusion_text.sampler.control import LogitControl
from diffusion_text.studies import record_texts
from diffusion_text.studies.control import Judged
from diffusion_text.studies.control_targets import BEGIN, ROWS, Sought, Words, meaning
from diffusion_text.studies.controls import (
  Guide,
  Study,
  by_evaluator,
  labelled_texts,
  learned,
  sampler_of,
  written,
)
from diffusion_text.studies.measures import markdown, mean_and_error, write
from diffusion_text.studies.record_texts import Text, places
from diffusion_text.types import Batch, Inputs, Params

HEADER = ("text", "value", "rest kept", "acceptable", "all three, multiplied", "words changed")
TAKEN_OUT = 4  # words of each text
TYPICAL = 0.95  # texts that cost more than this share of held-out ones are not acceptable


class Source(NamedTuple):
  """A text that says a value of the field, with what else it says.

  Attributes:
    words: The text.
    rest: The words of each other value of the record that the text says word for word.
  """

  words: tuple[str, ...]
  rest: tuple[tuple[str, ...], ...]


def sources(texts: Sequence[Text], field: str, value: str, num: int) -> list[Source]:
  """At most `num` texts that say another value of the field, and at least two other values."""
  found = []
  for text in texts:
    record = dict(text.record)
    own = record.pop(field, value)
    rest = tuple(map(record_texts.words_of, record.values()))
    kept = tuple(each for each in rest if places(text.words, each))
    if own != value and places(text.words, record_texts.words_of(own)) and len(kept) > 1:
      found.append(Source(text.words, kept))
  return found[:num]


def blamed(
  judged: Judged, ids: Int[np.ndarray, "B L"], words: Bool[np.ndarray, "B L"], target: int
) -> Bool[np.ndarray, "B L"]:
  """True at the TAKEN_OUT words of each text without which the target is likeliest: each is
  replaced by all tokens alike, one at a time.

  Args:
    judged: A classifier of rows.
    ids: The rows.
    words: Where their words are.
    target: The class.
  """
  size = judged.classifier.input_size

  @jax.jit
  def without(ids: Array, place: Array) -> Float[Array, " B"]:
    shown = jax.nn.one_hot(ids, size).at[:, place].set(1 / size)
    return judged.log_prob(Inputs(vectors=shown))[:, target]

  found = np.stack([np.asarray(without(ids, place)) for place in range(ids.shape[1])], axis=1)
  order = np.argsort(-np.where(words, found, -np.inf), axis=1, kind="stable")
  chosen = np.zeros(ids.shape, bool)
  np.put_along_axis(chosen, order[:, :TAKEN_OUT], True, axis=1)
  return chosen & words


class Scores(NamedTuple):
  """One number for each text, [num] each: 1 or 0."""

  value: Float[np.ndarray, " num"]
  kept: Float[np.ndarray, " num"]
  acceptable: Float[np.ndarray, " num"]

  def cells(self, name: str, changed: float) -> tuple[str, ...]:
    """A line of the table; the product is taken for each text."""
    each = (*self, self.value * self.kept * self.acceptable)
    shown = [f"{mean:.3f} ± {error:.3f}" for mean, error in map(mean_and_error, each)]
    return (name, *shown, f"{changed:.1f}")


def scores(
  found: Sequence[Source],
  words: Sequence[Words],
  value: Float[np.ndarray, " num"],
  nats: Float[np.ndarray, " num"],
  most: float,
) -> Scores:
  """The three measures of texts.

  Args:
    found: What they were made of.
    words: The texts.
    value: Whether they have the value that is sought.
    nats: What a judge asks for a word of each.
    most: The most that an acceptable text costs.
  """
  kept = [all(places(own, each) for each in source.rest) for own, source in zip(words, found)]
  return Scores(value, np.array(kept, np.float64), (nats <= most).astype(np.float64))


def nats_per_word(study: Study, words: Sequence[Words]) -> Float[np.ndarray, " num"]:
  """What the judge asks for a word of each text, its end included."""
  costs = record_texts.nats(study.judge, study.batch(words), make_key(0)).sum(1)
  return costs / np.array([len(each) + 1 for each in words])


def run(study: Study, workdir: pathlib.Path) -> str:
  """The table of a copy, another text of the value, and what is filled in with and without a guide;
  written as transfer.md and transfer.json.

  Raises:
    ValueError: For an unknown field or value, and where too few texts say another value.
  """
  settings, texts, labelled = study.settings, study.texts, labelled_texts(study)
  sought, _ = by_evaluator(study, meaning(texts, settings), labelled)
  guide, _ = learned(study, sought, study.labelled(sought, labelled))
  found = sources(texts.splits["test"], settings.field, settings.value, settings.num)
  if len(found) < settings.num:
    raise ValueError(f"num={settings.num}, but {len(found)} texts say another value; use fewer")
  copies = [source.words for source in found]
  others = [
    text.words
    for text in texts.splits["test"]
    if dict(text.record).get(settings.field) == settings.value
  ]
  made = {
    "a copy (control)": copies,
    "another text of the value (control)": [
      others[number % len(others)] for number in range(len(copies))
    ],
    **filled(study, sought, guide, copies),
  }
  usual = nats_per_word(study, [text.words for text in texts.splits["validation"][:256]])
  most, lines = float(np.quantile(usual, TYPICAL)), []
  for name, words in made.items():
    each = scores(found, words, sought.success(words), nats_per_word(study, words), most)
    changed = np.mean([sum(a != b for a, b in zip(w, c)) for w, c in zip(words, copies)])
    lines.append(each.cells(name, float(changed)))
  text = markdown(HEADER, lines)
  write(workdir, "transfer", text, settings=dataclasses.asdict(settings), lines=lines)
  shown = [f"--- {name}\n" + "\n".join(map(" ".join, each)) for name, each in made.items()]
  (workdir / "transfer.txt").write_text("\n".join(shown) + "\n")
  return text


def filled(
  study: Study, sought: Sought, guide: Judged, copies: Sequence[Words]
) -> dict[str, list[Words]]:
  """name -> the texts with the words that the guide blames drawn anew: without a guide, with it."""
  settings, batch = study.settings, study.batch(copies)
  place = np.arange(study.texts.length) - BEGIN
  real = (place >= 0) & (place < np.array([[len(each)] for each in copies]))
  out = blamed(guide, batch.ids, real, int(sought.target[0]))
  opened, sampler, last = Batch(batch.ids, ~out), sampler_of(study), settings.strengths[-1]
  steered = LogitControl(sampler=sampler, classifier=Guide(classifier=guide.classifier))

  def read(first: int) -> Params:
    sides = {"target": sought.target[first : first + ROWS], "weight": np.ones(ROWS, np.float32)}
    return {"network": guide.params, "strength": jnp.float32(last), **sides}

  free = study.draw(sampler, lambda first: {}, opened)
  guided = study.draw(steered, read, opened)
  return {
    "filled in, no guide (control)": written(study, free),
    f"filled in, strength {last:g}": written(study, guided),
  }

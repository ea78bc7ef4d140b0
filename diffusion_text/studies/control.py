"""The control study: a generator, a classifier that steers it, and another one that says whether
that was a success.

The attribute is the source of a document, that is which novel it is from (`sources` of the corpus),
and so nothing that was made up for the study. The labelled rows of the training split are cut in
three disjoint parts: the guide learns from the first, the evaluator (a classifier of another
architecture and seed) from the second, and the evaluator is measured on the third. The generator
learns from the whole split and sees no labels. `control_exam` makes lines of a table of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text import train
from diffusion_text.core.capability import require
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import position_keys, row_keys
from diffusion_text.data.labels import LabelledRows, labelled_rows
from diffusion_text.evaluate.task_metrics import Score, mean_score
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained, arrays
from diffusion_text.model.classifier import Classifier
from diffusion_text.sampler.control import LatentControl, LogitControl, NoisesVectors
from diffusion_text.types import Batch, Inputs, Key, Loss, Params, Process, Progress, Sampler

GUIDE, EVALUATOR, HELD_OUT = range(3)  # parts of the labelled rows
BATCH = 32  # rows drawn, classified or scored at a time
# (key, ids [B, L]) -> what a classifier is shown of these rows.
Read = Callable[[Key, Array], Inputs]


@runtime_checkable
class Sourced(Protocol):
  """A corpus that knows where its documents come from."""

  def sources(self, split: str) -> tuple[tuple[str, ...], list[int]]:
    """(names of the sources, the number of the source of each document)."""


@member
class TextGuide:
  """log p(target | soft tokens) of a classifier of clean text; its parameters are {"network",
  "strength"}.
  """

  classifier: Classifier = option(..., "of clean text")
  target: int = option(..., "the class that is sought", ge=0)

  def log_prob(self, params: Params, soft: Float[Array, "B u V"]) -> Float[Array, " B"]:
    """Nats times the strength, which is a parameter, so that one program serves all strengths."""
    logits = self.classifier.apply(params["network"], Inputs(vectors=soft))
    return params["strength"] * jax.nn.log_softmax(logits)[:, self.target]


def shown_tokens(
  process: Any, params: Params, vectors: Float[Array, "B u E"], t: Float[Array, "B u"]
) -> Inputs:
  """The tokens as far as noised vectors show them, as rows of probabilities [B, u, V]: what Bayes'
  rule makes of each vector alone, where all tokens are equally frequent. params: of the process.

  So a classifier of clean text reads noised vectors. One of the vectors themselves has to find out
  first which tokens they are of, and one that learns from noised rows sees little of them at most
  times: both stayed at chance (docs/results.md).
  """
  return Inputs(vectors=jax.nn.softmax(process.evidence(params, vectors, t)))


@member
class VectorGuide:
  """log p(target | z_t) of a classifier that reads noised vectors as `shown_tokens`; its parameters
  are {"network", "strength", "process"}.
  """

  classifier: Classifier = option(..., "of clean text")
  target: int = option(..., "the class that is sought", ge=0)
  process: Any = option(..., "the process that adds the noise")

  def log_prob(
    self, params: Params, vectors: Float[Array, "B u E"], t: Float[Array, "B u"]
  ) -> Float[Array, " B"]:
    """Nats times the strength, which is a parameter, so that one program serves all strengths."""
    inputs = shown_tokens(self.process, params["process"], vectors, t)
    logits = self.classifier.apply(params["network"], inputs)
    return params["strength"] * jax.nn.log_softmax(logits)[:, self.target]


@dataclasses.dataclass(frozen=True)
class Judged:
  """A classifier with its parameters."""

  classifier: Classifier
  params: Params

  def log_prob(self, inputs: Inputs) -> Float[Array, "B C"]:
    """log p(c | row)."""
    return jax.nn.log_softmax(self.classifier.apply(self.params, inputs))

  def answers(self, ids: Int[np.ndarray, "N L"]) -> Int[np.ndarray, " N"]:
    """The likeliest class of each row of clean tokens."""
    best = jax.jit(lambda rows: jnp.argmax(self.log_prob(Inputs(ids=rows)), axis=1))
    parts = [np.asarray(best(ids[i : i + BATCH])) for i in range(0, len(ids), BATCH)]
    return np.concatenate(parts)


@member
class Settings:
  """How a generator is steered."""

  target: str = option("emma", "the name of a source")
  strengths: tuple[float, ...] = option((2.0,), "of the gradient; 1 is Bayes' rule")
  guidance: Literal["logits", "latents"] = option("logits", "see `sampler.control`")
  wrt: Literal["probabilities", "logits"] = option("probabilities", "guidance='logits': gradient")
  inner_steps: int = option(1, "gradients per network call", ge=1)
  num: int = option(64, "rows drawn at each strength, a multiple of 32", ge=1)
  seed: int = option(0, "of classifiers and samples", ge=0)
  classifier_steps: int = option(300, "updates of each classifier", ge=1)

  def __post_init__(self):
    if self.num % BATCH:
      more = -(-self.num // BATCH) * BATCH
      raise ValueError(f"num={self.num} must be a multiple of {BATCH} rows; use {more}")

  def guide(self, process: Process, classes: int) -> Classifier:
    """What is trained to steer: a bag of tokens, of clean text.

    Raises:
      ValueError: for latents of a process that has none.
    """
    if self.guidance == "latents":
      fix = "guidance='logits' serves every process"
      require(process, NoisesVectors, "guidance='latents'", fix)
    return Classifier(classes=classes, input_size=process.vocab_size)

  def sampler(self, experiment: Experiment, guide: Classifier, target: int) -> Sampler:
    """The generator's own sampler under control."""
    how = {"sampler": experiment.sampler, "steps": self.inner_steps}
    if self.guidance == "logits":
      return LogitControl(
        classifier=TextGuide(classifier=guide, target=target), wrt=self.wrt, **how
      )
    process = experiment.model.process
    return LatentControl(
      classifier=VectorGuide(classifier=guide, target=target, process=process), **how
    )

  def refusal(self, experiment: Experiment) -> str | None:
    """Why a system cannot be steered so; None if it can."""
    try:
      guide = self.guide(experiment.model.process, 2)
      self.sampler(experiment, guide, 0).check(experiment.model)
    except ValueError as error:
      return str(error)
    return None


def train_classifier(
  classifier: Classifier,
  rows: LabelledRows,
  *,
  read: Read,
  seed: int,
  steps: int = 300,
  batch_size: int = 64,
  learning_rate: float = 1e-2,
) -> Judged:
  """The classifier after `steps` updates of AdamW, in one compiled scan, on rows drawn so that
  every class is equally frequent; on any rows where each token has a label, label [N, L].

  read: what the classifier is shown of the rows.
  """
  optimizer = train.make_optimizer(
    learning_rate=learning_rate,
    steps=steps,
    schedule="cosine",
    warmup_steps=steps // 20,
    weight_decay=0.1,
  )

  def loss(params: Params, frozen: Params, key: Key, batch: Batch, progress: Progress) -> Loss:
    del frozen, progress
    logp = jax.nn.log_softmax(classifier.apply(params, read(key, batch.ids)))
    nats = -jnp.take_along_axis(logp, batch.extras["label"][..., None], axis=-1)
    return Loss(jnp.sum(nats), jnp.float32(nats.size), {})

  step = train.make_train_step(loss, optimizer, seed=seed)
  picked = _picked(rows.label, classifier.classes, (steps, batch_size), seed)

  def start() -> tuple[Params, Params]:
    return classifier.init(train.named_key(seed, "classifier", 0)), {}

  @jax.jit
  def run(ids: Array, label: Array, picked: Array) -> Params:
    def update(state, chosen):
      return step(state, Batch(ids[chosen], extras={"label": label[chosen]}))

    state, _ = jax.lax.scan(update, train.create_state(start, optimizer, ema=False), picked)
    return state.params

  return Judged(classifier, run(rows.ids, rows.label, picked))


def _picked(
  label: Int[np.ndarray, "..."], classes: int, shape: tuple[int, int], seed: int
) -> Int[np.ndarray, "S B"]:
  """The rows of each update, see `train_classifier`."""
  rng = np.random.default_rng(seed)
  if label.ndim > 1:
    return rng.integers(0, len(label), shape)
  of_class = [np.flatnonzero(label == each) for each in range(classes)]
  drawn = rng.integers(0, classes, shape)
  return np.array([[rng.choice(of_class[each]) for each in batch] for batch in drawn])


def clean(key: Key, ids: Int[Array, "B L"]) -> Inputs:
  """What a classifier of text is shown: the tokens themselves."""
  del key
  return Inputs(ids=ids)


def noised(process: Process, params: Params) -> Read:
  """What a classifier of states is shown: the tokens that each row shows, noised to a time of its
  own. params: the whole tree of the generator.
  """
  of_process = params["process"]

  def read(key: Key, ids: Array) -> Inputs:
    time_key, key = jax.random.split(key)
    t = jnp.broadcast_to(jax.random.uniform(time_key, (ids.shape[0], 1)), ids.shape)
    keys = position_keys(key, *ids.shape)
    state = process.corrupt(of_process, keys, process.clean(of_process, ids), t)
    return shown_tokens(process, of_process, state, t)

  return read


def train_guide(generator: Trained, settings: Settings, rows: LabelledRows, classes: int) -> Judged:
  """The guide, trained on clean text. Raises ValueError as `Settings.guide` does."""
  classifier = settings.guide(generator.experiment.model.process, classes)
  how = {"seed": settings.seed, "steps": settings.classifier_steps}
  return train_classifier(classifier, rows, read=clean, **how)


def drawn(
  generator: Trained, settings: Settings, sampler: Sampler, classifier: Params
) -> tuple[Int[np.ndarray, "num L"], int]:
  """(ids, network calls of a row), with the same keys whatever the sampler.

  classifier: what the guide of the sampler reads; empty for a sampler without.
  """
  experiment = generator.experiment
  empty = Batch(np.zeros((BATCH, experiment.data.length), np.int32))
  sampler.check(experiment.model)
  params = {**generator.params, "classifier": classifier}
  keys = [row_keys(settings.seed, BATCH, first=first) for first in range(0, settings.num, BATCH)]
  results = [experiment.sample(params, each, empty, sampler=sampler) for each in keys]
  return np.concatenate([np.asarray(each.ids) for each in results]), int(results[0].calls)


class Drawn(NamedTuple):
  """Rows that were drawn in one way.

  Attributes:
    label: What steered; "": nothing.
    ids: int32 [num, L].
    calls: Network calls of a row.
    guide_right: See `guide_right`; NaN where nothing steered.
  """

  label: str
  ids: Int[np.ndarray, "num L"]
  calls: int
  guide_right: float = math.nan


@dataclasses.dataclass(frozen=True)
class Study:
  """What was drawn, with what says whether it is of the source that was sought.

  Attributes:
    tokenizer: of the rows.
    target: the number of the source that is sought.
    rows: labelled, in three parts.
    evaluator: a classifier that has learned from the second part.
    guide: the classifier that steered, which has learned from the first part; None: nothing did.
    samples: What was drawn, unguided first.
  """

  tokenizer: Any
  target: int
  rows: LabelledRows
  evaluator: Judged
  guide: Judged | None = None
  samples: Sequence[Drawn] = ()

  @property
  def held_out(self) -> LabelledRows:
    """Rows that no classifier has learned from."""
    return self.rows.of_part(HELD_OUT)

  def by_guide(self, ids: Int[np.ndarray, "N L"]) -> Score:
    """The share of rows that the guide takes for the target; NaN if there is none."""
    if self.guide is None:
      return Score(float("nan"), None)
    return mean_score(self.guide.answers(ids) == self.target)


def sources_of(experiment: Experiment, target: str) -> tuple[tuple[str, ...], list[int]]:
  """(names of the sources, the number of the source of each training document).

  Raises:
    ValueError: for a corpus without sources, and for an unknown target.
  """
  corpus = experiment.data.make_corpus()
  require(corpus, Sourced, "a control study", "use data.corpus='austen', which has novels")
  names, labels = corpus.sources("train")
  if target not in names:
    raise ValueError(
      f"target={target!r} is no source of {experiment.data.corpus}; use one of {', '.join(names)}"
    )
  return names, labels


def evaluated(experiment: Experiment, settings: Settings) -> Study:
  """The evaluator, trained, and nothing drawn. Raises ValueError as `sources_of` does."""
  names, labels = sources_of(experiment, settings.target)
  rows = labelled_rows(arrays(experiment, "train"), labels, experiment.data.length, 3)
  classifier = Classifier(
    classes=len(names), input_size=experiment.facts.vocab_size, width=96, window=3, pool="max"
  )
  evaluator = train_classifier(
    classifier,
    rows.of_part(EVALUATOR),
    read=clean,
    seed=settings.seed + 1,
    steps=settings.classifier_steps,
  )
  return Study(experiment.tokenizer, names.index(settings.target), rows, evaluator)


def unsteered(generator: Trained, settings: Settings) -> Study:
  """Rows that nothing steers. Raises ValueError as `sources_of` does."""
  plain = drawn(generator, settings, generator.experiment.sampler, {})
  return dataclasses.replace(evaluated(generator.experiment, settings), samples=[Drawn("", *plain)])


def steer(generator: Trained, settings: Settings) -> Study:
  """Trains the two classifiers and draws without control, at every strength, and at the last one
  with a guide that has learned from labels in another order: the control.

  Raises:
    ValueError: as `sources_of`, and for a generator that cannot be steered so.
  """
  study = evaluated(generator.experiment, settings)
  classes, own = study.evaluator.classifier.classes, study.rows.of_part(GUIDE)
  guide = train_guide(generator, settings, own, classes)
  order = np.random.default_rng(settings.seed).permutation(len(own.label))
  wrong = train_guide(generator, settings, own._replace(label=own.label[order]), classes)
  sampler = settings.sampler(generator.experiment, guide.classifier, study.target)
  last = settings.strengths[-1]
  lines = [(0.0, "", guide), *((each, f"strength {each:g}", guide) for each in settings.strengths)]
  lines.append((last, f"labels shuffled, strength {last:g}", wrong))
  of_process, samples = generator.params["process"], []
  for strength, label, each in lines:
    read = {"network": each.params, "strength": jnp.float32(strength), "process": of_process}
    right = guide_right(generator, settings, each, study.held_out) if strength else math.nan
    samples.append(Drawn(label, *drawn(generator, settings, sampler, read), right))
  return dataclasses.replace(study, guide=guide, samples=samples)


def guide_right(generator: Trained, settings: Settings, guide: Judged, rows: LabelledRows) -> float:
  """How often a guide is right about rows, read as it reads them when it steers, as a mean over
  the classes: clean, or where it steers latents noised to all times.
  """
  process, latents = generator.experiment.model.process, settings.guidance == "latents"
  read = noised(process, generator.params) if latents else clean

  @jax.jit
  def answers(number: Array, ids: Array) -> Array:
    key = jax.random.fold_in(train.named_key(0, "guide", 0), number)
    return jnp.argmax(guide.log_prob(read(key, ids)), axis=1)

  count = len(rows.ids) // BATCH * BATCH
  parts = [np.asarray(answers(i, rows.ids[i : i + BATCH])) for i in range(0, count, BATCH)]
  return mean_over_classes(np.concatenate(parts), rows.label[:count])


def mean_over_classes(found: Int[np.ndarray, "..."], label: Int[np.ndarray, "..."]) -> float:
  """The share of labels that were found, a mean over the classes that occur."""
  return float(np.mean([np.mean(found[label == c] == c) for c in np.unique(label)]))

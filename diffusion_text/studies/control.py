"""The control study: a generator, a classifier that steers it, another one that judges, and an
autoregressive model that prices the text.

The attribute is the source of a document, that is which novel it is from (`sources` of the corpus),
and so nothing that was made up for the study. The labelled rows of the training split are cut in
three disjoint parts: the guide learns from the first, the evaluator (a classifier of another
architecture and seed) from the second, and the evaluator is measured on the third. Generator and
judge learn from the whole split and see no labels. `control_report` makes the table.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.core.capability import require
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import position_keys, row_keys
from diffusion_text.data.labels import LabelledRows, labelled_rows
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import (
  Trained,
  arrays,
  checkpoints,
  load,
  load_experiment,
  train_workdir,
)
from diffusion_text.model.classifier import Classifier
from diffusion_text.sampler.control import LatentControl, LogitControl, NoisesVectors
from diffusion_text.types import Batch, Inputs, Key, Loss, Params, Process, Progress, Sampler

log = logging.getLogger(__name__)

GUIDE, EVALUATOR, HELD_OUT = range(3)  # parts of the labelled rows
BATCH = 32  # rows drawn, classified or scored at a time
# (key, ids [B, L]) -> what a classifier is shown of these rows, and their times [B, L] (None: clean
# text).
Read = Callable[[Key, Array], tuple[Inputs, Array | None]]


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


@member
class VectorGuide:
  """log p(target | z_t) of a classifier of noised vectors; its parameters are {"network",
  "strength", "process"}.
  """

  classifier: Classifier = option(..., "of noised vectors")
  target: int = option(..., "the class that is sought", ge=0)
  process: Any = option(..., "the process that adds the noise")

  def log_prob(
    self, params: Params, vectors: Float[Array, "B u E"], t: Float[Array, "B u"]
  ) -> Float[Array, " B"]:
    """Nats times the strength, which is a parameter, so that one program serves all strengths."""
    inputs = self.process.inputs(params["process"], vectors, t)
    logits = self.classifier.apply(params["network"], inputs, t)
    return params["strength"] * jax.nn.log_softmax(logits)[:, self.target]


@dataclasses.dataclass(frozen=True)
class Judged:
  """A classifier with its parameters."""

  classifier: Classifier
  params: Params

  def log_prob(self, inputs: Inputs, t: Float[Array, "B L"] | None = None) -> Float[Array, "B C"]:
    """log p(c | row)."""
    return jax.nn.log_softmax(self.classifier.apply(self.params, inputs, t))

  def answers(self, ids: Int[np.ndarray, "N L"]) -> Int[np.ndarray, " N"]:
    """The likeliest class of each row of clean tokens."""
    best = jax.jit(lambda rows: jnp.argmax(self.log_prob(Inputs(ids=rows)), axis=1))
    parts = [np.asarray(best(ids[i : i + BATCH])) for i in range(0, len(ids), BATCH)]
    return np.concatenate(parts)


@member
class Settings:
  """How a generator is steered."""

  target: str = option(..., "the name of a source")
  strengths: tuple[float, ...] = option(..., "of the gradient; 1 is Bayes' rule")
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

  def sampler(self, generator: Trained, guide: Judged, target: int) -> Sampler:
    """The generator's own sampler under control."""
    experiment = generator.experiment
    how = {"sampler": experiment.sampler, "steps": self.inner_steps}
    if self.guidance == "logits":
      return LogitControl(
        classifier=TextGuide(classifier=guide.classifier, target=target), wrt=self.wrt, **how
      )
    process = experiment.model.process
    of_vectors = VectorGuide(classifier=guide.classifier, target=target, process=process)
    return LatentControl(classifier=of_vectors, **how)


def trained_in(config: ConfigDict, workdir: pathlib.Path, tokenizer: Any = None) -> Trained:
  """The model of a workdir with the sampler of `config`; it is trained first if its last step is
  not there.

  Raises:
    RuntimeError: if a signal stopped the training; the same command goes on with it.
  """
  directory = str(workdir)
  if train.latest_step(checkpoints(directory)) != config.train.steps:
    result = train_workdir(build(config, tokenizer=tokenizer), directory)
    if result.status != "finished":
      raise RuntimeError(
        f"{result.status} at step {result.step} in {directory}, saved; run the same command again"
        f" to"
        " go on"
      )
  saved, wanted = load_experiment(directory).config.sampler.to_dict(), config.sampler.to_dict()
  return load(directory, [] if saved == wanted else [("sampler", wanted)])


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
  every class is equally frequent.

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
    logp = jax.nn.log_softmax(classifier.apply(params, *read(key, batch.ids)))
    nats = -jnp.take_along_axis(logp, batch.extras["label"][:, None], axis=1)
    return Loss(jnp.sum(nats), jnp.float32(len(nats)), {})

  step = train.make_train_step(loss, optimizer, seed=seed)
  rng = np.random.default_rng(seed)
  of_class = [np.flatnonzero(rows.label == label) for label in range(classifier.classes)]
  classes = rng.integers(0, classifier.classes, (steps, batch_size))
  picked = np.array([[rng.choice(of_class[label]) for label in batch] for batch in classes])

  def start() -> tuple[Params, Params]:
    return classifier.init(train.named_key(seed, "classifier", 0)), {}

  @jax.jit
  def run(ids: Array, label: Array, picked: Array) -> Params:
    def update(state, chosen):
      return step(state, Batch(ids[chosen], extras={"label": label[chosen]}))

    state, _ = jax.lax.scan(update, train.create_state(start, optimizer, ema=False), picked)
    return state.params

  return Judged(classifier, run(rows.ids, rows.label, picked))


def clean(key: Key, ids: Int[Array, "B L"]) -> tuple[Inputs, None]:
  """What a classifier of text is shown: the tokens themselves."""
  del key
  return Inputs(ids=ids), None


def noised(process: Process, params: Params) -> Read:
  """What a classifier of states is shown: each row noised to a time of its own. params: the whole
  tree of the generator.
  """
  of_process = params["process"]

  def read(key: Key, ids: Array) -> tuple[Inputs, Array]:
    time_key, key = jax.random.split(key)
    t = jnp.broadcast_to(jax.random.uniform(time_key, (ids.shape[0], 1)), ids.shape)
    keys = position_keys(key, *ids.shape)
    state = process.corrupt(of_process, keys, process.clean(of_process, ids), t)
    return process.inputs(of_process, state, t), t

  return read


def train_guide(generator: Trained, settings: Settings, rows: LabelledRows, classes: int) -> Judged:
  """A bag of tokens, trained on clean text or, for latents, on the generator's noised vectors.

  Raises:
    ValueError: for latents of a process that has none.
  """
  process = generator.experiment.model.process
  how = {"seed": settings.seed, "steps": settings.classifier_steps}
  if settings.guidance == "logits":
    classifier = Classifier(classes=classes, input_size=process.vocab_size)
    return train_classifier(classifier, rows, read=clean, **how)
  require(process, NoisesVectors, "guidance='latents'", "guidance='logits' serves every process")
  size = process.input_sizes.vectors
  classifier = Classifier(classes=classes, input_size=size, width=128, timed=True)
  return train_classifier(classifier, rows, read=noised(process, generator.params), **how)


def drawer(
  generator: Trained, guide: Judged, settings: Settings, target: int
) -> Callable[[float], tuple[np.ndarray, int]]:
  """strength -> (ids [num, L], network calls of each row); compiled once, and with the same keys at
  every strength.
  """
  experiment = generator.experiment
  empty = Batch(np.zeros((BATCH, experiment.data.length), np.int32))
  sampler = settings.sampler(generator, guide, target)
  sampler.check(experiment.model)

  def draw(strength: float) -> tuple[np.ndarray, int]:
    group = {"network": guide.params, "strength": jnp.float32(strength)}
    group["process"] = generator.params["process"]
    params = {**generator.params, "classifier": group}
    firsts = range(0, settings.num, BATCH)
    keys = [row_keys(settings.seed, BATCH, first=first) for first in firsts]
    results = [experiment.sample(params, each, empty, sampler=sampler) for each in keys]
    return np.concatenate([np.asarray(each.ids) for each in results]), int(results[0].calls)

  return draw


@dataclasses.dataclass(frozen=True)
class Steered:
  """What was drawn, and all that judges it but the price.

  Attributes:
    generator: that was steered.
    names: of the sources; target: the number of the one that was sought.
    held_out: rows that no classifier learned from.
    guide, evaluator: the two classifiers.
    samples: (strength, ids [num, L], network calls of a row), unguided first.
  """

  generator: Trained
  names: tuple[str, ...]
  target: int
  held_out: LabelledRows
  guide: Judged
  evaluator: Judged
  samples: Sequence[tuple[float, np.ndarray, int]]


def steer(generator: Trained, settings: Settings) -> Steered:
  """Trains the two classifiers and draws at every strength.

  Raises:
    ValueError: for a corpus without sources, and for an unknown target.
  """
  experiment = generator.experiment
  corpus = experiment.data.make_corpus()
  require(corpus, Sourced, "a control study", "use data.corpus='austen', which has novels")
  names, labels = corpus.sources("train")
  if settings.target not in names:
    raise ValueError(
      f"target={settings.target!r} is no source of {experiment.data.corpus}; use one of"
      f" {', '.join(names)}"
    )
  target = names.index(settings.target)
  rows = labelled_rows(arrays(experiment, "train"), labels, experiment.data.length, 3)
  guide = train_guide(generator, settings, rows.of_part(GUIDE), len(names))
  other = Classifier(
    classes=len(names),
    input_size=experiment.facts.vocab_size,
    width=96,
    window=3,
    pool="max",
  )
  evaluator = train_classifier(
    other,
    rows.of_part(EVALUATOR),
    read=clean,
    seed=settings.seed + 1,
    steps=settings.classifier_steps,
  )
  draw = drawer(generator, guide, settings, target)
  samples = list(_drawn(draw, (0.0, *settings.strengths), evaluator, target, experiment.tokenizer))
  return Steered(generator, names, target, rows.of_part(HELD_OUT), guide, evaluator, samples)


def _drawn(
  draw: Callable[[float], tuple[np.ndarray, int]],
  strengths: Sequence[float],
  evaluator: Judged,
  target: int,
  tokenizer: Any,
) -> Iterable[tuple[float, np.ndarray, int]]:
  for strength in strengths:
    ids, calls = draw(strength)
    success = 100 * np.mean(evaluator.answers(ids) == target)
    text = " ".join(tokenizer.decode(ids[0]).split())
    log.info("strength %g: %.0f %% of the target, as in: %s", strength, success, text[:200])
    yield strength, ids, calls

"""Does control work? A generator, a classifier that steers it, another that judges, and an autoregressive model that prices the text.

The attribute is the source of a document (`corpus.sources`: which novel), which nobody made up. Of three disjoint parts of the training
split, the guiding classifier learns from one, the evaluating one (another architecture and seed) from the second, and the evaluating one is
measured on the third. Generator and judge share corpus and tokenizer with them, learn from the whole split, and know of no labels.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.core.prng import row_keys
from diffusion_text.data.labels import LabelledRows, labelled_rows
from diffusion_text.evaluate.text_metrics import distinct_n, token_entropy
from diffusion_text.experiment.build import build, make_policy
from diffusion_text.experiment.run import (
  Trained,
  arrays,
  checkpoints,
  load,
  load_experiment,
  train_workdir,
)
from diffusion_text.model.classifier import Classifier
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.sampler.control import LatentControl, LogitControl
from diffusion_text.sampler.loop import Policy, Sample
from diffusion_text.types import Array, Batch, Inputs, Key, Loss, Params, Progress, Time

log = logging.getLogger(__name__)

GUIDE, EVALUATOR, HELD_OUT = range(3)  # parts of the labelled rows
BATCH = 32  # rows drawn, classified or scored at a time
Read = Callable[
  [Key, Array], tuple[Inputs, Time | None]
]  # (key, ids [B, L]) -> what a classifier is shown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labelled(Batch):
  """A batch whose rows have a label, int32 [B]."""

  label: Array | None = None


@dataclasses.dataclass(frozen=True)
class Judged:
  """A classifier with its parameters."""

  classifier: Classifier
  params: Params

  def log_prob(self, inputs: Inputs, t: Time | None = None) -> Array:
    """log p(c | row), [B, C]."""
    return jax.nn.log_softmax(self.classifier.apply(self.params, inputs, t))

  def answers(self, ids: np.ndarray) -> np.ndarray:
    """The likeliest class of each row of clean tokens, [N]."""
    best = jax.jit(lambda ids: jnp.argmax(self.log_prob(Inputs(ids=ids)), axis=1))
    return np.concatenate([np.asarray(best(ids[i : i + BATCH])) for i in range(0, len(ids), BATCH)])


def trained_in(config: ConfigDict, workdir: pathlib.Path, tokenizer: Any = None) -> Trained:
  """The model of a workdir with the sampler of `config`, trained first if its last step is not there. Raises RuntimeError if a signal
  stopped the training: run it again."""
  directory = str(workdir)
  if train.latest_step(checkpoints(directory)) != config.train.steps:
    result = train_workdir(build(config, tokenizer=tokenizer), directory)
    if result.status != "finished":
      raise RuntimeError(
        f"{result.status} at step {result.step} in {directory}, saved; run the same command again to go on"
      )
  saved = load_experiment(directory).config.sampler
  return load(
    directory,
    [(f"sampler.{key}", value) for key, value in config.sampler.items() if value != saved.get(key)],
  )


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
  """AdamW on rows drawn so that every class is equally frequent; what it is shown of them is `read`'s choice. One compiled scan."""
  optimizer = train.make_optimizer(
    learning_rate=learning_rate,
    steps=steps,
    schedule="cosine",
    warmup_steps=steps // 20,
    weight_decay=0.1,
  )

  def loss(params: Params, key: Key, batch: Labelled, progress: Progress) -> Loss:
    del progress
    logp = jax.nn.log_softmax(classifier.apply(params, *read(key, batch.ids)))
    nats = -jnp.take_along_axis(logp, batch.label[:, None], axis=1)
    return Loss(jnp.sum(nats), jnp.float32(len(nats)), {})

  step = train.make_train_step(loss, optimizer, seed=seed)
  rng = np.random.default_rng(seed)
  of_class = [np.flatnonzero(rows.label == label) for label in range(classifier.classes)]
  classes = rng.integers(0, classifier.classes, (steps, batch_size))
  picked = np.array([[rng.choice(of_class[label]) for label in batch] for batch in classes])

  @jax.jit
  def run(ids: Array, label: Array, picked: Array) -> Params:
    state = train.create_state(
      lambda: classifier.init(train.named_key(seed, "classifier", 0)), optimizer, ema=False
    )
    state, _ = jax.lax.scan(
      lambda state, rows: step(state, Labelled(ids[rows], label=label[rows])), state, picked
    )
    return state.params

  return Judged(classifier, run(rows.ids, rows.label, picked))


def clean(key: Key, ids: Array) -> tuple[Inputs, None]:
  """A classifier of text: the tokens themselves."""
  del key
  return Inputs(ids=ids), None


def noised(generator: Trained) -> Read:
  """A classifier of the generator's states: each row noised to a time of its own."""
  process, params = generator.experiment.process, generator.params["process"]

  def read(key: Key, ids: Array) -> tuple[Inputs, Time]:
    time_key, key = jax.random.split(key)
    t = jnp.broadcast_to(jax.random.uniform(time_key, (ids.shape[0], 1)), ids.shape)
    return process.inputs(params, process.corrupt(params, key, ids, t), t), t

  return read


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a generator is steered. guidance: "logits" or "latents" (`sampler.control`). wrt: of LogitControl. inner_steps: gradients per call.

  target: the name of a source. num: rows drawn at each strength, a multiple of BATCH. classifier_steps: updates of each classifier.
  Raises ValueError for values out of range.
  """

  target: str
  strengths: Sequence[float]
  guidance: str = "logits"
  wrt: str = "probabilities"
  inner_steps: int = 1
  num: int = 64
  seed: int = 0
  classifier_steps: int = 300

  def __post_init__(self):
    if self.guidance not in ("logits", "latents"):
      raise ValueError(f"guidance={self.guidance!r} is unknown; use 'logits' or 'latents'")
    if self.num < BATCH or self.num % BATCH:
      raise ValueError(
        f"num={self.num} must be a multiple of {BATCH} rows; use {-(-max(self.num, 1) // BATCH) * BATCH}"
      )
    LogitControl(
      None, lambda soft: soft, 0.0, self.inner_steps, self.wrt
    )  # refuses what it does not take

  def policy(
    self, generator: Trained, guide: Judged, target: int, strength: Array | float
  ) -> Policy:
    """The generator's own sampler under control."""
    experiment, params = generator.experiment, generator.params["process"]
    inner = make_policy(experiment.config.sampler.to_dict(), experiment.timing)
    if self.guidance == "logits":
      of_soft = lambda soft: guide.log_prob(Inputs(vectors=soft))[:, target]
      return LogitControl(inner, of_soft, strength, self.inner_steps, self.wrt)
    of_state = lambda state, t: guide.log_prob(experiment.process.inputs(params, state, t), t)[
      :, target
    ]
    return LatentControl(inner, of_state, strength, self.inner_steps)

  def train_guide(self, generator: Trained, rows: LabelledRows, classes: int) -> Judged:
    """A bag of tokens, trained on clean text or, for latents, on the generator's noised vectors."""
    process, options = (
      generator.experiment.process,
      {"seed": self.seed, "steps": self.classifier_steps},
    )
    if self.guidance == "logits":
      return train_classifier(Classifier(classes, process.vocab_size), rows, read=clean, **options)
    if not isinstance(process, Gaussian):
      raise ValueError(
        f"guidance='latents' needs a Gaussian process, not {type(process).__name__}; 'logits' serves every one"
      )
    classifier = Classifier(classes, process.input_size, width=128, timed=True)
    return train_classifier(classifier, rows, read=noised(generator), **options)


def sampler(
  generator: Trained, guide: Judged, settings: Settings, target: int
) -> Callable[[float], tuple[np.ndarray, int]]:
  """strength -> ids [num, L] and the network calls of each row; compiled once, and the same keys at every strength."""
  experiment = generator.experiment
  empty = Batch(np.zeros((BATCH, experiment.data.length), np.int32))

  @jax.jit
  def draw(params: Params, strength: Array, keys: Key) -> Sample:
    policy = settings.policy(dataclasses.replace(generator, params=params), guide, target, strength)
    return experiment.sample_fn(policy)(params, keys, empty)

  def run(strength: float) -> tuple[np.ndarray, int]:
    keys = [row_keys(settings.seed, BATCH, first=first) for first in range(0, settings.num, BATCH)]
    results = [draw(generator.params, jnp.float32(strength), each) for each in keys]
    return np.concatenate([np.asarray(result.ids) for result in results]), int(results[0].calls)

  return run


def nats_per_token(judge: Trained) -> Callable[[np.ndarray], np.ndarray]:
  """ids [N, L] -> [N], what each row costs under the judge, nats per token; exact for a left-to-right judge."""
  fn, key = judge.experiment.nats_fn(), jax.random.key(0)

  def price(ids: np.ndarray) -> np.ndarray:
    with jax.set_mesh(judge.experiment.mesh):
      batches = (Batch(ids[i : i + BATCH]) for i in range(0, len(ids), BATCH))
      return np.concatenate(
        [np.divide(*map(np.asarray, fn(judge.params, key, batch, Progress()))) for batch in batches]
      )

  return price


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table. success: share of rows of the target by the evaluator; guide: by the guide (nan: it reads no clean text);
  nats: per token by the judge. *_error: standard errors over rows."""

  name: str
  success: float
  success_error: float
  guide: float
  nats: float
  nats_error: float
  entropy: float
  distinct_2: float
  calls: int

  @staticmethod
  def of(
    name: str,
    ids: np.ndarray,
    target: int,
    evaluator: Judged,
    guide: Judged,
    price: Callable,
    calls: int = 0,
  ) -> Row:
    """The measures of rows ids [N, L]."""
    nats, root = price(ids), len(ids) ** 0.5
    success = float(np.mean(evaluator.answers(ids) == target))
    by_guide = (
      float("nan") if guide.classifier.timed else float(np.mean(guide.answers(ids) == target))
    )
    errors = (success * (1 - success)) ** 0.5 / root, float(nats.std() / root)
    return Row(
      name,
      success,
      errors[0],
      by_guide,
      float(nats.mean()),
      errors[1],
      token_entropy(ids),
      distinct_n(ids, 2),
      calls,
    )

  def line(self, unguided: Row) -> str:
    """As a line of a markdown table."""
    success = f"{100 * self.success:.0f} ± {100 * self.success_error:.0f} %"
    more = f"{100 * (self.nats / unguided.nats - 1):+.0f} %"
    nats = f"{self.nats:.3f} ± {self.nats_error:.3f} | {more}"
    return f"| {self.name} | {success} | {100 * self.guide:.0f} % | {nats} | {self.entropy:.2f} | {self.distinct_2:.2f} | {self.calls} |"


HEADER = """| strength | success (evaluator) | success (guide) | judge, nats/token | more | token entropy | distinct-2 | network calls |
|---|---|---|---|---|---|---|---|"""


def verdict(rows: Sequence[Row]) -> str:
  """Whether some strength raises success by 30 points at no more than 20 % more nats per token than the first row, which is unguided."""
  unguided, *guided = rows
  fluent = [row for row in guided if row.nats <= 1.2 * unguided.nats]
  if not fluent:
    return "no strength keeps within 20 % more nats per token"
  best = max(fluent, key=lambda row: row.success)
  gain, more = 100 * (best.success - unguided.success), 100 * (best.nats / unguided.nats - 1)
  shown = "shown" if gain >= 30 else "not shown"
  return f"control {shown}: strength {best.name} raises success by {gain:.0f} points at {more:+.0f} % nats per token (asked: 30, 20 %)"


@dataclasses.dataclass(frozen=True)
class Steered:
  """What was drawn, and all that judges it but the price. names: of the sources; target: its number; held_out: rows no classifier
  learned from; samples: (strength, ids [num, L], network calls of a row), unguided first."""

  generator: Trained
  names: tuple[str, ...]
  target: int
  held_out: LabelledRows
  guide: Judged
  evaluator: Judged
  samples: Sequence[tuple[float, np.ndarray, int]]


def steer(generator: Trained, settings: Settings) -> Steered:
  """Trains the two classifiers and draws at every strength. Raises ValueError for a corpus without sources or an unknown target."""
  experiment = generator.experiment
  corpus = experiment.data.make_corpus()
  if not hasattr(corpus, "sources"):
    raise ValueError(
      f"data.corpus={experiment.data.corpus!r} does not tell where its documents come from; use 'austen'"
    )
  names, labels = corpus.sources("train")
  if settings.target not in names:
    raise ValueError(
      f"target={settings.target!r} is no source of {experiment.data.corpus}; use one of {', '.join(names)}"
    )
  target, rows = (
    names.index(settings.target),
    labelled_rows(arrays(experiment, "train"), labels, experiment.data.length, 3),
  )
  guide = settings.train_guide(generator, rows.of_part(GUIDE), len(names))
  other, options = (
    Classifier(len(names), experiment.process.vocab_size, width=96, window=3, pool="max"),
    {"read": clean},
  )
  options |= {"seed": settings.seed + 1, "steps": settings.classifier_steps}
  evaluator = train_classifier(other, rows.of_part(EVALUATOR), **options)
  draw, samples = sampler(generator, guide, settings, target), []
  for strength in (0.0, *settings.strengths):
    samples.append((strength, *draw(strength)))
    text = " ".join(experiment.tokenizer.decode(samples[-1][1][0]).split())
    success = np.mean(evaluator.answers(samples[-1][1]) == target)
    log.info(
      "strength %g: %.0f %% %s, as in: %s", strength, 100 * success, settings.target, text[:200]
    )
  return Steered(generator, names, target, rows.of_part(HELD_OUT), guide, evaluator, samples)


def report(steered: Steered, judge: Trained, settings: Settings) -> str:
  """The table, what it was made with, and the verdict."""
  generator, guide, evaluator, held_out = (
    steered.generator,
    steered.guide,
    steered.evaluator,
    steered.held_out,
  )
  price = nats_per_token(judge)
  row = lambda name, ids, calls=0: Row.of(name, ids, steered.target, evaluator, guide, price, calls)
  lines = [
    row(f"{strength:g}" if strength else "0 (unguided)", ids, calls)
    for strength, ids, calls in steered.samples
  ]
  own = held_out.ids[held_out.label == steered.target]
  own = own[
    np.linspace(0, len(own) - 1, settings.num).astype(int)
  ]  # as many rows as are drawn: distinct-n falls with their number
  right = 100 * float(np.mean(evaluator.answers(held_out.ids) == held_out.label))
  table = "\n".join(
    [HEADER, *(line.line(lines[0]) for line in (*lines, row("held-out text of the target", own)))]
  )
  how = (
    f"{settings.guidance}, wrt {settings.wrt}"
    if settings.guidance == "logits"
    else settings.guidance
  )
  return f"""{settings.num} rows of {own.shape[1]} tokens each, seed {settings.seed}
target: {settings.target}, one of {len(steered.names)} sources
guide ({how}; {settings.inner_steps} gradients per network call): {guide.classifier}
evaluator (other architecture, seed and text): {evaluator.classifier}, right on {right:.1f} % of {len(held_out.ids)} held-out rows
judge: {judge.experiment.timing} at step {judge.step}; generator: {type(generator.experiment.process).__name__} at step {generator.step}

{table}

{verdict(lines)}"""

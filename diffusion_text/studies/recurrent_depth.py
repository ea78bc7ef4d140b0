"""A depth-recurrent network, decoded token by token and by a wavefront, greedily, on text and on a
task whose every token needs the one before it.

The task: 6 pairs (x, π(x)) of a permutation in a random order, a first symbol, and then π of the
symbol before, again and again. A pass is a run of the core. "In a row" counts passes that wait for
each other, "of work" counts the passes of each token. The fair comparison is sequential decoding
with as many iterations as the wavefront has passes of work per token.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from diffusion_text.context import NextToken
from diffusion_text.contrib.recurrent_depth import RecurrentDepth
from diffusion_text.contrib.wavefront import NextTokenRow, Wavefront, WavefrontReader
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.data.corpora import Austen
from diffusion_text.data.tokenizers import build_tokenizer
from diffusion_text.experiment.api import TextData, fit
from diffusion_text.experiment.registry import check_names
from diffusion_text.objective import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.reader.cached import Cached
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.studies.measures import markdown, mean_and_error, pooled_entropy, write
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, DataFacts, Keys, Model, Params

HEADER = ("task", "decoding", "passes in a row, per token", "passes of work, per token")
HEADER = (*HEADER, "agrees with r iterations", "right tokens", "token entropy, nats")
SYMBOLS, ITERATES = 6, 12
LENGTH, PROMPT = 64, 16  # of text


class Task(NamedTuple):
  """What is learned and continued.

  Attributes:
    name: of the table.
    vocab_size: V.
    length: of a row.
    batches: seed -> endless training batches.
    prompts: int32 [B, N], held-out rows.
    observed: bool [N], True at the tokens of a row that are observed.
    right: True if the other tokens of `prompts` are the only right ones.
  """

  name: str
  vocab_size: int
  length: int
  batches: Callable[[int], Iterator[Batch]]
  prompts: Int[np.ndarray, "B N"]
  observed: Bool[np.ndarray, " N"]
  right: bool


def iterate_rows(rng: np.random.Generator, rows: int) -> Int[np.ndarray, "B N"]:
  """int32 [rows, N]: rows of the task, which are pairs, a symbol, and its iterates."""
  ids = np.zeros((rows, 2 * SYMBOLS + 1 + ITERATES), np.int32)
  for row in ids:
    image, order = rng.permutation(SYMBOLS), rng.permutation(SYMBOLS)
    row[: 2 * SYMBOLS] = np.stack([order, image[order]], axis=1).reshape(-1)
    row[2 * SYMBOLS] = rng.integers(SYMBOLS)
    for place in range(2 * SYMBOLS + 1, len(row)):
      row[place] = image[row[place - 1]]
  return ids


def iterates(rows: int, batch: int, seed: int) -> Task:
  """The task of iterates, of permutations that training may never have shown."""
  observed = np.arange(2 * SYMBOLS + 1 + ITERATES) < 2 * SYMBOLS + 1

  def batches(seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
      ids = iterate_rows(rng, batch)
      yield Batch(ids, observed=np.broadcast_to(observed, ids.shape))

  prompts = iterate_rows(np.random.default_rng(seed + 1000), rows)
  return Task("iterates", SYMBOLS, len(observed), batches, prompts, observed, right=True)


def text(rows: int, batch: int, seed: int) -> Task:
  """The task of text: the bundled novels in characters, with held-out rows of validation text."""
  corpus = Austen()
  tokenizer = build_tokenizer("characters", None, corpus.documents("train"))
  data = TextData(corpus, tokenizer, LENGTH)
  held = next(data.held_out("validation", rows))[0].ids
  observed = np.arange(LENGTH) < PROMPT

  def batches(seed: int) -> Iterator[Batch]:
    return data.batches(batch, seed=seed)

  ids = np.asarray(held, np.int32)
  return Task("text", tokenizer.vocab_size, LENGTH, batches, ids, observed, right=False)


TASKS = {"text": text, "iterates": iterates}


@member
class Settings:
  """How the study is run."""

  width: int = option(64, "of the network", ge=2)
  recurrences: int = option(4, "r, iterations on average in training", ge=1)
  steps: int = option(700, "updates", ge=1)
  batch: int = option(64, "rows of an update", ge=1)
  exits: tuple[float, ...] = option((0.3, 0.1, 0.03), "thresholds of the wavefront")
  inner: int = option(2, "iterations per read of the wavefront", ge=1)
  depths: tuple[int, ...] = option((1, 2, 4, 8), "iterations of sequential decoding")
  rows: int = option(128, "texts of each line", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Line(NamedTuple):
  """One line of the table: means over rows, with the standard error of the agreement and of the
  right tokens.
  """

  task: str
  name: str
  deep: float
  work: float
  agreement: tuple[float, float]
  right: tuple[float, float] | None
  entropy: float


def trained(task: Task, settings: Settings) -> tuple[Model, Params]:
  """(the model, its parameters)."""
  process = Masked(vocab_size=task.vocab_size)
  network = RecurrentDepth(
    layers=2 + settings.recurrences,
    width=settings.width,
    heads=max(settings.width // 32, 1),
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  model = Model(network, process, AtNoise(), NextTokenRow(), chunk=512)
  facts = DataFacts(task.length, task.vocab_size, steps=settings.steps)
  batches = task.batches(settings.seed)
  return model, fit(model, Bound(), batches, facts, learning_rate=3e-3, seed=settings.seed)


def prompts(task: Task) -> Batch:
  """The rows of the task, whose first tokens are observed."""
  observed = np.broadcast_to(task.observed, task.prompts.shape)
  return Batch(np.where(observed, task.prompts, 0), observed=observed)


def sequential(
  model: Model, params: Params, depth: int, task: Task, seed: int
) -> Int[np.ndarray, "B N"]:
  """Greedy rows, one token after the other, each with so many iterations."""
  network = dataclasses.replace(model.network, layers=2 + depth)
  model = model._replace(network=network, context=NextToken())
  asked = (Grid(steps=1, temperature=0.0), row_keys(seed, len(task.prompts)))
  return np.asarray(sample(model, params, *asked, batch=prompts(task), reader=Cached()).ids)


@functools.partial(jax.jit, static_argnums=0)
def _waved(loop: Loop, params: Params, keys: Keys, batch: Batch) -> tuple[Any, Any]:
  fixed = loop.fixed(params, keys, batch)
  carry = loop.until_clean(params, fixed, loop.start(params, fixed))
  return loop.finish(params, fixed, carry), carry.memory.count


def waved(
  model: Model, params: Params, settings: Settings, threshold: float, task: Task
) -> tuple[Int[np.ndarray, "B N"], float, float]:
  """(greedy rows of the wavefront, its passes in a row and its passes of work, per token)."""
  reader = WavefrontReader(inner=settings.inner)
  loop = Loop(model, Wavefront(exit=threshold, temperature=0.0), reader)
  keys = row_keys(settings.seed, len(task.prompts))
  result, count = _waved(loop, params, keys, prompts(task))
  made = ~task.observed
  deep = settings.inner * np.asarray(result.row_calls).mean() / made.sum()
  return np.asarray(result.ids), float(deep), float(np.asarray(count)[:, made].mean())


def measured(task: Task, name: str, deep: float, work: float, ids, reference) -> Line:
  """The line of some rows."""
  made = ~task.observed
  ids = ids[:, made]

  def alike(others):
    return mean_and_error((ids == others[:, made]).mean(1))

  right = alike(task.prompts) if task.right else None
  return Line(task.name, name, deep, work, alike(reference), right, pooled_entropy(ids))


def study(task: Task, settings: Settings) -> list[Line]:
  """The lines of a task."""
  model, params = trained(task, settings)
  reference = sequential(model, params, settings.recurrences, task, settings.seed)
  lines = [measured(task, "text that is there", 0, 0, task.prompts, reference)]
  for depth in settings.depths:
    ids = sequential(model, params, depth, task, settings.seed)
    lines.append(measured(task, f"sequential, r = {depth}", depth, depth, ids, reference))
  for threshold in settings.exits:
    ids, deep, work = waved(model, params, settings, threshold, task)
    lines.append(measured(task, f"wavefront, exit {threshold:g}", deep, work, ids, reference))
    depth = max(round(work), 1)
    ids = sequential(model, params, depth, task, settings.seed)
    lines.append(measured(task, f"sequential, equal work: {depth}", depth, depth, ids, reference))
  random = np.random.default_rng(settings.seed).permuted(reference, axis=0)
  lines.append(measured(task, "other rows' tokens", 0, 0, random, reference))
  return lines


def table(lines: Sequence[Line]) -> str:
  """The lines in Markdown."""

  def share(value):
    return "–" if value is None else f"{value[0]:.3f} ± {value[1]:.3f}"

  rows = []
  for line in lines:
    passes = (f"{line.deep:.2f}", f"{line.work:.2f}") if line.work else ("–", "–")
    shares = share(line.agreement), share(line.right)
    rows.append((line.task, line.name, *passes, *shares, f"{line.entropy:.3f}"))
  return markdown(HEADER, rows, left=(0, 1))


def run(names: Sequence[str], settings: Settings, workdir: pathlib.Path) -> str:
  """The table of all tasks, which is also written to the workdir.

  Raises:
    ValueError: for a task that is unknown.
  """
  check_names("--tasks", names, TASKS)
  lines = []
  for name in names:
    lines += study(TASKS[name](settings.rows, settings.batch, settings.seed), settings)
  kept = {"settings": dataclasses.asdict(settings), "lines": [line._asdict() for line in lines]}
  text = table(lines)
  write(workdir, "recurrent_depth", text, **kept)
  return text

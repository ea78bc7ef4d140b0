"""How well a trained network looks up values by their keys in rows longer than those of training,
with rotary positions as trained and with a larger base (LongLLaDA, arXiv 2506.14429).

A row is filler with a few pairs of a key and a value at random places. Its end asks for every key
once, in another order, and only the answers are learned. A network is trained at one length and
asked at longer ones: with positions as trained, with the factor λ of `long_context.ntk_factor` for
the length, and, as a control, with a factor that is far too large. A network that copies any value
of the row is right in 1/P + (1 - 1/P) / 16 of P questions.

The task "needles" of `data.tasks` asks one question in text, with pairs from end to end. Here rows
are tokens, filler sets their length, and several questions are asked, because a small network
learns a look-up only with several questions a row and with a table of tokens as large as what the
first layer adds (`embedding_std`; docs/results.md). With shift=1 the masked model answers at the
position before a token, where the key is; with shift=0 its answer is at a mask, which first has to
find its key.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.context import Annealed, Full, NextToken
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key
from diffusion_text.experiment.api import fit
from diffusion_text.model.long_context import ntk_factor, turned_dimensions
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.studies.chains import network_of
from diffusion_text.studies.measures import markdown, mean_and_error, pooled_entropy, write
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, DataFacts, Model, Params, Progress

KEYS, VALUES, FILLERS = 16, 16, 8
VOCABULARY = KEYS + VALUES + FILLERS
AFTER_TRAINING = 2**30  # an update after the last one of any training
BASE, HEAD_WIDTH = 10_000.0, 32  # of the rotary positions; of a head, in `network_of`
WRONG = 1e6  # the factor of the control
HEADER = ("model", "length", "positions", "λ", "right", "… near", "… far", "entropy, nats")


@member
class Settings:
  """How the study is run."""

  model: Literal["autoregressive", "masked"] = option("autoregressive", "what is trained")
  layers: int = option(2, "of the network", ge=1)
  width: int = option(64, "of the network, in heads of 32", ge=32)
  embedding_std: float = option(1.0, "model.embedding_std", gt=0)
  context: Literal["annealed", "full"] = option(
    "annealed", "masked: from causal to bidirectional rows in the first half of training, or these"
  )
  shift: int = option(1, "masked: how far before a token it is answered", ge=0, le=1)
  pairs: int = option(4, "pairs of a row, each asked for once", ge=1, le=16)
  length: int = option(64, "tokens of a row of training", ge=16)
  times: tuple[int, ...] = option((1, 2, 4), "how many times as long the rows of a test are")
  steps: int = option(1500, "updates of 64 rows", ge=1)
  learning_rate: float = option(2e-3, "its peak", gt=0)
  rows: int = option(256, "rows of each line", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Questions(NamedTuple):
  """Rows of the task.

  Attributes:
    ids: the tokens.
    asked: True at the values that are asked for.
    distance: tokens from the key of each question back to the same key in its pair, in the order of
      the questions.
  """

  ids: Int[np.ndarray, "B L"]
  asked: Bool[np.ndarray, "B L"]
  distance: Int[np.ndarray, "B P"]


def questions(rng: np.random.Generator, rows: int, length: int, pairs: int) -> Questions:
  """Random rows of the task; the last 2 · pairs tokens of a row ask for each key.

  Raises:
    ValueError: for rows that are too short for the pairs.
  """
  places = (length - 2 * pairs) // 2
  if places < pairs:
    raise ValueError(f"length={length} has no room for pairs={pairs}; use at least {4 * pairs}")

  def drawn(size, count):
    return np.argsort(rng.random((rows, size)), axis=1)[:, :count]

  keys, values = drawn(KEYS, pairs), KEYS + rng.integers(0, VALUES, (rows, pairs))
  place, order = 2 * drawn(places, pairs), drawn(pairs, pairs)
  ids = KEYS + VALUES + rng.integers(0, FILLERS, (rows, length))
  row = np.arange(rows)[:, None]
  ids[row, place], ids[row, place + 1] = keys, values
  question = length - 2 * pairs + 2 * np.arange(pairs)
  ids[:, question], ids[:, question + 1] = keys[row, order], values[row, order]
  asked = np.zeros(ids.shape, bool)
  asked[:, question + 1] = True
  return Questions(ids.astype(np.int32), asked, question - place[row, order])


def batches(settings: Settings) -> Iterator[Batch]:
  """Endless batches of training, in which all tokens but the answers are observed."""
  rng = np.random.default_rng(settings.seed)
  while True:
    made = questions(rng, 64, settings.length, settings.pairs)
    yield Batch(made.ids, ~made.asked)


def model_of(settings: Settings) -> Model:
  """The model that is trained, without parameters."""
  process = Masked(vocab_size=VOCABULARY)
  options = {"embedding_std": settings.embedding_std}
  network = network_of(process, settings.layers, settings.width, **options)
  if settings.model == "autoregressive":
    return Model(network, process, AtNoise(), NextToken())
  context = Full(answer_shift=settings.shift)
  if settings.context == "annealed":
    context = Annealed(steps=max(settings.steps // 2, 1), answer_shift=settings.shift)
  return Model(network, process, Shared(), context)


def scaled(model: Model, factor: float) -> Model:
  """The model with a rotary base that is `factor` times as large."""
  network = dataclasses.replace(model.network, rope_scaling=factor)
  return model._replace(network=network)


def answers(model: Model, params: Params, made: Questions) -> Int[np.ndarray, "B P"]:
  """The likeliest answers to all questions of each row, by one call of the network.

  An autoregressive model sees the true answers to earlier questions of the row, a masked model sees
  no answers. As values are drawn independently, other answers say nothing about one.
  """
  logits = _logits(model._replace(timing=AtNoise()), params, Batch(made.ids, ~made.asked))
  best = np.argmax(jax.device_get(logits), axis=-1)
  return best[made.asked].reshape(made.distance.shape)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, params: Params, batch: Batch) -> Float[Array, "B L V"]:
  """The logits of rows whose answers are noise, as at the end of training."""
  progress, key = Progress(jnp.int32(AFTER_TRAINING), 0, 1), make_key(0)
  times = engine.draw_times(model, params, key, batch, progress)
  prediction = engine.read(model, params, key, batch, times, progress, dropout=False).prediction
  return prediction.head(prediction.features)


def factors(settings: Settings, length: int) -> dict[str, float]:
  """Name of the positions -> λ, for rows of a length."""
  base = {"base": BASE, "trained_length": settings.length, "head_width": HEAD_WIDTH}
  found = {"plain": 1.0, "scaled": ntk_factor(length=length, **base), "wrong factor": WRONG}
  return {name: each for name, each in found.items() if name == "plain" or each > 1}


def share(
  right: Bool[np.ndarray, "B P"], counted: Bool[np.ndarray, "B P"]
) -> tuple[float, float] | None:
  """(share of right answers among those counted, its standard error over rows); None if fewer than
  two rows have answers that are counted.
  """
  number = counted.sum(1)
  kept = number > 0
  if kept.sum() < 2:
    return None
  return mean_and_error((right & counted).sum(1)[kept] / number[kept])


def cells(
  settings: Settings, made: Questions, name: str, factor: float, got: Int[np.ndarray, "B P"]
) -> tuple[str, ...]:
  """The cells of a line. Near are questions whose pair is no farther back than in training, far are
  all others.
  """
  right = got == made.ids[made.asked].reshape(got.shape)
  near = made.distance < settings.length
  shares = [share(right, counted) for counted in (near | ~near, near, ~near)]
  said = ["–" if each is None else f"{each[0]:.3f} ± {each[1]:.3f}" for each in shares]
  length = str(made.ids.shape[1])
  return settings.model, length, name, f"{factor:.3g}", *said, f"{pooled_entropy(got):.3f}"


def run(settings: Settings, workdir: pathlib.Path) -> str:
  """The table in Markdown, which is also written to the workdir after every length."""
  model = model_of(settings)
  lengths = [times * settings.length for times in settings.times]
  # These are made before training, because a factor or a length may be refused.
  models = {
    length: {name: (each, scaled(model, each)) for name, each in factors(settings, length).items()}
    for length in lengths
  }
  tests = {
    length: questions(
      np.random.default_rng((settings.seed, length)), settings.rows, length, settings.pairs
    )
    for length in lengths
  }
  facts = DataFacts(settings.length, VOCABULARY, steps=settings.steps)
  how = {"learning_rate": settings.learning_rate, "seed": settings.seed}
  params = fit(model, Bound(), batches(settings), facts, **how)
  turned = turned_dimensions(BASE, settings.length, HEAD_WIDTH)
  lines, text = [], ""
  for length, made in tests.items():
    for name, (factor, asked) in models[length].items():
      got = answers(asked, params, made)
      lines.append(cells(settings, made, name, factor, got))
    text = f"{turned} of the {HEAD_WIDTH} numbers of a head have made a turn"
    text += f" at {settings.length} tokens.\n\n"
    text += markdown(HEADER, lines, left=(0, 2))
    write(workdir, "needles", text, settings=dataclasses.asdict(settings), lines=lines)
  return text

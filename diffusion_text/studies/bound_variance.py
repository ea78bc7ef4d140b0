"""What may be asked of a trained model besides its score: the variance of estimators, of blocks,
and where to decode.

Companion of `experiments.evaluate` and `experiments.clip`; the score itself is `run.score`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text import train
from diffusion_text.core.capability import offers, require
from diffusion_text.evaluate.likelihood import Likelihood
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained, held_out, score
from diffusion_text.objective import Bound, engine
from diffusion_text.studies.variance import NoiseVariance, measure
from diffusion_text.timing import ExactCount, Shared
from diffusion_text.train.sharding import replicated
from diffusion_text.types import Batch, Params, Progress, Timing

ROWS = 64  # of validation text, or a whole batch, by which a level is chosen


@runtime_checkable
class LogSNRRange(Protocol):
  """A process whose tokens can be decoded at a log-SNR."""

  def log_snr_range(self) -> tuple[float, float]:
    """The log-SNR at t -> 0+, and at t = 1."""


def rescored(experiment: Experiment, timing: Timing) -> Experiment:
  """The experiment with another timing in its bound, and nowhere else."""
  return dataclasses.replace(experiment, scoring=experiment.scoring._replace(timing=timing))


def decoded_at(experiment: Experiment, log_snr: float) -> Experiment:
  """The experiment whose bound decodes tokens at a log-SNR. Raises ValueError for a process that
  has none.
  """
  experiment.model.process.time_of(log_snr)
  evaluate = dataclasses.replace(experiment.evaluate, decode_at=log_snr)
  return dataclasses.replace(experiment, evaluate=evaluate)


def decodings(
  trained: Trained, *, num_draws: int, max_rows: int | None = None, count: int = 16
) -> list[tuple[float, Likelihood]]:
  """(log-SNR, bound on at most ROWS rows of validation text) of `count` values of
  evaluate.decode_at, evenly spread over the path from its clear end, all with the same times and
  noise.

  Raises:
    ValueError: for a process without a log-SNR.
  """
  experiment, params = trained.experiment, trained.params
  process = experiment.model.process
  require(process, LogSNRRange, "--decoding", "only Gaussian processes decode at a log-SNR")
  highest, lowest = process.log_snr_range()

  @functools.partial(jax.jit, out_shardings=replicated(experiment.mesh))
  def nats(level: Any, params: Params, key: Any, batch: Batch, progress: Progress):
    values = engine.nats(experiment.scoring, params, key, batch, progress, decode_at=level)
    return jnp.sum(values, axis=1), jnp.sum(experiment.text_weights(batch), axis=1)

  how = {"split": "validation", "num_draws": num_draws, "max_rows": min(ROWS, max_rows or ROWS)}
  levels = np.linspace(highest, lowest, count + 1)[:-1]
  levels = [round(float(level), 2) for level in levels]
  return [
    (x, score(experiment, params, **how, nats_fn=functools.partial(nats, jnp.float32(x))))
    for x in levels
  ]


def best_decoding(trained: Trained, **how: Any) -> tuple[Trained, list[tuple[float, Likelihood]]]:
  """The run with the evaluate.decode_at of `decodings` that gives the lowest bound, and what
  `decodings` gave.

  Raises:
    ValueError: if none is a number.
  """
  tried = decodings(trained, **how)
  finite = [(bound.nats_per_token, level) for level, bound in tried]
  finite = [pair for pair in finite if math.isfinite(pair[0])]
  if not finite:
    raise ValueError(
      "the bound on validation text is no number wherever tokens are decoded"
      f" ({[level for level, _ in tried]})"
    )
  _, level = min(finite)
  return dataclasses.replace(trained, experiment=decoded_at(trained.experiment, level)), tried


def chosen_decoding(trained: Trained, **how: Any) -> tuple[Trained, float | None]:
  """The run and its evaluate.decode_at: the config's, or else, of a process with a log-SNR,
  `best_decoding`.
  """
  experiment = trained.experiment
  if experiment.evaluate.decode_at is None and offers(experiment.model.process, LogSNRRange):
    trained, _ = best_decoding(trained, **how)
  return trained, trained.experiment.evaluate.decode_at


def block_variance(
  trained: Trained, low: float, high: float, *, num_draws: int, max_rows: int
) -> float:
  """Variance, nats², of the loss of one block whose times are drawn from [low, high], over
  validation text, times and noise.
  """
  experiment, size = trained.experiment, trained.experiment.model.context.unit
  model = experiment.scoring._replace(timing=Shared(low=low, high=high))

  @jax.jit
  def blocks(params: Params, key: Any, batch: Batch, progress: Progress):
    nats = engine.nats(model, params, key, batch, progress)

    def by_block(values):
      return values.reshape(values.shape[0], -1, size).sum(-1)

    return by_block(nats), by_block(engine.scored_weights(batch))

  values = []
  for number, (batch, _) in enumerate(held_out(experiment, "validation", max_rows)):
    key = train.named_key(experiment.config.seed, "clip", number)
    for draw in range(num_draws):
      drawn = blocks(trained.params, key, batch, Progress(part=draw, parts=num_draws))
      nats, weight = map(np.asarray, drawn)
      values.append(nats[weight > 0])
  return float(np.concatenate(values).var())


def estimators(experiment: Experiment) -> list[tuple[str, Timing, str]]:
  """(name, timing, note) of the timings that estimate this experiment's bound, and of its own if
  that one does not.

  One time for all tokens can be drawn in several ways; the bound along another path is another
  number for a trained network, so timings of those kinds have only their own.
  """
  scoring = experiment.scoring
  rows: list[tuple[str, Timing, str]] = [("as reported", scoring.timing, "")]
  alike = (Shared(), ExactCount())
  asked = Shared().for_bound(scoring.process.bound_times())
  if scoring.timing in (*alike, Shared(power=2.0), Shared(power=3.0), asked):
    rows = [
      ("shared", Shared(), ""),
      ("shared, power 2", Shared(power=2.0), ""),
      ("shared, power 3", Shared(power=3.0), ""),
    ]
    if asked not in [timing for _, timing, _ in rows]:
      rows.append(("shared, as the process asks", asked, ""))
    if engine.is_bound(scoring._replace(timing=ExactCount()), Bound()):
      rows.append(("exact_count", ExactCount(), ""))
  if experiment.model.timing not in (scoring.timing, *alike):
    rows.append(("as trained", experiment.model.timing, "surrogate: another mean, no bound"))
  return rows


def variance(
  trained: Trained, *, split: str, num_draws: int, max_rows: int | None = None
) -> list[NoiseVariance]:
  """How much each of the `estimators` varies by its own noise, on the same text."""
  experiment, results = trained.experiment, []
  key = train.named_key(experiment.config.seed, "variance", 0)
  with jax.set_mesh(experiment.mesh):
    for name, timing, note in estimators(experiment):
      other = rescored(experiment, timing)
      batches = held_out(experiment, split, max_rows)
      results.append(measure(name, other.nats_fn, trained.params, batches, key, num_draws, note))
      if timing == Shared():
        results.append(results[-1].of_independent_rows("shared, each row for itself"))
  return results

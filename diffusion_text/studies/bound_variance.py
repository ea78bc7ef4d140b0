"""What may be asked of a trained model besides its score: the variance of estimators, of blocks, and where to decode.

Companion of `experiments.evaluate` and `experiments.clip`; the score itself is `run.score`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text import train
from diffusion_text.evaluate.likelihood import Likelihood
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained, held_out, score
from diffusion_text.experiment.validation import check_times
from diffusion_text.objective.bound import scored_weights
from diffusion_text.process.gaussian import Gaussian, decoded_at
from diffusion_text.studies.variance import NoiseVariance, measure
from diffusion_text.timing import Counted, Shared
from diffusion_text.types import Batch, Params, Progress

ROWS = 64  # of validation text, or a whole batch, by which a level is chosen


def rebound(experiment: Experiment, **changes: Any) -> Experiment:
  """The experiment with another process or timing in its bound, and nowhere else."""
  return dataclasses.replace(experiment, bound=dataclasses.replace(experiment.bound, **changes))


def decodings(
  trained: Trained, *, num_draws: int, max_rows: int | None = None, count: int = 16
) -> list[tuple[float, Likelihood]]:
  """(log-SNR, bound on at most ROWS rows of validation text) of `count` values of evaluate.decode_at, evenly spread over the path from its
  clear end, all with the same times and noise. Raises ValueError for a process that is not Gaussian.
  """
  experiment, params = trained.experiment, trained.params

  @jax.jit
  def nats(level: Any, *of: Any):
    return rebound(experiment, process=decoded_at(experiment.process, level)).nats_fn()(*of)

  decoded_at(experiment.process, math.inf)  # refused now, if it is refused
  path = experiment.process.path(params["process"])
  ends = (float(path.log_snr(jnp.float32(t))) for t in (0, 1))
  how = {"split": "validation", "num_draws": num_draws, "max_rows": min(ROWS, max_rows or ROWS)}
  levels = [round(float(level), 2) for level in np.linspace(*ends, count + 1)[:-1]]
  return [
    (x, score(experiment, params, **how, nats_fn=functools.partial(nats, jnp.float32(x))))
    for x in levels
  ]


def best_decoding(trained: Trained, **how: Any) -> tuple[Trained, list[tuple[float, Likelihood]]]:
  """The run with the evaluate.decode_at of `decodings` that gives the lowest bound, and what `decodings` gave.

  Raises ValueError if none is a number.
  """
  tried, experiment = decodings(trained, **how), trained.experiment
  nats, level = min(
    (bound.nats_per_token if math.isfinite(bound.nats_per_token) else math.inf, level)
    for level, bound in tried
  )
  if math.isinf(nats):
    raise ValueError(
      f"the bound on validation text is no number wherever tokens are decoded ({[level for level, _ in tried]})"
    )
  return dataclasses.replace(
    trained, experiment=rebound(experiment, process=decoded_at(experiment.process, level))
  ), tried


def chosen_decoding(trained: Trained, **how: Any) -> tuple[Trained, float | None]:
  """The run and its evaluate.decode_at: the config's, or else, of a Gaussian process, `best_decoding`."""
  process = trained.experiment.bound.process
  if isinstance(process, Gaussian) and process.decode_at is None:
    trained, _ = best_decoding(trained, **how)
  return trained, getattr(trained.experiment.bound.process, "decode_at", None)


def block_variance(trained: Trained, timing: Any, *, num_draws: int, max_rows: int) -> float:
  """Variance, nats², of the loss of one block under `timing` (of blocks), over validation text, times and noise."""
  experiment, size = trained.experiment, timing.block_size
  bound = dataclasses.replace(experiment.bound, timing=timing)

  @jax.jit
  def blocks(params: Params, key: Any, batch: Batch, progress: Progress):
    predict = lambda inputs, t, layout: experiment.network.apply(
      params["network"], inputs, t, layout, None
    )
    nats = bound.nats(params["process"], key, batch, progress, predict)
    by_block = lambda values: values.reshape(values.shape[0], -1, size).sum(-1)
    return by_block(nats), by_block(scored_weights(batch))

  values = []
  for number, (batch, _) in enumerate(held_out(experiment, "validation", max_rows)):
    key = train.named_key(experiment.config.seed, "clip", number)
    for draw in range(num_draws):
      nats, weight = map(
        np.asarray, blocks(trained.params, key, batch, Progress(part=draw, parts=num_draws))
      )
      values.append(nats[weight > 0])
  return float(np.concatenate(values).var())


def estimators(experiment: Experiment) -> list[tuple[str, Any, str]]:
  """(name, timing, note) of the timings that estimate this experiment's bound, and of its own if that one does not.

  One time for all tokens can be drawn in several ways; the bound along another path, or of blocks, is another number for a trained
  network, so timings of those kinds have only their own.
  """
  scoring = experiment.timing.scoring()
  rows = [("as reported", scoring, "")]
  if isinstance(scoring, Shared | Counted):
    rows = [
      ("shared", Shared(), ""),
      ("shared, power 2", Shared(2.0), ""),
      ("shared, power 3", Shared(3.0), ""),
    ]
    try:
      check_times(Counted(), experiment.config)
      rows.append(("counted", Counted(), ""))
    except ValueError:
      pass  # counted times are no bound here
  if experiment.timing != scoring:
    rows.append(("as trained", experiment.timing, "surrogate: another mean, no bound"))
  return rows


def variance(
  trained: Trained, *, split: str, num_draws: int, max_rows: int | None = None
) -> list[NoiseVariance]:
  """How much each of the `estimators` varies by its own noise, on the same text."""
  experiment, results = trained.experiment, []
  key = train.named_key(experiment.config.seed, "variance", 0)
  with jax.set_mesh(experiment.mesh):
    for name, timing, note in estimators(experiment):
      other = rebound(experiment, timing=timing)
      batches = held_out(experiment, split, max_rows)
      results.append(measure(name, other.nats_fn(), trained.params, batches, key, num_draws, note))
      if timing == Shared():
        results.append(results[-1].of_independent_rows("shared, each row for itself"))
  return results

"""The nats of a bound by stretch of the clock, and by place in the row.

A timing that is learned from what tokens cost gives each stretch of its clock a time that costs
more or less alike (time warping, CDCD, arXiv 2211.15089, section 3.3; Plaid, arXiv 2305.18619, for
the least variance). Under any other clock the stretches say where in time the text is decided. The
bound is the sum over the stretches and the terms at both ends of time, whatever the clock.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key, stream
from diffusion_text.evaluate.likelihood import by_row, estimate
from diffusion_text.experiment.run import Trained, held_out
from diffusion_text.objective import engine
from diffusion_text.studies.measures import joined, markdown, write
from diffusion_text.types import Batch, Key, Model, Params, Progress


@member
class Settings:
  """How the study is run."""

  stretches: int = option(8, "even stretches of the clock, and of the row", ge=2)
  split: str = option("test", "which text is scored")
  rows: int = option(256, "rows, at most", ge=2)
  draws: int = option(8, "of time and noise for each row", ge=1)
  seed: int = option(0, "of times and noise", ge=0)


class Parts(NamedTuple):
  """The nats of B rows in parts, float32 [B, 2 K + 2]: K stretches of the clock, the ends of time,
  K stretches of the row, and the whole.

  Attributes:
    nats: of each part.
    weight: the scored tokens by which the nats of a part are divided: those of the place for a
      stretch of the row, those of the row for all other parts.
  """

  nats: Array
  weight: Array


def parts_of(
  model: Model,
  params: Params,
  key: Key,
  batch: Batch,
  progress: Progress,
  *,
  stretches: int,
  decode_at: float | None = None,
) -> Parts:
  """The parts of one draw of the bound of each row.

  Args:
    model: whose bound it is.
    params: its parameters.
    key: of times and noise; the draw is that of `engine.nats` with this key.
    batch: the rows.
    progress: which of several draws this is.
    stretches: K.
    decode_at: the log-SNR at which tokens are decoded; None: the path's own end.
  """
  nats = engine.nats(model, params, key, batch, progress, decode_at=decode_at)
  start = engine.start_time(model, decode_at)
  ends = engine.boundary_terms(model, params, key, batch, progress, start)
  weight = engine.scored_weights(model.process.in_positions(batch))
  tau = engine.draw_times(model, params, stream(key, "times"), batch, progress).tau
  length = nats.shape[1]
  clock = jnp.repeat(tau, length // tau.shape[1], axis=1)
  at_clock = jax.nn.one_hot(jnp.ceil(clock * stretches).astype(int) - 1, stretches)
  at_place = jax.nn.one_hot(jnp.arange(length) * stretches // length, stretches)
  by_clock = jnp.einsum("bn,bnk->bk", nats - ends, at_clock)
  by_place, of_place = (jnp.einsum("bn,nk->bk", each, at_place) for each in (nats, weight))
  at_ends, whole, of_row = (jnp.sum(each, axis=1, keepdims=True) for each in (ends, nats, weight))
  return Parts(
    jnp.hstack([by_clock, at_ends, by_place, whole]),
    jnp.hstack([*[of_row] * (stretches + 1), of_place, of_row]),
  )


class Profile(NamedTuple):
  """(nats per token, its standard error) of each stretch of the clock, of the ends of time, of each
  stretch of the row, and of the whole bound.
  """

  clock: list[tuple[float, float]]
  ends: tuple[float, float]
  places: list[tuple[float, float]]
  bound: tuple[float, float]


def profile(trained: Trained, settings: Settings) -> Profile:
  """The profile of a run; its standard errors are over rows."""
  experiment, number = trained.experiment, settings.stretches

  @jax.jit
  def nats_fn(params: Params, key: Key, batch: Batch, progress: Progress):
    how = {"stretches": number, "decode_at": experiment.evaluate.decode_at}
    return parts_of(experiment.scoring, params, key, batch, progress, **how)

  with jax.set_mesh(experiment.mesh):
    batches = held_out(experiment, settings.split, settings.rows)
    key = make_key(settings.seed)
    found = by_row(nats_fn, trained.params, batches, key, settings.draws)
  columns = [estimate(*each) for each in zip(found.nats.T, found.weight.T)]
  return Profile(columns[:number], columns[number], columns[number + 1 : -1], columns[-1])


def unevenness(parts: list[tuple[float, float]]) -> float:
  """The standard deviation of what stretches cost, as a share of their mean. What the errors of the
  costs add to it is taken off, so 0 means that no difference can be told.
  """
  means, errors = np.array(parts).T
  spread = np.var(means, ddof=1) - np.mean(errors**2)
  return float(np.sqrt(max(spread, 0.0)) / np.mean(means))


def report(profiles: Mapping[str, Profile]) -> str:
  """The two tables, by the clock from clean text to noise, and by place from left to right."""
  clock, places = [], []
  for name, each in profiles.items():
    ends, bound = (f"{mean:.3f} ± {error:.3f}" for mean, error in (each.ends, each.bound))
    clock.append((name, joined(each.clock), f"{unevenness(each.clock):.3f}", ends, bound))
    places.append((name, joined(each.places), f"{unevenness(each.places):.3f}"))
  header = ("run", "nats/token, by the clock from clean text to noise", "uneven by")
  header = (*header, "at the ends of time", "bound, nats/token")
  other = ("run", "nats/token, by place from left to right", "uneven by")
  return f"{markdown(header, clock)}\n\n{markdown(other, places)}"


def run(settings: Settings, runs: Mapping[str, Trained], workdir: pathlib.Path) -> str:
  """The tables of runs by name, which are also written to cost_profile.md and cost_profile.json."""
  profiles = {name: profile(trained, settings) for name, trained in runs.items()}
  text = report(profiles)
  numbers = {name: each._asdict() for name, each in profiles.items()}
  write(workdir, "cost_profile", text, settings=dataclasses.asdict(settings), profiles=numbers)
  return text

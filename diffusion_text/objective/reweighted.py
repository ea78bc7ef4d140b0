"""Weights of our choosing on the divergences that the bound is made of (GIDD, arXiv 2503.04482, "dynamic" loss weights).

The rate of mixed noise is weight(z_t, t) · divergence(z_t, t, logits), a Bregman divergence that is 0 for the right prediction. Where
the weight is far larger for clean tokens than for noise (little to learn there, much variance) training goes better with other
weights; the minimum stays where it was, since every divergence keeps its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from diffusion_text.objective.bound import Chunks, noised, summed_loss
from diffusion_text.types import (
  Array,
  Batch,
  Key,
  Loss,
  Params,
  Predict,
  Process,
  Progress,
  State,
  Time,
  Timing,
)


@runtime_checkable
class Divergent(Protocol):
  """What `Reweighted` asks of a process besides `Process`. Both are elementwise and accept flat lists of positions [N]."""

  def divergence(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    """[N] nats, >= 0: the rate without its weight; ids [N], state [N], t [N], logits [N, V]."""

  def dynamic_weight(self, params: Params, ids: Array, state: State, t: Time) -> Array:
    """[N], >= 0: the weight that is trained with."""


@dataclasses.dataclass(frozen=True)
class Reweighted:
  """∫ clip(dynamic weight, min_weight, max_weight) · divergence dt, whatever times are drawn; reports the bound of the same draw.

  Raises ValueError for a process whose rate does not come in two factors.
  """

  process: Process
  timing: Timing
  min_weight: float = 0.0
  max_weight: float = math.inf
  chunks: Chunks = Chunks()

  def __post_init__(self):
    if not isinstance(self.process, Divergent):
      raise ValueError(
        f"objective 'reweighted' needs a process with divergence and dynamic_weight, not {type(self.process).__name__};"
        " use process.name='mixed', or objective.name='cross_entropy' with a weighting"
      )
    if (
      getattr(self.process, "mixing", "gidd") != "gidd"
      or getattr(self.process, "grid", None) is not None
    ):
      raise ValueError(
        f"objective 'reweighted' is of process.mixing='gidd' in continuous time, not of {self.process}; use objective.name='bound'"
      )
    if not 0 <= self.min_weight <= self.max_weight or not self.max_weight > 0:
      raise ValueError(
        f"objective needs 0 <= min_weight <= max_weight and max_weight > 0, got min_weight={self.min_weight} and"
        f" max_weight={self.max_weight}"
      )

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)

    def loss(rows, logits, rate):
      token = params, rows.ids, rows.state, rows.t
      weight = jnp.clip(self.process.dynamic_weight(*token), self.min_weight, self.max_weight)
      return rows.speed * weight * self.process.divergence(*token, logits)

    return summed_loss(noise, self.process, params, batch, self.chunks, loss)

"""The bound: an upper bound on -log p(x) in nats, the yardstick that every process shares (VDM, arXiv 2107.00630; MDLM eq. 10).

-log p(x) <= ends(x) + E_τ[ Σ_i speed_i · rate_i(z_t, t, denoise(z_t, t)) ]

1. times       t_i and speed_i for every token, low-discrepancy over the whole batch; given tokens have t = 0
2. corruption  z_t ~ q(z_t | x)
3. prediction  the network's features, before the vocabulary
4. rates       logits only where the process says that the rate can differ from zero
5. ends        prior and reconstruction terms
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.cross_entropy import map_rows, sum_rows
from diffusion_text.timing import shift_right
from diffusion_text.types import (
  Array,
  Batch,
  Inputs,
  Key,
  Loss,
  Params,
  Predict,
  Prediction,
  Process,
  Progress,
  State,
  Times,
  Timing,
)


def scored_weights(batch: Batch) -> Array:
  """float32 [B, L]: the weight of each token in the loss; 0 for padding and for given tokens."""
  weights = jnp.ones(batch.ids.shape, jnp.float32) if batch.weights is None else batch.weights
  return weights if batch.given is None else jnp.where(batch.given, 0.0, weights)


class Noised(NamedTuple):
  """A batch that has been corrupted and read by the network (steps 1 to 3)."""

  state: State
  times: Times
  prediction: Prediction


def noised(
  process: Process, timing: Timing, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
) -> Noised:
  """Draws times and noise and calls the network once. All microbatches share the key of the times, none that of the noise."""
  times = timing.draw(jax.random.fold_in(key, 0), batch, progress)
  if batch.given is not None:
    times = times._replace(t=jnp.where(batch.given, 0.0, times.t))
  key_corrupt = jax.random.fold_in(jax.random.fold_in(key, 1), progress.part)
  state = process.corrupt(params, key_corrupt, batch.ids, times.t)
  return Noised(state, times, _read(process, params, key, batch.ids, state, times, predict))


def _read(process: Process, params: Params, key: Key, ids: Array, state: State, times: Times, predict: Predict) -> Prediction:
  """Calls the network on the rows that the timing asks for, and keeps the answers for the noisy tokens: [B, L, …]."""
  inputs = process.inputs(params, state, times.t)
  if times.layout.noisy is None and not times.shifted:
    return predict(inputs, times.t, times.layout)
  length, zeros = ids.shape[1], jnp.zeros(ids.shape, jnp.float32)
  clean = process.inputs(params, process.corrupt(params, key, ids, zeros), zeros)
  if times.shifted:
    noise = process.inputs(params, process.prior(params, key, ids.shape), zeros + 1)
    return predict(shift_right(clean, noise, times.layout.segment), zeros, times.layout)
  both = Inputs(jnp.concatenate([inputs.ids, clean.ids], axis=1), layouts.noisy_clean_positions(length))
  t = jnp.concatenate([jnp.broadcast_to(times.t, ids.shape), zeros], axis=1)
  prediction = predict(both, t, times.layout)
  return prediction._replace(features=prediction.features[:, :length])


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How the vocabulary is visited. size: positions whose logits exist at a time; memory grows with size · V, not with B · L · V.
  shards: over how many devices the rows of a batch are split; each then gathers its own scored tokens.
  """

  size: int = 256
  shards: int = 1


def scored_rows(noise: Noised, process: Process, params: Params, batch: Batch) -> tuple[Array, Any]:
  """(bool [N], rows): which of the N = B·L tokens are scored, and (features, ids, state, t, speed, weight) of all, flat."""
  shape = batch.ids.shape
  wide = lambda time: jnp.broadcast_to(time, shape)
  t, speed, weights = wide(noise.times.t), wide(noise.times.speed), scored_weights(batch)
  counts = process.scored(params, noise.state, t) & (weights > 0)
  rows = (noise.prediction.features, batch.ids, noise.state, t, speed, weights)
  return counts.reshape(-1), jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)


def summed_loss(
  noise: Noised, process: Process, params: Params, batch: Batch, chunks: Chunks, loss: Callable[..., Array]
) -> Loss:
  """Σ weight · loss(ids, t, logits, rate) over the scored tokens, with the bound of the same draw beside it (step 4).

  Logits exist for `chunks.size` positions at a time, and only where they count: [B, L, V] never does.
  """

  def score(rows):
    features, ids, state, t, speed, weight = rows
    logits = noise.prediction.unembed(features)
    rate = speed * process.rate(params, ids, state, t, logits)
    return weight * loss(ids, t, logits, rate), weight * rate

  count, rows = scored_rows(noise, process, params, batch)
  total, bound = sum_rows(score, count, rows, chunk=chunks.size, shards=chunks.shards)
  return Loss(total, jnp.sum(scored_weights(batch)), {"bound": bound})


@dataclasses.dataclass(frozen=True)
class Bound:
  """The bound as a training loss and, through `nats`, as the likelihood that is reported."""

  process: Process
  timing: Timing
  chunks: Chunks = Chunks()

  def nats(self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict) -> Array:
    """float32 [B, L]: one unbiased draw of the bound, in nats, of each scored token; 0 for padding and given tokens."""
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    count, rows = scored_rows(noise, self.process, params, batch)

    def rate(rows):
      features, ids, state, t, speed, _ = rows
      return speed * self.process.rate(params, ids, state, t, noise.prediction.unembed(features))

    rates = map_rows(rate, count, rows, chunk=self.chunks.size, shards=self.chunks.shards).reshape(batch.ids.shape)
    return scored_weights(batch) * (rates + self._ends(params, key, batch, predict))

  def _ends(self, params: Params, key: Key, batch: Batch, predict: Predict) -> Array:
    """float32 [B, L] nats: step 5."""
    shape = (1, batch.ids.shape[1])
    prior = self.process.inputs(params, self.process.prior(params, key, shape), jnp.ones(shape))
    denoise = self.timing.denoiser(predict, batch.segment, prior)
    return self.process.ends(params, jax.random.fold_in(key, 2), batch.ids, denoise)

  def __call__(self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    loss = summed_loss(noise, self.process, params, batch, self.chunks, lambda ids, t, logits, rate: rate)
    ends = jnp.sum(scored_weights(batch) * self._ends(params, key, batch, predict))
    return Loss(loss.total + ends, loss.count, {"bound": loss.sums["bound"] + ends})

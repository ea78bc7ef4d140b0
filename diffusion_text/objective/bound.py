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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.cross_entropy import map_rows, sum_rows
from diffusion_text.objective.conditioning import TwoReadings
from diffusion_text.process.masked import cross_entropy
from diffusion_text.process.mixed import Mixed
from diffusion_text.schedules.discrete import TINY, on_grid
from diffusion_text.timing import shift_right
from diffusion_text.types import (
  Array,
  Batch,
  FitsTimes,
  Inputs,
  Key,
  Loss,
  Params,
  Predict,
  Prediction,
  Process,
  Progress,
  State,
  Time,
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
  process: Process,
  timing: Timing,
  params: Params,
  key: Key,
  batch: Batch,
  progress: Progress,
  predict: Predict,
) -> Noised:
  """Draws times and noise and calls the network once. All microbatches share the key of the times, none that of the noise."""
  times = drawn_times(process, timing, key, batch, progress)
  state = corrupted(process, params, noise_key(key, progress), batch, times.t)
  inputs = process.inputs(params, state, times.t)
  return Noised(state, times, read(process, params, key, batch.ids, state, inputs, times, predict))


def corrupted(process: Process, params: Params, key: Key, batch: Batch, t: Time) -> State:
  """Step 2: z_t; the prior where given tokens are hidden, of which corruption alone would leave a trace in Gaussian processes."""
  state = process.corrupt(params, key, batch.ids, t)
  if batch.hidden is None:
    return state
  prior = process.prior(params, jax.random.fold_in(key, 3), batch.ids.shape)
  hide = lambda noise, state: jnp.where(
    batch.hidden.reshape(*batch.hidden.shape, *(1,) * (state.ndim - 2)), noise, state
  )
  return jax.tree.map(hide, prior, state)


def drawn_times(
  process: Process, timing: Timing, key: Key, batch: Batch, progress: Progress
) -> Times:
  """Step 1: the times of a batch, 0 for given tokens and 1 for hidden ones; on the grid of a process in discrete time, for all readers."""
  times = timing.draw(jax.random.fold_in(key, 0), batch, progress)

  def fixed(t: Time) -> Time:
    t = on_grid(t, getattr(process, "grid", None))
    if batch.given is None:
      return t
    t = jnp.where(batch.given, 0.0, t)
    return t if batch.hidden is None else jnp.where(batch.hidden, 1.0, t)

  return times._replace(t=fixed(times.t), told=None if times.told is None else fixed(times.told))


def noise_key(key: Key, progress: Progress) -> Key:
  """The key of a microbatch's corruption."""
  return jax.random.fold_in(jax.random.fold_in(key, 1), progress.part)


def read(
  process: Process,
  params: Params,
  key: Key,
  ids: Array,
  state: State,
  inputs: Inputs,
  times: Times,
  predict: Predict,
) -> Prediction:
  """Calls the network on the rows that the timing asks for, and keeps the answers for the noisy tokens: [B, L, …]. Calls it twice where
  `predict` has a use for the first answer."""
  length = ids.shape[1]
  inputs, t = whole_rows(process, params, key, ids, inputs, times)

  def answer(inputs: Inputs) -> Prediction:
    prediction = predict(inputs, t, times.layout)
    return prediction._replace(features=prediction.features[:, :length])

  if not isinstance(predict, TwoReadings):
    return answer(inputs)
  first = answer(inputs)
  told = predict.told(process, params, state, times.t, first)
  rest = inputs.shape[1] - length
  recalled, recalls = (
    jnp.pad(leaf, ((0, 0), (0, rest), *((0, 0),) * (leaf.ndim - 2))) for leaf in told
  )
  second = answer(dataclasses.replace(inputs, recalled=recalled, recalls=recalls))
  return second._replace(before=(first, predict.coins))


def whole_rows(
  process: Process, params: Params, key: Key, ids: Array, inputs: Inputs, times: Times
) -> tuple[Inputs, Time]:
  """(inputs, times) of the rows that the timing has the network read: the noisy tokens, shifted clean ones, or noisy ‖ clean."""
  if times.layout.noisy is None and not times.shifted:
    return inputs, times.t if times.told is None else times.told
  length, zeros = ids.shape[1], jnp.zeros(ids.shape, jnp.float32)
  clean = process.inputs(params, process.corrupt(params, key, ids, zeros), zeros)
  if times.shifted:
    noise = process.inputs(params, process.prior(params, key, ids.shape), zeros + 1)
    return shift_right(clean, noise, times.layout.segment), zeros
  if inputs.weights is not None:
    clean = one_hot_inputs(clean.ids, inputs.ids.shape[2])
  both = jax.tree.map(lambda noisy, clean: jnp.concatenate([noisy, clean], axis=1), inputs, clean)
  both = dataclasses.replace(both, position=layouts.noisy_clean_positions(length))
  return both, jnp.concatenate([jnp.broadcast_to(times.t, ids.shape), zeros], axis=1)


def one_hot_inputs(ids: Array, count: int) -> Inputs:
  """ids int32 [B, L] as soft tokens of `count` tokens each, all weight on the first: the network reads the hard ids."""
  first = jnp.arange(count) == 0
  soft = jnp.broadcast_to(ids[..., None], (*ids.shape, count))
  return Inputs(soft, weights=jnp.broadcast_to(first.astype(jnp.float32), soft.shape))


def check_posterior(process: Process, what: str) -> None:
  """Raises ValueError if a process reads logits as leave-one-out or as scores: cross-entropy teaches the ordinary posterior."""
  told = getattr(process, "prediction", None)
  if told in ("leave_one_out", "score"):
    kind = "posterior" if isinstance(process, Mixed) else "clean"
    raise ValueError(
      f"{what} teaches the network p(x_i | z), but {type(process).__name__} reads its logits as prediction={told!r}; use"
      f" process.prediction={kind!r}"
    )


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How the vocabulary is visited. size: positions whose logits exist at a time; memory grows with size · V, not with B · L · V.
  shards: over how many devices the rows of a batch are split; each then gathers its own scored tokens.
  """

  size: int = 256
  shards: int = 1


class Rows(NamedTuple):
  """Tokens as a flat list: features [N, D], ids int32 [N], state [N, …], t, speed and weight float32 [N].

  pace: log speed [N], and expected: [N] or None (`Times.expected`), differentiable in the parameters of a learned timing, as speed is not.
  """

  features: Array
  ids: Array
  state: State
  t: Array
  speed: Array
  weight: Array
  pace: Array
  expected: Array | None = None


def scored_rows(
  noise: Noised, process: Process, params: Params, batch: Batch
) -> tuple[Array, Rows]:
  """(bool [N], rows): which of the N = B·L tokens are scored, and all of them."""
  shape = batch.ids.shape
  wide = lambda time: jnp.broadcast_to(time, shape)
  t, speed, weights = wide(noise.times.t), wide(noise.times.speed), scored_weights(batch)
  counts = process.scored(params, noise.state, t) & (weights > 0)
  pace = jnp.log(jnp.maximum(speed, TINY))  # tokens that stand still cost nothing, and fit nothing
  held, expected = jax.lax.stop_gradient(speed), noise.times.expected
  rows = Rows(noise.prediction.features, batch.ids, noise.state, t, held, weights, pace, expected)
  return counts.reshape(-1), jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)


def fit_pace(cost: Array, pace: Array) -> Array:
  """Zeros whose gradient fits a learned timing to what each token costs in nats, speed · rate: that of cost · log speed (pace)."""
  cost = jax.lax.stop_gradient(cost)
  return jnp.where(jnp.isfinite(cost), cost, 0.0) * (pace - jax.lax.stop_gradient(pace))


def fit_level(loss: Array, expected: Array | None) -> Array | float:
  """Zeros whose gradient fits a learned timing to the loss of each token at its time: that of (expected - loss)² / 2."""
  if expected is None:
    return 0.0
  miss = (expected - jax.lax.stop_gradient(loss)) ** 2 / 2
  return miss - jax.lax.stop_gradient(miss)


def fit_times(process: Process, params: Params, rows: Rows, cost: Array) -> Array:
  """Zeros [N], whose gradient fits a learned path, and a learned timing, to what each token costs in nats: speed · rate [N]."""
  by_timing = fit_pace(cost, rows.pace)
  return (
    by_timing + process.fit_times(params, rows.t, cost)
    if isinstance(process, FitsTimes)
    else by_timing
  )


def summed_loss(
  noise: Noised,
  process: Process,
  params: Params,
  batch: Batch,
  chunks: Chunks,
  loss: Callable[..., Array],
) -> Loss:
  """Σ weight · loss(rows, logits, speed · rate) over the scored tokens, with the bound of the same draw beside it (step 4).

  Logits exist for `chunks.size` positions at a time, and only where they count: [B, L, V] never does.
  """

  def score(rows: Rows):
    logits = noise.prediction.unembed(rows.features)
    rate = rows.speed * process.rate(params, rows.ids, rows.state, rows.t, logits)
    fit = fit_times(process, params, rows, rate)
    return rows.weight * (loss(rows, logits, rate) + fit), rows.weight * rate

  count, rows = scored_rows(noise, process, params, batch)
  total, bound = sum_rows(score, count, rows, chunk=chunks.size, shards=chunks.shards)
  return with_auxiliary(
    Loss(total, jnp.sum(scored_weights(batch)), {"bound": bound}), noise.prediction
  )


def with_auxiliary(loss: Loss, prediction: Prediction) -> Loss:
  """The loss with what the network itself adds to it (the routers of its experts), which is no part of a bound."""
  if prediction.auxiliary is None:
    return loss
  cost, sums = prediction.auxiliary
  return Loss(
    loss.total + loss.count * cost,
    loss.count,
    {**loss.sums, **{name: loss.count * value for name, value in sums.items()}},
  )


def weighted_rates(
  noise: Noised, process: Process, params: Params, batch: Batch, chunks: Chunks
) -> Array:
  """float32 [B, L] nats: weight · speed · rate of each scored token, 0 elsewhere; what `summed_loss` sums (step 4)."""

  def rate(rows: Rows):
    logits = noise.prediction.unembed(rows.features)
    return rows.weight * rows.speed * process.rate(params, rows.ids, rows.state, rows.t, logits)

  count, rows = scored_rows(noise, process, params, batch)
  return map_rows(rate, count, rows, chunk=chunks.size, shards=chunks.shards).reshape(
    batch.ids.shape
  )


def weighted_ends(
  process: Process,
  timing: Timing,
  params: Params,
  key: Key,
  batch: Batch,
  progress: Progress,
  predict: Predict,
) -> Array:
  """float32 [B, L] nats: weight · prior and reconstruction terms of each token (step 5)."""
  shape = (1, batch.ids.shape[1])
  prior = process.inputs(params, process.prior(params, key, shape), jnp.ones(shape))
  denoise = timing.denoiser(predict, batch.segment, prior)
  return scored_weights(batch) * process.ends(
    params, jax.random.fold_in(noise_key(key, progress), 2), batch.ids, denoise
  )


@dataclasses.dataclass(frozen=True)
class Bound:
  """The bound as a training loss and, through `nats`, as the likelihood that is reported.

  auxiliary: λ of D3PM's hybrid loss (arXiv 2107.03006 eq. 5; 0.01 is usual): at each scored token rate + λ · CE, CE of the clean token. It
  changes only what is minimised: `nats` and the sum that is reported are the bound.
  """

  process: Process
  timing: Timing
  chunks: Chunks = Chunks()
  auxiliary: float = 0.0

  def __post_init__(self):
    if self.auxiliary:
      check_posterior(self.process, f"objective.auxiliary={self.auxiliary}")
    if not self.auxiliary >= 0:
      raise ValueError(
        f"objective.auxiliary={self.auxiliary} must be at least 0; D3PM uses 0.01, 0 is the bound alone"
      )

  def nats(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Array:
    """float32 [B, L]: one unbiased draw of the bound, in nats, of each scored token; 0 for padding and given tokens."""
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    rates = weighted_rates(noise, self.process, params, batch, self.chunks)
    return rates + weighted_ends(self.process, self.timing, params, key, batch, progress, predict)

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    cost = lambda rows, logits: (
      self.auxiliary * cross_entropy(logits, rows.ids) if self.auxiliary else 0.0
    )
    hybrid = lambda rows, logits, rate: rate + rows.speed * cost(rows, logits)
    loss = summed_loss(noise, self.process, params, batch, self.chunks, hybrid)
    ends = jnp.sum(weighted_ends(self.process, self.timing, params, key, batch, progress, predict))
    return Loss(loss.total + ends, loss.count, {**loss.sums, "bound": loss.sums["bound"] + ends})

"""Timings that are learned: stretches of time that cost more take a larger share of the clock.

Time is cut into `bins` even stretches, and the k-th takes the share floor / bins + (1 - floor) ·
softmax(levels)_k of the clock. Each token falls from 1 to 0 once, so what is summed is a bound
whatever the levels: what it costs to cross a stretch does not depend on its share, and the bound
gives the levels no gradient (VDM, arXiv 2107.00630, section 5.1). They follow `fit` alone, which
adds nothing to the loss but a gradient.

by "nats": a token that costs c nats per unit of the clock in stretch k is worth -c^power · log
share_k, so that shares become as E[cost^power]^(1 / power) of their stretch, the floor permitting:

  power 1  the same expected cost in every stretch of the clock
           (time warping, CDCD, arXiv 2211.15089, section 3.3)
  power 2  the least second moment of what a token costs
           (Plaid, arXiv 2305.18619, trains its noise schedule for that)

by "loss": exp(10 · size) · softmax(levels) is fitted, by squares, to what the objective's loss
rises by in each stretch, so that the loss rises evenly over the clock. For an exact network both
are one thing: the loss is how little is known, and the rate is its slope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.timing.clock import low_discrepancy
from diffusion_text.types import (
  Batch,
  DataFacts,
  Key,
  Params,
  Progress,
  Times,
  Timing,
  TokenCosts,
)

# Updates of Adam are of the size of its rate, and losses may be far from 1.
_SIZE_GAIN = 10.0


@member
class Learned:
  """The same learned times for all positions of a row: a learned noise schedule. The network reads
  the time of each token, not the clock.
  """

  bins: int = option(50, "even stretches of time whose shares of the clock are learned", ge=2)
  floor: float = option(0.1, "the part of the clock that stays spread evenly", gt=0, le=1)
  power: float = option(
    1.0, "by 'nats': 1 evens out the cost, 2 has the least variance; between them too", ge=1, le=2
  )
  by: Literal["nats", "loss"] = option("nats", "what is fitted: nats of the bound, or the loss")
  unit: float = option(
    5.5,
    "nats that a token may cost, log V say: with power > 1 it scales the gradient of the fit",
    gt=0,
  )

  path: ClassVar[Literal["continuous"]] = "continuous"

  def __post_init__(self):
    if self.by == "loss" and self.power != 1:
      raise ValueError(
        f"power={self.power} has a meaning for by='nats' only; use power=1.0 with by='loss'"
      )

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"levels": float32 [..., bins]}, and "size" [...] by loss. All are zero: time equals the
    clock, and the loss is 1 at t = 1.
    """
    del key
    shape = self._positions(facts.length)
    params = {"levels": jnp.zeros((*shape, self.bins), jnp.float32)}
    return params if self.by == "nats" else {**params, "size": jnp.zeros(shape, jnp.float32)}

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times of the clock as learned so far."""
    rows, length = batch.ids.shape
    tau = low_discrepancy(key, rows, progress)[:, None]
    shares = jax.lax.stop_gradient(self.shares(params, length))
    t, stretch = _passed(shares, tau)
    speed = 1 / (self.bins * _pick(shares, stretch))
    every = jnp.broadcast_to(t, batch.ids.shape)
    return Times(every, jnp.broadcast_to(speed, every.shape), tau, network_time=t)

  def grid(
    self,
    params: Params,
    clock: Float[np.ndarray, " S1"],
    lengths: Int[Array, " B"],
    length: int,
  ) -> Float[Array, "B S1 {length}"]:
    """The times of each position at the clock of each step: [B, steps + 1, length], the same for
    rows of every length."""
    t, _ = _passed(self.shares(params, length), jnp.asarray(clock, jnp.float32)[:, None])
    return jnp.broadcast_to(t.at[-1].set(0.0), (lengths.shape[0], len(clock), length))

  def fit(self, params: Params, times: Times, costs: TokenCosts) -> Float[Array, ""]:
    """0, whose gradient fits the levels (and `size`) to what each token cost."""
    each = self._by_nats if self.by == "nats" else self._by_loss
    value = jnp.sum(each(params, times, costs))
    return value - jax.lax.stop_gradient(value)

  def for_bound(self, options: Mapping[str, float]) -> Timing:
    """Itself: its times are drawn by what they cost already."""
    del options
    return self

  def shares(self, params: Params, length: int) -> Float[Array, "P bins"]:
    """The stretches' shares of the clock, each row summing to 1; P is `length`, or 1
    if positions share their times.
    """
    return self.floor / self.bins + (1 - self.floor) * self._inner(params, length)

  def expected(self, params: Params, t: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """The loss that is expected at times t, from 0 at t = 0; differentiable in params. By loss
    only."""
    inner = self._inner(params, t.shape[1])
    size = jnp.exp(_SIZE_GAIN * params["size"])
    growth = jnp.reshape(size, (-1, 1))[: inner.shape[0]] * inner
    stretch = jnp.clip(jnp.ceil(t * self.bins).astype(jnp.int32) - 1, 0, self.bins - 1)
    before = jnp.pad(jnp.cumsum(growth[:, :-1], axis=1), ((0, 0), (1, 0)))
    return _pick(before, stretch) + (t * self.bins - stretch) * _pick(growth, stretch)

  def _positions(self, length: int) -> tuple[int, ...]:
    """The axes of the parameters before their own."""
    del length
    return ()

  def _inner(self, params: Params, length: int) -> Array:
    del length
    return jax.nn.softmax(params["levels"], axis=-1)[None]

  def _by_nats(self, params: Params, times: Times, costs: TokenCosts) -> Array:
    shares = self.shares(params, times.t.shape[1])
    _, stretch = _passed(jax.lax.stop_gradient(shares), times.tau)
    # What is impossible costs infinity, and says nothing about the shares.
    cost = jnp.where(jnp.isfinite(costs.nats), costs.nats, 0.0)
    if self.power != 1:
      cost = self.unit * (jnp.maximum(cost, 0.0) / self.unit) ** self.power
    return -costs.weight * cost * jnp.log(_pick(shares, stretch))

  def _by_loss(self, params: Params, times: Times, costs: TokenCosts) -> Array:
    counted = costs.counted & jnp.isfinite(costs.loss)
    miss = self.expected(params, times.t) - jnp.where(counted, costs.loss, 0.0)
    return jnp.where(counted, costs.weight * miss**2 / 2, 0.0)


@member
class ByPosition(Learned):
  """Learned times for each position of a row: the schedule of SeqDiffuSeq (arXiv 2212.10325),
  over whose steps the loss of each position rises evenly.

  Published schedules are computed again every 20,000 steps from averages of the loss by step and
  position; ours change with every update. A position is a place in the row: of pairs, whose target
  begins where the source ends, that is not the place in the target. A text that is shorter has the
  first positions.
  """

  bins: int = option(20, "even stretches of time whose shares of the clock are learned", ge=2)

  def _positions(self, length: int) -> tuple[int, ...]:
    return (length,)

  def _inner(self, params: Params, length: int) -> Array:
    most = params["levels"].shape[0]
    if length > most:
      raise ValueError(
        f"timing 'by_position' has learned {most} positions, and the row has {length}; use rows of"
        f" at most {most}"
      )
    return jax.nn.softmax(params["levels"][:length], axis=-1)


def _passed(shares: Float[Array, "P K"], tau: Float[Array, "*n 1"]) -> tuple[Array, Array]:
  """(t [..., P], the stretch that it is in) at clock τ."""
  bins = shares.shape[1]
  ends = jnp.cumsum(
    shares[:, :-1], axis=1
  )  # where on the clock stretches end; the last one ends at 1
  stretch = jnp.sum(tau[..., None] > ends, axis=-1)  # half open, as τ is
  begins = jnp.pad(ends, ((0, 0), (1, 0)))
  passed = jnp.clip((tau - _pick(begins, stretch)) / _pick(shares, stretch), 0.0, 1.0)
  return jnp.where(tau == 1, 1.0, (stretch + passed) / bins), stretch


def _pick(table: Float[Array, "P K"], stretch: Int[Array, "*n N"]) -> Float[Array, "*n N"]:
  """table[place, stretch], where the table has one row per place, or one for all."""
  place = jnp.arange(table.shape[0])
  return table[place, stretch]

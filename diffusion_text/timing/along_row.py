"""Timings by a token's place in the row, or the same for all of the row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import TINY
from diffusion_text.core.options import member, option
from diffusion_text.timing.clock import Even, low_discrepancy, text_lengths
from diffusion_text.types import Batch, Key, Params, Progress, Times, Timing

# The smallest time of `Shared` with a power; far below TINY, as reaching small times is what a
# power is for.
_LEAST_TIME = 1e-30


@member
class Shared(Even):
  """All tokens of a row share one time: MDLM, MD4, LLaDA, SEDD, Diffusion-LM and most others.

  power: importance sampling of the time, t = τ^power at speed power · τ^(power-1). The bound is the
  same for every power. Above 1 it draws small times more often and weighs them less, for rates
  whose tail is there; the grids of samplers do not depend on it.

  about, width: importance sampling about a time, by a Cauchy law whose quartiles are `width` before
  and after it, for rates that are large in one stretch of time only. The bound is the same.

  low, high: times are drawn from [low, high] only, which lowers the variance of the gradient
  (BD3-LM, arXiv 2503.09573, section 5) and is no bound any more.
  """

  power: float = option(
    1.0, "t = τ^power: 1 draws times evenly, 2 and 3 draw more of the small ones", gt=0
  )
  about: float | None = option(
    None, "the time about which most times are drawn; unset: about none", ge=0, le=1
  )
  width: float = option(0.1, "about half of the times are nearer to `about` than this", gt=0)
  low: float = option(0.0, "the smallest time that is drawn", ge=0, le=1)
  high: float = option(1.0, "the largest time that is drawn", gt=0, le=1)

  def __post_init__(self):
    if self.low > self.high:
      raise ValueError(f"low={self.low} must not exceed high={self.high}; 0.3 and 0.8, say")
    if self.about is not None and (self.power, self.low, self.high) != (1.0, 0.0, 1.0):
      raise ValueError(
        f"about={self.about} with power={self.power}, low={self.low}, high={self.high}: times are"
        " drawn about one time, or by a power, or from a stretch; set one of them"
      )

  @property
  def path(self) -> Literal["continuous", "none"]:
    """A path, unless a part of [0, 1] is left out."""
    return "continuous" if (self.low, self.high) == (0.0, 1.0) else "none"

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """One time per row."""
    del params
    rows = batch.ids.shape[0]
    first = self.low ** (1 / self.power)
    last = self.high ** (1 / self.power)
    tau = first + (last - first) * low_discrepancy(key, rows, progress)[:, None]
    t = tau
    speed = jnp.ones_like(tau)
    if self.power != 1:
      t = jnp.maximum(tau**self.power, _LEAST_TIME)
      speed = self.power * tau ** (self.power - 1)
    if self.about is not None:
      t, speed = _about(self.about, self.width, tau)
    every = jnp.broadcast_to(t, batch.ids.shape)
    return Times(every, jnp.broadcast_to(speed, every.shape), tau, network_time=t)

  def for_bound(self, options: Mapping[str, float]) -> Timing:
    """The times that the process asks for, whatever those of training are; itself if it asks for
    none.
    """
    return Shared(**options) if options else self


def _about(middle: float, width: float, tau: Array) -> tuple[Array, Array]:
  """(t, dt/dτ): t is the quantile τ of a Cauchy law that is cut off at 0 and 1."""
  first = math.atan(-middle / width)
  last = math.atan((1 - middle) / width)
  slope = jnp.tan(first + (last - first) * tau)
  t = jnp.clip(middle + width * slope, TINY, 1.0)
  return t, (last - first) * width * (1 + slope**2)


@member
class Independent(Even):
  """Every token draws its own time (Diffusion Forcing, arXiv 2407.01392), evenly spread over the
  step's rows at each position.

  E[Σ rate] is a surrogate. Rates are the slopes of one function of all times, and add up to the
  bound along a path from all noise to all clean; independent times average the slopes over the
  whole cube instead. For masked diffusion token i then costs CE given each other token with
  probability ∫ alpha dt, so the number of known tokens is binomial(L - 1, 1/2) for the linear
  schedule, where the bound has it uniform on 0 … L - 1. The two agree if L <= 2 (linear schedule)
  or if the tokens are independent. Else they may differ either way: four copies of a fair bit cost
  log 2 / 2 where the entropy is log 2, four bits of even parity 3.5 log 2 where it is 3 log 2.

  A network that has seen all combinations of times may be sampled along any. `width` is the grid of
  samplers: with it, tokens fall one after the other along a slope of that many tokens, the pyramid
  of Diffusion Forcing, whose level of position i at call m is clip(K - m + s · i, 0, K): K levels
  and s levels per position are a width of K / s in K + s (L - 1) steps. What a token goes through
  does not depend on the length of the row, so that in a causal context a row may be longer than
  those of training, and its first tokens are those of a shorter row.
  """

  width: int | None = option(
    None,
    "of the grid, the tokens of a slope that moves from left to right; None: all fall together",
    ge=1,
  )

  path: ClassVar[Literal["none"]] = "none"

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """One time per token; `tau` is their mean, as there is no clock that they share."""
    del params
    rows, length = batch.ids.shape

    # One stratified column per position: spread over the batch, and exactly independent within a
    # row.
    def column(key):
      return low_discrepancy(key, rows, progress)

    t = jax.vmap(column, out_axes=1)(jax.random.split(key, length))
    return Times(t, jnp.ones_like(t), jnp.mean(t, axis=1, keepdims=True), t)

  def grid(
    self,
    params: Params,
    clock: Float[np.ndarray, " S1"],
    lengths: Int[Array, " B"],
    length: int,
  ) -> Float[Array, "B S1 {length}"]:
    """The clock, or a slope of `width` tokens, [B, steps + 1, length]."""
    if self.width is None:
      return super().grid(params, clock, lengths, length)
    return Hyperschedule(kind="wave", width=self.width).grid(params, clock, lengths, length)


class Paths(Even):
  """Tokens that fall from 1 to 0 along lines of one slope, each with a delay of its own. Each token
  sweeps [0, 1] once.

  A row's own length counts, in training and in sampling alike: padding on the right changes no
  schedule.
  """

  path: ClassVar[Literal["continuous"]] = "continuous"

  def line(
    self, lengths: Int[Array, "B 1"], length: int
  ) -> tuple[Float[Array, "B 1"] | float, Float[Array, "B L"], float]:
    """(total, last, span): while total · τ falls from `total` to 0, token i falls from 1 to 0
    between last_i + span and last_i."""
    raise NotImplementedError

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Points of the paths that `grid` walks."""
    del params
    rows, length = batch.ids.shape
    total, last, span = self.line(text_lengths(batch)[:, None], length)
    tau = low_discrepancy(key, rows, progress)[:, None]
    t, speed = _on_line(total * tau, total, last, span)
    return Times(t, speed, tau, t)

  def grid(
    self,
    params: Params,
    clock: Float[np.ndarray, " S1"],
    lengths: Int[Array, " B"],
    length: int,
  ) -> Float[Array, "B S1 {length}"]:
    """The times of the paths at the clock of each step, [B, steps + 1, length]."""
    del params
    steps = len(clock) - 1
    total, last, span = self.line(jnp.maximum(lengths, 1)[:, None], length)
    # (total · k / steps - last) / span, divided once and at the end: XLA divides by a constant as
    # it multiplies by its inverse, and would miss 0 and 1 where a token's fall ends and begins.
    step = jnp.asarray(clock * steps, jnp.float32)  # whole numbers for even steps
    left = jnp.broadcast_to(total * step, (lengths.shape[0], steps + 1))[:, :, None]
    over = left - last[:, None, :] * steps
    fall = span * steps
    t = jnp.where(over >= fall, 1.0, jnp.clip(over / fall, 0.0, 1.0))
    return t.at[:, 0].set(1.0).at[:, -1].set(0.0)


def _on_line(left, total, last, span):
  """(t, dt/dτ) where left = total · τ; all broadcast."""
  line = (left - last) / span
  # Half open, as τ is: what rounding takes at one end it gives at the other.
  inside = (line > 0) & (line <= 1)
  return jnp.clip(line, 0.0, 1.0), jnp.where(inside, total / span, 0.0)


@member
class Slanted(Paths):
  """Times fall along a line, left tokens first (AR-Diffusion, arXiv 2305.09515).

  Over the clock, position i of L rises from 0 to 1 during τ in [a, a + 1/(1 + spread)] with
  a = (spread / (1 + spread)) · (1 - i/(L-1)): the last token is the first to be lost.
  """

  spread: float = option(
    1.0, "how much earlier tokens lead: 0 is one time for all, large is near left to right", ge=0
  )

  def line(
    self, lengths: Int[Array, "B 1"], length: int
  ) -> tuple[float, Float[Array, "B L"], float]:
    """Each token's fall lasts 1 of 1 + spread."""
    place = jnp.arange(length, dtype=jnp.float32)
    left = jnp.maximum(1 - place / jnp.maximum(lengths - 1, 1), 0.0)
    return 1 + self.spread, self.spread * left, 1.0


@member
class Hyperschedule(Paths):
  """A matrix of times, one row per step of the sampler (hyperschedules, arXiv 2504.06416). Training
  draws points of that path.

  kind "wave": a slope of `width` tokens moves from left to right; a token falls from 1 to 0 while
  the slope passes. Width 1 is one token after the other, a wide wave tends to `Shared`; it is
  `Slanted` with spread = (L - 1) / width. L - 1 + width steps give the published integer levels.
  kind "blocks": blocks of `width` tokens fall one after the other, those on the left are clean,
  those on the right all noise; the last block may be shorter.
  """

  kind: Literal["wave", "blocks"] = option(..., "a moving slope, or blocks one after the other")
  width: int = option(..., "tokens of the slope or of a block; 1 is one token at a time", ge=1)

  def line(
    self, lengths: Int[Array, "B 1"], length: int
  ) -> tuple[Float[Array, "B 1"], Float[Array, "B L"], float]:
    """A wave passes lengths - 1 + width places; blocks fall for one unit each."""
    place = jnp.arange(length)
    if self.kind == "wave":
      last = jnp.maximum(lengths - 1 - place, 0)
      return lengths - 1.0 + self.width, last.astype(jnp.float32), float(self.width)
    blocks = -(-lengths // self.width)
    last = jnp.maximum(blocks - 1 - place // self.width, 0)
    return blocks.astype(jnp.float32), last.astype(jnp.float32), 1.0


class Bent(Even):
  """Tokens whose times are curves of the clock and of a token's place, each rising from 0 to 1.

  A row's own length counts, in training and in sampling alike.
  """

  path: ClassVar[Literal["continuous"]] = "continuous"

  def curve(
    self, tau: Float[Array, "#B S 1"], lengths: Int[Array, "B 1 1"], length: int
  ) -> tuple[Float[Array, "B S L"], Float[Array, "B S L"]]:
    """(t, dt/dτ) at the clock, of rows of these lengths."""
    raise NotImplementedError

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Points of the curves that `grid` walks."""
    del params
    rows, length = batch.ids.shape
    tau = low_discrepancy(key, rows, progress)[:, None]
    t, speed = self.curve(tau[:, None], text_lengths(batch)[:, None, None], length)
    return Times(t[:, 0], speed[:, 0], tau, t[:, 0])

  def grid(
    self,
    params: Params,
    clock: Float[np.ndarray, " S1"],
    lengths: Int[Array, " B"],
    length: int,
  ) -> Float[Array, "B S1 {length}"]:
    """The times of the curves at the clock of each step, [B, steps + 1, length]."""
    del params
    tau = jnp.asarray(clock, jnp.float32)[None, :, None]
    t, _ = self.curve(tau, jnp.maximum(lengths, 1)[:, None, None], length)
    return t.at[:, 0].set(1.0).at[:, -1].set(0.0)


@member
class Tilted(Bent):
  """Later tokens are likelier to be noise, by odds that grow with the place (Efficient-DLM, arXiv
  2512.14067): of positions i and j of a row, or of a block, of L tokens,

    odds_i / odds_j = exp(β (1 - τ) (i - j)),  odds = t / (1 - t),  exp(-β L) = `ratio`

  and τ / (1 - τ) is the geometric mean of the odds: strongly tilted where little is noise, and not
  at all at τ = 1. The published law draws exactly round(τ L) positions of a block without
  replacement, the next one with probability in proportion to exp(β (1 - τ) i). Here each token has
  these odds for itself, so that its time rises from 0 to 1 along one curve and the bound holds.
  """

  ratio: float = option(
    0.1,
    "exp(-β L), about the odds of the first token over the last; 0.1 is published",
    ge=0.01,
    le=1,
  )

  def curve(
    self, tau: Float[Array, "#B S 1"], lengths: Int[Array, "B 1 1"], length: int
  ) -> tuple[Float[Array, "B S L"], Float[Array, "B S L"]]:
    """odds = exp(β (1 - τ) · place) τ / (1 - τ), place counted from the middle of the row."""
    # A ratio above exp(-8) keeps the curves rising: β |place| < 4 <= 1 / (τ (1 - τ)).
    beta = -math.log(self.ratio) / lengths
    place = jnp.minimum(jnp.arange(length), lengths - 1) - (lengths - 1) / 2
    weight = jnp.exp(beta * (1 - tau) * place)
    total = 1 - tau + tau * weight
    speed = weight * (1 - beta * place * tau * (1 - tau)) / total**2
    return tau * weight / total, speed


@member
class Converging(Bent):
  """Times on lines through one point beyond the row (AR-Diffusion, arXiv 2305.09515): of `levels` =
  T, the line of each clock goes through place `reach` · L at level T - 1, cut off at level 0.

  While the clock rises, the line first crosses level 0 at places L - 1 down to 0, one place per
  unit of the clock, and then place 0 at levels 0 to T - 1, one level per unit. So the last token is
  at most 1 / reach noisier than the first, and all are noise at the end. Published levels are
  rounded to whole numbers.
  """

  levels: int = option(
    2000, "T, the levels that one place weighs as much as; 2000 is published", ge=2
  )
  reach: float = option(2.0, "where the lines meet, in lengths of the row; 2 is published", ge=1)

  def curve(
    self, tau: Float[Array, "#B S 1"], lengths: Int[Array, "B 1 1"], length: int
  ) -> tuple[Float[Array, "B S L"], Float[Array, "B S L"]]:
    """The line through (start, height) and (reach · L, 1) at every place."""
    place = jnp.minimum(jnp.arange(length), lengths - 1)
    meet, top, last = self.reach * lengths, self.levels - 1, lengths - 1
    moved = tau * (last + top)
    start = jnp.maximum(last - moved, 0.0)
    height = jnp.maximum(moved - last, 0.0) / top
    t = height + (1 - height) * (place - start) / (meet - start)
    crossing = (meet - place) / (meet - start) ** 2  # of t by `moved`, while the start moves
    rising = (1 - place / meet) / top
    speed = (last + top) * jnp.where(start > 0, crossing, rising)
    return jnp.clip(t, 0.0, 1.0), jnp.where(t > 0, speed, 0.0)

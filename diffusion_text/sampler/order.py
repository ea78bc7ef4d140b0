"""Decoding in an order of confidence: at each call the positions that the network is surest of are revealed.

The score looks at the *distribution* at a position, never at the token drawn there: "the most probable draws first" is biased at
temperature > 0 even with a perfect network (tested on a Markov chain). Choose, then draw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_uniform, fold
from diffusion_text.kernels.cross_entropy import map_rows
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import ORDER, Canvas, update
from diffusion_text.types import Array, Params, Prediction, Process, Reveals, State, Time, Timing


def negative_entropy(logits: Array) -> Array:
  """-H of softmax(logits), nats: [..., V] -> [...]."""
  logp = jax.nn.log_softmax(logits, axis=-1)
  return jnp.sum(jnp.exp(logp) * jnp.maximum(logp, -1e4), axis=-1)  # 0 · -inf is 0 here


def margin(logits: Array) -> Array:
  """Probability of the best token minus that of the second best: [..., V] -> [...]."""
  best, second = jnp.moveaxis(jax.lax.top_k(jax.nn.softmax(logits, axis=-1), 2)[0], -1, 0)
  return best - second


def max_prob(logits: Array) -> Array:
  """Log-probability of the best token: [..., V] -> [...]."""
  return jnp.max(jax.nn.log_softmax(logits, axis=-1), axis=-1)


# Higher is revealed earlier; None: no look at the logits, a random order.
ORDERS: dict[str, Callable[[Array], Array] | None] = {
  "random": None,
  "entropy": negative_entropy,
  "margin": margin,
  "max_prob": max_prob,
}


@dataclasses.dataclass(frozen=True)
class Ordered:
  """Reveals an even share of each row's open tokens per call, surest first; all done after min(steps, open tokens) calls.

  One token per call is exact for every order at temperature 1; more per call trades calls for dependence errors, and the most
  confident positions tend to be neighbours (DESIGN, "two facts"). order: a key of ORDERS.
  """

  timing: Timing
  steps: int
  order: str = "entropy"
  guidance: Guidance = Guidance()

  def __post_init__(self):
    if self.order not in ORDERS:
      raise ValueError(f"order={self.order!r} is unknown; use one of {sorted(ORDERS)}")

  def plan(self, process: Process, params: Params, canvas: Canvas) -> tuple[Array, Array]:
    """Open tokens per row [B], and the grid of times."""
    if not isinstance(process, Reveals):
      raise ValueError(
        f"{type(process).__name__} cannot reveal single tokens out of turn; use the ancestral sampler for it"
      )
    return jnp.sum(canvas.open, axis=1), self.timing.grid(self.steps, canvas.open.shape[1])

  def _waiting(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return canvas.open & process.scored(params, canvas.state, jnp.ones(canvas.open.shape))

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return jnp.any(self._waiting(process, params, canvas), axis=1)

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    """A network that wants a time is told the one at which as many tokens are open on the grid as are open now."""
    total_B, grid = canvas.plan
    waiting_B = jnp.sum(self._waiting(process, params, canvas), axis=1)
    done = 1 - waiting_B / jnp.maximum(total_B, 1)
    return grid[jnp.round(done * self.steps).astype(jnp.int32)]

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State:
    waiting_BxL = self._waiting(process, params, canvas)
    total_B, _ = canvas.plan
    calls_B = jnp.maximum(jnp.minimum(self.steps, total_B), 1)
    target_B = total_B * jnp.minimum(canvas.call + 1, calls_B) // calls_B
    quota_B = target_B - (total_B - jnp.sum(waiting_BxL, axis=1))
    score_BxL = jnp.where(waiting_BxL, self._score(canvas, prediction, waiting_BxL), -jnp.inf)
    rank_BxL = jnp.argsort(
      jnp.argsort(-score_BxL, axis=1, stable=True), axis=1
    )  # ties go to the left
    moves = waiting_BxL & (rank_BxL < quota_B[:, None])
    return update(
      canvas,
      prediction,
      moves,
      lambda k, z, logits: process.draw(params, k, z, self.guidance(logits)),
    )

  def _score(self, canvas: Canvas, prediction: Prediction, waiting_BxL: Array) -> Array:
    score = ORDERS[self.order]
    if score is None:
      return draw_uniform(fold(canvas.keys, ORDER))
    flat = prediction.features.reshape(-1, prediction.features.shape[-1])
    values = map_rows(
      lambda rows: score(prediction.unembed(rows)), waiting_BxL.reshape(-1), flat, chunk=256
    )
    return values.reshape(waiting_BxL.shape)

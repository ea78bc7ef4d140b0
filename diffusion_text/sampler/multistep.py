"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): deterministic steps of second order, at one
network call each.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_categorical, fold
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.schedules.gaussian import Path
from diffusion_text.types import Canvas, Model, Params, Prediction, State

_NO_FRESH_NOISE = StepOptions(rho=0.0)


@runtime_checkable
class WalksTowards(Protocol):
  """A process of vectors that predicts x̂ and walks towards it along a path of log-SNR."""

  schedule: Path
  size: int

  def predicted(self, params: Params, state: State, t: Array, output: Array) -> Array:
    """x̂ [n, E], the posterior mean of the clean vector."""

  def towards(
    self,
    params: Params,
    target: Array,
    state: State,
    t: Array,
    s: Array,
    noise: Array,
    options: StepOptions,
  ) -> State:
    """z_s, aimed at this prediction."""


def extrapolated(
  path: Path,
  mean: Float[Array, "*n E"],
  last: Float[Array, "*n E"],
  before: Float[Array, "*n"],
  t: Float[Array, "*n"],
  s: Float[Array, "*n"],
) -> Float[Array, "*n E"]:
  """The x̂ to be used all along t -> s: half a step ahead on the line through x̂ at t (`mean`) and
  at `before` (`last`).

  x̂ + (x̂ - last) / 2r, r = (λ_t - λ_before) / (λ_s - λ_t) in log-SNR λ; x̂ itself where before <=
  t: there is none before.
  """
  now = path.log_snr(t)
  twice = 2 * (now - path.log_snr(before)) / (path.log_snr(s) - now)
  known = before > t
  ahead = (mean - last) / jnp.where(known, twice, 1.0)[..., None]
  return jnp.where(known[..., None], mean + ahead, mean)


@member
class Multistep(Walk):
  """x_s = alpha_s D + sigma_s ε̂(D), D extrapolated from this call's x̂ and the last one's; the
  first step of a token is DDIM's.

  Errors fall with the square of the number of steps where DDIM's (`gaussian` with rho = 0) fall
  with their number, so 10 to 50 do. The last step (s = 0) draws the token from this call's
  prediction, as all samplers do. Any timing: every token has a history of its own. Memory: one more
  array like the state, the last x̂.
  """

  def check(self, model: Model) -> None:
    """Refuses processes without x̂."""
    super().check(model)
    fix = "it has no x̂ to extrapolate; use sampler.name='grid'"
    require(model.process, WalksTowards, "sampler.name='multistep'", fix)

  def remembers(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """The last x̂ of every token, [B, u, E], and its time, 0 where there was none."""
    shape = canvas.active.shape
    return jnp.zeros((*shape, model.process.size)), jnp.zeros(shape)

  def moved(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Walked,
    prediction: Prediction,
    moves: Bool[Array, "B u"],
    turn: Turn,
  ) -> tuple[State, Any]:
    """A step of second order, or the token."""
    process = model.process
    last, before = state.extra

    def one(of_process, output, keys, text, t, s, last, before):
      output = self.transform(output, s)
      mean = process.predicted(of_process, text, t, output)
      target = extrapolated(process.schedule, mean, last, before, t, s)
      no_noise = jnp.zeros_like(text)
      after = process.towards(of_process, target, text, t, s, no_noise, _NO_FRESH_NOISE)
      said = process.posterior(of_process, text, t, output)
      clean = process.clean(of_process, draw_categorical(fold(keys, 1), said))
      return select(s > 0, after, clean), mean

    rows = (turn.keys, canvas.state, turn.t, turn.s, last, before)
    stepped, mean = on_tokens(model, params, prediction, moves, one, *rows)
    return stepped, (select(moves, mean, last), jnp.where(moves, turn.t, before))

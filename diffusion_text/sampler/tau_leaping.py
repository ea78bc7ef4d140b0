"""Tau-leaping: steps of the reverse jump process as its rates or its scores give them, frozen
within a step.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.types import Canvas, Keys, Model, Params, Prediction, State


@runtime_checkable
class Leaps(Protocol):
  """A process that knows the jump rates of its reversal."""

  def leap(
    self, params: Params, keys: Keys, state: State, output: Array, t: Array, s: Array
  ) -> State:
    """A draw of z_s by the jump rates at t."""


@runtime_checkable
class StepsByScores(Protocol):
  """A process that may step by scores, as they are."""

  def analytic(
    self, params: Params, keys: Keys, state: State, output: Array, t: Array, s: Array
  ) -> State:
    """A draw of z_s by the scores at t."""


@member
class TauLeaping(Walk):
  """arXiv 2205.14987; the predictors of SEDD, arXiv 2310.16834.

  "euler": any token of which something is left to predict may jump, by the rates at t; only the
  step to s = 0 is the exact posterior step, so that no noise is left. For masks with the linear
  schedule a leap is the posterior step itself.

  "analytic" (Tweedie tau-leaping): the scores at t are carried to s in closed form, and the last
  step is of the same kind. With exact scores it is the posterior step. With scores that are off it
  is not: what is negative is cut at another place, and scores of masks are not normalised
  (`process.uniform`, `process.masked`).

  The law tends to the model's own as steps grow.
  """

  leap: Literal["euler", "analytic"] = option(
    "euler", "by jump rates at t, or by SEDD's analytic step of scores"
  )

  def check(self, model: Model) -> None:
    """Refuses processes without jump rates, and analytic steps without scores."""
    super().check(model)
    who, fix = "sampler.name='tau_leaping'", "use sampler.name='grid'"
    if self.leap == "euler":
      require(model.process, Leaps, who, fix)
      return
    require(model.process, StepsByScores, f"{who} with leap='analytic'", fix)
    if model.process.reads_logits_as != "score":
      raise ValueError(
        f"sampler.leap='analytic' steps by scores, and {type(model.process).__name__} reads its"
        f" logits as a {model.process.reads_logits_as}; {fix}, or process.prediction='score'"
      )

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """Those of the posterior step where s = 0, else whatever may jump."""
    jumps = model.process.has_loss(params["process"], canvas.state, turn.t) & (turn.t > turn.s)
    if self.leap == "analytic":
      return jumps
    lands = super().may_change(model, params, canvas, turn)
    return jnp.where(turn.s == 0, lands, jumps)

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
    """A leap; by rates, the posterior step to s = 0."""
    process = model.process
    # Of masks, whose scores are a law times a number that says how soon they are revealed.
    has_total = process.reads_logits_as == "score" and process.mask_id is not None

    def one(of_process, output, keys, text, t, s):
      drawn = self.transform(output, s)
      output = with_total_of(drawn, output) if has_total else drawn
      if self.leap == "analytic":
        return process.analytic(of_process, keys, text, output, t, s)
      leapt = process.leap(of_process, keys, text, output, t, s)
      landed = process.step(of_process, keys, text, output, t, s)
      return select(s == 0, landed, leapt)

    rows = (turn.keys, canvas.state, turn.t, turn.s)
    return on_tokens(model, params, prediction, moves, one, *rows), state.extra


def with_total_of(
  logits: Float[Array, "*n V"], other: Float[Array, "*n V"]
) -> Float[Array, "*n V"]:
  """The logits plus a number per token, so that Σ exp is that of `other`."""
  missing = jax.nn.logsumexp(other, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
  return logits + missing[..., None]

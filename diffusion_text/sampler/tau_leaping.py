"""Tau-leaping: Euler steps of the reverse jump process, with the jump rates frozen within a
step.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.sampler.loop import on_tokens
from diffusion_text.types import Canvas, Keys, Model, Params, Prediction, State


@runtime_checkable
class Leaps(Protocol):
  """A process that knows the jump rates of its reversal."""

  def leap(
    self, params: Params, keys: Keys, state: State, output: Array, t: Array, s: Array
  ) -> State:
    """A draw of z_s by the jump rates at t."""


@member
class TauLeaping(Walk):
  """arXiv 2205.14987; the "euler" sampler of SEDD, arXiv 2310.16834.

  Any token of which something is left to predict may jump; only the step to s = 0 is the exact
  posterior step, so that no noise is left. The law tends to the model's own as steps grow. For
  masks with the linear schedule a leap is the posterior step itself.
  """

  def check(self, model: Model) -> None:
    """Refuses processes without jump rates."""
    super().check(model)
    require(model.process, Leaps, "sampler.name='tau_leaping'", "use sampler.name='grid'")

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """Those of the posterior step where s = 0, else whatever may jump."""
    lands = super().may_change(model, params, canvas, turn)
    jumps = model.process.has_loss(params["process"], canvas.state, turn.t) & (turn.t > turn.s)
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
    """A leap, or the posterior step to s = 0."""
    process = model.process

    def one(of_process, output, keys, text, t, s):
      output = self.transform(output, s)
      leapt = process.leap(of_process, keys, text, output, t, s)
      landed = process.step(of_process, keys, text, output, t, s)
      return select(s == 0, landed, leapt)

    rows = (turn.keys, canvas.state, turn.t, turn.s)
    return on_tokens(model, params, prediction, moves, one, *rows), state.extra

"""Adaptive correction (hyperschedules, arXiv 2504.06416): masks are revealed for good, and what is
visible is now and then drawn again.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import LEAST
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.mixture import Shares
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.sampler.lost_tokens import visible_may_be_wrong
from diffusion_text.types import Canvas, Model, Params, Prediction, State


@runtime_checkable
class HasShares(Protocol):
  """A process that says which share of its tokens is masked at a time."""

  def shares(self, t: Array) -> Shares:
    """The law of a token at time t."""


@member
class AdaptiveCorrection(Walk):
  """From t to s, with p = 1 - mask_s / mask_t the share of the masks that fall,

    masked token    becomes a draw of the prediction with probability p
    visible token   becomes a draw of the prediction with probability eta (1 - p)

  so that corrections are rare where much is revealed, and at the last step there are none. All
  masked tokens become clean tokens: what is scrambled in between, as the posterior steps of `grid`
  do it, is left out. So the law is not the model's own; it is a decoder for networks that were
  trained to see wrong tokens. Where a timing has moved on (s = t, behind a wave) tokens stay.
  """

  eta: float = option(
    0.015, "of the corrections; 0.015 is published, 0 corrects nothing", ge=0, le=1
  )

  def check(self, model: Model) -> None:
    """Refuses processes that do not begin with masks alone, and whose visible tokens are always
    right.
    """
    super().check(model)
    process, fix = model.process, "use process.name='mixed' with mixing='epsilon'"
    who = "sampler.name='adaptive_correction'"
    require(process, HasShares, who, fix)
    if process.mask_id is None or float(process.shares(jnp.float32(1)).mask) < 1:
      raise ValueError(f"{who} begins with masks, and {process} does not at t = 1; {fix}")
    if not visible_may_be_wrong(process, 0.5):
      raise ValueError(f"{who} corrects visible tokens, which {process} takes for right; {fix}")

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """The masks that are revealed and the tokens that are drawn again: no logits are needed."""
    reveal = self.reveal(model, turn)
    chance = jnp.where(canvas.state == model.process.mask_id, reveal, self.eta * (1 - reveal))
    return (turn.t > turn.s) & (draw_uniform(fold(turn.keys, 0)) < chance)

  def reveal(self, model: Model, turn: Turn) -> Float[Array, "B u"]:
    """p, the probability that a mask is revealed: 1 exactly at s = 0."""
    before, after = model.process.shares(turn.t).mask, model.process.shares(turn.s).mask
    return 1 - after / jnp.maximum(before, LEAST)

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
    """A draw of the prediction."""
    process = model.process

    def one(of_process, output, keys, text, t, s):
      said = process.posterior(of_process, text, t, self.transform(output, s))
      return process.clean(of_process, draw_categorical(fold(keys, 1), said))

    rows = (turn.keys, canvas.state, turn.t, turn.s)
    return on_tokens(model, params, prediction, moves, one, *rows, few=True), state.extra

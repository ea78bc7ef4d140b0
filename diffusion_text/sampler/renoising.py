"""Renoising: the strategies of remasking (ReMDM, arXiv 2503.00307) for every process, by the steps
of Ψ-samplers (Duo++, arXiv 2602.21185).

From time t to s each token takes the posterior step with probability 1 - rho, else a guess of the
clean token is noised again to s. Both parts have the marginal q_s, so any rho that does not depend
on the state keeps the marginals, for any noise. For masks, rho takes a visible token back with
probability sigma = rho (1 - alpha_s), which is remasking with sigma <= 1 - alpha_s.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.numerics import LEAST, at_ids, select
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_uniform, streams
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked, noised_guess
from diffusion_text.sampler.lost_tokens import need_schedule
from diffusion_text.sampler.remasking import PUBLISHED, Strategies
from diffusion_text.schedules.discrete import time_of
from diffusion_text.types import Canvas, Model, Params, Prediction, State


@member
class Renoising(Strategies):
  """ReMDM's strategies where noise need not be a mask; eta = 0 is `grid`, key by key. All `steps`
  calls are made.

  strategy: how rho follows from eta and the noise 1 - alpha_s that is left after the step,
    cap      a token is noise anew with probability min(eta, 1 - alpha_s): rho = min(1, eta /
             (1 - alpha_s))
    rescale  rho = eta
    conf     eta, shared out among the tokens of a row by the softmax of minus the probability that
             the network gave each when it last changed. What a token has depends on the state, so
             here the marginals are not kept.

  loop: as in `remasking`: the clock times t_on … t_off are spent at the constant alpha_on, and
  tokens are renoised only there.

  `remasking` serves masks with a larger sigma, up to (1 - alpha_s) / alpha_t. A network corrects
  its errors by tokens that go back to noise; with a perfect network renoising only costs calls.
  """

  def check(self, model: Model) -> None:
    """Refuses vectors, which lose no tokens by a schedule."""
    super().check(model)
    fix = "use sampler.name='grid' with kappa=0.95"
    need_schedule(model.process, "sampler.name='renoising'", fix)

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """Those of the posterior step, and all that might be noised again."""
    stepped = (turn.t > turn.s) & Walk.may_change(self, model, params, canvas, turn)
    most = self._largest(model, turn)
    renoised = (self._coin(turn) < most) & (turn.t > 0) & (turn.s < 1)
    return stepped | renoised

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
    """A posterior step, or a guess that is noised again."""
    process = model.process
    rho = self.rho(model, turn, canvas.active, state.extra)
    again = (self._coin(turn) < rho) & (turn.t > 0) & (turn.s < 1)

    def one(of_process, output, keys, text, t, s, again):
      said = process.posterior(of_process, text, t, output)
      output = self.transform(output, s)
      stepped = select(t > s, process.step(of_process, keys, text, output, t, s), text)
      guessed = noised_guess(process, of_process, keys, text, output, t, s)
      new = select(again, guessed, stepped)
      shown = new < process.vocab_size
      chance = jnp.exp(at_ids(said, jnp.minimum(new, process.vocab_size - 1)))
      return new, jnp.where(shown, chance, 0.0)

    rows = (turn.keys, canvas.state, turn.t, turn.s, again)
    text, chance = on_tokens(model, params, prediction, moves, one, *rows)
    return text, jnp.where(moves & (text != canvas.state), chance, state.extra)

  def rho(
    self, model: Model, turn: Turn, active: Bool[Array, "B u"], chance: Float[Array, "B u"]
  ) -> Float[Array, "B u"]:
    """The probability with which each token is noised again at this step."""
    most = jnp.broadcast_to(self._largest(model, turn), active.shape)
    if self.strategy != "conf":
      return most
    weight = jnp.where(active, jnp.exp(-chance), 0.0)
    return most * weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), LEAST)

  def _largest(self, model: Model, turn: Turn) -> Float[Array, "B u"]:
    """Rho; with conf, what all tokens of a row have together."""
    eta = jnp.float32(PUBLISHED[self.strategy] if self.eta is None else self.eta)
    schedule = model.process.schedule
    most = jnp.broadcast_to(eta, turn.s.shape)
    if self.strategy == "cap":
      left = schedule(turn.s).noise
      most = jnp.where(left > 0, jnp.minimum(1.0, eta / jnp.maximum(left, LEAST)), 0.0)
    if self.loop is None:
      return most
    held = time_of(schedule, self.loop[2])
    return jnp.where((turn.t == held) & (turn.s == held), most, 0.0)

  def _coin(self, turn: Turn) -> Float[Array, "B u"]:
    """A uniform number per token and step."""
    return 1 - draw_uniform(streams(turn.keys, "coin"))

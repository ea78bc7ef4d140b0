"""Times that depend on what a token is, before anybody knows it: guessed with the token."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import NEVER, select
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_categorical, streams
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.types import Canvas, Model, Params, Prediction, State


@member
class OwnTimes(Walk):
  """What samplers share that remember a time for each token; not a sampler itself."""

  on_grid: ClassVar[bool] = False

  def remembers(self, model: Model, params: Params, canvas: Canvas) -> Float[Array, "B u"]:
    """The time of every token: noise."""
    return jnp.ones(canvas.active.shape)

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Walked
  ) -> Float[Array, "B u"]:
    """The remembered ones."""
    return state.extra

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """Every token: how far a step takes it is known when the network has answered."""
    return jnp.ones(turn.t.shape, bool)


@runtime_checkable
class TimesOfTokens(Protocol):
  """A timing that knows when a token is noised, once it knows which tokens a row has."""

  def token_times(
    self,
    params: Params,
    ids: Int[Array, "B u"],
    tau: Float[Array, "B u"],
    counts: Bool[Array, "B u"],
  ) -> Float[Array, "B u"]:
    """The times of the tokens `ids` of a row at clock τ, from 1 at τ = 1 to 0 at τ = 0.

    counts: True at tokens that are scored in training, neither observed nor padding.
    """


@member
class GuessedTimes(OwnTimes):
  """Steps along the path of the token that is guessed, which the timing knows: a text is written
  against the order in which training noises it.

  At each step, from clock τ to τ', each token v is guessed by a draw of its posterior p(v | z), and
  moves from z to a draw of q(z' | z, v) between the times that v has at τ and τ'. A token whose
  guess is at time 0 by then is that guess, for good. The network reads the clock, as in training,
  and the time at which a token stands is never told. Where p is exact this is the reverse of the
  noise of training, token by token: the law of texts tends to the language as steps grow. (A grid
  of times that all tokens share does not, as the network has learned that the noise of a token
  says what it is.)

  Where the times of a token also depend on the other tokens of its row ("by_frequency"), the other
  tokens are guesses too, each drawn from its own posterior and not from the joint one. This is an
  approximation; it is small where times hardly change from one guess to another.

  Temperature and top_p affect the guesses, and so the order; greedy_tail is of the last step.
  """

  def check(self, model: Model) -> None:
    """Raises ValueError for a timing without times of tokens, and for answers that leave out the
    token's own noise: how telling it is depends on what the token is.
    """
    super().check(model)
    who = "sampler.name='guessed_times'"
    require(model.timing, TimesOfTokens, who, "use timing.name='by_information' or 'by_frequency'")
    if model.process.reads_logits_as != "posterior":
      raise ValueError(
        f"{who} draws tokens from their posterior, and {model.process} reads logits as"
        f" {model.process.reads_logits_as!r}, to which it adds the evidence of a time that is not"
        " known; use sampler.name='grid', or a process that reads the posterior"
      )

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Walked
  ) -> Float[Array, "B u"]:
    """The clock."""
    return state.t

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
    """A step along the path of a guess; tokens at time 0 stay."""
    process, timing, own = model.process, model.timing, params["timing"]
    moves = moves & (state.extra > 0)

    def guess(of_process, output, keys, text, t, clock):
      said = self.transform(process.posterior(of_process, text, t, output), clock)
      return draw_categorical(streams(keys, "guess"), said)

    def step(of_process, output, keys, text, ids, t, s):
      sure = jnp.where(jnp.arange(output.shape[-1]) == ids[:, None], 0.0, NEVER)
      stepped = process.step(of_process, keys, text, sure, t, s)
      return select(s > 0, stepped, process.clean(of_process, ids))

    rows = turn.keys, canvas.state, state.extra, turn.s
    ids = on_tokens(model, params, prediction, moves, guess, *rows)
    ids = jnp.where(moves, ids, process.decode(params["process"], canvas.state))
    t, s = (timing.token_times(own, ids, clock, canvas.active) for clock in (turn.t, turn.s))
    t, s = process.round_time(t), process.round_time(s)
    rows = turn.keys, canvas.state, ids, t, s
    text = on_tokens(model, params, prediction, moves, step, *rows)
    return select(moves, text, canvas.state), jnp.where(moves, s, state.extra)

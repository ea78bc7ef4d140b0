"""Walking down a grid of times, the same for every text of a length: ancestral sampling and what is
made of it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import offers
from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold, streams
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.transform import GREEDY, LogitsTransform, refuse_scores
from diffusion_text.timing.clock import clock_of_steps
from diffusion_text.types import (
  Canvas,
  Keys,
  Model,
  Params,
  Prediction,
  Process,
  Query,
  SamplerState,
  State,
)


class Walked(NamedTuple):
  """How far each row has come.

  Attributes:
    grid: float32 [B, S + 1, u], the times.
    step: int32 [B], the step that each row is at.
    t: float32 [B, u], the time of each token.
    left: bool [B, u], the tokens that this step may still change.
    extra: whatever else a sampler remembers.
  """

  grid: Float[Array, "B S1 u"]
  step: Int[Array, " B"]
  t: Float[Array, "B u"]
  left: Bool[Array, "B u"]
  extra: Any


class Turn(NamedTuple):
  """One step of every row: keys [B, u], and the times t -> s, [B, u], that each token goes
  through.
  """

  keys: Keys
  t: Float[Array, "B u"]
  s: Float[Array, "B u"]


@member
class Walk:
  """What samplers share that walk down the timing's grid; not a sampler itself.

  A step is over once every token that it may change has been answered: at one call, if the reader
  answers all that is needed, and at several calls if it answers some. So `steps` steps are `steps`
  calls for any process, timing and context. Draws are keyed by the number of the step, not of the
  call. Of a process in discrete time all times are rounded up to its own: where it has fewer steps
  than the sampler, some of the sampler's do nothing.
  """

  steps: int = option(64, "steps from noise to text, per unit of the context", ge=1)
  spacing: Literal["even", "cosine"] = option(
    "even",
    "the clock after k of S steps: 'even' 1 - k / S; 'cosine' cos(π/2 · k / S), which steps"
    " carefully while little is known",
  )
  temperature: float = option(1.0, "divides the logits; 1 changes nothing, 0 is greedy", ge=0)
  top_p: float = option(
    1.0,
    "the smallest set of tokens whose probability reaches this is kept, the crossing token"
    " included; 1 keeps all",
    gt=0,
    le=1,
  )
  greedy_tail: bool = option(
    False,
    "the step that makes a token clean takes the likeliest instead of a draw, as MDLM and Duo"
    " end; lowers entropy by a share that vanishes with the steps. Where logits are leave-one-out"
    " predictions it ignores what the token itself shows, as Duo's does",
  )

  extra_calls: ClassVar[int] = 0
  skips: ClassVar[bool] = False
  on_grid: ClassVar[bool] = True  # whether tokens stand at the times of the grid

  def check(self, model: Model) -> None:
    """Refuses transforms of logits that are no law over tokens."""
    changed = self.greedy_tail or (self.temperature, self.top_p) != (1, 1)
    refuse_scores(model, type(self).__name__, changed)

  def init(self, model: Model, params: Params, canvas: Canvas) -> Walked:
    """Every row at its first step."""
    rows, size = canvas.active.shape
    clock = clock_of_steps(self.steps, self.spacing)
    grid = model.timing.grid(params["timing"], clock, canvas.lengths, size)
    # A timing of one's own may miss the 0 at which text is clean, by rounding.
    grid = jnp.asarray(grid, jnp.float32).at[:, -1].set(0.0)
    # A network of a process in discrete time has read none but the times of its steps.
    grid = model.process.round_time(grid)
    nowhere = jnp.zeros((rows, size), bool)
    extra = self.remembers(model, params, canvas)
    state = Walked(grid, jnp.zeros(rows, jnp.int32), grid[:, 0], nowhere, extra)
    return self._enter(model, params, canvas, state)

  def remembers(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """What a sampler carries from step to step beside its place."""
    return ()

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Walked
  ) -> Bool[Array, "B u"]:
    """The tokens that this step may change; all of them where there is none, as the call is made
    all the same.
    """
    idle = ~jnp.any(state.left & canvas.active, axis=1, keepdims=True)
    going = (state.step < self.steps)[:, None]
    return going & canvas.active & (state.left | idle)

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Walked
  ) -> Float[Array, "B u"]:
    """The grid's."""
    return state.t

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Float[Array, "B u"]:
    """Those at which tokens stand."""
    return self.times(model, params, canvas, state)

  def turn(self, canvas: Canvas, state: Walked) -> Turn:
    """The step that each row is at."""
    step = jnp.minimum(state.step, self.steps - 1)
    row = jnp.arange(step.shape[0])
    keys = fold(streams(canvas.keys, "step"), step[:, None])
    return Turn(keys, state.grid[row, step], state.grid[row, step + 1])

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Walked,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Walked]:
    """The tokens that were answered go from t to s; rows of which no token is left go on to their
    next step.
    """
    del query
    turn = self.turn(canvas, state)
    moves = state.left & needs
    stepped, extra = self.moved(model, params, canvas, state, prediction, moves, turn)
    text = select(moves, stepped, canvas.state)
    left = state.left & ~needs
    state = state._replace(left=left, t=jnp.where(left, turn.t, turn.s), extra=extra)
    over = ~jnp.any(left, axis=1) & (state.step < self.steps)
    ahead = state._replace(step=state.step + over)
    entered = self._enter(model, params, canvas._replace(state=text), ahead)
    # A row that waits for answers keeps what is left of its step.
    keep = over[:, None]
    t, left = jnp.where(keep, entered.t, state.t), jnp.where(keep, entered.left, left)
    return text, entered._replace(t=t, left=left)

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """The tokens that a step may change, whatever the answers."""
    return model.process.may_change(params["process"], turn.keys, canvas.state, turn.t, turn.s)

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
    """(the tokens that move, at s, and what is remembered next); anything where `moves` does not
    hold.
    """
    raise NotImplementedError

  def transform(self, output: Float[Array, "n V"], s: Float[Array, " n"]) -> Float[Array, "n V"]:
    """The logits that tokens on their way to time s are drawn from."""
    drawn = LogitsTransform(self.temperature, self.top_p)(output)
    return jnp.where((s == 0)[:, None], GREEDY(output), drawn) if self.greedy_tail else drawn

  def _enter(self, model: Model, params: Params, canvas: Canvas, state: Walked) -> Walked:
    """The state of rows that begin the step that they are at, or the next one that may change
    them.
    """

    def left_at(step):
      turn = self.turn(canvas, state._replace(step=step))
      open_tokens = canvas.active & (step < self.steps)[:, None]
      return open_tokens & self.may_change(model, params, canvas, turn)

    def idle(turn):
      step, left = turn
      return (step < self.steps) & ~jnp.any(left, axis=1)

    def skip(turn):
      step = turn[0] + idle(turn)
      return step, left_at(step)

    step, left = state.step, left_at(state.step)
    if self.skips:
      step, left = jax.lax.while_loop(lambda turn: jnp.any(idle(turn)), skip, (step, left))
    t = state.grid[jnp.arange(step.shape[0]), jnp.minimum(step, self.steps)]
    return state._replace(step=step, left=left, t=t)


@member
class Grid(Walk):
  """Posterior steps p(z_s | z_t) down the grid, for any process and any timing.

  The law tends to the model's own as steps grow (total variation ~ 1 / steps; MDLM app. A, MD4
  app. C).

  With `skip` the calls at which a row would not change are not made; its tokens are the same, one
  by one. Which steps change something is known beforehand where that needs no prediction: for masks
  a row then takes at most min(steps, u) calls, and on an even grid S (1 - (1 - 1/S)^u) of them (226
  for S = 1000, u = 256), however many rows share the batch. First-hitting sampling (arXiv
  2409.02908) is its limit for many steps. Processes whose tokens may change at any time skip
  nothing.

  With `kappa` below 1 these are Ψ-samplers (Duo++, arXiv 2602.21185): token by token, the posterior
  step with probability kappa, else a guess of the clean token, noised again:

    Ψ(z_s | z_t, x̂) = kappa · q(z_s | z_t, x̂) + (1 - kappa) · q_s(z_s | x̂).

  Both parts have the marginal q_s, so any kappa keeps the marginals, for any noise. kappa = 0
  predicts and noises everything at every step. For masks it is ReMDM with

    sigma = (1 - kappa)(1 - alpha_s):

  a clean token is remasked by the second part alone, with that probability, and a masked one is
  unmasked with

    kappa (alpha_s - alpha_t) / (1 - alpha_t) + (1 - kappa) alpha_s
      = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).
  """

  skip: bool = option(False, "leaves out the calls at which a row would not change")
  kappa: float = option(
    1.0,
    "the probability, per token and step, of the posterior step; else a guess is noised again."
    " 0.95 noises one token in 20 again",
    ge=0,
    le=1,
  )

  @property
  def skips(self) -> bool:
    """Whether idle steps are left out."""
    return self.skip

  def may_change(
    self, model: Model, params: Params, canvas: Canvas, turn: Turn
  ) -> Bool[Array, "B u"]:
    """Those of the posterior step, and those that are noised again."""
    stepped = Walk.may_change(self, model, params, canvas, turn)
    if self.kappa == 1:
      return stepped
    return jnp.where(self._steps(turn.keys), stepped, (turn.t > 0) & (turn.s < 1))

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

    def one(of_process, output, keys, text, t, s):
      output = self.transform(output, s)
      stepped = model.process.step(of_process, keys, text, output, t, s)
      if self.kappa == 1:
        return stepped
      again = noised_guess(model.process, of_process, keys, text, output, t, s)
      return select(self._steps(keys), stepped, again)

    # A masked token is revealed once, so that few move per call; other tokens may move at any call.
    few = model.process.mask_id is not None and self.kappa >= 0.5
    rows = (turn.keys, canvas.state, turn.t, turn.s)
    return on_tokens(model, params, prediction, moves, one, *rows, few=few), state.extra

  def _steps(self, keys: Keys) -> Bool[Array, "..."]:
    return draw_uniform(streams(keys, "coin")) < self.kappa


@runtime_checkable
class Renoises(Protocol):
  """A process whose steps walk another path than `corrupt`, which training sees."""

  def renoise(self, params: Params, keys: Keys, clean_state: State, t: Array) -> State:
    """As `Process.corrupt`, along the path that steps walk."""


def noised_guess(
  process: Process,
  of_process: Params,
  keys: Keys,
  state: State,
  output: Float[Array, "n V"],
  t: Float[Array, " n"],
  s: Float[Array, " n"],
) -> State:
  """A draw of the clean tokens by the posterior, noised to time s. A token at t = 0 is its own
  guess.
  """
  said = process.posterior(of_process, state, t, output)
  guess = process.clean(of_process, draw_categorical(streams(keys, "guess"), said))
  noise = process.renoise if offers(process, Renoises) else process.corrupt
  return noise(of_process, keys, select(t > 0, guess, state), s)

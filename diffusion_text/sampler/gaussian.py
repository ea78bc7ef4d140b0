"""Steps of Gaussian processes whose making is a choice of the sampler: DDPM, DDIM, clamping,
fresh noise.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Array, Bool

from diffusion_text.core.capability import require
from diffusion_text.core.options import member, option
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Turn, Walk, Walked
from diffusion_text.types import Canvas, Keys, Model, Params, Prediction, State


@runtime_checkable
class StepsTowards(Protocol):
  """A process whose steps take `StepOptions`."""

  def check_step(self, options: StepOptions) -> None:
    """Raises ValueError for options that the process does not have."""

  def step_towards(
    self,
    params: Params,
    keys: Keys,
    state: State,
    output: Array,
    t: Array,
    s: Array,
    options: StepOptions,
  ) -> State:
    """As `Process.step`, made as the options say."""


@member
class GaussianGrid(Walk):
  """Posterior steps down the grid, made as the options say; the defaults are those of `grid`.

  z_s = alpha_s P + k sigma_s (√(1 - ρ²) ε̂ + ρ ε), where P is the projection, ε̂ the noise about it
  and ε fresh noise (`process.gaussian`). The step to s = 0 draws the token.
  """

  projection: Literal["expectation", "sample", "argmax", "nearest", "multi_hot"] = option(
    "expectation",
    "P: the posterior mean, a drawn token, the likeliest, the one nearest to the mean"
    " (Diffusion-LM's clamping), or (simplex only) all tokens that top_p leaves",
  )
  rho: float | None = option(
    None, "share of fresh noise: 0 is DDIM, 1 all fresh (TESS); None: eta · ρ_d", ge=0, le=1
  )
  eta: float = option(1.0, "of ρ_d where rho is not set; 1 is the DDPM posterior", ge=0, le=1)
  score_temperature: float = option(
    1.0, "τ divides the predicted noise about the posterior mean; Plaid has 0.9", gt=0
  )
  fixed_large: bool = option(False, "the fresh noise is of sigma_t in place of sigma_s")

  def __post_init__(self):
    # Made here for its own checks of options that do not fit together.
    self._options()

  def check(self, model: Model) -> None:
    """Refuses processes whose steps have no such options."""
    super().check(model)
    require(model.process, StepsTowards, "sampler.name='gaussian'", "use sampler.name='grid'")
    model.process.check_step(self._options())

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
    """A step of the process."""

    def one(of_process, output, keys, text, t, s):
      output = self.transform(output, s)
      return model.process.step_towards(of_process, keys, text, output, t, s, self._options())

    rows = (turn.keys, canvas.state, turn.t, turn.s)
    return on_tokens(model, params, prediction, moves, one, *rows), state.extra

  def _options(self) -> StepOptions:
    return StepOptions(
      projection=self.projection,
      rho=self.rho,
      eta=self.eta,
      score_temperature=self.score_temperature,
      fixed_large=self.fixed_large,
    )

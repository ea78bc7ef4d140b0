"""Whether the choices of a config fit one another, where no choice can tell by itself; asked by build, before any compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusion_text.process.embedding import Embedding
from diffusion_text.timing import Counted, Shared
from diffusion_text.types import LearnedNoise, Loss, PredictsTimes, Process, Timing


def scoring_times(timing: Timing, name: str | None) -> Timing:
  """The timing under which the bound is reported: the timing's own, or the one of this name if it reads the same rows."""
  alike = {"shared": Shared, "counted": Counted}
  if name is None or alike.get(name) is type(timing.scoring()):
    return timing.scoring()
  if name not in alike or type(timing.scoring()) not in alike.values():
    raise ValueError(
      f"evaluate.timing={name!r} would score another model than {timing} trains; only 'shared' and 'counted' stand for each other,"
      " leave it unset for the others"
    )
  return alike[name]()


def check_times(timing: Timing, sections: Mapping[str, Any]) -> None:
  """Refuses times that stand for all times, where that is not so, and one time for a row that has several."""
  process, schedule = sections["process"]["name"], sections["schedule"]["name"]
  if timing.clipped and (process, schedule) != ("masked", "linear"):
    raise ValueError(
      f"{timing} draws clipped times, whose cost is right for process.name='masked' with schedule.name='linear' only, not"
      f" {process!r} with {schedule!r}; use these, or blocks of several tokens with low=0 and high=1"
    )
  blocks, packing = timing.sampled_in_blocks is not None, sections["data"]["packing"]
  if sections["model"]["time_conditioning"] == "prefix" and (blocks or packing == "documents"):
    several = (
      f"rows in blocks ({timing})"
      if blocks
      else f"rows of several documents (data.packing={packing!r})"
    )
    raise ValueError(
      f"model.time_conditioning='prefix' tells one time to one document and cannot serve {several}; use 'adaln' or 'layerwise'"
    )
  told = sections["model"]["time_conditioning"] not in (False, "none")
  if isinstance(timing, Counted) and (told or sections["process"].get("grid") is not None):
    raise ValueError(
      f"{timing} has t = 1 or 0 for each token, which is the bound for a network that is told no time and a process in continuous"
      " time; use model.time_conditioning='none' and no process.grid, or timing.name='shared'"
    )


def check_objective(
  name: str, objective: Callable[..., Loss], process: Process, timing: Timing
) -> None:
  """Refuses an objective that leaves parameters of the process or of the timing without a loss, or that costs more than they need."""
  if (
    isinstance(process, LearnedNoise)
    and getattr(objective, "trains_noise", False) != process.learned
  ):
    raise ValueError(
      f"objective.name={name!r} with {process}: only 'reinforce' gives learned noise its gradient, and it costs twice the"
      " network calls; use it where the noise is learned and nowhere else"
    )
  if isinstance(timing, PredictsTimes) and not getattr(objective, "fits_next_times", False):
    raise ValueError(
      f"objective.name={name!r} does not teach {timing} which times to predict; use objective.name='mse_rounding', or"
      " timing.name='poisson'"
    )
  if isinstance(timing, PredictsTimes) and not isinstance(process, Embedding):
    raise ValueError(
      f"{timing} predicts times from means of the tokens' vectors, which {type(process).__name__} would read as tokens; use"
      " process.name='embedding', or timing.name='poisson'"
    )

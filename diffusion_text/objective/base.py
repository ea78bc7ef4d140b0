"""What most objectives share: one reading, gradients for the network and the process, no groups of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffusion_text.objective import engine
from diffusion_text.types import DataFacts, Key, Model, Params


class OneReading:
  """The attributes of `types.Objective` for an objective that reads the network once per step."""

  passes: ClassVar[float] = 1.0
  trains: ClassVar[frozenset[str]] = frozenset({"network", "process"})

  @property
  def costs_nll(self) -> bool:
    """False, unless the loss of a token is -log p of the clean token, weighted by dt_dtau."""
    return False

  def check(self, model: Model) -> None:
    """Raises ValueError for learned noise, and for readings that do not fit the context."""
    engine.check_readings(model)
    if model.process.noise_is_learned:
      raise ValueError(
        f"{type(self).__name__} gives learned noise no gradient, and {model.process} learns it; use"
        " objective.name='score_function', or noise that is not learned"
      )

  def init(self, model: Model, key: Key, facts: DataFacts) -> Mapping[str, Params]:
    """{}: no parameters of its own."""
    del model, key, facts
    return {}

"""Timings: which time each token has. A timing is that choice and nothing else; any timing goes with any process.

`along_row`: by place, or by nothing. `by_token`: by what the token is, or by an intrinsic clock of its own. `learned`: by place, fitted.
`predicted`: by what a network makes of the tokens so far.
"""

from diffusion_text.timing.along_row import (
  Counted,
  Hyperschedule,
  Independent,
  LeftToRight,
  OneRow,
  Paths,
  PerBlock,
  Shared,
  Slanted,
  low_discrepancy,
  shift_right,
)
from diffusion_text.timing.by_token import ByInformation, Poisson, rarity
from diffusion_text.timing.learned import ByPosition, Paced, bind_times
from diffusion_text.timing.predicted import Predicted

TIMINGS = {
  "shared": Shared,
  "independent": Independent,
  "counted": Counted,
  "slanted": Slanted,
  "hyperschedule": Hyperschedule,
  "poisson": Poisson,
  "predicted": Predicted,
  "by_information": ByInformation,
  "by_position": ByPosition,
  "per_block": PerBlock,
  "left_to_right": LeftToRight,
}

__all__ = [
  "TIMINGS",
  "ByInformation",
  "ByPosition",
  "Counted",
  "Hyperschedule",
  "Independent",
  "LeftToRight",
  "OneRow",
  "Paced",
  "Paths",
  "PerBlock",
  "Poisson",
  "Predicted",
  "Shared",
  "Slanted",
  "bind_times",
  "low_discrepancy",
  "rarity",
  "shift_right",
]

"""Timings: which time each token has. A timing is that choice and nothing else; any timing goes with any process.

`along_row`: by place, or by nothing. `by_token`: by what the token is, or by an intrinsic clock of its own.
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

TIMINGS = {
  "shared": Shared,
  "independent": Independent,
  "counted": Counted,
  "slanted": Slanted,
  "hyperschedule": Hyperschedule,
  "poisson": Poisson,
  "by_information": ByInformation,
  "per_block": PerBlock,
  "left_to_right": LeftToRight,
}

__all__ = [
  "TIMINGS",
  "ByInformation",
  "Counted",
  "Hyperschedule",
  "Independent",
  "LeftToRight",
  "OneRow",
  "Paths",
  "PerBlock",
  "Poisson",
  "Shared",
  "Slanted",
  "low_discrepancy",
  "rarity",
  "shift_right",
]

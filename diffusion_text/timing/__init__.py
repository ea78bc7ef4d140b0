"""Timings: which time each token has. A timing is that choice and nothing else.

`clock`: draws that are spread evenly over the global batch, and the clock of steps. `along_row`: by
place, or the same for all tokens. `counted`: noise or clean, and nothing in between. `by_token`: by
what the token is, or by an intrinsic clock of its own. `learned`: along a clock that is fitted to
what each stretch of time costs.
"""

from diffusion_text.timing.along_row import (
  Converging,
  Hyperschedule,
  Independent,
  Shared,
  Slanted,
  Tilted,
)
from diffusion_text.timing.by_token import ByInformation, Poisson
from diffusion_text.timing.clock import low_discrepancy
from diffusion_text.timing.counted import AtNoise, ExactCount
from diffusion_text.timing.learned import ByPosition, Learned

TIMINGS = {
  "shared": Shared,
  "independent": Independent,
  "slanted": Slanted,
  "tilted": Tilted,
  "converging": Converging,
  "hyperschedule": Hyperschedule,
  "exact_count": ExactCount,
  "at_noise": AtNoise,
  "poisson": Poisson,
  "by_information": ByInformation,
  "learned": Learned,
  "by_position": ByPosition,
}

__all__ = [
  "TIMINGS",
  "AtNoise",
  "ByInformation",
  "ByPosition",
  "Converging",
  "ExactCount",
  "Hyperschedule",
  "Independent",
  "Learned",
  "Poisson",
  "Shared",
  "Slanted",
  "Tilted",
  "low_discrepancy",
]

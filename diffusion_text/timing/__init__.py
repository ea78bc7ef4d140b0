"""Timings: which time each token has. A timing is that choice and nothing else.

`clock`: draws that are spread over the global batch. `along_row`: by place, or the same for all.
"""

from diffusion_text.timing.along_row import Hyperschedule, Independent, Shared, Slanted
from diffusion_text.timing.clock import low_discrepancy

TIMINGS = {
  "shared": Shared,
  "independent": Independent,
  "slanted": Slanted,
  "hyperschedule": Hyperschedule,
}

__all__ = ["TIMINGS", "Hyperschedule", "Independent", "Shared", "Slanted", "low_discrepancy"]

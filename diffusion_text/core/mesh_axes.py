"""The names of the mesh axes, and the axes that the rows and tokens of a batch are split over."""

from __future__ import annotations

AXES = ("replica", "fsdp", "tensor", "sequence", "expert")
ROWS = ("replica", "fsdp")  # axes that the rows of a batch are split over
TOKENS = (*ROWS, "sequence")  # axes that the tokens of a batch are split over

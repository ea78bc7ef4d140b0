"""Names of the mesh axes, and over which of them the rows and tokens of a batch are split."""

from __future__ import annotations

AXES = ("replica", "fsdp", "tensor", "sequence", "expert")
ROWS = ("replica", "fsdp")  # axes over which the rows of a batch are split
TOKENS = (*ROWS, "sequence")  # axes over which its tokens are split

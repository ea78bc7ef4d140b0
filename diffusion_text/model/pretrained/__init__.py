"""Weights of other libraries, in and out: one small file per family.

`read` gives options and parameters of the one transformer; `write` gives safetensors and
config.json. `weights` opens files, `mapping` moves numbers, `family` is what a family says of
itself.
"""

from __future__ import annotations

from diffusion_text.model.pretrained.family import Architecture, Family
from diffusion_text.model.pretrained.files import FAMILIES, Pretrained, architecture_of, read, write

__all__ = ["FAMILIES", "Architecture", "Family", "Pretrained", "architecture_of", "read", "write"]

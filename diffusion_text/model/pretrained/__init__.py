"""Weights of other libraries, read and written: one small file per family of networks.

`read` returns options and parameters of our transformer; `write` writes safetensors and
config.json. Modules: `weights` opens files, `mapping` copies tensors into our tree and back,
`family` is the interface of a family.
"""

from __future__ import annotations

from diffusion_text.model.pretrained.family import Architecture, Family
from diffusion_text.model.pretrained.files import FAMILIES, Pretrained, architecture_of, read, write

__all__ = ["FAMILIES", "Architecture", "Family", "Pretrained", "architecture_of", "read", "write"]

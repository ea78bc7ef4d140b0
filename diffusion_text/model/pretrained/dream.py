"""Dream (arXiv 2508.15487): Qwen2 that sees the whole row. Its answers stay one place to the left,
and its mask is a token of the vocabulary (151666).

Names and keys as in its released code, those of Qwen2 (recalled; held by a reference in tests).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from diffusion_text.model.pretrained import llama
from diffusion_text.model.pretrained.family import Architecture, Config, Names, need, refuse


def architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  need(config, "mask_token_id")
  refuse(config, use_sliding_window=(False, None))
  return llama.architecture(config, names)


def config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  return llama.config(architecture) | {"architectures": ["DreamModel"], "model_type": "Dream"}


FAMILY = dataclasses.replace(
  llama.FAMILY,
  name="dream",
  model_types=("Dream",),
  reads="shifted",
  architecture=architecture,
  config=config,
)

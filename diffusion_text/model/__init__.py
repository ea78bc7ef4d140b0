"""Networks: the transformer, and a small classifier of rows."""

from __future__ import annotations

from diffusion_text.model.transformer import Transformer

MODELS = {"transformer": Transformer}

"""A transformer that is small enough for tests, rows for it, and parameters without zeros."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from diffusion_text.model.transformer import Transformer
from diffusion_text.types import Inputs, InputSizes, Layout, Params, Rows, Span


def small_transformer(**changes: Any) -> Transformer:
  """Two layers of width 32 that read 12 ids and predict 11; with these options."""
  options = {"layers": 2, "width": 32, "heads": 4, "mlp_width": 64, "time_width": 16}
  options |= {"input_sizes": InputSizes(12), "output_size": 11, "attention": ("xla",)}
  return Transformer(**(options | {"scan_layers": False} | changes))


def noisy_parameters(network: Transformer, scale: float = 0.1, seed: int = 0) -> Params:
  """Parameters drawn by numpy, as wide as initial ones and `scale` wider: none of them is zero.

  Zeros (the head, adaLN, self-conditioning) would hide mistakes, and no program is compiled.
  """
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    noise = random.normal(size=leaf.shape)
    if name == "scale":
      return np.float32(1 + scale * noise)
    if name in ("bias", "embedding", "vector_embedding"):
      return np.float32(scale * noise)
    return np.float32((leaf.shape[-2] ** -0.5 + scale) * noise)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0)))


def rows_of(
  inputs: Inputs,
  t: Float[Array, "B L"] | float = 0.4,
  layout: Layout | None = None,
  **fields: Any,
) -> Rows:
  """Rows in which every position is a token and is answered; with these fields."""
  rows, length = inputs.shape
  everything = Span(0, length)
  t = np.broadcast_to(np.float32(t), (rows, length)) if np.ndim(t) == 0 else t
  values = {"weights": None, "copies": 1, "tokens": everything, "answers": everything}
  return Rows(inputs=inputs, t=t, layout=layout or Layout(), **(values | fields))

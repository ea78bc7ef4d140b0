"""Attention by cuDNN on GPU, through `jax.nn`: bidirectional and causal layouts only.

Not yet run: its program cannot be made where cuDNN is not installed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.kernels import layout as layouts
from diffusion_text.types import Layout


def attention(
  q: Float[Array, "B L H K"],
  k: Float[Array, "B S G K"],
  v: Float[Array, "B S G K"],
  q_layout: Layout,
  k_layout: Layout,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
) -> tuple[Float[Array, "B L H K"], None]:
  """([B, L, H, K] as `reference` computes it, None in place of the log-sum-exp, to which cuDNN
  gives no gradient).

  Raises NotImplementedError for types, layouts and options that cuDNN does not have, and where
  cuDNN is not installed.
  """
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"needs bfloat16 or float16, not {q.dtype}")
  if soft_cap is not None:
    raise NotImplementedError(f"has no soft_cap, which is {soft_cap}")
  causal = layouts.is_causal(q_layout, k_layout)
  if not causal and not layouts.is_bidirectional(q_layout, k_layout):
    raise NotImplementedError("the layout is neither bidirectional nor known to be causal")
  try:
    out = jax.nn.dot_product_attention(
      q, k, v, scale=scale, is_causal=causal, implementation="cudnn"
    )
  except RuntimeError as reason:  # not installed, or too old
    raise NotImplementedError(str(reason)) from reason
  return out, None

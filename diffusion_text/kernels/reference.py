"""Attention in plain jnp: the executable specification of every other implementation here."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.kernels import layout as layouts
from diffusion_text.types import Layout

# The score of a key that is not seen, and the log-sum-exp of a query that sees none; finite, so
# that gradients are.
MASKED = -1e30


def reference(
  q: Float[Array, "B L H K"],
  k: Float[Array, "B S G K"],
  v: Float[Array, "B S G K"],
  q_layout: Layout,
  k_layout: Layout,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
  window: layouts.Window | None = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H"]]:
  """(out [B, L, H, K] in q's dtype, lse [B, L, H] float32): softmax in float32 over the keys that
  the rule, and the window if there is one, let q see.

  Head h reads key/value head h // (H // G). `scale` multiplies the scores, 1/√K if None; `soft_cap`
  c then bounds them to c·tanh(s / c). lse is the log-sum-exp of the scores seen. A query that sees
  no key gets out = 0 and lse = MASKED.
  """
  B, L, H, K = q.shape
  dtype = q.dtype
  G = k.shape[2]
  q = q.astype(jnp.float32).reshape(B, L, G, H // G, K) * (K**-0.5 if scale is None else scale)
  score = jnp.einsum("blgrk,bsgk->bgrls", q, k.astype(jnp.float32), precision="highest")
  if soft_cap is not None:
    score = soft_cap * jnp.tanh(score / soft_cap)
  mask = layouts.visible(q_layout, k_layout, window)
  mask = jnp.ones((1, 1, 1, 1, 1), bool) if mask is None else mask[:, None, None]
  score = jnp.where(mask, score, MASKED)
  top = score.max(axis=-1, keepdims=True)
  weight = jnp.where(mask, jnp.exp(score - top), 0.0)
  total = weight.sum(axis=-1, keepdims=True)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  out = jnp.einsum("bgrls,bsgk->blgrk", weight / total, v.astype(jnp.float32), precision="highest")
  lse = jnp.where(seen, top + jnp.log(total), MASKED)[..., 0]
  return out.reshape(B, L, H, K).astype(dtype), jnp.moveaxis(lse.reshape(B, H, L), 1, 2)

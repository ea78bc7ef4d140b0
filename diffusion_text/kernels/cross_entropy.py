"""Cross-entropy through a large vocabulary without ever storing the logits of all rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.chunked import CHUNK, map_rows


def cut_cross_entropy(
  features: Float[Array, "n D"],
  kernel: Float[Array, "D V"],
  labels: Int[Array, " n"],
  count: Bool[Array, " n"],
  *,
  bias: Float[Array, " V"] | None = None,
  soft_cap: float | None = None,
  chunk: int = CHUNK,
  shards: int = 1,
) -> Float[Array, " n"]:
  """−log softmax(features · kernel + bias)[label] in nats, float32; 0 where `count` is False.

  Labels are below V. `soft_cap` c bounds the logits to c·tanh(logit / c). Logits are float32 and
  live `chunk` rows at a time; gradients reach features, kernel and bias. `chunk` and `shards` are
  those of `map_rows`.
  """

  def nats(consts, rows):
    kernel, bias = consts
    features, labels = rows
    logits = jnp.dot(features, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    # A sum over the vocabulary, not a gather, whose gradient is a scatter: this fuses with softmax.
    mine = jnp.arange(logits.shape[-1]) == labels[:, None]
    of_label = jnp.where(mine, logits, 0).sum(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - of_label

  rows = (features, labels)
  return map_rows(nats, (kernel, bias), count, rows, chunk=chunk, shards=shards)

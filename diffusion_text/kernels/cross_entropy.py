"""Cross-entropy through a large vocabulary without ever storing the logits of all rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_text.core.chunked import CHUNK, map_rows


def cut_cross_entropy(
  features_NxD: Array,
  kernel_DxV: Array,
  labels_N: Array,
  count_N: Array,
  *,
  bias: Array | None = None,
  soft_cap: float | None = None,
  chunk: int = CHUNK,
  shards: int = 1,
) -> Array:
  """−log softmax(features · kernel + bias)[label] in nats, float32 [N]; 0 where `count_N` (bool) is False.

  labels: int32 [N] below V. bias: [V]. `soft_cap` c bounds the logits to c·tanh(logit / c). Logits are float32 and live `chunk`
  rows at a time; gradients reach features, kernel and bias. `chunk` and `shards` as in `map_rows`.
  """

  def nats(consts, rows):
    (kernel, bias), (features, labels) = consts, rows
    logits = jnp.dot(features, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    # A sum over the vocabulary, not a gather, whose gradient is a scatter: this one fuses with the softmax.
    of_label = jnp.where(jnp.arange(logits.shape[-1]) == labels[:, None], logits, 0).sum(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - of_label

  return map_rows(
    nats, (kernel_DxV, bias), count_N, (features_NxD, labels_N), chunk=chunk, shards=shards
  )

"""The first of two stages: an answer that the layers after it read (ADLM, arXiv 2505.18456).

The published model is two networks, logits -> linear map -> network. Here both are one stack of layers: the first stage's answer is
added to the stream of the second as an expected embedding, Σ_v softmax(logits)_v · embedding[v], from a table of its own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_text.kernels.cross_entropy import map_rows
from diffusion_text.model.layers import NORMS, Linear, unembed
from diffusion_text.model.partition import TOKENS
from diffusion_text.types import Array, Prediction

CHUNK = 512  # positions, per device, whose logits exist at a time


class Anchor(nnx.Module):
  """Final norm, head [D, V] and table [V, D] of the first stage."""

  def __init__(self, width: int, vocab_size: int, norm: str, *, rngs: nnx.Rngs):
    self.norm = NORMS[norm](width)
    self.head = Linear(
      width, vocab_size, std=0.0, rngs=rngs, bias=True
    )  # zeros: uniform before training, as the last head
    self.embedding = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), (vocab_size, width), jnp.float32)
    )

  def predict(self, x: Array) -> Prediction:
    """The answer of the first stage, from its stream x [B, L, D]."""
    return Prediction(self.norm(x), self._logits)

  def read(self, features_BxLxD: Array, chunk: int = CHUNK) -> Array:
    """[B, L, D]: the expected embedding under the answer, in the dtype of the features.

    Logits exist for `chunk` positions at a time and are made again in the backward pass. What it adds to the temporaries of the
    compiled gradient, by XLA's account for the CPU, f32, V=32768 D=256 B=4 L=512: 68, 164 and 358 MiB in chunks of 256, 512 and
    1024 positions, whatever B·L is; 494 MiB, growing with B·L, for all logits at once.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    shards = math.prod(sizes.get(axis, 1) for axis in TOKENS)
    flat = features_BxLxD.reshape(-1, features_BxLxD.shape[-1])
    shards = 1 if flat.shape[0] % shards else shards  # tokens that do not divide are not sharded
    mixed = map_rows(
      self._expected, jnp.ones(flat.shape[:1], bool), flat, chunk=chunk, shards=shards
    )
    return mixed.reshape(features_BxLxD.shape)

  def _logits(self, features: Array) -> Array:
    return unembed(features, self.head.kernel[...], self.head.bias[...])

  def _expected(self, features: Array) -> Array:
    shares = jax.nn.softmax(self._logits(features)).astype(features.dtype)
    table = self.embedding[...].astype(features.dtype)
    return jnp.dot(shares, table, preferred_element_type=jnp.float32).astype(features.dtype)

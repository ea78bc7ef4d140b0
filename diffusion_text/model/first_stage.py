"""The first of two stages: an answer that the layers after it read (ADLM, arXiv 2505.18456).

The published model is two networks, logits -> linear map -> network. Here both are one stack of
layers: the answer of the first stage is added to the stream of the second as an expected embedding,
Σ_v softmax(logits)_v · embedding[v], from a table of its own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_text.core.chunked import map_rows
from diffusion_text.core.mesh_axes import TOKENS
from diffusion_text.model.layers import Linear, norm_of
from diffusion_text.model.options import TransformerOptions
from diffusion_text.types import Head, Prediction

CHUNK = 512  # positions, per device, whose logits exist at a time


class FirstStage(nnx.Module):
  """Final norm, head [D, V] and table [V, D] of the first stage."""

  def __init__(self, config: TransformerOptions, *, rngs: nnx.Rngs):
    width, output_size = config.width, config.output_size
    self.norm = norm_of(config)
    # Zeros: uniform before training, as the last head is.
    self.head = Linear(width, output_size, std=0.0, rngs=rngs, bias=True)
    table = 0.02 * jax.random.normal(rngs.params(), (output_size, width), jnp.float32)
    self.embedding = nnx.Param(table)

  def predict(self, x: Float[Array, "B L D"]) -> Prediction:
    """The answer of the first stage, from its stream."""
    return Prediction(self.norm(x), Head(self.head.kernel[...], self.head.bias[...]))

  def read(self, answer: Prediction, chunk: int = CHUNK) -> Float[Array, "B L D"]:
    """The expected embedding under the answer, in the dtype of the features.

    Logits exist for `chunk` positions at a time and are made again in the backward pass. What this
    adds to the temporaries of the compiled gradient, by XLA's account for the CPU, f32, V=32768
    D=256 B=4 L=512: 68, 164 and 358 MiB in chunks of 256, 512 and 1024 positions, whatever B·L is;
    494 MiB, growing with B·L, for all logits at once.
    """
    features = answer.features
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    shards = math.prod(sizes.get(axis, 1) for axis in TOKENS)
    flat = features.reshape(-1, features.shape[-1])
    shards = 1 if flat.shape[0] % shards else shards  # tokens that do not divide are not sharded
    consts = (answer.head, self.embedding[...])
    everywhere = jnp.ones(flat.shape[:1], bool)
    mixed = map_rows(expected_embedding, consts, everywhere, flat, chunk=chunk, shards=shards)
    return mixed.reshape(features.shape)


def expected_embedding(
  consts: tuple[Head, Float[Array, "V D"]], features: Float[Array, "*n D"]
) -> Float[Array, "*n D"]:
  """Σ_v softmax(head(features))_v · table[v]; consts: (head, table)."""
  head, table = consts
  shares = jax.nn.softmax(head(features)).astype(features.dtype)
  table = table.astype(features.dtype)
  return jnp.dot(shares, table, preferred_element_type=jnp.float32).astype(features.dtype)

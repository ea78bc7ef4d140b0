"""Simplex diffusion: the vector of a token is k at its own place and -k at all others, and the network reads softmax(z).

TESS (arXiv 2305.08379), SSD-LM (arXiv 2210.17432): almost one-hot logits, with noise of the same scale k. Published models train with
cross-entropy alone; as a Gaussian process they have a bound like the others (see `gaussian`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.process.gaussian import Gaussian
from diffusion_text.types import Array, Inputs, Key, Params, State, Time


@dataclasses.dataclass(frozen=True)
class Simplex(Gaussian):
  """Vectors k (2 · onehot - 1) of V numbers, with noise of standard deviation k · sigma: only k scales, the SNR does not depend on it.

  What depends on k is what the network reads: softmax(z), dense soft tokens embedded by the same table as ids, near one-hot for large k.
  A clean token (t == 0) is read as the token itself, as published models read their prompts. The state is the one [B, L, V] array
  that this kind of diffusion cannot do without.
  """

  k: float = 5.0

  def __post_init__(self):
    super().__post_init__()
    if not self.k > 0:
      raise ValueError(f"process.k={self.k} must be positive; TESS and SSD-LM use 5")

  @property
  def size(self) -> int:
    return self.vocab_size

  @property
  def noise_scale(self) -> float:
    return self.k

  def init(self, key: Key) -> Params:
    del key  # nothing is learned
    return {}

  def encode(self, params: Params, ids: Array) -> Array:
    return jnp.where(ids[..., None] == jnp.arange(self.vocab_size), self.k, -self.k).astype(jnp.float32)

  def mean(self, params: Params, probabilities: Array) -> Array:
    return self.k * (2 * probabilities - 1)

  def products(self, params: Params, vectors: Array) -> tuple[Array, Array]:
    return 2 * self.k * vectors, jnp.float32(0)  # the sum of z and the common length are constants

  def centre(self, params: Params) -> float:
    return self.k * (2 / self.vocab_size - 1)

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    hard = (state > 0).astype(jnp.float32)
    return Inputs(vectors=jnp.where(t[..., None] > 0, jax.nn.softmax(state, axis=-1), hard))

"""Simplex diffusion: the vector of a token is k at its own place and -k, or 0, at all others, in noise of scale k.

TESS (arXiv 2305.08379), SSD-LM (arXiv 2210.17432): almost one-hot logits, read through softmax. ADD (arXiv 2510.01047), FLM: one-hot
vectors, read as they are. Published models train with cross-entropy alone; as a Gaussian process they have a bound like the others (see
`gaussian`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.process.gaussian import PROJECTIONS, Gaussian
from diffusion_text.types import Array, Inputs, Params, State, Time

ENCODINGS = {
  "signed": -1.0,
  "one_hot": 0.0,
}  # what stands at the places of other tokens, in units of k
READINGS = ("softmax", "raw")


@dataclasses.dataclass(frozen=True)
class Simplex(Gaussian):
  """Vectors of V numbers, with noise of standard deviation k · sigma: only k scales, the SNR does not depend on it.

  encoding: "signed", k (2 · onehot - 1), or "one_hot", k · onehot, whose tokens are half as far apart for the same noise (SNR / 4).
  reading: the network is given "softmax" of z, dense soft tokens embedded by the same table as ids, near one-hot for large k; or "raw" z,
  scaled to the length that a token's one-hot has (z / k √(alpha² + V sigma²)), for z itself grows with √V.
  A clean token (t == 0) is read as the token itself, as published models read their prompts. The state is the one [B, L, V] array
  that this kind of diffusion cannot do without.

  The projection "multi_hot" is k at every token that is left by the sampler's top_p and the vector's other value at the rest (SSD-LM); with
  top_p = 1 it says nothing. The nucleus is read off logits of -inf, never off large negative numbers, which lose the order in bfloat16.
  """

  k: float = 5.0
  encoding: str = "signed"
  reading: str = "softmax"

  projections = (*PROJECTIONS, "multi_hot")

  def __post_init__(self):
    super().__post_init__()
    if not self.k > 0:
      raise ValueError(f"process.k={self.k} must be positive; TESS and SSD-LM use 5, ADD 1")
    if self.encoding not in ENCODINGS:
      raise ValueError(
        f"process.encoding={self.encoding!r} is unknown; use one of {', '.join(ENCODINGS)}"
      )
    if self.reading not in READINGS:
      raise ValueError(
        f"process.reading={self.reading!r} is unknown; use one of {', '.join(READINGS)}"
      )
    if (self.reading, self.encoding) == ("raw", "signed"):
      raise ValueError(
        "process.reading='raw' of encoding='signed' is mostly minus the sum of all embeddings; use encoding='one_hot'"
      )

  @property
  def size(self) -> int:
    return self.vocab_size

  @property
  def noise_scale(self) -> float:
    return self.k

  @property
  def other(self) -> float:
    """What stands at the places of other tokens."""
    return self.k * ENCODINGS[self.encoding]

  def encode(self, params: Params, ids: Array) -> Array:
    return self._vector(ids[..., None] == jnp.arange(self.vocab_size))

  def _vector(self, hot: Array) -> Array:
    return jnp.where(hot, self.k, self.other).astype(jnp.float32)

  def mean(self, params: Params, probabilities: Array) -> Array:
    return self.other + (self.k - self.other) * probabilities

  def products(self, params: Params, vectors: Array) -> tuple[Array, Array]:
    return (self.k - self.other) * vectors, jnp.float32(
      0
    )  # the sum of z and the common length are constants

  def centre(self, params: Params) -> float:
    return self.other + (self.k - self.other) / self.vocab_size

  def project(self, params: Params, logits: Array) -> Array:
    return (
      self._vector(logits > -jnp.inf)
      if self.projection == "multi_hot"
      else super().project(params, logits)
    )

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    hard = (state > (self.k + self.other) / 2).astype(jnp.float32)
    if self.reading == "softmax":
      noisy = jax.nn.softmax(state, axis=-1)
    else:
      alpha, sigma, _ = self.gain(params, t)
      noisy = state / (self.k * jnp.sqrt(alpha**2 + self.vocab_size * sigma**2))
    return Inputs(vectors=jnp.where(t[..., None] > 0, noisy, hard))

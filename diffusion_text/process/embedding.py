"""Embedding diffusion: the vector of a token is a row of a learned table (Diffusion-LM, Plaid, DiffuSeq, LangFlow; see `gaussian`)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_text.process.gaussian import HIGHEST, Gaussian
from diffusion_text.types import Array, Inputs, Key, Params, State, Time

NORMS = ("none", "unit", "sqrt_d")


@dataclasses.dataclass(frozen=True)
class Embedding(Gaussian):
  """Vectors of `width` = E numbers from a learned table [V, E]. Learned with the bound, or with a loss that keeps tokens apart.

  norm: "none" (Diffusion-LM), "unit", length 1 (Plaid), or "sqrt_d", length √E (CDCD, LangFlow). Longer rows survive more noise: √E
  against 1 is an SNR E times as large. The network reads z / √(alpha² Var x + sigma²), of unit variance, through a linear map.
  """

  width: int = 16
  norm: str = "sqrt_d"

  def __post_init__(self):
    super().__post_init__()
    if self.width < 1:
      raise ValueError(f"process.width={self.width} must be at least 1; 16 to 128 is usual")
    if self.norm not in NORMS:
      raise ValueError(f"process.norm={self.norm!r} is unknown; use one of {', '.join(NORMS)}")

  @property
  def size(self) -> int:
    return self.width

  def init(self, key: Key) -> Params:
    """{"embedding": float32 [V, E]}, standard normal; rows are scaled when they are read."""
    return {"embedding": jax.random.normal(key, (self.vocab_size, self.width), jnp.float32)}

  def table(self, params: Params) -> Array:
    """The vectors of all tokens, [V, E]."""
    table = params["embedding"]
    if self.norm == "none":
      return table
    length = 1.0 if self.norm == "unit" else math.sqrt(self.width)
    square = jnp.sum(table**2, axis=-1, keepdims=True)
    return table * (length * jax.lax.rsqrt(jnp.maximum(square, 1e-12)))

  def encode(self, params: Params, ids: Array) -> Array:
    return self.table(params)[ids]

  def mean(self, params: Params, probabilities: Array) -> Array:
    return jnp.dot(probabilities, self.table(params), precision=HIGHEST)

  def products(self, params: Params, vectors: Array) -> tuple[Array, Array]:
    table = self.table(params)
    return jnp.dot(vectors, table.T, precision=HIGHEST), jnp.sum(table**2, axis=-1)

  @property
  def estimate_size(self) -> int:
    return self.width

  def estimate(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """x̂ [..., E], scaled as clean vectors are read: to unit variance."""
    return self.predicted(params, state, t, logits) * (math.sqrt(self.width) if self.norm == "unit" else 1.0)

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    del params
    alpha, sigma, _ = self.gain(t)
    variance = 1 / self.width if self.norm == "unit" else 1.0
    noisy = state / jnp.sqrt(alpha**2 * variance + sigma**2)
    return Inputs(vectors=jnp.where(t[..., None] > 0, noisy, state / math.sqrt(variance)))

"""Embedding diffusion: the vector of a token is a row of a learned table (Diffusion-LM, Plaid, DiffuSeq, LangFlow; see `gaussian`)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_text.process.gaussian import HIGHEST, Gaussian
from diffusion_text.types import Array, Inputs, Key, Params, State, Time

NORMS = ("none", "unit", "sqrt_d", "layernorm")


@dataclasses.dataclass(frozen=True)
class Tabled(Gaussian):
  """Codecs that rest on a table [V, E] of embeddings, E = `width`.

  norm: "none" (Diffusion-LM), "unit", length 1 (Plaid), "sqrt_d", length √E (CDCD, LangFlow), or "layernorm", mean 0 and then length √E
  (Difformer; without its affine map, whose scale could outgrow the noise). Longer rows survive more noise: √E against 1 is an SNR E times
  as large. learned: whether the loss moves the table; False keeps it as it was drawn (SED freezes a pretrained one).
  """

  width: int = 16
  norm: str = "sqrt_d"
  learned: bool = True

  def __post_init__(self):
    super().__post_init__()
    if self.width < 1:
      raise ValueError(f"process.width={self.width} must be at least 1; 16 to 128 is usual")
    if self.norm not in NORMS:
      raise ValueError(f"process.norm={self.norm!r} is unknown; use one of {', '.join(NORMS)}")
    if self.norm == "layernorm" and self.width < 3:
      raise ValueError(
        f"process.width={self.width} leaves norm='layernorm' less than two directions; use 16 or more"
      )

  def init_codec(self, key: Key) -> Params:
    """{"embedding": float32 [V, E]}, standard normal; rows are scaled when they are read."""
    return {"embedding": jax.random.normal(key, (self.vocab_size, self.width), jnp.float32)}

  def table(self, params: Params) -> Array:
    """The embeddings of all tokens, [V, E]."""
    table = params["embedding"] if self.learned else jax.lax.stop_gradient(params["embedding"])
    if self.norm == "none":
      return table
    if self.norm == "layernorm":
      table = table - jnp.mean(table, axis=-1, keepdims=True)
    length = 1.0 if self.norm == "unit" else math.sqrt(self.width)
    square = jnp.sum(table**2, axis=-1, keepdims=True)
    return table * (length * jax.lax.rsqrt(jnp.maximum(square, 1e-12)))


@dataclasses.dataclass(frozen=True)
class Embedding(Tabled):
  """The vector of a token is its embedding. Learned with the bound, or with a loss that keeps tokens apart.

  The network reads z / √(alpha² Var x + sigma²), of unit variance, through a linear map. Diffusion-LM's noise σ0 upon x itself is
  the first level of the path here: z at t -> 0+, which the reconstruction term reads.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.noisier and self.norm == "unit":
      raise ValueError(
        f"process.noise_factor={self.noise_factor} and noise_growth={self.noise_growth} change how large states are, and norm='unit' with"
        " it what the network reads in sampling; use norm='sqrt_d' or 'layernorm', whose states have unit variance at all times"
      )

  @property
  def size(self) -> int:
    return self.width

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
    return self.predicted(params, state, t, logits) * (
      math.sqrt(self.width) if self.norm == "unit" else 1.0
    )

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    alpha, sigma, _ = self.gain(params, t)
    variance = 1 / self.width if self.norm == "unit" else 1.0
    noisy = state / jnp.sqrt(alpha**2 * variance + sigma**2)
    return Inputs(vectors=jnp.where(t[..., None] > 0, noisy, state / math.sqrt(variance)))

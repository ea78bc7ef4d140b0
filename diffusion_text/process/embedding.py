"""Embedding diffusion: the vector of a token is a row of a learned table.

Diffusion-LM (arXiv 2205.14217), Plaid (arXiv 2305.18619), DiffuSeq (arXiv 2210.08933), LangFlow;
the maths is in `gaussian`.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.process.gaussian import HIGHEST, Gaussian
from diffusion_text.types import DataFacts, Inputs, Key, Params


@member
class Tabled(Gaussian):
  """Codecs that rest on a table [V, E] of embeddings, E = `width`."""

  width: int = option(16, "E, the numbers of an embedding; 16 to 128 is usual", ge=1)
  # Longer rows survive more noise: √E against 1 is an SNR E times as large.
  norm: Literal["none", "unit", "sqrt_d", "layernorm"] = option(
    "sqrt_d",
    "of the rows when they are read: as they are (Diffusion-LM), length 1 (Plaid), length √E (CDCD,"
    " LangFlow), or mean 0 and then length √E (Difformer, without its affine map, whose scale could"
    " outgrow the noise)",
  )
  learned: bool = option(
    True, "whether the loss trains the table; False keeps it as it was drawn (SED freezes its own)"
  )

  def __post_init__(self):
    super().__post_init__()
    if self.norm == "layernorm" and self.width < 3:
      raise ValueError(
        f"process.width={self.width} leaves norm='layernorm' less than two directions; use 16 or"
        " more"
      )

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"embedding": float32 [V, E]}, standard normal; rows are scaled when they are read."""
    del facts
    return {"embedding": jax.random.normal(key, (self.vocab_size, self.width), jnp.float32)}

  def table(self, params: Params) -> Float[Array, "V E"]:
    """The embeddings of all tokens."""
    table = params["embedding"] if self.learned else jax.lax.stop_gradient(params["embedding"])
    if self.norm == "none":
      return table
    if self.norm == "layernorm":
      table = table - jnp.mean(table, axis=-1, keepdims=True)
    length = 1.0 if self.norm == "unit" else math.sqrt(self.width)
    square = jnp.sum(table**2, axis=-1, keepdims=True)
    return table * (length * jax.lax.rsqrt(jnp.maximum(square, 1e-12)))


@member
class Embedding(Tabled):
  """The vector of a token is its embedding, learned with the bound or with a loss that keeps tokens
  apart.

  The network reads z / √(alpha² Var x + sigma²), of unit variance, through a linear map. The noise
  σ0 on x itself of Diffusion-LM is the first level of the path here: z at t -> 0+, which the
  reconstruction term reads.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.training_schedule is not None and self.norm == "unit":
      raise ValueError(
        f"process.training_schedule={self.training_schedule} changes how large states are, and"
        " norm='unit' with it what the network reads in sampling; use norm='sqrt_d' or 'layernorm',"
        " whose states have unit variance at all times"
      )

  @property
  def size(self) -> int:
    """The width of the table."""
    return self.width

  @property
  def estimate_size(self) -> int:
    """The width of the table."""
    return self.width

  @property
  def _variance(self) -> float:
    """The variance of a number of a clean vector."""
    return 1 / self.width if self.norm == "unit" else 1.0

  @property
  def apart(self) -> float:
    """Twice the squared length of a row, as the table is drawn."""
    return 2 * self.width * self._variance

  def encode(self, params: Params, ids: Int[Array, "*n"]) -> Float[Array, "*n E"]:
    """The embeddings of the ids."""
    return self.table(params)[ids]

  def mean(self, params: Params, probabilities: Float[Array, "*n V"]) -> Float[Array, "*n E"]:
    """The mean embedding."""
    return jnp.dot(probabilities, self.table(params), precision=HIGHEST)

  def products(self, params: Params, vectors: Float[Array, "*n E"]) -> tuple[Array, Array]:
    """(<z, x_v> [*n, V], |x_v|² [V])."""
    table = self.table(params)
    return jnp.dot(vectors, table.T, precision=HIGHEST), jnp.sum(table**2, axis=-1)

  def estimate(
    self,
    params: Params,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n E"]:
    """x̂, scaled as clean vectors are read: to unit variance."""
    scale = math.sqrt(self.width) if self.norm == "unit" else 1.0
    return self.predicted(params, state, t, output) * scale

  def inputs(self, params: Params, state: Float[Array, "B N E"], t: Float[Array, "B N"]) -> Inputs:
    """The vectors, scaled to unit variance."""
    del params
    alpha, sigma, _ = self.path(t[..., None])
    noisy = state / jnp.sqrt(alpha**2 * self._variance + sigma**2)
    clean = state / math.sqrt(self._variance)
    return Inputs(vectors=jnp.where(t[..., None] > 0, noisy, clean))

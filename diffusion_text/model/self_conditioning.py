"""Self-conditioning: the network reads its own last prediction with the noisy token.

The idea is that of Analog Bits (arXiv 2208.04202, section 2.3). The prediction reaches the network
as an *estimate* e of the clean token (`Process.estimate`): the mean of an embedding, or
probabilities. A position at t > 0 whose noisy token is embedded as h then holds

  mode   there is an estimate    there is none    the linear map R
  add    h + R e                 h + a            a table of its own, zeros before training
  mean   (h + R e) / 2           (h + a) / 2      the table that embeds the tokens themselves

and a position at t == 0, whose token is known, holds h. "mean" is the average of probabilities
before the embedding (TESS, arXiv 2305.08379), as both maps are linear. "add" is what concatenating
e to the input of a linear map does (Analog Bits; SED, arXiv 2211.04236), whose added rows are zero
at first.

What replaces a missing estimate, a, is a choice (`absent`): "zeros", no vector at all; or
"uniform", R u for the u that is 1/V on every token, the mean embedding: the convention of TESS,
whose missing prediction has zero logits. The two differ by half the mean of the table.

R e is the *memory* of a token (`Network.remember`): it is made where the estimate is, so that
estimates over V exist for a chunk of positions at a time and D numbers are kept.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

DType = jnp.dtype | str | type


class SelfConditioning(nnx.Module):
  """How a network reads its own last prediction. Parameters: the map R, in mode "add" only."""

  def __init__(self, mode: str, absent: str, estimate_size: int, width: int):
    self.mode = mode
    self.absent = absent
    self.size = estimate_size
    own = jnp.zeros((estimate_size, width), jnp.float32)
    self.embedding = nnx.Param(own) if mode == "add" else None

  def remember(
    self, estimate: Float[Array, "n E"], table: Float[Array, "V D"], dtype: DType
  ) -> Float[Array, "n D"]:
    """R e in `dtype`. table: the one that embeds the tokens."""
    own = table[: self.size] if self.embedding is None else self.embedding[...]
    product = jnp.dot(estimate.astype(dtype), own.astype(dtype), preferred_element_type=jnp.float32)
    return product.astype(dtype)

  def no_memory(self, table: Float[Array, "V D"], dtype: DType) -> Float[Array, " D"]:
    """The vector a, in `dtype`."""
    if self.absent == "zeros":
      return jnp.zeros(table.shape[1:], dtype)
    uniform = jnp.full((1, self.size), 1 / self.size, jnp.float32)
    return self.remember(uniform, table, dtype)[0]

  def mix(
    self,
    embedded: Float[Array, "B L D"],
    memory: Float[Array, "#B #L D"],
    t: Float[Array, "#B #L"],
  ) -> Float[Array, "B L D"]:
    """What the layers read of the embedded noisy tokens and the memory of each of them."""
    mixed = embedded + memory.astype(embedded.dtype)
    if self.mode == "mean":
      mixed = mixed / 2
    return jnp.where(t[..., None] > 0, mixed, embedded)

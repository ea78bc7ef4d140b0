"""Simplex diffusion: the vector of a token is k at its own place, and -k or 0 at all others.

TESS (arXiv 2305.08379), SSD-LM (arXiv 2210.17432): almost one-hot logits in noise of scale k, read
through softmax. ADD (arXiv 2510.01047), FLM: one-hot vectors, read as they are. Published models
train with cross-entropy alone; as a Gaussian process they have a bound like the others.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.process.discrete import is_token
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.types import Inputs, Params


@member
class Simplex(Gaussian):
  """Vectors of V numbers, in noise of standard deviation k · sigma: the SNR does not depend on k.

  The network reads vectors of V numbers. The softmax of z is a dense soft token: a linear map
  without bias, whose rows are the embeddings of the tokens, makes it their mean, near a single one
  for large k. A clean token (t == 0) is read as the token itself, as published models read their
  prompts. The state is the one [B, N, V] array that this kind of diffusion cannot do without.

  The projection "multi_hot" is k at every token that is left by the sampler's top_p, and the
  vector's other value at the rest (SSD-LM); with top_p = 1 it says nothing. The nucleus is read off
  logits of -inf, never off large negative numbers, which lose the order in bfloat16.
  """

  projections: ClassVar[tuple[str, ...]] = (*Gaussian.projections, "multi_hot")

  k: float = option(5.0, "the token's own number; TESS and SSD-LM use 5, ADD 1", gt=0)
  encoding: Literal["signed", "one_hot"] = option(
    "signed",
    "k (2 · onehot - 1), or k · onehot, whose tokens are half as far apart (SNR / 4)",
  )
  reading: Literal["softmax", "raw"] = option(
    "softmax",
    "what the network reads: softmax(z), or z scaled to the length that a one-hot has, for z"
    " itself grows with √V",
  )

  def __post_init__(self):
    super().__post_init__()
    if (self.reading, self.encoding) == ("raw", "signed"):
      raise ValueError(
        "process.reading='raw' of encoding='signed' is mostly minus the sum of all embeddings; use"
        " encoding='one_hot'"
      )

  @property
  def size(self) -> int:
    """V."""
    return self.vocab_size

  @property
  def noise_scale(self) -> float:
    """k."""
    return self.k

  @property
  def apart(self) -> float:
    """2 of one-hot vectors, 8 of signed ones: the vectors of two tokens differ in two numbers."""
    return 2 * (1 - self.other / self.k) ** 2

  @property
  def other(self) -> float:
    """What stands at the places of other tokens."""
    return -self.k if self.encoding == "signed" else 0.0

  def encode(self, params: Params, ids: Int[Array, "*n"]) -> Float[Array, "*n V"]:
    """k at the token, the other value elsewhere."""
    del params
    return self._vector(is_token(ids, self.vocab_size))

  def _vector(self, hot: Bool[Array, "*n V"]) -> Float[Array, "*n V"]:
    return jnp.where(hot, self.k, self.other).astype(jnp.float32)

  def mean(self, params: Params, probabilities: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """The probabilities, stretched to lie between the two values."""
    del params
    return self.other + (self.k - self.other) * probabilities

  def products(self, params: Params, vectors: Float[Array, "*n V"]) -> tuple[Array, Array]:
    """(<z, x_v> [*n, V], 0): the sum of z and the common length of the tokens are constants."""
    del params
    return (self.k - self.other) * vectors, jnp.float32(0)

  def centre(self, params: Params) -> float:
    """Each number's mean over the tokens."""
    del params
    return self.other + (self.k - self.other) / self.vocab_size

  def project(
    self, params: Params, logits: Float[Array, "*n V"], projection: str
  ) -> Float[Array, "*n V"]:
    """P, "multi_hot" included."""
    if projection == "multi_hot":
      return self._vector(logits > -jnp.inf)
    return super().project(params, logits, projection)

  def inputs(self, params: Params, state: Float[Array, "B N V"], t: Float[Array, "B N"]) -> Inputs:
    """softmax(z), or z scaled; a one-hot where t == 0."""
    del params
    hard = (state > (self.k + self.other) / 2).astype(jnp.float32)
    if self.reading == "softmax":
      noisy = jax.nn.softmax(state, axis=-1)
    else:
      alpha, sigma, _ = self.path(t[..., None])
      noisy = state / (self.k * jnp.sqrt(alpha**2 + self.vocab_size * sigma**2))
    return Inputs(vectors=jnp.where(t[..., None] > 0, noisy, hard))

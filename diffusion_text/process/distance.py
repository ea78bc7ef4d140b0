"""Distance diffusion: the vector of a token is how near its embedding is to that of every token (Smoothie, arXiv 2505.18853).

  D(w)_v = -|E_w - E_v|² / 2 width², V numbers, in noise of standard deviation k; the network reads softmax(z), a Gaussian kernel about
  the token which noise smooths first among tokens that mean the same.

What softmax reads does not change if a constant is added to all V numbers, so x here is D less its mean over v, which makes the bound
tight for what the network sees and changes nothing else. With C = E less the mean embedding, it is linear in C_w:

  x_w = m + C C_w / width²,  m_v = -(|C_v|² - mean) / 2 width², the mean of x over w
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.process.embedding import Tabled
from diffusion_text.process.gaussian import HIGHEST
from diffusion_text.types import Array, Inputs, Params, State, Time


def _dot(left: Array, right: Array) -> Array:
  return jnp.dot(left, right, precision=HIGHEST)


@dataclasses.dataclass(frozen=True)
class Distance(Tabled):
  """Vectors of V numbers made of a table of E, which is frozen unless `learned` (published: BERT's, frozen; here random).

  kernel_width: the width above, Smoothie's σ_min, 1.5 there. k: the standard deviation of the noise at sigma = 1, δ there, 1. A clean token
  is read as itself. Tokens are V numbers apart, so they show at log-SNRs far below those of embeddings: a window down to about -20.
  The state is the one [B, L, V] array.
  """

  learned: bool = False
  kernel_width: float = 1.5
  k: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if not self.kernel_width > 0:
      raise ValueError(
        f"process.kernel_width={self.kernel_width} must be positive; Smoothie uses 1.5 for rows of length √width"
      )
    if not self.k > 0:
      raise ValueError(f"process.k={self.k} must be positive; Smoothie uses 1")

  @property
  def size(self) -> int:
    return self.vocab_size

  @property
  def noise_scale(self) -> float:
    return self.k

  def _centred(self, params: Params) -> tuple[Array, Array]:
    """(C [V, E], m [V])."""
    table = self.table(params)
    centred = table - jnp.mean(table, axis=0)
    square = jnp.sum(centred**2, axis=-1)
    return centred, (jnp.mean(square) - square) / (2 * self.kernel_width**2)

  def _spread(self, params: Params, centred: Array) -> Array:
    """m + C c / width²: of c [..., E], embeddings about their mean, -> [..., V]."""
    table, middle = self._centred(params)
    return middle + _dot(centred, table.T) / self.kernel_width**2

  def encode(self, params: Params, ids: Array) -> Array:
    return self._spread(params, self._centred(params)[0][ids])

  def mean(self, params: Params, probabilities: Array) -> Array:
    return self._spread(params, _dot(probabilities, self._centred(params)[0]))

  def products(self, params: Params, vectors: Array) -> tuple[Array, Array]:
    table, middle = self._centred(params)
    # x_v - m = C C_v / width², so that all V products cost two thin matrix products and no [V, V] is formed.
    scale = self.kernel_width**-2
    along = scale * _dot(_dot(vectors, table), table.T)
    lengths = scale**2 * jnp.sum(_dot(table, _dot(table.T, table)) * table, axis=-1)
    return along, lengths + 2 * scale * _dot(table, _dot(middle, table))

  def centre(self, params: Params) -> Array:
    return self._centred(params)[1]

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    hard = (jnp.arange(self.vocab_size) == jnp.argmax(state, axis=-1)[..., None]).astype(
      jnp.float32
    )  # no token is nearer than itself
    return Inputs(vectors=jnp.where(t[..., None] > 0, jax.nn.softmax(state, axis=-1), hard))

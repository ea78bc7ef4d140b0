"""Distance diffusion: a token's vector is how near its embedding is to that of every token.

Smoothie (arXiv 2505.18853): D(w)_v = -|E_w - E_v|² / 2 width², V numbers, in noise of standard
deviation k; the network reads softmax(z), a Gaussian kernel about the token which noise smooths
first among tokens that mean the same.

What softmax reads does not change if a constant is added to all V numbers, so x here is D less its
mean over v, which makes the bound tight for what the network sees and changes nothing else. With
C = E less the mean embedding, it is linear in C_w:

  x_w = m + C C_w / width²,  m_v = -(|C_v|² - mean) / 2 width², the mean of x over w
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.process.discrete import is_token
from diffusion_text.process.embedding import Tabled
from diffusion_text.process.gaussian import HIGHEST
from diffusion_text.types import Inputs, Params


def _dot(left: Array, right: Array) -> Array:
  return jnp.dot(left, right, precision=HIGHEST)


@member
class Distance(Tabled):
  """Vectors of V numbers made of a table of E, frozen unless `learned`. (Published: BERT's.)

  A clean token is read as itself. Tokens are V numbers apart, so they show at log-SNRs far below
  those of embeddings: use a window down to about -20. The state is the one [B, N, V] array.
  """

  learned: bool = option(False, "whether the loss trains the table; False keeps it as it was drawn")
  kernel_width: float = option(
    1.5, "the width above, 1.5 in Smoothie for rows of length √width", gt=0
  )
  k: float = option(1.0, "standard deviation of the noise at sigma = 1; 1 in Smoothie", gt=0)

  @property
  def size(self) -> int:
    """V."""
    return self.vocab_size

  @property
  def noise_scale(self) -> float:
    """k."""
    return self.k

  def _centred(self, params: Params) -> tuple[Float[Array, "V E"], Float[Array, " V"]]:
    """(C, m)."""
    table = self.table(params)
    centred = table - jnp.mean(table, axis=0)
    square = jnp.sum(centred**2, axis=-1)
    return centred, (jnp.mean(square) - square) / (2 * self.kernel_width**2)

  def _spread(self, params: Params, centred: Float[Array, "*n E"]) -> Float[Array, "*n V"]:
    """m + C c / width², of embeddings c about their mean."""
    table, middle = self._centred(params)
    return middle + _dot(centred, table.T) / self.kernel_width**2

  def encode(self, params: Params, ids: Int[Array, "*n"]) -> Float[Array, "*n V"]:
    """x of the tokens."""
    return self._spread(params, self._centred(params)[0][ids])

  def mean(self, params: Params, probabilities: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """x is linear in the embedding, so this is that of the mean embedding."""
    return self._spread(params, _dot(probabilities, self._centred(params)[0]))

  def products(self, params: Params, vectors: Float[Array, "*n V"]) -> tuple[Array, Array]:
    """(<z, x_v> [*n, V], |x_v|² [V]), each up to a constant."""
    table, middle = self._centred(params)
    # x_v - m = C C_v / width², so that all V products cost two thin matrix products and no [V, V]
    # is formed.
    scale = self.kernel_width**-2
    along = scale * _dot(_dot(vectors, table), table.T)
    lengths = scale**2 * jnp.sum(_dot(table, _dot(table.T, table)) * table, axis=-1)
    return along, lengths + 2 * scale * _dot(table, _dot(middle, table))

  def centre(self, params: Params) -> Float[Array, " V"]:
    """m."""
    return self._centred(params)[1]

  def inputs(self, params: Params, state: Float[Array, "B N V"], t: Float[Array, "B N"]) -> Inputs:
    """softmax(z); a one-hot where t == 0, for no token is nearer than itself."""
    del params
    hard = is_token(jnp.argmax(state, axis=-1), self.vocab_size).astype(jnp.float32)
    return Inputs(vectors=jnp.where(t[..., None] > 0, jax.nn.softmax(state, axis=-1), hard))

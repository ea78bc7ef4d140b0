"""Low-rank changes of matrices: W + s · A · B, of which A and B alone are trained.

LoRA (Hu et al., arXiv 2106.09685, equation 3). W [D_in, D_out] stays as it is, A [D_in, r] begins
as noise and B [r, D_out] as zeros, so that the network is unchanged before the first update. The
factor s is alpha / r, or alpha / √r (rsLoRA, arXiv 2312.03732), with which the size of the change
does not shrink with the rank. A and B lie in the tree of parameters beside the matrix, under
"low_rank"; `linear_maps.plain` adds the product to the matrix and leaves them out.

The dropout of the paper is not here: the published change of a network is the same without it.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_text.core.options import member, option

NAME = "low_rank"  # of the group of A and B in the tree of parameters
EVERY = ("blocks/attention/*", "blocks/mlp/*")


@member
class LowRank:
  """A and B beside the chosen matrices. Everything else of the network is frozen."""

  rank: int = option(8, "r; 4 to 64 is usual", ge=1)
  alpha: float = option(
    16.0,
    "of the factor alpha / r of the change; twice the rank is usual",
    gt=0,
  )
  scaling: Literal["rank", "root_rank"] = option(
    "rank", "alpha is divided by the rank (LoRA) or by its square root (rsLoRA)"
  )
  matrices: tuple[str, ...] = option(
    EVERY,
    "patterns of the linear maps of the layers that are changed, as in blocks/attention/query;"
    " * stands for anything. The experts of a mixture are no such maps",
    min_length=1,
  )
  also: tuple[str, ...] = option(
    (),
    "other parameters of the network that are trained: prefixes of their paths, as in embedding,"
    " whose last row is the mask of a network that has not seen one",
  )

  @property
  def scale(self) -> float:
    """s."""
    return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))


LOW_RANK = {"lora": LowRank}


class LowRankMap(nnx.Module):
  """x · A · B · s, for a matrix of shape [D_in, D_out] or a stack of them."""

  def __init__(self, options: LowRank, shape: tuple[int, ...], *, rngs: nnx.Rngs):
    *stack, width_in, width_out = shape
    drawn = jax.random.normal(rngs.params(), (*stack, width_in, options.rank), jnp.float32)
    self.a = nnx.Param(width_in**-0.5 * drawn)
    self.b = nnx.Param(jnp.zeros((*stack, options.rank, width_out), jnp.float32))
    self.scale = options.scale

  def __call__(self, x: Float[Array, "n width_in"]) -> Float[Array, "n width_out"]:
    """The change of the product of x with the matrix, in the dtype of x."""
    return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale


def change(
  a: Float[Array, "*stack D_in r"], b: Float[Array, "*stack r D_out"], options: LowRank
) -> Float[Array, "*stack D_in D_out"]:
  """s · A · B, float32 [..., D_in, D_out]."""
  product = jnp.matmul(
    jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision=jax.lax.Precision.HIGHEST
  )
  return options.scale * product

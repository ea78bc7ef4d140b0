"""A small classifier of token rows, for steering a sampler and for judging what came of it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.options import internal, member, option
from diffusion_text.model.layers import embed_inputs
from diffusion_text.types import Inputs, Key, Params


@member
class Classifier:
  """Embedding, one convolution, pooling over the row, one hidden layer. Pure; float32.

  It reads what the generator reads, `Inputs`, in rows without padding. A window of one token is a
  deep averaging network (Iyyer et al. 2015), a longer one a convolutional one (Kim, arXiv
  1408.5882).
  """

  classes: int = option(..., "C, the number of classes", ge=2)
  width: int = option(64, "D, the width of the embedding and of the hidden layer", ge=1)
  window: int = option(1, "tokens of the convolution; odd, so that it has a middle", ge=1)
  pool: Literal["mean", "max", "none"] = option(
    "mean", "over positions; with max, few positions get a gradient; none: each has an answer"
  )
  input_size: int = internal()

  def __post_init__(self):
    if self.window % 2 == 0:
      raise ValueError(
        f"window={self.window} must be odd, so that it has a middle; 1 is a bag of tokens, 3 is"
        " usual"
      )

  def init(self, key: Key) -> Params:
    """float32 arrays by name; the last map is zero: before training, all classes are as likely."""
    # A fourth key is not used. With three the parameters of a seed would be others.
    embedding, convolution, hidden, _ = jax.random.split(key, 4)

    def wide(key, *shape):
      return jax.random.normal(key, shape) * shape[0] ** -0.5

    width = self.width
    table = jax.random.normal(embedding, (self.input_size, width))
    params = {
      "embedding": 0.1 * table,  # small, or rare tokens stay noise
      "convolution": {
        "kernel": wide(convolution, self.window * width, width),
        "bias": jnp.zeros(width),
      },
      "hidden": {"kernel": wide(hidden, width, width), "bias": jnp.zeros(width)},
      "out": {"kernel": jnp.zeros((width, self.classes)), "bias": jnp.zeros(self.classes)},
    }
    return params

  def apply(self, params: Params, inputs: Inputs) -> Float[Array, "B *L C"]:
    """Logits float32 of each row, or of each token where pool is "none".

    Raises:
      ValueError: for vectors that do not fit the table.
    """
    x = embed_inputs((params["embedding"], None), inputs, jnp.dtype("float32"))
    side = self.window // 2
    padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
    around = [padded[:, i : i + x.shape[1]] for i in range(self.window)]
    around = jnp.concatenate(around, axis=-1)
    h = around @ params["convolution"]["kernel"] + params["convolution"]["bias"]
    h = jax.nn.gelu(h)
    pool = {"mean": jnp.mean, "max": jnp.max}.get(self.pool)
    pooled = h if pool is None else pool(h, axis=1)
    hidden = jax.nn.gelu(pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]

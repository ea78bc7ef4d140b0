"""A small classifier of token rows, for steering a sampler and for judging what came of it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.options import internal, member, option
from diffusion_text.model.layers import embed_inputs
from diffusion_text.types import Inputs, Key, Params

WAVES = 16  # frequencies of the time that a timed classifier is shown


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
  pool: Literal["mean", "max"] = option(
    "mean", "over positions; with max, few positions get a gradient"
  )
  timed: bool = option(False, "it is shown the time of each token, for noisy states")
  input_size: int = internal()

  def __post_init__(self):
    if self.window % 2 == 0:
      raise ValueError(
        f"window={self.window} must be odd, so that it has a middle; 1 is a bag of tokens, 3 is"
        " usual"
      )

  def init(self, key: Key) -> Params:
    """float32 arrays by name; the last map is zero: before training, all classes are as likely."""
    embedding, convolution, hidden, time = jax.random.split(key, 4)

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
    if self.timed:
      params["time"] = {"kernel": wide(time, 2 * WAVES, width)}
    return params

  def apply(
    self, params: Params, inputs: Inputs, t: Float[Array, "B L"] | None = None
  ) -> Float[Array, "B C"]:
    """Logits float32. t: the time of each token, read if `timed`.

    Raises:
      ValueError: for vectors that do not fit the table.
    """
    x = embed_inputs((params["embedding"], None), inputs, jnp.dtype("float32"))
    side = self.window // 2
    padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
    around = [padded[:, i : i + x.shape[1]] for i in range(self.window)]
    around = jnp.concatenate(around, axis=-1)
    h = around @ params["convolution"]["kernel"] + params["convolution"]["bias"]
    if self.timed:
      angles = t[..., None] * (2.0 ** jnp.linspace(0.0, 6.0, WAVES))
      waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
      h = h + waves @ params["time"]["kernel"]
    h = jax.nn.gelu(h)
    pooled = jnp.mean(h, axis=1) if self.pool == "mean" else jnp.max(h, axis=1)
    hidden = jax.nn.gelu(pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]

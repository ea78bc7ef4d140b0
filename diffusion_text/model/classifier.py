"""A small classifier of token rows, for steering a sampler and for judging what came of it. It reads what the generator reads: `Inputs`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.model.layers import embed
from diffusion_text.types import Array, Inputs, Key, Params, Time

POOLS = ("mean", "max")
WAVES = 16  # frequencies of the time that a timed classifier is told


@dataclasses.dataclass(frozen=True)
class Classifier:
  """Embedding, one convolution over `window` tokens, pooling over the row, one hidden layer. Pure; float32; rows without padding.

  classes: C. input_size: rows of its embedding table, as in `TransformerConfig`: V for ids and soft tokens, E for vectors. width: D.
  window: odd; 1 is a bag of tokens (deep averaging, Iyyer et al. 2015), 3 or more a convolutional one (Kim, arXiv 1408.5882).
  pool: "mean" or "max" over positions; with "max" few positions get a gradient. timed: it is told each token's time, for noisy states.
  Raises ValueError for values out of range.
  """

  classes: int
  input_size: int
  width: int = 64
  window: int = 1
  pool: str = "mean"
  timed: bool = False

  def __post_init__(self):
    if self.classes < 2 or self.input_size < 1 or self.width < 1:
      raise ValueError(f"{self} needs at least 2 classes and sizes of at least 1")
    if self.window < 1 or self.window % 2 == 0:
      raise ValueError(
        f"window={self.window} must be odd, so that it has a middle; 1 is a bag of tokens, 3 is usual"
      )
    if self.pool not in POOLS:
      raise ValueError(f"pool={self.pool!r} is unknown; use one of {POOLS}")

  def init(self, key: Key) -> Params:
    """float32 arrays by name; the last map is zero, so that every class is equally likely before training."""
    keys = jax.random.split(key, 4)
    wide = lambda key, shape: jax.random.normal(key, shape) * shape[0] ** -0.5
    params = {
      "embedding": 0.1
      * jax.random.normal(
        keys[0], (self.input_size, self.width)
      ),  # small, or rare tokens stay noise
      "convolution": {
        "kernel": wide(keys[1], (self.window * self.width, self.width)),
        "bias": jnp.zeros(self.width),
      },
      "hidden": {"kernel": wide(keys[2], (self.width, self.width)), "bias": jnp.zeros(self.width)},
      "out": {"kernel": jnp.zeros((self.width, self.classes)), "bias": jnp.zeros(self.classes)},
    }
    return (
      {**params, "time": {"kernel": wide(keys[3], (2 * WAVES, self.width))}}
      if self.timed
      else params
    )

  def apply(self, params: Params, inputs: Inputs, t: Time | None = None) -> Array:
    """Logits float32 [B, C]. t: [B, 1 or L], read if `timed`. Raises ValueError for vectors that do not fit the table."""
    table = params["embedding"]
    if inputs.vectors is None:
      x = embed(table, inputs.ids, inputs.weights, jnp.float32)
    elif inputs.vectors.shape[-1] == self.input_size:
      x = inputs.vectors @ table
    else:
      raise ValueError(
        f"vectors of {inputs.vectors.shape[-1]} numbers do not fit input_size={self.input_size}"
      )
    side = self.window // 2
    padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
    around = jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(self.window)], axis=-1)
    h = around @ params["convolution"]["kernel"] + params["convolution"]["bias"]
    if self.timed:
      angles = t[..., None] * (2.0 ** jnp.linspace(0.0, 6.0, WAVES))
      h = (
        h + jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1) @ params["time"]["kernel"]
      )
    h = jax.nn.gelu(h)
    pooled = jnp.mean(h, axis=1) if self.pool == "mean" else jnp.max(h, axis=1)
    hidden = jax.nn.gelu(pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]

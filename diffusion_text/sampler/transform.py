"""Transforms of the predicted distribution before a token is drawn from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.options import member, option
from diffusion_text.types import Model


@member
class LogitsTransform:
  """Temperature and nucleus (arXiv 1904.09751); the defaults change nothing.

  A function of logits float32 [..., V] that returns logits of the same shape, -inf where a token is
  ruled out.
  """

  temperature: float = option(1.0, "divides the logits; 1 changes nothing, 0 is greedy", ge=0)
  top_p: float = option(
    1.0,
    "the smallest set of tokens whose probability reaches this is kept, the crossing token"
    " included; 1 keeps all",
    gt=0,
    le=1,
  )

  def __call__(self, logits: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """The transformed logits."""
    if self.temperature == 0:
      best = jnp.argmax(logits, axis=-1, keepdims=True)
      return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    logits = logits / self.temperature
    if self.top_p == 1:
      return logits
    falling = -jnp.sort(-logits, axis=-1)
    shares = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    kept = jnp.sum(before < self.top_p, axis=-1, keepdims=True)
    lowest = jnp.take_along_axis(falling, kept - 1, axis=-1)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


GREEDY = LogitsTransform(temperature=0.0)


def refuse_scores(model: Model, who: str, changed: bool) -> None:
  """Raises ValueError if logits are to be `changed` that are no law over tokens: ratios to the
  token shown.

  The scores of a mask are such a law, up to a factor.
  """
  process = model.process
  if changed and process.reads_logits_as == "score" and process.mask_id is None:
    raise ValueError(
      f"{who} transforms logits, and those of {type(process).__name__} with prediction='score' are"
      " ratios to the token shown; leave temperature, top_p and greedy_tail at 1, 1 and False, or"
      " use prediction='leave_one_out'"
    )

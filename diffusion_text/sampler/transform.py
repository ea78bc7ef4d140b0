"""Transforms of the predicted distribution before a token is drawn from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import NEVER
from diffusion_text.core.options import member, option
from diffusion_text.types import Model


@member
class LogitsTransform:
  """Temperature, then the k likeliest tokens, then the nucleus (arXiv 1904.09751); the defaults
  change nothing.

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
  top_k: int | None = option(
    None,
    "so many of the likeliest tokens are kept, and all that equal the last; None keeps all",
    ge=1,
  )

  def __call__(self, logits: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """The transformed logits."""
    if self.temperature == 0:
      best = jnp.argmax(logits, axis=-1, keepdims=True)
      return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    logits = logits / self.temperature
    if self.top_k is not None and self.top_k < logits.shape[-1]:
      least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
      logits = jnp.where(logits >= least, logits, -jnp.inf)
    if self.top_p == 1:
      return logits
    falling = -jnp.sort(-logits, axis=-1)
    shares = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    kept = jnp.sum(before < self.top_p, axis=-1, keepdims=True)
    lowest = jnp.take_along_axis(falling, kept - 1, axis=-1)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def without(
  log_p: Float[Array, "*n V"],
  banned: tuple[int, ...] = (),
  penalty: float = 0.0,
  left: Int[Array, "*n"] | None = None,
) -> Float[Array, "*n V"]:
  """Log-probabilities without the `banned` ids, and with `penalty` less for the id of the left
  neighbour; normalised.

  Args:
    log_p: log-probabilities.
    banned: ids.
    penalty: nats.
    left: the id of each token's left neighbour; -1 where it is not known.
  """
  if not banned and not penalty:
    return log_p
  ids = np.arange(log_p.shape[-1])
  if penalty:
    log_p = log_p - penalty * (left[..., None] == ids)
  if banned:
    log_p = jnp.where(np.isin(ids, banned), NEVER, log_p)
  return jax.nn.log_softmax(log_p, axis=-1)


def without_own(log_p: Float[Array, "n V"], ids: Int[Array, "n M"]) -> Float[Array, "n V"]:
  """Log-probabilities of each token without the ids of its own; normalised. ids: -1 is none."""
  rows, outside = jnp.arange(log_p.shape[0])[:, None], log_p.shape[-1]
  changed = log_p.at[rows, jnp.where(ids < 0, outside, ids)].set(NEVER, mode="drop")
  return jax.nn.log_softmax(changed, axis=-1)


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

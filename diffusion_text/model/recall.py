"""Self-conditioning: the network reads its own last answer beside the noisy token (Analog Bits, arXiv 2208.04202, section 2.3).

What it is told of the answer is an *estimate* of the clean token, e: x̂ of an embedding, or the probabilities p (`Process.estimate`). A
position that holds h of the noisy token then holds, at t > 0 (where t == 0 the token is known, and h is left as it is),

  mode   there is an estimate    there is none      the linear map R
  add    h + R e                 h + a              of its own, zeros before training
  mean   (h + R e) / 2           (h + a) / 2        the table that embeds the tokens themselves

"mean" is the average of probabilities before the embedding (TESS, arXiv 2305.08379), as both maps are linear. "add" is what concatenating
e to the input of a linear map does (Analog Bits, SED arXiv 2211.04236), whose added rows are zero at first.

What stands in where there is none, a, is a choice (`absent`): "zeros", no vector at all; or "uniform", R u for u that is 1/V on every
token, the mean embedding: TESS's convention, whose missing answer is one of zero logits. The two differ by half the mean of the table.

R e is made where e is (`Prediction.recall`): estimates over V exist for a chunk of positions at a time, and D numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from diffusion_text.types import Array, Inputs, Time

SELF_CONDITIONING = ("none", "add", "mean")
ABSENT = ("zeros", "uniform")


def check_recall(mode: str, absent: str, sizes: tuple[int, int, int]) -> None:
  """Raises ValueError for unknown choices and for those that do not fit. sizes: of vocabulary, input and estimate."""
  vocab_size, input_size, estimate_size = sizes
  if mode not in SELF_CONDITIONING or absent not in ABSENT:
    raise ValueError(
      f"model.self_conditioning={mode!r} with model.absent={absent!r}: use one of {SELF_CONDITIONING} with one of {ABSENT}"
    )
  if mode == "none" and absent != "zeros":
    raise ValueError(
      f"model.absent={absent!r} is of a network that conditions on itself; set model.self_conditioning"
    )
  if mode != "none" and estimate_size < 1:
    raise ValueError(
      f"model.self_conditioning={mode!r} needs estimate_size={estimate_size} of the process, at least 1"
    )
  if absent == "uniform" and estimate_size != vocab_size:
    raise ValueError(
      f"model.absent='uniform' is a distribution over the {vocab_size} tokens, and an estimate here has {estimate_size} numbers"
      " (an embedding's, whose mean is about zero); use 'zeros'"
    )
  if mode == "mean" and estimate_size > input_size:
    raise ValueError(
      f"model.self_conditioning='mean' embeds estimates of {estimate_size} numbers by a table of {input_size} rows; use 'add'"
    )


class Recall(nnx.Module):
  """How a network reads its own last answer. table: [estimate_size, D] of its own, in mode "add"."""

  def __init__(self, mode: str, absent: str, estimate_size: int, width: int):
    self.mode, self.absent, self.size = mode, absent, estimate_size
    self.embedding = (
      nnx.Param(jnp.zeros((estimate_size, width), jnp.float32)) if mode == "add" else None
    )

  def read(self, estimates: Array, table: Array, dtype: jnp.dtype) -> Array:
    """R e: [N, estimate_size] -> [N, D]. table: the one that embeds the tokens."""
    own = table[: self.size] if self.embedding is None else self.embedding[...]
    return jnp.dot(
      estimates.astype(dtype), own.astype(dtype), preferred_element_type=jnp.float32
    ).astype(dtype)

  def mix(self, x: Array, inputs: Inputs, t: Time, table: Array) -> Array:
    """What the layers read, [B, L, D], of the embedded noisy tokens x."""
    uniform = jnp.full((1, self.size), 1 / self.size, jnp.float32)
    recalled = (
      jnp.zeros((), x.dtype) if self.absent == "zeros" else self.read(uniform, table, x.dtype)
    )
    if inputs.recalled is not None:
      recalled = jnp.where(inputs.recalls[..., None], inputs.recalled.astype(x.dtype), recalled)
    mixed = x + recalled if self.mode == "add" else (x + recalled) / 2
    return jnp.where(jnp.broadcast_to(t, inputs.shape)[..., None] > 0, mixed, x)


def make_recall(mode: str, absent: str, estimate_size: int, width: int) -> Recall | None:
  """None for mode "none"."""
  return None if mode == "none" else Recall(mode, absent, estimate_size, width)


def told(recall: Recall | None, x: Array, inputs: Inputs, t: Time, table: Array) -> Array:
  """x [B, L, D] with the network's last answer in it. Raises ValueError for an answer to a network that has no use for it."""
  if recall is not None:
    return recall.mix(x, inputs, t, table)
  if inputs.recalled is not None:
    raise ValueError(
      "inputs.recalled is for a network that conditions on itself; set model.self_conditioning"
    )
  return x


def reader(recall: Recall | None, table: Array, dtype: str) -> Callable[[Array], Array] | None:
  """`Prediction.recall` of the network."""
  return (
    None if recall is None else lambda estimates: recall.read(estimates, table, jnp.dtype(dtype))
  )

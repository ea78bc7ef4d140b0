"""What processes share whose state has one part per token: positions are tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.types import Batch, DataFacts, Key, Params


def by_position(fn: Callable[..., Array], *arrays: Array) -> Array:
  """fn of [B, …] slices of arrays [B, L, …], one position at a time: [B, L, …].

  So [B, V] exists, and [B, L, V] does not. A flat list [n, …] is handed over as it is: callers that
  flatten it cut it into chunks, too.
  """
  if arrays[0].ndim < 2:
    return fn(*arrays)

  @jax.checkpoint
  def one(slices):
    return fn(*slices)

  first = tuple(jnp.moveaxis(array, 1, 0) for array in arrays)
  return jnp.moveaxis(jax.lax.map(one, first), 0, 1)


class PerToken:
  """The parts of `types.Process` that hold for every process with one position per token.

  Attributes:
    vocab_size: V.
    mask_id: None, unless a process has a mask.
    has_bound: True; every process here bounds -log p(x).
    rate_at_noise_is_nll: False, unless a process says otherwise.
    noise_is_learned: False, unless a process says otherwise.
  """

  vocab_size: int
  has_bound: ClassVar[bool] = True

  @property
  def mask_id(self) -> int | None:
    """None: there is no mask."""
    return None

  @property
  def output_size(self) -> int:
    """V: the network answers with logits of clean tokens."""
    return self.vocab_size

  @property
  def rate_at_noise_is_nll(self) -> bool:
    """False: at t = 1 the rate is not the cross-entropy of the clean token."""
    return False

  @property
  def noise_is_learned(self) -> bool:
    """False: no discrete draw of `corrupt` depends on trained parameters."""
    return False

  def bound_times(self) -> Mapping[str, float]:
    """{}: even times."""
    return {}

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{}: nothing is learned or counted."""
    del key, facts
    return {}

  def positions(self, length: int) -> int:
    """One position per token."""
    return length

  def in_positions(self, batch: Batch) -> Batch:
    """The batch as it is."""
    return batch

  def round_time(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """t itself: time is continuous."""
    return t

  def time_of(self, log_snr: float | Array) -> Float[Array, ""]:
    """Raises ValueError: a state of ids has no signal-to-noise ratio."""
    raise ValueError(
      f"decode_at={log_snr} is a log signal-to-noise ratio, which {type(self).__name__} has none"
      " of; leave it None, or use a Gaussian process"
    )

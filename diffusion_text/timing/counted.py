"""Timings that jump: each token is noise or clean, and nothing in between."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_uniform, position_keys
from diffusion_text.timing.clock import Even, low_discrepancy, scored
from diffusion_text.types import Batch, Key, Params, Progress, Times


@member
class ExactCount(Even):
  """An exact number of tokens is noise: LLaDA's likelihood (arXiv 2502.09992 eq. 6), RADD's k-DCE
  (arXiv 2406.03736).

  Of the n tokens of a row that are scored (neither observed nor padding), k ~ U{1 … n} chosen at
  random have t = 1 and speed n / k, all others t = 0 and speed 0; k is spread evenly over the
  global batch. Where a token at t = 1 costs -log p this is the bound of `Shared`, as each k = 1 … n
  is equally likely there too, at a lower variance, as k is not binomial given a time.

  The network reads t, never k / n: the evidence of a token is computed from its noise level.
  """

  path: ClassVar[Literal["jumps"]] = "jumps"

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Which tokens are noise; tau = 1 stands for all of them."""
    del params
    rows, length = batch.ids.shape
    key_count, key_choice = jax.random.split(key)
    counts = scored(batch)
    number = jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    tau = low_discrepancy(key_count, rows, progress)[:, None]
    noisy = jnp.ceil(tau * number)
    place = draw_uniform(position_keys(key_choice, rows, length, progress))
    order = jnp.argsort(jnp.where(counts, place, 2.0), axis=1)
    rank = jnp.argsort(order, axis=1)  # of scored tokens, in a random order
    chosen = counts & (rank < noisy)
    t = chosen.astype(jnp.float32)
    return Times(t, jnp.where(chosen, number / noisy, 0.0), tau, t)


@member
class AtNoise(Even):
  """Every token is at t = 1, at speed 1. The exact likelihood for contexts that finish one token at
  a time.

  A token then costs -log p given the clean tokens before it. Of units of several tokens it is the
  bound of a model that draws all of them at once.
  """

  path: ClassVar[Literal["jumps"]] = "jumps"

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Ones."""
    del params, key, progress
    ones = jnp.ones(batch.ids.shape, jnp.float32)
    return Times(ones, ones, ones[:, :1], ones)

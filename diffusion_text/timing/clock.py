"""The shared clock τ: draws that are spread evenly over the global batch, and the clock of a
sampler's steps.

All times are driven by one clock τ, uniform on (0, 1]. `dt_dtau` per token makes E_τ[Σ_i dt_dtau_i
· nelbo_rate_i] the bound: a token whose time sweeps [0, 1] once while the clock does pays ∫ rate dt
= ∫ rate · (dt/dτ) dτ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import TINY
from diffusion_text.core.prng import global_rows
from diffusion_text.types import (
  Batch,
  DataFacts,
  Key,
  Params,
  Progress,
  Times,
  Timing,
  TokenCosts,
)


def low_discrepancy(key: Key, rows: int, progress: Progress) -> Float[Array, " rows"]:
  """[rows] in (0, 1]: this microbatch's share of rows · parts points that are spread evenly over
  the step's global batch.

  The n points are 1 - (u + i)/n with one u for all hosts, devices and microbatches (VDM, arXiv
  2107.00630, appendix I.1). They are handed out in a random order, so that no device gets all the
  noisy rows. Row r of the global batch has the same point however the batch is split. Each point
  alone is uniform, so the estimate stays unbiased.
  """
  total = rows * progress.parts
  key_offset, key_order = jax.random.split(key)
  order = jax.random.permutation(key_order, total)
  place = order[global_rows(rows, progress)]
  u = jax.random.uniform(key_offset)
  # Rounding may reach 0, where weights have a pole.
  return jnp.maximum(1 - (place + u) / total, TINY)


def clock_of_steps(
  steps: int, spacing: Literal["even", "cosine"] = "even"
) -> Float[np.ndarray, " S1"]:
  """float64 [steps + 1] of numpy: the clock before and after each step of a sampler, from 1 to 0
  exactly.

  "even": 1 - k / steps. "cosine": cos(π/2 · k / steps), so that steps are small where little is
  known yet (MD4, arXiv 2406.04329). Raises ValueError for less than one step.
  """
  if steps < 1:
    raise ValueError(
      f"steps={steps} must be at least 1; 64 is a good start, and more than the length of the text"
      " seldom helps"
    )
  # numpy: under jit XLA would round 1 - k / steps once instead of twice, and miss 0 for some
  # steps (41, 47, 55, …).
  left = 1 - np.arange(steps + 1) / steps
  if spacing == "even":
    return left
  return np.sin(np.pi / 2 * left)  # of 0 and of π/2: 0 and 1 exactly


def scored(batch: Batch) -> Bool[Array, "B N"]:
  """bool [B, N]: the tokens that are scored, neither padding nor observed."""
  where = jnp.ones(batch.ids.shape, bool) if batch.weights is None else batch.weights > 0
  return where if batch.observed is None else where & ~batch.observed


def text_lengths(batch: Batch) -> Int[Array, " B"]:
  """int32 [B]: the length of each row's text, up to its last token that is not padding; at least
  1."""
  rows, length = batch.ids.shape
  if batch.weights is None:
    return jnp.full((rows,), length, jnp.int32)
  return jnp.max(jnp.where(batch.weights > 0, jnp.arange(1, length + 1), 1), axis=1)


class Even:
  """What timings share that learn nothing and whose samplers walk the clock, the same for all
  tokens."""

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{}: nothing is learned."""
    del key, facts
    return {}

  def grid(
    self,
    params: Params,
    clock: Float[np.ndarray, " S1"],
    lengths: Int[Array, " B"],
    length: int,
  ) -> Float[Array, "B S1 {length}"]:
    """All tokens fall together, as the clock does: [B, steps + 1, length]."""
    del params
    times = jnp.asarray(clock, jnp.float32)[None, :, None]
    return jnp.broadcast_to(times, (lengths.shape[0], len(clock), length))

  def fit(self, params: Params, times: Times, costs: TokenCosts) -> float:
    """0: nothing is learned."""
    del params, times, costs
    return 0.0

  def for_bound(self, options: Mapping[str, float]) -> Timing:
    """Itself: it draws times of its own."""
    del options
    return self

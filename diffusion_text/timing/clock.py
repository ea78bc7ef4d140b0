"""The shared clock τ: draws that are spread evenly over the global batch, and grids that fall
evenly.

All times are driven by one clock τ, uniform on (0, 1]. `dt_dtau` per token makes E_τ[Σ_i dt_dtau_i
· nelbo_rate_i] the bound: a token whose time sweeps [0, 1] once while the clock does pays ∫ rate dt
= ∫ rate · (dt/dτ) dτ.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import TINY
from diffusion_text.core.prng import global_rows
from diffusion_text.types import Batch, DataFacts, Key, Params, Progress, Times, TokenCosts


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


def even_steps(steps: int) -> np.ndarray:
  """float32 [steps + 1]: the clock at each step of a sampler, from 1 to 0 exactly. Raises
  ValueError for less than one step."""
  if steps < 1:
    raise ValueError(
      f"steps={steps} must be at least 1; 64 is a good start, and more than the length of the text"
      " seldom helps"
    )
  # numpy: under jit XLA would round 1 - k / steps once instead of twice, and miss 0 for some
  # steps (41, 47, 55, …).
  return 1 - np.arange(steps + 1, dtype=np.float32) / np.float32(steps)


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
  """What timings share that learn nothing and whose samplers walk even times, the same for all
  tokens."""

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{}: nothing is learned."""
    del key, facts
    return {}

  def grid(
    self, params: Params, steps: int, lengths: Int[Array, " B"], length: int
  ) -> Float[Array, "B S1 {length}"]:
    """All tokens fall together in even steps: [B, steps + 1, length]."""
    del params
    even = jnp.asarray(even_steps(steps))[None, :, None]
    return jnp.broadcast_to(even, (lengths.shape[0], steps + 1, length))

  def fit(self, params: Params, times: Times, costs: TokenCosts) -> float:
    """0: nothing is learned."""
    del params, times, costs
    return 0.0

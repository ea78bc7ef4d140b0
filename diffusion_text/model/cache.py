"""The clean cache: keys and values of finished blocks, append-only.

Finished tokens are clean and see only clean tokens of their own and earlier blocks (DESIGN, idea 3), so what the cache holds never
changes, and a cached forward pass equals the uncached one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.kernels import layout as layouts
from diffusion_text.model.transformer import DTYPES, Network, Past
from diffusion_text.types import Array, Inputs, Layout, Params, Prediction, Time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """keys, values [layers, B, capacity, G, K]; used: int32 scalar, the filled slots (the same for all rows), which come first."""

  keys: Array
  values: Array
  used: Array


def empty(network: Network, rows: int, capacity: int) -> Cache:
  """A cache for `capacity` tokens of each row."""
  config = network.config
  zeros = jnp.zeros(
    (config.layers, rows, capacity, config.kv_heads, config.head_width), DTYPES[config.dtype]
  )
  return Cache(zeros, zeros, jnp.int32(0))


def read(
  network: Network,
  params: Params,
  cache: Cache,
  inputs: Inputs,
  t: Time,
  *,
  padding: Array | None,
  noisy: bool,
) -> tuple[Prediction, tuple[Array, Array]]:
  """One block [B, b] after the cache: its prediction, and its own keys and values, which `append` takes.

  padding: bool [B, b], tokens that no other may see. noisy: False for a finished block that is to be appended (or a model that
  reads clean tokens only).
  """
  rows, size = inputs.shape
  used = jnp.broadcast_to(cache.used, (rows,))
  q_layout, k_layout = layouts.decode_block(used, cache.keys.shape[2], size, noisy)
  if padding is not None:
    own = jnp.where(padding, 2, 0)  # slots of the cache that are not used are in segment 1
    segment = (
      jnp.broadcast_to(k_layout.segment, (rows, cache.keys.shape[2] + size)).at[:, -size:].set(own)
    )
    q_layout = Layout(own, q_layout.block, q_layout.noisy)
    k_layout = Layout(segment, k_layout.block, k_layout.noisy)
  position = cache.used + jnp.arange(size, dtype=jnp.int32)[None]
  here = dataclasses.replace(inputs, position=position)
  return network.extend(params, here, t, q_layout, Past(cache.keys, cache.values, k_layout))


def append(cache: Cache, own: tuple[Array, Array]) -> Cache:
  """The cache with the keys and values [layers, B, b, G, K] of one more block."""
  put = lambda all_, new: jax.lax.dynamic_update_slice_in_dim(
    all_, new.astype(all_.dtype), cache.used, axis=2
  )
  return Cache(put(cache.keys, own[0]), put(cache.values, own[1]), cache.used + own[0].shape[2])


@dataclasses.dataclass(frozen=True)
class CachedBlocks:
  """A network read block by block over a clean cache (the `Reader` of sampler/block.py).

  shifted: position i reads the clean token i - 1 (`timing.LeftToRight`; blocks of one token). noise: inputs [1, L] of the prior.
  """

  network: Network
  params: Params
  noise: Inputs
  shifted: bool = False

  def start(self, rows: int, length: int) -> tuple[Cache, Inputs]:
    first = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf[:, :1], (rows, 1, *leaf.shape[2:])), self.noise
    )
    return empty(self.network, rows, length), first

  def _read(
    self, memory: tuple[Cache, Inputs], inputs: Inputs, t: Time, padding: Array, noisy: bool
  ):
    cache, before = memory
    if self.shifted:
      inputs, t, noisy = before, jnp.zeros_like(t), False
    return read(self.network, self.params, cache, inputs, t, padding=padding, noisy=noisy)

  def read(
    self, memory: tuple[Cache, Inputs], start: Array, inputs: Inputs, t: Time, padding: Array
  ) -> Prediction:
    del start  # the cache knows how far it is
    return self._read(memory, inputs, t, padding, noisy=True)[0]

  def finish(
    self, memory: tuple[Cache, Inputs], start: Array, inputs: Inputs, padding: Array
  ) -> tuple[Cache, Inputs]:
    del start
    own = self._read(memory, inputs, jnp.zeros(inputs.shape, jnp.float32), padding, noisy=False)[1]
    return append(memory[0], own), jax.tree.map(lambda leaf: leaf[:, -1:], inputs)

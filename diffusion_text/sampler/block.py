"""Block by block: each block is drawn by the one sampling loop, given the clean blocks before it; then it becomes context.

A *reader* is how the network sees a block and what came before: over a cache (`build`), or over the whole row (`WholeRow`), which costs
more and gives the same tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from diffusion_text.sampler.loop import NOT_DRAWN, Policy, Sample, open_tokens, sample
from diffusion_text.types import (
  Array,
  Batch,
  Denoise,
  Inputs,
  Key,
  Params,
  Prediction,
  Process,
  Time,
)


class Reader(Protocol):
  """How the network reads a block after the finished ones; `memory` is a pytree of arrays of fixed shapes."""

  def start(self, rows: int, length: int) -> Any:
    """The memory before the first block."""

  def read(self, memory: Any, start: Array, inputs: Inputs, t: Time, padding: Array) -> Prediction:
    """The prediction for the block [B, b] that begins at position `start`."""

  def finish(self, memory: Any, start: Array, inputs: Inputs, padding: Array) -> Any:
    """The memory once the block is clean."""


@dataclasses.dataclass(frozen=True)
class WholeRow:
  """No cache: the whole row is read at every call. denoise: of the row (`Timing.denoiser`); noise: inputs [1, L] of the prior."""

  denoise: Denoise
  noise: Inputs

  def start(self, rows: int, length: int) -> Inputs:
    return jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (rows, length, *leaf.shape[2:])), self.noise
    )

  def read(
    self, memory: Inputs, start: Array, inputs: Inputs, t: Time, padding: Array
  ) -> Prediction:
    told, plain = (
      inputs.recalled is not None,
      dataclasses.replace(inputs, recalled=None, recalls=None),
    )
    row = self.finish(memory, start, plain, padding)
    length, size = memory.shape[1], inputs.shape[1]
    later = jnp.broadcast_to((jnp.arange(length) >= start).astype(jnp.float32), memory.shape)
    if told:
      here = lambda leaf: jax.lax.dynamic_update_slice_in_dim(
        jnp.zeros((*memory.shape, *leaf.shape[2:]), leaf.dtype), leaf, start, 1
      )
      row = dataclasses.replace(row, recalled=here(inputs.recalled), recalls=here(inputs.recalls))
    times = jax.lax.dynamic_update_slice_in_dim(
      later, jnp.broadcast_to(t, inputs.shape), start, axis=1
    )
    prediction = self.denoise(row, times)
    return prediction._replace(
      features=jax.lax.dynamic_slice_in_dim(prediction.features, start, size, axis=1)
    )

  def finish(self, memory: Inputs, start: Array, inputs: Inputs, padding: Array) -> Inputs:
    del padding  # is in the row's own layout
    return jax.tree.map(
      lambda row, new: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=1), memory, inputs
    )


def sample_blocks(
  policy: Policy,
  process: Process,
  params: Params,
  reader: Reader,
  keys_BxL: Key,
  batch: Batch,
  block_size: int,
  *,
  recalls: int = 0,
) -> Sample:
  """As `loop.sample`, block by block; any length that is a multiple of block_size. The policy's steps are those of one block."""
  rows, length = batch.ids.shape
  if policy.guidance.guidance_scale != 1:
    raise ValueError(
      f"sampler.guidance_scale={policy.guidance.guidance_scale}: the finished blocks that a block reads hold the given tokens,"
      " and there is no second reading without them; use 1, or timing.name='shared'"
    )
  if length % block_size:
    raise ValueError(
      f"length={length} must be a multiple of block_size={block_size}; use {-(-length // block_size) * block_size}"
    )
  key_data = jax.random.key_data(keys_BxL)
  real = (
    jnp.ones((rows, length), jnp.float32) if batch.weights is None else jnp.asarray(batch.weights)
  )
  given = ~open_tokens(batch)

  def one(carry, start):
    memory, calls, row_calls = carry
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block_size, axis=1)
    block = Batch(cut(jnp.asarray(batch.ids)), given=cut(given), weights=cut(real))
    padding = block.weights == 0
    denoise = lambda inputs, t: reader.read(memory, start, inputs, t, padding)
    result = sample(
      policy,
      process,
      params,
      denoise,
      jax.random.wrap_key_data(cut(key_data)),
      block,
      recalls=recalls,
    )
    clean = process.corrupt(
      params, keys_BxL[0, 0], result.ids, jnp.zeros(block.ids.shape, jnp.float32)
    )
    memory = reader.finish(
      memory, start, process.inputs(params, clean, jnp.zeros(block.ids.shape, jnp.float32)), padding
    )
    committed = jnp.where(result.committed == NOT_DRAWN, NOT_DRAWN, result.committed + calls)
    return (memory, calls + result.calls, row_calls + result.row_calls), (result.ids, committed)

  begin = (reader.start(rows, length), jnp.int32(0), jnp.zeros(rows, jnp.int32))
  (_, calls, row_calls), (ids, committed) = jax.lax.scan(
    one, begin, jnp.arange(0, length, block_size)
  )
  whole = lambda blocks: jnp.swapaxes(blocks, 0, 1).reshape(rows, length)
  return Sample(whole(ids), whole(committed), row_calls, calls)


def pad_rows(batch: Batch, extra: int) -> Batch:
  """The batch with `extra` positions of padding on the right, in a segment of their own."""
  if not extra:
    return batch
  shape = batch.ids.shape
  pad = lambda field, default, value: jnp.pad(
    default if field is None else field, ((0, 0), (0, extra)), constant_values=value
  )
  return Batch(
    ids=pad(batch.ids, None, 0),
    given=pad(batch.given, jnp.zeros(shape, bool), True),
    weights=pad(batch.weights, jnp.ones(shape, jnp.float32), 0.0),
    segment=pad(batch.segment, jnp.ones(shape, jnp.int32), 0),
  )

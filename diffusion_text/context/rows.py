"""How contexts make rows out of tokens: joining, shifting and hiding `Inputs`, and the positions of
tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import select
from diffusion_text.kernels.layout import numbers, packed_positions
from diffusion_text.types import Batch, Inputs


def places(batch: Batch) -> Int[Array, "B1 N"]:
  """int32 [B, N] (or [1, N] where a row is one document): the place of each token in its own
  document."""
  if batch.segment is None:
    return numbers(batch.ids.shape[1])
  return packed_positions(batch.segment)


def weights_or_ones(batch: Batch) -> Float[Array, "B N"]:
  """float32 [B, N]: the weights of the batch, 1 where it has none."""
  if batch.weights is None:
    return jnp.ones(batch.ids.shape, jnp.float32)
  return batch.weights


def joined(*parts: Inputs, position: Int[Array, "B1 L"] | None) -> Inputs:
  """The parts one after the other, as one row with the given positions.

  Where one part holds soft tokens all of them do: hard ids become soft tokens with all of the
  weight on one candidate.
  """
  candidates = [part.ids.shape[2] for part in parts if part.weights is not None]
  if candidates:
    parts = tuple(soft(part, candidates[0]) for part in parts)
  bare = [dataclasses.replace(part, position=None) for part in parts]
  whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *bare)
  return dataclasses.replace(whole, position=position)


def soft(inputs: Inputs, candidates: int) -> Inputs:
  """The inputs with ids [B, N] as soft tokens [B, N, candidates], all of the weight on the first;
  soft tokens as they are."""
  if inputs.ids is None or inputs.weights is not None:
    return inputs
  ids = jnp.broadcast_to(inputs.ids[..., None], (*inputs.ids.shape, candidates))
  first = (jnp.arange(candidates) == 0).astype(jnp.float32)
  return dataclasses.replace(inputs, ids=ids, weights=jnp.broadcast_to(first, ids.shape))


def where_inputs(where: Bool[Array, "B N"], yes: Inputs, no: Inputs) -> Inputs:
  """Per token `yes` where true, else `no`; without positions."""
  if no.weights is not None:
    yes = soft(yes, no.ids.shape[2])
  bare = [dataclasses.replace(inputs, position=None) for inputs in (yes, no)]
  return select(where, *bare)


def cut(inputs: Inputs, start: int, stop: int) -> Inputs:
  """The positions start … stop - 1 of the inputs, without their rotary positions."""
  bare = dataclasses.replace(inputs, position=None)
  return jax.tree.map(lambda leaf: leaf[:, start:stop], bare)


def shown_clean(clean: Inputs, noise: Inputs, batch: Batch) -> tuple[Inputs, Float[Array, "B N"]]:
  """(inputs, t): the clean tokens at t = 0, and noise at t = 1 in the place of dropped ones."""
  if batch.dropped is None:
    return clean, jnp.zeros(batch.ids.shape, jnp.float32)
  return where_inputs(batch.dropped, noise, clean), batch.dropped.astype(jnp.float32)


def before(extra: Array | float, values: Array) -> Array:
  """[B, N + 1] of [B or 1, N]: `extra` and then the values. `extra`: a number, or an array [B or 1,
  1]."""
  extra = jnp.broadcast_to(jnp.asarray(extra, values.dtype), (values.shape[0], 1))
  return jnp.concatenate([extra, values], axis=1)

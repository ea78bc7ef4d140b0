"""Which tokens are to be generated, which observed ones they can see, and rows whose length is no
multiple of a unit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from diffusion_text.types import Batch, Model


def generated(batch: Batch) -> Bool[Array, "B L"]:
  """True at the tokens that are to be generated: neither observed nor padding."""
  observed = jnp.zeros(batch.ids.shape, bool) if batch.observed is None else batch.observed
  text = True if batch.weights is None else batch.weights > 0
  return ~observed & text


def _readable(array: Any) -> bool:
  """True for values that this process has: no tracer, and no shards of other hosts."""
  if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
    return False
  return not isinstance(array, jax.Array) or array.is_fully_addressable


def check_block(model: Model, block: int | None) -> None:
  """Refuses a window of `block` positions that the context does not allow.

  Raises:
    ValueError: for less than one position, and for another number than the context's own unit.
  """
  if block is None:
    return
  if block < 1:
    raise ValueError(
      f"block={block} must be at least 1; 32 and 64 are usual, None is the whole row"
    )
  unit = model.context.unit
  if unit is not None and block != unit:
    raise ValueError(
      f"block={block}, and {model.context} finishes {unit} positions together, as it was trained;"
      " leave block out"
    )


def check_observed_are_seen(model: Model, batch: Batch) -> None:
  """Refuses observed tokens that stand where tokens to be generated in front of them cannot see
  them: the text would be written as if they were not there.

  It asks on the host, before anything is computed; values that are not there (under `jax.jit`, on
  other hosts) are not asked about.

  Raises:
    ValueError: names the row, the two places and the context.
  """
  horizon = model.context.horizon
  if horizon is None or batch.observed is None:
    return
  placed = model.process.in_positions(batch)
  if not all(map(_readable, (placed.observed, placed.weights, placed.segment))):
    return
  observed = np.asarray(placed.observed)
  text = np.ones(observed.shape, bool) if placed.weights is None else np.asarray(placed.weights) > 0
  one = np.zeros(observed.shape, np.int32)
  segment = one if placed.segment is None else np.asarray(placed.segment)
  group = np.arange(observed.shape[1]) // horizon
  for row in np.flatnonzero((observed & text).any(axis=1)):
    for document in np.unique(segment[row]):
      here = text[row] & (segment[row] == document)
      holes, known = np.flatnonzero(here & ~observed[row]), np.flatnonzero(here & observed[row])
      unseen = known[group[known] > group[holes[0]]] if len(holes) else holes
      if len(unseen):
        raise ValueError(
          f"row {row}: the observed token at position {unseen[0]} stands after the hole at position"
          f" {holes[0]}, which cannot see it: {model.context} reads from left to right, in groups"
          f" of {horizon}. End the text with its hole (a prompt), or sample from a model of"
          " context.name='full'"
          + (f", or end each hole within the group of {horizon} tokens" if horizon > 1 else "")
        )


def pad_rows(batch: Batch, extra: int) -> Batch:
  """The batch with `extra` tokens of padding on the right of each row, in a segment of their
  own.
  """
  if not extra:
    return batch
  shape = batch.ids.shape
  segment = jnp.zeros(shape, jnp.int32) if batch.segment is None else batch.segment
  own = jnp.broadcast_to(jnp.max(segment, axis=1, keepdims=True) + 1, (shape[0], extra))

  def pad(field, default, value):
    field = jnp.full(shape, default) if field is None else field
    return jnp.pad(field, ((0, 0), (0, extra)), constant_values=value)

  def longer(extra_leaf):
    if jnp.ndim(extra_leaf) < 2 or extra_leaf.shape[1] != shape[1]:
      return extra_leaf
    return jnp.pad(extra_leaf, ((0, 0), (0, extra), *((0, 0),) * (jnp.ndim(extra_leaf) - 2)))

  return Batch(
    ids=pad(batch.ids, 0, 0),
    observed=pad(batch.observed, False, True),
    dropped=None if batch.dropped is None else pad(batch.dropped, False, False),
    weights=pad(batch.weights, 1.0, 0.0),
    segment=jnp.concatenate([segment, own], axis=1),
    extras={name: longer(leaf) for name, leaf in batch.extras.items()},
  )

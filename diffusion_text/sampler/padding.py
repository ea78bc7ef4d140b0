"""Which tokens are to be generated, and rows whose length is no multiple of a unit."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool

from diffusion_text.types import Batch


def generated(batch: Batch) -> Bool[Array, "B L"]:
  """True at the tokens that are to be generated: neither observed nor padding."""
  observed = jnp.zeros(batch.ids.shape, bool) if batch.observed is None else batch.observed
  text = True if batch.weights is None else batch.weights > 0
  return ~observed & text


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

  return Batch(
    ids=pad(batch.ids, 0, 0),
    observed=pad(batch.observed, False, True),
    dropped=None if batch.dropped is None else pad(batch.dropped, False, False),
    weights=pad(batch.weights, 1.0, 0.0),
    segment=jnp.concatenate([segment, own], axis=1),
  )

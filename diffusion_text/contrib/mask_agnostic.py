"""Predictions that do not depend on how many masks follow the text (the mask-agnostic loss of arXiv
2511.21338).

A masked token means "unknown", and masks appended to a row say nothing about it; yet they distract
the network, whose predictions get worse with their number. The row is therefore read twice, as it
is and followed by masks, and the two predictions are drawn together:

  published    loss = mean over rows of Σ over the row's m tokens with a loss of
                      (w(t) · (CE + CE') / 2 + agreement · t · TV) / m
  one_reading  loss = Σ over tokens with a loss of w(t) · (CE + agreement · TV) / Σ over all tokens
               TV   = 1/2 Σ_v |p_v - p'_v|

with w(t) = 1/t where published, and rows weighing as much as they have tokens. Where masks are the
noise and the schedule is linear, t is the share of masks and m is their number, so that
cross-entropy weighs 1 / (t m), about 1/t² in place of the bound's 1/t: rows with few masks count
far more than in a likelihood. In the second form, our own, the weights are those of
`CrossEntropy`, and the second reading is trained by the agreement alone.

CE and p are of the row as it is, CE' and p' of the row with its masks. As in the paper the tokens
and their noise are the same in both readings, and the number of masks is drawn afresh; ours is how
that keeps one shape: there are always `appended` positions, and those beyond the number that was
drawn are a segment of their own, which no token sees. (Two noise levels of one row would be no
substitute: there the right predictions differ, and their TV would be paid for using what is known.)
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.context.rows import joined
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_integer, position_keys, stream
from diffusion_text.objective import engine
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.types import (
  Batch,
  Inputs,
  Key,
  Layout,
  Loss,
  Model,
  Params,
  Progress,
  Rows,
  Times,
  TokenCosts,
)


def total_variation(
  logits: Float[Array, "*n V"], others: Float[Array, "*n V"]
) -> Float[Array, "*n"]:
  """1/2 Σ_v |softmax(logits) - softmax(others)|, in [0, 1]."""
  apart = jax.nn.softmax(logits, axis=-1) - jax.nn.softmax(others, axis=-1)
  return jnp.sum(jnp.abs(apart), axis=-1) / 2


def append(rows: Rows, tail: Inputs, seen: Bool[Array, "B A"], weights: Array | None) -> Rows:
  """The rows with A more positions at their end, at t = 1 and of no weight to routers.

  They stand after the last token of the row that has a weight. Those that are `seen` belong to its
  document, the others to one of their own. Raises ValueError for rows that are not one
  bidirectional block per document.
  """
  layout = rows.layout
  if rows.copies > 1 or layout.block is not None or layout.noisy is not None:
    raise ValueError(
      "objective.name='mask_agnostic' reads rows of one bidirectional block; use"
      " context.name='full'"
    )
  count, length = rows.t.shape
  shape = count, length + seen.shape[1]

  def wide(values: Array | None, missing: Array | float, fill: Array | float) -> Array:
    values = missing if values is None else values
    own = jnp.broadcast_to(values, (count, length))
    return jnp.concatenate([own, jnp.broadcast_to(fill, seen.shape).astype(own.dtype)], axis=1)

  start, stop = rows.tokens
  real = jnp.ones((count, stop - start)) if weights is None else weights
  last = jnp.max(jnp.where(real > 0, jnp.arange(start, stop), start), axis=1, keepdims=True)

  def at_last(values: Array) -> Array:
    return jnp.take_along_axis(jnp.broadcast_to(values, (count, length)), last, axis=1)

  segment = jnp.zeros((1, 1), jnp.int32) if layout.segment is None else layout.segment
  own = jnp.min(segment, axis=1, keepdims=True) - 1
  position = jnp.arange(length)[None] if rows.inputs.position is None else rows.inputs.position
  after = at_last(position) + 1 + jnp.arange(seen.shape[1])
  inputs = joined(rows.inputs, tail, position=wide(position, 0, after))
  segment = wide(segment, 0, jnp.where(seen, at_last(segment), own))
  assert inputs.shape == shape
  return Rows(
    inputs=inputs,
    t=wide(rows.t, 1.0, 1.0),
    layout=Layout(segment=segment),
    weights=wide(rows.weights, 1.0, 0.0),
    copies=1,
    tokens=rows.tokens,
    answers=rows.answers,
  )


@member
class MaskAgnostic(CrossEntropy):
  """Cross-entropy with its options of two readings of a row, and their agreement; reports the bound
  of the first.

  The number of masks that follow a row is uniform on 1 … appended, per row. They come after the
  last token that counts, in its document.
  """

  passes: ClassVar[float] = 2.0

  form: Literal["published", "one_reading"] = option(
    "published", "the loss: cross-entropy of both readings per masked token, or of the first"
  )
  agreement: float = option(1.0, "λ, the weight of the total variation", ge=0)
  appended: int = option(64, "the most masks that follow a row", ge=1)

  @property
  def costs_nll(self) -> bool:
    """False: disagreement costs too."""
    return False

  def check(self, model: Model) -> None:
    """Raises ValueError for a process without masks, and for rows of blocks or of clean tokens."""
    super().check(model)
    if model.process.mask_id is None:
      raise ValueError(
        f"objective.name='mask_agnostic' appends masks, and {model.process} has none; use"
        " process.name='masked' or 'mixed'"
      )
    if model.context.unit is not None or not model.context.reads_noisy:
      raise ValueError(
        "objective.name='mask_agnostic' reads rows of one bidirectional block, not those of"
        f" {model.context}; use context.name='full'"
      )

  def seen_masks(self, key: Key, rows: int, progress: Progress) -> Bool[Array, "B A"]:
    """Which of the appended masks the row sees."""
    keys = position_keys(stream(key, "appended masks"), rows, 1, progress)
    return jnp.arange(self.appended) <= draw_integer(keys, self.appended)

  def lengthen(
    self, model: Model, params: Params, key: Key, batch: Batch, rows: Rows, progress: Progress
  ) -> Rows:
    """The rows with masks at their end."""
    process, own = model.process, params["process"]
    positions = process.in_positions(batch)
    count = batch.ids.shape[0]
    keys = position_keys(stream(key, "tail"), count, self.appended, progress)
    tail = process.inputs(own, process.prior(own, keys), jnp.ones((count, self.appended)))
    return append(rows, tail, self.seen_masks(key, count, progress), positions.weights)

  def per_masked(
    self, model: Model, params: Params, batch: Batch, noised: engine.Noised
  ) -> Float[Array, "B N"]:
    """How many tokens a row has for each one that has a loss: a sum of this many times a token's
    loss, over all tokens, is the mean over those that have one.
    """
    where, rows = engine.token_rows(model, params, batch, noised)
    tokens = jnp.sum(rows.weight, axis=1, keepdims=True)
    masked = jnp.sum(where * rows.weight, axis=1, keepdims=True)
    return jnp.where(where, tokens / jnp.where(masked > 0, masked, 1.0), 0.0)

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost. Raises ValueError, when traced, for rows that
    are not one bidirectional block.
    """

    def lengthen(rows: Rows) -> Rows:
      return self.lengthen(model, params, key, batch, rows, progress)

    ask = model, params, key, batch, times, progress
    noised = engine.read(*ask)
    states = noised.clean, noised.state
    longer = engine.read(*ask, corrupted=states, change_rows=lengthen).prediction

    def cost(head, process_params, row, output, nats):
      del nats
      features, scale = row.extra
      logits = engine.posterior_logits(model.process, process_params, row, output)
      others = engine.posterior_logits(model.process, process_params, row, head(features))
      at_time = self.cost(logits, row.ids)
      weighted = self.weighted(row.t, logits, at_time)
      apart = self.agreement * total_variation(logits, others)
      if self.form == "one_reading":
        weighted = weighted + self.weight(row.t) * apart
        return row.dt_dtau * weighted, at_time + apart, {}
      of_other = self.cost(others, row.ids)
      both = (weighted + self.weighted(row.t, others, of_other)) / 2
      minimised = row.dt_dtau * scale * (both + row.t * apart)
      return minimised, (at_time + of_other) / 2 + apart, {}

    loss, costs = engine.token_loss(
      model,
      params,
      batch,
      noised,
      cost,
      extra=(longer.features, self.per_masked(model, params, batch, noised)),
      consts=longer.head,
      other_readings=(longer,),
    )
    return engine.add_boundary(model, params, key, batch, progress, loss, minimised=False), costs

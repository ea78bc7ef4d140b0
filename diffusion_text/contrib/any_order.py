"""Any-subset autoregressive models, AS-ARM (arXiv 2504.20456): the remaining tokens of a row, from
left to right, given any subset of its tokens.

In training a random subset of the tokens is shown ("given"), and the remaining ones have ranks 1,
2, … from left to right: one fixed order per subset, as published (recalled). The loss is

  Σ over the remaining tokens of -log p(x_i | given, remaining of lower rank)
    = -log p(remaining | given),

by one pass over two streams, as in XLNet: a query-only copy of each token, which is noise, and the
clean copy. The query of rank r sees the clean tokens of lower rank, and a clean token sees itself
and those of lower rank; given tokens, of rank 0, see each other. Timing "given" draws the subset,
context "any_order" makes the rows.

With timing "at_noise" no token is given, and the loss of a row is its exact -log p from left to
right (for a random order, an upper bound: the mean over orders). With timing "given" the loss is no
bound: given tokens cost nothing, so that it is below -log p(row), also per token, as -log
p(remaining | given) / remaining grows with the number of remaining tokens (Han's inequality). That
timing therefore reports a surrogate, and evaluation uses other times.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.context.rows import joined, places, shown_clean, weights_or_ones
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, position_keys, row_coins, stream
from diffusion_text.timing.clock import Even, low_discrepancy, scored
from diffusion_text.timing.counted import AtNoise
from diffusion_text.types import (
  Batch,
  Inputs,
  Key,
  Layout,
  Model,
  Params,
  Progress,
  Rows,
  Span,
  Times,
)


@member
class Given(Even):
  """Times 0 for a random subset of the tokens, which is given, and 1 for all others, at speed 1.

  Of the n scored tokens of a row k ~ U{1 … n} remain, and k is spread evenly over the global batch.
  As `ExactCount`, but each remaining token has weight 1. The loss of "any_order" is a surrogate
  with these times.
  """

  path: ClassVar[Literal["none"]] = "none"

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """The times of a batch: 1 at the tokens that remain; tau is about their share of the row."""
    del params
    rows, length = batch.ids.shape
    key_count, key_choice = jax.random.split(key)
    counts = scored(batch)
    number = jnp.sum(counts, axis=1, keepdims=True)
    tau = low_discrepancy(key_count, rows, progress)[:, None]
    remaining = jnp.ceil(tau * number)
    drawn = draw_uniform(position_keys(key_choice, rows, length, progress))
    t = (counts & (_rank(drawn, counts) <= remaining)).astype(jnp.float32)
    return Times(t, t, tau, t)


@member
class AnyOrder:
  """Tokens at t = 0 are given, and the others are predicted one after the other, each from what is
  given and from those of lower rank (AS-ARM, arXiv 2504.20456).

  Training rows are N query-only copies, masks at t = 1, and then N clean copies. While sampling, a
  mask sees all tokens that are known, and no other mask; a token that was generated sees the
  observed ones and those generated on its left. From left to right these are exactly the rows of
  training, with the observed tokens as the given ones; in another order the network reads what it
  was not trained for.
  """

  order: Literal["left_to_right", "random"] = option(
    "left_to_right",
    "of the remaining tokens in training: one order per subset, as published, or one that is drawn",
  )
  drafts: float = option(
    0.0,
    "share of training rows in which the remaining tokens see the given ones alone, as the drafts"
    " of speculative sampling do: the published order never trains a token to the right of one"
    " that is unknown. What is reported as a bound is then looser by the same share. 0 is published"
    " (recalled)",
    ge=0,
    le=1,
  )

  unit: ClassVar[None] = None
  reads_noisy: ClassVar[bool] = False
  horizon: ClassVar[None] = None

  def check(self, model: Model, data: Any) -> None:
    """Refuses a process without a mask, times under which the loss would be taken for a bound, and
    self-conditioning."""
    del data
    if model.process.mask_id is None:
      raise ValueError(
        f"context.name='any_order' takes what is no mask for known, and {model.process} has none;"
        " use process.name='masked'"
      )
    if model.timing.path != "none" and model.timing != AtNoise():
      raise ValueError(
        f"context.name='any_order' shows a token those of lower rank too, so that with"
        f" {model.timing} what is reported as a bound would be none; use timing.name='given', or"
        " timing.name='at_noise'"
      )
    if model.self_conditioning:
      raise ValueError(
        f"train.self_conditioning={model.self_conditioning} with context.name='any_order', whose"
        " network reads no noisy token; use train.self_conditioning=0"
      )

  def training_rows(
    self,
    key: Key,
    noisy: Inputs,
    clean: Inputs,
    noise: Inputs,
    times: Times,
    batch: Batch,
    progress: Progress,
  ) -> Rows:
    """The query-only copies, and then the clean ones."""
    del noisy
    rows, length = times.t.shape
    remaining = times.t > 0
    if batch.dropped is not None:
      remaining = remaining & ~batch.dropped
    order = jnp.broadcast_to(jnp.arange(length), (rows, length)).astype(jnp.float32)
    if self.order == "random":
      order = draw_uniform(position_keys(stream(key, "order"), rows, length, progress))
    rank = jnp.where(remaining, _rank(order, remaining), 0)
    content = rank
    if self.drafts:
      alone = row_coins(stream(key, "drafts"), rows, progress, self.drafts)
      content = jnp.where(alone[:, None] & remaining, length + 1, rank)
    clean, clean_t = shown_clean(clean, noise, batch)
    everywhere = jnp.broadcast_to(jnp.arange(length), (rows, length))
    made = _two_streams(noise, everywhere, rank, clean, clean_t, content, batch)
    return dataclasses.replace(made, copies=2)

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """Each token once: known ones are clean and of their rank, the masks are queries, each of a
    rank of its own above all of these."""
    length = t.shape[1]
    whole = Span(0, length)
    observed = jnp.zeros(t.shape, bool) if batch.observed is None else batch.observed
    # On a grid of times a token that is known by now has t > 0, as the masks have.
    queries = (t > 0) & ~observed & (noisy.ids == noise.ids)
    block = jnp.where(queries, length + 1 + jnp.arange(length), sampling_rank(batch))
    t = jnp.where(queries, 1.0, jnp.where(observed, t, 0.0))
    return Rows(
      inputs=joined(noisy, position=places(batch)),
      t=t,
      layout=Layout(batch.segment, block, queries.astype(jnp.int32)),
      weights=batch.weights,
      copies=1,
      tokens=whole,
      answers=whole,
    )

  def query_rows(
    self,
    content: Inputs,
    noise: Inputs,
    t: Float[Array, "B N"],
    index: Int[Array, "B Q"],
    batch: Batch,
  ) -> Rows:
    """The rows that answer for the tokens at `index` as training does: each given the observed
    tokens and the content of all tokens of lower rank.

    Args:
      content: [B, N], of tokens that are taken for known.
      noise: [B, N], what the queries are.
      t: of the content.
      index: places in the row, Q of them.
      batch: says which tokens are observed.
    """
    rank = sampling_rank(batch)
    rank_of_query = jnp.take_along_axis(rank, index, axis=1)
    return _two_streams(noise, index, rank_of_query, content, t, rank, batch)

  def positions_read(self, length: int) -> int:
    """Both copies."""
    return 2 * length


def sampling_rank(batch: Batch) -> Int[Array, "B N"]:
  """int32 [B, N]: 0 at observed tokens, 1, 2, … from left to right at all others."""
  shape = batch.ids.shape
  remaining = jnp.ones(shape, bool) if batch.observed is None else ~batch.observed
  place = jnp.broadcast_to(jnp.arange(shape[1]), shape).astype(jnp.float32)
  return jnp.where(remaining, _rank(place, remaining), 0)


def _rank(order: Float[Array, "B N"], among: Bool[Array, "B N"]) -> Int[Array, "B N"]:
  """1, 2, … in rising order of `order` among those tokens; larger numbers elsewhere."""
  by_order = jnp.argsort(jnp.where(among, order, jnp.inf), axis=1, stable=True)
  return (jnp.argsort(by_order, axis=1) + 1).astype(jnp.int32)


def _two_streams(
  noise: Inputs,
  index: Int[Array, "B Q"],
  rank: Int[Array, "B Q"],
  content: Inputs,
  content_t: Float[Array, "B N"],
  content_rank: Int[Array, "B N"],
  batch: Batch,
) -> Rows:
  """Rows of Q queries at the places `index`, which are noise at t = 1, and of N clean tokens."""
  rows, size = index.shape

  def at_index(leaf):
    leaf = jnp.broadcast_to(leaf, (rows, *leaf.shape[1:]))
    wide = index.reshape(*index.shape, *(1,) * (leaf.ndim - 2))
    return jnp.take_along_axis(leaf, wide, axis=1)

  def both(leaf):
    leaf = jnp.broadcast_to(leaf, content_rank.shape)
    return jnp.concatenate([at_index(leaf), leaf], axis=1)

  queries = jax.tree.map(at_index, dataclasses.replace(noise, position=None))
  query = jnp.arange(size + content_rank.shape[1])[None] < size
  return Rows(
    inputs=joined(queries, content, position=both(places(batch))),
    t=jnp.concatenate([jnp.ones(index.shape, jnp.float32), content_t], axis=1),
    layout=Layout(
      segment=None if batch.segment is None else both(batch.segment),
      block=jnp.concatenate([rank, content_rank], axis=1),
      noisy=query.astype(jnp.int32),
    ),
    weights=None if batch.weights is None else both(weights_or_ones(batch)),
    copies=1,
    tokens=Span(0, 0),
    answers=Span(0, size),
  )

"""Diffusion in blocks whose clean copy is an autoregressive model (DiffusionGemma, released code of
June 2026: google-deepmind/gemma, gemma/diffusion/hackable_diffusion_adapter, read; no paper).

Training rows hold a noisy copy and a clean one in which each token sees those before it. The noisy
copy costs the cross-entropy of its tokens, and the clean one that of the token which follows each:

  loss = cross-entropy of the noisy copy + λ · Σ_i w_i+1 · -log p(x_i+1 | x_1 … x_i) / Σ_i w_i

with w the weights of tokens, 0 for those of a prompt, the second sum over tokens that are followed
by one of their own document, in nats. λ = 1 is published. The clean copy is read a second time by
itself, which gives the same features, but for dropout, at half the cost of a reading of both.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_text.core.capability import require
from diffusion_text.core.chunked import sum_rows
from diffusion_text.core.numerics import cross_entropy, flatten_tokens
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import stream
from diffusion_text.objective import engine
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.types import (
  Batch,
  Key,
  Loss,
  Model,
  Params,
  Progress,
  Rows,
  Span,
  Times,
  TokenCosts,
)


@runtime_checkable
class HasCleanCopy(Protocol):
  """A context whose training rows hold a clean copy.

  Attributes:
    clean: "causal" if its tokens see those before them alone.
  """

  clean: Literal["blocks", "causal"]


def clean_copy(rows: Rows) -> Rows:
  """The clean copy of rows that hold a noisy copy and then a clean one, by itself."""
  length = rows.t.shape[1] // 2
  inputs, t, layout, weights = jax.tree.map(
    lambda leaf: leaf[:, length:], (rows.inputs, rows.t, rows.layout, rows.weights)
  )
  return dataclasses.replace(
    rows,
    inputs=inputs,
    t=t,
    layout=layout,
    weights=weights,
    copies=1,
    tokens=Span(0, 0),
    answers=Span(0, length),
    one_time=False,
  )


@member
class WithNextToken(CrossEntropy):
  """Cross-entropy with its options, and λ times that of the next token in the clean copy, which is
  reported as "next_token" (nats per token); reports the bound of the noisy copy."""

  passes: ClassVar[float] = 1.5

  next_token: float = option(1.0, "λ, the weight of the next token's cross-entropy", ge=0)

  @property
  def costs_nll(self) -> bool:
    """False: next tokens cost too."""
    return False

  def check(self, model: Model) -> None:
    """Raises ValueError for a context without a causal clean copy."""
    super().check(model)
    fix = "use context.name='blocks' with context.clean='causal'"
    require(model.context, HasCleanCopy, "objective.name='with_next_token'", fix)
    if model.context.clean != "causal":
      raise ValueError(
        f"objective.name='with_next_token' with context.clean={model.context.clean!r}, in which a"
        " clean token sees the one that follows it; use context.clean='causal'"
      )

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each noisy token cost."""
    noised = engine.read(model, params, key, batch, times, progress)
    loss, costs = engine.token_loss(model, params, batch, noised, self.token_cost(model))
    loss = engine.add_boundary(model, params, key, batch, progress, loss, minimised=False)
    drop = jax.random.fold_in(stream(key, "dropout of the clean copy"), progress.part)
    value = self.of_next_tokens(model, params, drop, batch, noised.rows)
    sums = {**loss.sums, "next_token": value}
    return Loss(loss.total + self.next_token * value, loss.count, sums), costs

  def of_next_tokens(
    self, model: Model, params: Params, key: Key, batch: Batch, rows: Rows
  ) -> Float[Array, ""]:
    """Σ weight · -log p of every token that follows one of its document, in nats."""
    positions = model.process.in_positions(batch)
    prediction = model.network.apply(params["network"], clean_copy(rows), key=key)
    weight = engine.scored_weights(positions)
    follows = jnp.arange(weight.shape[1]) > 0
    if positions.segment is not None:
      follows = follows & (positions.segment == jnp.roll(positions.segment, 1, axis=1))
    weight = jnp.where(follows, weight, 0.0)

    def cost(head, row):
      features, ids, weight = row
      return weight * cross_entropy(head(features), ids), ()

    before = jnp.roll(prediction.features, 1, axis=1)  # of the token before each
    flat = flatten_tokens((before, positions.ids, weight))
    options = {"chunk": model.chunk, "shards": model.shards}
    return sum_rows(cost, prediction.head, weight.reshape(-1) > 0, flat, **options)[0]

"""Contexts that read a row once, as it is: every token sees the whole row, or what stands on its
left, or first one and then the other."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.context.rows import before, cut, joined, places, weights_or_ones
from diffusion_text.core.options import internal, member, option
from diffusion_text.core.prng import draw_uniform, position_keys
from diffusion_text.types import (
  Batch,
  Inputs,
  Key,
  Layout,
  Model,
  Progress,
  Rows,
  Span,
  Times,
)


def plain_rows(
  noisy: Inputs, t: Float[Array, "B N"], batch: Batch, block: Int[Array, "B1 N"] | None
) -> Rows:
  """Rows of the N noisy tokens, answered where they stand. `block` as in `Layout`."""
  whole = Span(0, t.shape[1])
  position = None if batch.segment is None else places(batch)
  inputs = joined(noisy, position=position)
  layout = Layout(segment=batch.segment, block=block)
  return Rows(inputs, t, layout, batch.weights, 1, tokens=whole, answers=whole)


def shifted_rows(noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch) -> Rows:
  """Rows of N + 1 positions, a token of noise and then the N noisy tokens; token i is answered at
  the position before it."""
  length = t.shape[1]
  position = before(-1, places(batch))
  inputs = joined(cut(noise, 0, 1), cut(noisy, 0, length), position=position)
  segment = None
  if batch.segment is not None:
    segment = before(batch.segment[:, :1], batch.segment)
  weights = before(0.0, weights_or_ones(batch))
  tokens = Span(1, length + 1)
  return Rows(
    inputs, before(1.0, t), Layout(segment), weights, 1, tokens=tokens, answers=Span(0, length)
  )


class OneCopy:
  """What contexts share that read each token once, noisy as it is: nothing is refused, the network
  reads the same rows in training and in sampling, and the whole row is finished together.
  """

  unit: ClassVar[None] = None
  reads_noisy: ClassVar[bool] = True
  horizon: ClassVar[int | None] = None

  def check(self, model: Model, data: Any) -> None:
    """Nothing is refused."""

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
    """The rows of sampling."""
    del key, clean, progress
    return self.sampling_rows(noisy, noise, times.network_time, batch)

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """Rows of one bidirectional block."""
    del noise
    return plain_rows(noisy, t, batch, block=None)

  def positions_read(self, length: int) -> int:
    """The number of tokens."""
    return length


@member
class Full(OneCopy):
  """Every token sees the whole document, noisy as it is. One bidirectional block.

  answer_shift: 1 has token i answered at the position before it, as autoregressive weights have
  learned (DiffuLLaMA, arXiv 2410.17891; Dream, arXiv 2508.15487). A token of noise stands before
  the row and answers for the first token. Where a row holds several conversations this token is
  seen by the first one alone; each begins with observed tokens, which need no answer.
  """

  answer_shift: Literal[0, 1] = option(
    0, "how many positions before a token its answer stands; 1 for weights of autoregressive models"
  )

  def check(self, model: Model, data: Any) -> None:
    """Refuses shifted answers where a row holds several documents, unless these begin with observed
    tokens, as conversations do: these need no answer."""
    del model
    if self.answer_shift and data.packing == "documents":
      raise ValueError(
        f"context.answer_shift={self.answer_shift} with data.packing='documents': the first token"
        " of a document would be answered at the last position of another one; use"
        " data.packing='stream', or context.name='next_token', which shifts what is read"
      )

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """One bidirectional block; N + 1 positions if answers are shifted."""
    if self.answer_shift:
      return shifted_rows(noisy, noise, t, batch)
    return super().sampling_rows(noisy, noise, t, batch)

  def positions_read(self, length: int) -> int:
    """The row, and the position before it if answers are shifted."""
    return length + self.answer_shift


@member
class Causal(OneCopy):
  """Every token sees itself and the tokens on its left in its document, noisy as they are.

  For tokens that are generated one after the other nothing is missing; for others the bound is
  looser, not wrong.
  """

  horizon: ClassVar[int | None] = 1

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """Rows in which each token is a block of its own."""
    del noise
    return plain_rows(noisy, t, batch, block=places(batch))


@member
class Annealed(Full):
  """From an autoregressive context to a bidirectional one in the course of training: a coin per row
  says causal or full (DiffuGPT, DiffuLLaMA, arXiv 2410.17891).

  The share of full rows rises evenly from 0 to 1 over the first `steps` updates; texts are sampled
  with full rows. In the paper a coin is tossed for each pair of positions, one for all rows and
  heads, which no layout of three integers can hold. With answers shifted, a row before the first
  step shows each answer what an autoregressive network has read for it, with noise in the place
  of lost tokens.
  """

  steps: int | None = option(
    None,
    "optimizer steps until all rows are bidirectional; 10000 is published. None: half of the run's",
    ge=1,
  )
  train_steps: int | None = internal(None)  # updates of the run

  def __post_init__(self):
    if self.steps is None and self.train_steps is None:
      raise ValueError(
        "context.steps is not set, and so is a share of the steps of a run, which a config tells"
        " and nobody else; use Annealed(steps=…)"
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
    """Rows of one block where the coin says so, causal rows elsewhere."""
    del clean
    rows = self.sampling_rows(noisy, noise, times.network_time, batch)
    place = places(batch)
    place = before(-1, place) if self.answer_shift else place
    share = jnp.asarray(progress.step, jnp.float32) / (self.steps or self.train_steps / 2)
    coins = draw_uniform(position_keys(key, batch.ids.shape[0], 1, progress))
    block = jnp.where(coins < share, 0, place)
    layout = dataclasses.replace(rows.layout, block=block)
    return dataclasses.replace(rows, layout=layout)

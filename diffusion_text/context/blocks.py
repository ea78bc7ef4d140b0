"""Contexts that go from left to right, in blocks of several tokens or token by token."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.context.rows import (
  before,
  cut,
  joined,
  places,
  shown_clean,
  where_inputs,
)
from diffusion_text.core.options import member, option
from diffusion_text.kernels import layout as layouts
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


@member
class Blocks:
  """Tokens are finished block by block; a block sees itself, noisy, and the clean blocks before it
  (BD3-LM, arXiv 2503.09573).

  Training rows hold a noisy copy of the row and then a clean one (2 N positions). Sampling rows
  hold each token once: blocks that are finished are the clean context, and all others are noisy.
  Blocks are counted from the start of the row, as their times are, also where documents begin
  within one.

  With `clean` = "causal" a finished token sees those before it alone, as in an autoregressive
  model, and a block sees all clean tokens before its first one (DiffusionGemma). The clean copy
  then may answer for the token that follows each.
  """

  size: int = option(..., "tokens of a block; 4, 8 and 16 are usual", ge=1)
  clean: Literal["blocks", "causal"] = option(
    "blocks", "what finished tokens see: their block and those before, or only tokens before them"
  )

  reads_noisy: ClassVar[bool] = True

  @property
  def unit(self) -> int:
    """The block."""
    return self.size

  @property
  def horizon(self) -> int:
    """The block."""
    return self.size

  def check(self, model: Model, data: Any) -> None:
    """Refuses rows that are no whole number of blocks."""
    self._check_length(model.process.positions(data.length))

  def _check_length(self, length: int) -> None:
    rest = length % self.size
    if rest:
      shorter = f"{length - rest} or " if length > rest else ""
      raise ValueError(
        f"context.size={self.size} must divide length={length}; use a length of {shorter}"
        f"{length - rest + self.size}"
      )

  def _numbers(self, length: int) -> tuple[Int[Array, "1 N"], Int[Array, "1 N"]]:
    """The block of each token while it is noisy, and once it is clean. Of causal ones these are
    places: of the block's first token, and of the token."""
    self._check_length(length)
    block = layouts.block_causal(length, self.size).block
    if self.clean == "blocks":
      return block, block
    return block * self.size, layouts.causal(length).block

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
    """A noisy copy and then a clean one, in which dropped tokens are noise; each token has one
    rotary position in both."""
    del key, progress
    length = batch.ids.shape[1]
    clean, clean_t = shown_clean(clean, noise, batch)
    position = places(batch)
    position = jnp.concatenate([position, position], axis=1)
    weights = batch.weights
    if weights is not None:
      weights = jnp.concatenate([weights, weights], axis=1)
    noisy_half = Span(0, length)
    layout = layouts.doubled(Layout(segment=batch.segment), length)
    block = jnp.concatenate(self._numbers(length), axis=1)
    return Rows(
      inputs=joined(noisy, clean, position=position),
      t=jnp.concatenate([times.network_time, clean_t], axis=1),
      layout=Layout(segment=layout.segment, block=block, noisy=layout.noisy),
      weights=weights,
      copies=2,
      tokens=noisy_half,
      answers=noisy_half,
    )

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """Blocks with a token that is still to be generated are noisy, finished ones are clean.

    A finished block sees what the clean copy saw in training, any other block what the noisy copy
    saw, so that a cache of finished blocks holds what a read of the whole row computes. An observed
    token at t > 0 is hidden from this read: it is noise, and as finished as the rest of its block.
    """
    del noise
    whole = Span(0, t.shape[1])
    noisy_block, clean_block = self._numbers(t.shape[1])
    unfinished = t > 0
    if batch.observed is not None:
      unfinished = unfinished & ~batch.observed
    open_block = jnp.any(unfinished.reshape(t.shape[0], -1, self.size), axis=2)
    noisy_flag = jnp.repeat(open_block, self.size, axis=1).astype(jnp.int32)
    block = noisy_block
    if self.clean == "causal":
      block = jnp.where(noisy_flag == 1, noisy_block, clean_block)
    return Rows(
      inputs=joined(noisy, position=None if batch.segment is None else places(batch)),
      t=t,
      layout=Layout(segment=batch.segment, block=block, noisy=noisy_flag),
      weights=batch.weights,
      copies=1,
      tokens=whole,
      answers=whole,
    )

  def positions_read(self, length: int) -> int:
    """Both copies."""
    return 2 * length


@member
class NextToken:
  """The autoregressive context: one causal pass, in which position i reads token i - 1 and answers
  for token i.

  It is `Blocks` of one token at the cost of one copy: a token at t = 1 tells nothing, so no noisy
  token needs to be read. The first position of a row, and of each document in it, reads noise.
  """

  unit: ClassVar[int] = 1
  reads_noisy: ClassVar[bool] = False
  horizon: ClassVar[int] = 1

  def check(self, model: Model, data: Any) -> None:
    """Refuses times other than 0 and 1, of which the network would see nothing, and
    self-conditioning."""
    del data
    if model.timing.path != "jumps":
      raise ValueError(
        "context 'next_token' reads no noisy token, so each must be at t = 1, which"
        f" {model.timing} does not promise; use timing.name='at_noise'"
      )
    if model.self_conditioning:
      raise ValueError(
        f"train.self_conditioning={model.self_conditioning} with context 'next_token', whose"
        " network has no answer to be shown again, as no token is read before it is known; use"
        " train.self_conditioning=0"
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
    """The clean tokens, each one place to the right."""
    del key, noisy, times, progress
    clean, t = shown_clean(clean, noise, batch)
    return self.sampling_rows(clean, noise, t, batch)

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """The tokens so far, each one place to the right. Answers after the first unfinished token mean
    nothing."""
    length = t.shape[1]
    place = places(batch)
    first = jnp.broadcast_to(place == 0, t.shape)
    shifted = joined(cut(noise, 0, 1), cut(noisy, 0, length - 1), position=None)
    inputs = where_inputs(first, noise, shifted)
    return Rows(
      inputs=joined(inputs, position=place - 1),
      t=jnp.where(first, 1.0, before(1.0, t[:, :-1])),
      layout=Layout(segment=batch.segment, block=place),
      weights=batch.weights,
      copies=1,
      tokens=Span(0, 0),
      answers=Span(0, length),
    )

  def positions_read(self, length: int) -> int:
    """The row."""
    return length

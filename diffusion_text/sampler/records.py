"""What the loop keeps of a batch: what stays the same, what changes from call to call, and the text
that it hands over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array

from diffusion_text.types import Cost, Memory, SamplerState, State, pytree

NOT_DRAWN = -1  # `Sample.committed` of observed tokens and padding


class Sample(NamedTuple):
  """Generated text, and how it came about.

  Attributes:
    ids: int32 [B, L]; observed tokens and padding as they were.
    committed: int32 [B, N], the row's own call (from 0) at which a token changed last; 0 if the
      prior showed it already; NOT_DRAWN for observed tokens and padding.
    row_calls: int32 [B], network calls that each row needed.
    calls: int32 scalar, network calls made.
    token_layers: float32 [B], positions that the network read for the row, in all layers and calls;
      what filled a cache counts, too.
    attention: float32 [B], pairs of a query and a key, in all layers and calls.
    fills: int32 scalar, network calls that only filled a cache; not among `calls`.
    log_prob: float32 [B, N], the model's log-probability, before any transform, of the token that
      was committed, at the call that did; 0 for tokens that never changed. None without a trace,
      and for a network that answers with vectors.
    features: [B, N, D], the features that were read at that call. None unless they were asked for.
  """

  ids: Array
  committed: Array
  row_calls: Array
  calls: Array
  token_layers: Array
  attention: Array
  fills: Array
  log_prob: Array | None
  features: Array | None


class Frame(NamedTuple):
  """The rows as they stand after a read.

  Attributes:
    ids: int32 [B, L]; where a token is open, whatever the noise looks like, below V or the mask.
    open: bool [B, L], tokens that are still noise: masks, or tokens at a time above 0.
    reads: int32 [B], the row's own reads so far.
  """

  ids: Array
  open: Array
  reads: Array


@pytree("length")
class Fixed:
  """What does not change while a batch is sampled; rows are padded to a multiple of the unit.

  Attributes:
    keys: one per position, [B, N].
    tokens: the batch in tokens.
    batch: the batch in positions.
    active: bool [B, N], positions that are to be generated.
    noise: the rows' own draw of the prior, [B, N, …].
    length: tokens of a row before it was padded.
  """

  # Any: JAX rebuilds a pytree with whatever stands for its arrays (shapes, shardings, None).
  keys: Any
  tokens: Any
  batch: Any
  active: Any
  noise: State
  length: int


class Carry(NamedTuple):
  """What changes from call to call.

  Attributes:
    state: of the whole row, [B, N, …].
    start: int32 scalar, the first position of the window.
    sampler, memory: the sampler's and the reader's own.
    call: int32 [B], each row's own reads in this window.
    row_reads: int32 [B], each row's own reads in all windows.
    cost: of each row, arrays [B].
    calls, fills: int32 scalars, network calls made at reads, and between them.
    closed: bool [B, N], positions behind an end of text; None where no end was named.
    committed, log_prob, features: as in `Sample`; reads are counted from 0.
  """

  state: State
  start: Array
  sampler: SamplerState
  memory: Memory
  call: Array
  row_reads: Array
  cost: Cost
  calls: Array
  fills: Array
  closed: Array | None
  committed: Array
  log_prob: Array | None
  features: Array | None

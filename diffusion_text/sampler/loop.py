"""The one sampling loop: ask the sampler what it needs, ask the reader, let the sampler step, repeat; unit after unit.

Compiled, it is three nested loops: units (`Context.unit`), refreshes of the reader, and the cheap reads between two of them. No
branch surrounds a cache, which XLA would copy. What never changes (keys, batch, prior) is beside the carry, so that a host loop
may donate the carry.

The loop, not the sampler, keeps tokens that are not to be generated, and rows that are done, as they are. Every decision is per
row: a row's text depends on its key, its observed tokens, the model and the choices, and on nothing else in its batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.chunked import map_rows
from diffusion_text.core.numerics import (
  at_ids,
  differs,
  flatten_tokens,
  select,
  unflatten_tokens,
)
from diffusion_text.core.prng import streams, token_keys
from diffusion_text.reader.rows import put_window, window
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.padding import generated, pad_rows
from diffusion_text.types import (
  Batch,
  Canvas,
  Keys,
  Memory,
  Model,
  Params,
  Prediction,
  Query,
  Reader,
  Sampler,
  SamplerState,
  State,
  pytree,
)

NOT_DRAWN = -1  # `Sample.committed` of observed tokens and padding
_FEW = 8  # where few tokens change per call, chunks are so many times smaller: each call pays for its share of the last chunk


class Sample(NamedTuple):
  """Generated text, and how it came about.

  Attributes:
    ids: int32 [B, L]; observed tokens and padding as they were.
    committed: int32 [B, N], the row's own call (from 0) at which a token changed last; 0 if the prior showed it already;
      NOT_DRAWN for observed tokens and padding.
    row_calls: int32 [B], network calls that each row needed.
    calls: int32 scalar, network calls made.
    log_prob: float32 [B, N], the model's log-probability, before any transform, of the token that was committed, at the call
      that did; 0 for tokens that never changed. None without a trace, and for a network that answers with vectors.
    features: [B, N, D], the features that were read at that call. None unless they were asked for.
  """

  ids: Array
  committed: Array
  row_calls: Array
  calls: Array
  log_prob: Array | None
  features: Array | None


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

  keys: Keys
  tokens: Batch
  batch: Batch
  active: Array
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
    reads: int32 scalar, reads made.
    committed, log_prob, features: as in `Sample`; reads are counted from 0.
  """

  state: State
  start: Array
  sampler: SamplerState
  memory: Memory
  call: Array
  row_reads: Array
  reads: Array
  committed: Array
  log_prob: Array | None
  features: Array | None


def on_tokens(
  model: Model,
  params: Params,
  prediction: Prediction,
  where: Bool[Array, "B u"],
  fn: Callable[..., Any],
  *rows: Any,
  few: bool = False,
) -> Any:
  """fn(process_params, output [n, …], *rows [n, …]) at the positions where `where` holds, zeros elsewhere: a tree of [B, u, …].

  Outputs exist for those positions only, a chunk at a time. `fn` must not close over traced arrays.

  Args:
    model: says how many outputs exist at a time.
    params: the whole tree.
    prediction: of the window.
    where: the positions that count.
    fn: elementwise over a flat list of positions.
    *rows: trees of arrays (or keys) [B, u, …].
    few: True where a small part of the positions counts in most calls.
  """

  def one(consts, leaves):
    head, of_process = consts
    features, rest = leaves
    return fn(of_process, head(features), *rest)

  chunk = max(model.chunk // _FEW, 1) if few else model.chunk
  flat = flatten_tokens((prediction.features, rows))
  consts = (prediction.head, params["process"])
  return unflatten_tokens(map_rows(one, consts, where.reshape(-1), flat, chunk=chunk), where.shape)


@dataclasses.dataclass(frozen=True)
class Loop:
  """The pieces of the loop, pure functions of (params, fixed, carry); `sample` and `host_sample` put them together.

  Attributes:
    model, sampler, reader: hashable, so that a loop is a static argument of `jax.jit`.
    trace: whether `Sample.log_prob` is kept.
    features: whether `Sample.features` is kept.
  """

  model: Model
  sampler: Sampler
  reader: Reader
  trace: bool = False
  features: bool = False

  def fixed(self, params: Params, keys: Keys, batch: Batch) -> Fixed:
    """What stays the same. keys: one per row, [B]; row r of any batch is generated by its own key alone."""
    process = self.model.process
    length = batch.ids.shape[1]
    positions = process.positions(length)
    missing = -positions % (self.model.context.unit or positions)
    batch = pad_rows(batch, missing * (length // positions))
    in_positions = process.in_positions(batch)
    keys = token_keys(keys, positions + missing)
    noise = process.prior(params["process"], streams(keys, "prior"))
    return Fixed(keys, batch, in_positions, generated(in_positions), noise, length)

  def unit(self, fixed: Fixed) -> int:
    """u, the positions of a window."""
    return self.model.context.unit or fixed.active.shape[1]

  def units(self, fixed: Fixed) -> int:
    """How many windows a row has."""
    return fixed.active.shape[1] // self.unit(fixed)

  def start(self, params: Params, fixed: Fixed) -> Carry:
    """The carry before the first read: noise where text is to be generated."""
    rows, positions = fixed.active.shape
    clean = self.model.process.clean(params["process"], fixed.tokens.ids)
    nothing = jnp.zeros(rows, jnp.int32)
    carry = Carry(
      state=select(fixed.active, fixed.noise, clean),
      start=jnp.int32(0),
      sampler=None,
      memory=None,
      call=nothing,
      row_reads=nothing,
      reads=jnp.int32(0),
      committed=jnp.full((rows, positions), NOT_DRAWN, jnp.int32),
      log_prob=jnp.zeros((rows, positions)) if self.trace else None,
      features=None,
    )
    unit = self.unit(fixed)
    query = self._query(fixed, carry, jnp.ones((rows, unit)), jnp.ones((rows, unit), bool))
    carry = carry._replace(
      memory=self.reader.init(self.model, params, query),
      sampler=self.sampler.init(self.model, params, self.canvas(fixed, carry)),
    )
    if not self.features:
      return carry
    made = jax.eval_shape(lambda: self._read(params, carry, query, refresh=True)[0].features)
    return carry._replace(features=jnp.zeros((rows, positions, made.shape[-1]), made.dtype))

  def canvas(self, fixed: Fixed, carry: Carry) -> Canvas:
    """The window, as the sampler sees it."""
    unit = self.unit(fixed)
    cut = functools.partial(window, start=carry.start, size=unit)
    weights, segment = fixed.batch.weights, fixed.batch.segment
    text = jnp.ones(fixed.active.shape, bool) if weights is None else weights > 0
    return Canvas(
      state=cut(carry.state),
      active=cut(fixed.active),
      keys=cut(fixed.keys),
      call=carry.call,
      lengths=jnp.sum(cut(text), axis=1, dtype=jnp.int32),
      segment=None if segment is None else cut(segment),
    )

  def needs(self, params: Params, fixed: Fixed, carry: Carry) -> Bool[Array, "B u"]:
    """The predictions that the next step will use; a row without any is done with this window."""
    canvas = self.canvas(fixed, carry)
    return canvas.active & self.sampler.needs(self.model, params, canvas, carry.sampler)

  def advance(self, params: Params, fixed: Fixed, carry: Carry, refresh: bool = True) -> Carry:
    """The carry after exactly one read and one step."""
    canvas = self.canvas(fixed, carry)
    needs = self.needs(params, fixed, carry)
    goes_on = jnp.any(needs, axis=1)
    t = self.sampler.times(self.model, params, canvas, carry.sampler)
    t = jnp.where(canvas.active, t, 0.0)
    query = self._query(fixed, carry, t, needs)
    prediction, memory = self._read(params, carry, query, refresh)
    answered = needs if prediction.fresh is None else needs & prediction.fresh
    state, sampler = self.sampler.step(
      self.model, params, canvas, carry.sampler, prediction, query, answered
    )
    state = select(canvas.active & goes_on[:, None], state, canvas.state)
    changed = differs(state, canvas.state)
    carry = self._record(params, carry, canvas, t, prediction, state, changed)
    return carry._replace(
      state=put_window(carry.state, state, carry.start),
      sampler=sampler,
      memory=memory,
      call=carry.call + goes_on,
      row_reads=carry.row_reads + goes_on,
      reads=carry.reads + 1,
    )

  def next_unit(self, params: Params, fixed: Fixed, carry: Carry) -> Carry:
    """The carry at the next window, once this one is clean."""
    rows, unit = fixed.active.shape[0], self.unit(fixed)
    query = self._query(fixed, carry, jnp.zeros((rows, unit)), jnp.zeros((rows, unit), bool))
    carry = carry._replace(
      memory=self.reader.finish(self.model, params, carry.memory, query),
      start=carry.start + unit,
      call=jnp.zeros_like(carry.call),
    )
    canvas = self.canvas(fixed, carry)
    return carry._replace(sampler=self.sampler.init(self.model, params, canvas))

  def finish(self, params: Params, fixed: Fixed, carry: Carry) -> Sample:
    """The text, cut to its own length."""
    process, length = self.model.process, fixed.length
    positions = process.positions(length)
    ids = process.decode(params["process"], carry.state)
    ids = jnp.where(generated(fixed.tokens), ids, fixed.tokens.ids)
    drawn = jnp.maximum(
      carry.committed, 0
    )  # what the prior showed already counts as drawn by the first call
    calls = self.reader.calls + self.sampler.extra_calls
    committed = jnp.where(fixed.active, drawn, NOT_DRAWN)

    def cut(leaf):
      return None if leaf is None else leaf[:, :positions]

    return Sample(
      ids=ids[:, :length],
      committed=cut(committed),
      row_calls=calls * carry.row_reads,
      calls=calls * carry.reads,
      log_prob=cut(carry.log_prob),
      features=cut(carry.features),
    )

  def _query(self, fixed: Fixed, carry: Carry, t, needs) -> Query:
    """The question about the window, whose times are `t` [B, u]."""
    place = jnp.arange(fixed.active.shape[1])
    later = jnp.where((place >= carry.start) & fixed.active, 1.0, 0.0)
    t = put_window(later, t, carry.start)
    hidden = fixed.batch.dropped
    return Query(carry.state, t, carry.start, needs, fixed.batch, fixed.noise, hidden)

  def _read(self, params, carry: Carry, query: Query, refresh: bool) -> tuple[Prediction, Memory]:
    return self.reader.read(self.model, params, carry.memory, query, refresh=refresh)

  def _record(self, params, carry: Carry, canvas: Canvas, t, prediction, state, changed) -> Carry:
    """The carry with what is to be remembered of the tokens that changed."""

    def keep(old, new):
      unit = changed.shape[1]
      return put_window(old, select(changed, new, window(old, carry.start, unit)), carry.start)

    reads = jnp.broadcast_to(carry.row_reads[:, None], changed.shape)
    carry = carry._replace(committed=keep(carry.committed, reads))
    if self.features:
      carry = carry._replace(features=keep(carry.features, prediction.features))
    if not self.trace:
      return carry
    said = functools.partial(_log_prob, self.model.process)
    rows = (canvas.state, t, state)
    log_prob = on_tokens(self.model, params, prediction, changed, said, *rows, few=True)
    return carry._replace(log_prob=keep(carry.log_prob, log_prob))

  def __call__(self, params: Params, keys: Keys, batch: Batch) -> Sample:
    """The whole loop, compiled as one program."""
    fixed = self.fixed(params, keys, batch)

    def more(carry):
      return jnp.any(self.needs(params, fixed, carry))

    def cheap(turn):
      number, carry = turn
      return number + 1, self.advance(params, fixed, carry, refresh=False)

    def until_refresh(carry):
      carry = self.advance(params, fixed, carry)
      if self.reader.every == 1:
        return carry
      turns = (jnp.int32(1), carry)
      return jax.lax.while_loop(
        lambda turn: (turn[0] < self.reader.every) & more(turn[1]), cheap, turns
      )[1]

    def one_unit(_, carry):
      carry = jax.lax.while_loop(more, until_refresh, carry)
      return self.next_unit(params, fixed, carry) if self.units(fixed) > 1 else carry

    carry = self.start(params, fixed)
    if self.units(fixed) == 1:
      return self.finish(params, fixed, one_unit(0, carry))
    carry = jax.lax.fori_loop(0, self.units(fixed), one_unit, carry)
    return self.finish(params, fixed, carry)


def _log_prob(process, of_process, output, state, t, after) -> Float[Array, " n"]:
  """log p of the token that `after` shows, by the answer that was read of `state`; 0 if it shows none."""
  ids = process.decode(of_process, after)
  shown = ids < process.vocab_size
  said = process.posterior(of_process, state, t, output)
  return jnp.where(shown, at_ids(said, jnp.minimum(ids, process.vocab_size - 1)), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _sample(loop: Loop, params: Params, keys: Keys, batch: Batch) -> Sample:
  return loop(params, keys, batch)


def sample(
  model: Model,
  params: Params,
  sampler: Sampler,
  key: Keys,
  *,
  batch: Batch | None = None,
  rows: int | None = None,
  length: int | None = None,
  reader: Reader | None = None,
  trace: bool = False,
  features: bool = False,
) -> Sample:
  """Text: every token of `batch` that is neither observed nor padding is generated. Equal choices compile once.

  Args:
    model: what is sampled from.
    params: the whole tree.
    sampler: which tokens change when.
    key: one key, or one per row, [B]. A row's text depends on its own key, not on its place in the batch.
    batch: observed tokens, padding and documents. None: `rows` rows of `length` tokens, of which none is observed.
    rows, length: the shape, where there is no batch.
    reader: how the network is asked; None: it reads whole rows.
    trace: whether the log-probabilities of the tokens are kept.
    features: whether the features at which tokens were committed are kept.

  Raises:
    ValueError: where sampler and reader do not fit the model, with the fix.
  """
  loop, keys, batch = _prepared(
    model, sampler, reader, key, batch, (rows, length), trace=trace, features=features
  )
  return _sample(loop, params, keys, batch)


def host_sample(
  model: Model,
  params: Params,
  sampler: Sampler,
  key: Keys,
  *,
  batch: Batch | None = None,
  rows: int | None = None,
  length: int | None = None,
  reader: Reader | None = None,
  trace: bool = False,
  features: bool = False,
) -> Generator[Canvas, None, Sample]:
  """A generator of canvases, one after each read, that returns the `Sample`: the tokens are those of `sample`.

  For watching text appear, and for whatever must happen between two reads. The arguments are those of `sample`.
  """
  loop, keys, batch = _prepared(
    model, sampler, reader, key, batch, (rows, length), trace=trace, features=features
  )
  fixed = _fixed(loop, params, keys, batch)
  carry = _start(loop, params, fixed)
  for number in range(loop.units(fixed)):
    turn = 0
    while bool(_more(loop, params, fixed, carry)):
      carry = _advance(loop, turn % loop.reader.every == 0, params, fixed, carry)
      turn += 1
      yield _canvas(loop, fixed, carry)
    if number + 1 < loop.units(fixed):
      carry = _next_unit(loop, params, fixed, carry)
  return _finish(loop, params, fixed, carry)


def _prepared(model, sampler, reader, key, batch, shape, *, trace, features):
  """(the loop, one key per row, the batch), once the choices have been checked."""
  reader = WholeRow() if reader is None else reader
  sampler.check(model)
  reader.check(model)
  if batch is None:
    rows, length = shape
    if rows is None or length is None:
      raise ValueError(
        f"rows={rows}, length={length}: without a batch both must be given, as in rows=8, length=256"
      )
    batch = Batch(jnp.zeros((rows, length), jnp.int32))
  keys = row_keys(key, batch.ids.shape[0])
  traced = trace and model.process.reads_logits_as != "vector"
  return Loop(model, sampler, reader, traced, features), keys, batch


def row_keys(key: Keys, rows: int) -> Keys:
  """One key per row, [rows], named by the row's number in the batch; keys that are one per row already stay as they are."""
  if key.ndim:
    return key
  return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))


@functools.partial(jax.jit, static_argnums=0)
def _fixed(loop: Loop, params: Params, keys: Keys, batch: Batch) -> Fixed:
  return loop.fixed(params, keys, batch)


@functools.partial(jax.jit, static_argnums=0)
def _start(loop: Loop, params: Params, fixed: Fixed) -> Carry:
  return loop.start(params, fixed)


@functools.partial(jax.jit, static_argnums=0)
def _more(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Bool[Array, ""]:
  return jnp.any(loop.needs(params, fixed, carry))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _advance(loop: Loop, refresh: bool, params: Params, fixed: Fixed, carry: Carry) -> Carry:
  return loop.advance(params, fixed, carry, refresh)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _next_unit(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Carry:
  return loop.next_unit(params, fixed, carry)


@functools.partial(jax.jit, static_argnums=0)
def _canvas(loop: Loop, fixed: Fixed, carry: Carry) -> Canvas:
  # A copy: the carry is donated to the next read, and a jit hands on what it does not change.
  return jax.tree.map(jnp.copy, loop.canvas(fixed, carry))


@functools.partial(jax.jit, static_argnums=0)
def _finish(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Sample:
  return loop.finish(params, fixed, carry)

"""The one sampling loop: ask the policy for the times, ask the network (`asking`), let the policy advance the state, repeat.

Two things outlive a call: the policy's `plan`, for whatever it remembers (a multistep solver its last prediction), and the network's memory
of its own last answer, if it conditions on itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import fold
from diffusion_text.kernels.cross_entropy import map_rows
from diffusion_text.sampler.asking import Asking
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.types import (
  Array,
  Batch,
  Denoise,
  Key,
  Params,
  Prediction,
  Process,
  State,
  Time,
)

CHUNK = 32  # positions whose logits exist at once: few tokens move per call, and each pays for its share of the last chunk
WIDE_CHUNK = 256  # of policies that ask for most positions at every call
ORDER, PRIOR, STEPS, COIN = (
  2,
  3,
  4,
  8,
)  # streams of a key that samplers draw from; the others (0, 1, 5 to 7) are the processes'
NOT_DRAWN = -1  # `Sample.committed` of given tokens and padding


class Canvas(NamedTuple):
  """What a policy sees at each call.

  state z; open bool [B, L], the tokens to be generated; keys [B, L], one per token; call, the number of network calls so far (with
  classifier-free guidance, of pairs of calls); plan, whatever the policy's `plan` returned, or what its last `advance` made of it;
  segment int32 [B, L], the document of each token, None if there is one.
  """

  state: State
  open: Array
  keys: Key
  call: Array
  plan: Any
  segment: Array | None = None


class Policy(Protocol):
  """Who moves when. Everything is per row: no decision may depend on the other rows of the batch.

  guidance: what becomes of predictions before a token is drawn; the loop itself reads its classifier-free part.
  """

  guidance: Guidance

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Any:
    """Anything drawn or computed once, before the first call; a pytree of arrays."""

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    """bool [B]: rows that need another network call."""

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    """float32 [B, L]: the time of each open token at this call (given tokens are at 0 whatever it says)."""

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State | Canvas:
    """The next state; a policy that remembers something returns the canvas with the next state and the next plan instead."""


class Sample(NamedTuple):
  """ids int32 [B, L]; committed int32 [B, L], the call (`Canvas.call`, from 0) at which a token last changed, 0 if the prior showed it
  already, NOT_DRAWN for given tokens and padding; row_calls int32 [B], network calls each row needed; calls int32 scalar, network
  calls made, both readings of classifier-free guidance counted."""

  ids: Array
  committed: Array
  row_calls: Array
  calls: Array


def answers(
  canvas: Canvas,
  prediction: Prediction,
  where: Array,
  fn: Callable[..., Any],
  *arrays: Array,
  chunk: int = CHUNK,
) -> Any:
  """fn(keys, state, logits, *arrays), a pytree of [N, ...], at the positions `where` (bool [B, L]) holds, zeros elsewhere: a pytree
  of [B, L, ...]. Logits are computed at those positions only."""
  shape = where.shape
  rows = (prediction.features, jax.random.key_data(canvas.keys), canvas.state, *arrays)
  flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)

  def one(rows):
    features, key_data, state, *rest = rows
    return fn(jax.random.wrap_key_data(key_data), state, prediction.unembed(features), *rest)

  result = map_rows(one, where.reshape(-1), flat, chunk=chunk)
  return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), result)


def update(
  canvas: Canvas,
  prediction: Prediction,
  moves: Array,
  fn: Callable[..., State],
  *arrays: Array,
  chunk: int = CHUNK,
) -> State:
  """fn(keys, state, logits, *arrays) at the positions that move, the old state elsewhere; logits only of those that move."""
  return select(moves, answers(canvas, prediction, moves, fn, *arrays, chunk=chunk), canvas.state)


def select(where: Array, yes: State, no: State) -> State:
  """Per token ([B, L] or [N]): yes where true, else no, for states with trailing axes too."""
  widen = lambda leaf: where.reshape(*where.shape, *(1,) * (leaf.ndim - where.ndim))
  return jax.tree.map(lambda a, b: jnp.where(widen(a), a, b), yes, no)


def open_tokens(batch: Batch) -> Array:
  """bool [B, L]: the tokens that are to be generated, neither given nor padding."""
  open_BxL = jnp.ones(batch.ids.shape, bool) if batch.given is None else ~jnp.asarray(batch.given)
  return open_BxL if batch.weights is None else open_BxL & (jnp.asarray(batch.weights) > 0)


def given_tokens(batch: Batch) -> Array:
  """bool [B, L]: the tokens that are given and no padding."""
  given = jnp.asarray(batch.given)
  return given if batch.weights is None else given & (jnp.asarray(batch.weights) > 0)


def sample(
  policy: Policy,
  process: Process,
  params: Params,
  denoise: Denoise,
  keys_BxL: Key,
  batch: Batch,
  *,
  recalls: int = 0,
) -> Sample:
  """Generates every token of `batch` that is neither given nor padding; given tokens and padding come back as they were.

  keys_BxL: one key per token (`draws.token_keys`): a row's text depends on its keys, its given tokens and the policy only.
  recalls: D of a network that conditions on itself, which is then told its last answer; 0 for others.
  """
  shape = batch.ids.shape
  open_BxL = open_tokens(batch)
  clean = process.corrupt(params, keys_BxL[0, 0], batch.ids, jnp.zeros(shape, jnp.float32))
  # The prior of row r comes from row r's first key alone.
  prior_keys = fold(keys_BxL[:, 0], PRIOR)
  prior = jax.vmap(
    lambda key: jax.tree.map(lambda leaf: leaf[0], process.prior(params, key, (1, shape[1])))
  )(prior_keys)
  state = select(open_BxL, prior, clean)
  segment = None if batch.segment is None else jnp.asarray(batch.segment)
  canvas = Canvas(state, open_BxL, keys_BxL, jnp.int32(0), None, segment)
  canvas = canvas._replace(plan=policy.plan(process, params, canvas))
  unconditional = batch.given is not None and policy.guidance.guidance_scale != 1
  hidden = given_tokens(batch) if unconditional else None
  ask = Asking(process, params, denoise, policy.guidance, hidden, prior, recalls, WIDE_CHUNK)

  def view(carry):
    return canvas._replace(state=carry[0], plan=carry[1], call=carry[2])

  def more(carry):
    return jnp.any(policy.unfinished(process, params, view(carry)))

  def body(carry):
    state, plan, call, committed, row_calls, memories = carry
    now = view(carry)
    needed_B = policy.unfinished(process, params, now)
    t = jnp.where(open_BxL, policy.times(process, params, now), 0.0)
    prediction, memories = ask(state, t, memories)
    after = policy.advance(process, params, now, prediction)
    after, plan = (after.state, after.plan) if isinstance(after, Canvas) else (after, plan)
    changed = jax.tree.map(
      lambda a, b: jnp.any((a != b).reshape(*shape, -1), axis=-1), after, state
    )
    changed_BxL = jax.tree.reduce(jnp.logical_or, changed)
    return (
      after,
      plan,
      call + 1,
      jnp.where(changed_BxL, call, committed),
      row_calls + needed_B,
      memories,
    )

  none = jnp.full(shape, NOT_DRAWN, jnp.int32)
  start = (state, canvas.plan, jnp.int32(0), none, jnp.zeros(shape[0], jnp.int32), ask.start(shape))
  state, _, calls, committed, row_calls, _ = jax.lax.while_loop(more, body, start)
  committed = jnp.where(open_BxL, jnp.maximum(committed, 0), NOT_DRAWN)
  ids = jnp.where(
    open_BxL, process.decode(params, state), batch.ids
  )  # of vectors, two tokens may have the same
  return Sample(ids, committed, ask.calls * row_calls, ask.calls * calls)

"""A reading of some tokens over kept keys and values that says how much each token of the row has
been attended to: attention roll-out (arXiv 2005.00928), as d2Cache (arXiv 2509.23094, recalled
through notes on its code) chooses tokens by.

With A the attention of a layer, averaged over heads, the roll-out R starts as the identity and
becomes norm(A + I) · R in each layer; rows of tokens that are not read stay as they are. What a
token is worth is the sum of its column. Attention is computed as a whole matrix, [B, H, Q, N].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.kernels.layout import visible
from diffusion_text.kernels.reference import MASKED
from diffusion_text.model.by_layer import (
  Common,
  at,
  beginning,
  blocks_of,
  branches_of,
  keys_of,
  put,
  turned,
)
from diffusion_text.types import Prediction, Rows

if TYPE_CHECKING:
  from diffusion_text.model.block import Block
  from diffusion_text.model.body import Body


class Slots(NamedTuple):
  """Keys, after their rotation, and values of N tokens in one layer, [B, N, G, K]."""

  keys: Array
  values: Array


def read_rolled_out(
  body: Body,
  rows: Rows,
  kept: tuple[Slots, ...] | None,
  index: Int[Array, "B Q"],
  memory: Float[Array, "B N D"] | None,
) -> tuple[Prediction, tuple[Slots, ...], Float[Array, "B N"]]:
  """(the answers of the tokens at `index`, the slots of each layer with these tokens in them, what
  each token of the row is worth).

  Args:
    body: the layers, as `check_by_layer` allows them.
    rows: all N tokens of each row, answered in place.
    kept: of the call before; None: there is none, and all tokens are read.
    index: the places of the tokens that are read.
    memory: as in `Transformer.apply`.
  """
  x, common = beginning(body, rows, memory)
  size = x.shape[1]
  x = at(x, index)
  condition = common.condition
  if condition is not None:
    condition = at(jnp.broadcast_to(condition, (*rows.t.shape, condition.shape[-1])), index)
  worth = jnp.broadcast_to(jnp.eye(size), (x.shape[0], size, size))
  after = []
  for number, block in enumerate(blocks_of(body)):
    own = None if kept is None else kept[number]
    x, slots, weights = _layer(block, x, own, common, condition, index, size)
    worth = rolled(worth, weights, index)
    after.append(slots)
  features = body.read_out(x, condition)
  return Prediction(features, body.output_head()), tuple(after), jnp.sum(worth, axis=1)


def rolled(
  worth: Float[Array, "B N N"], weights: Float[Array, "B Q N"], index: Int[Array, "B Q"]
) -> Float[Array, "B N N"]:
  """The roll-out after one more layer, whose tokens at `index` attend to others by `weights`."""
  own = 0.5 * (weights + jax.nn.one_hot(index, weights.shape[2]))
  return put(worth, jnp.einsum("bqn,bnm->bqm", own, worth), index)


def _layer(block: Block, x, kept: Slots | None, common: Common, condition, index, size):
  """(the next stream of the tokens at `index`, the slots, the attention of these tokens)."""
  if block.time_input is not None:
    x = x + block.time_input(condition)
  own = branches_of(block, condition)
  h = block.attention_norm(x) * own.scale_a + own.shift_a
  keys = keys_of(block, h, common, index)
  values = block.attention.value(h).reshape(keys.shape)
  if kept is None:
    empty = jnp.zeros((keys.shape[0], size, *keys.shape[2:]), keys.dtype)
    kept = Slots(empty, empty)
  slots = Slots(put(kept.keys, keys, index), put(kept.values, values, index))
  weights = _weights(block, h, slots.keys, common, index)
  out = jnp.einsum("bgrqn,bngk->bqgrk", weights, slots.values.astype(jnp.float32))
  out = out.astype(h.dtype).reshape(*h.shape[:2], -1)
  x = x + own.gate_a * block.attention.out(out)
  h = block.mlp_norm(x) * own.scale_m + own.shift_m
  return x + own.gate_m * block.mlp(h), slots, jnp.mean(weights, axis=(1, 2))


def _weights(block: Block, h, keys, common: Common, index) -> Float[Array, "B G R Q N"]:
  """What each token at `index` attends to, by head."""
  attention, width = block.attention, block.config.sizes.head_width
  q = attention.query(h).reshape(*h.shape[:2], -1, width)
  q = turned(q if attention.query_norm is None else attention.query_norm(q), common, index)
  groups = keys.shape[2]
  q = q.astype(jnp.float32).reshape(*q.shape[:2], groups, -1, width) * width**-0.5
  score = jnp.einsum("bqgrk,bngk->bgrqn", q, keys.astype(jnp.float32))
  layout = jax.tree.map(lambda leaf: at(leaf, index), common.layout)
  mask = visible(layout, common.layout)
  if mask is not None:
    score = jnp.where(mask[:, None, None], score, MASKED)
  return jax.nn.softmax(score, axis=-1)
